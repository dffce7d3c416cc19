"""Tasks, one a client of an ask; what happens to them, and what is to be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ClientId


@dataclass(frozen=True, slots=True)
class Task:
    """One client's share of an ask, as it is sent. `id` is ``<ask>.<client>``; `attempt` counts from 1."""

    id: str
    ask: int
    client: ClientId
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: a task has a checked result, which its executor holds."""

    task: str


@dataclass(frozen=True, slots=True)
class AllFinished:
    """Event: all of these have a checked result, in this order."""

    tasks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: a task has no result; `retry` when another attempt may have one. `trace` is the traceback of the client's
    code, where the client is in this process or a worker of it.
    """

    task: str
    reason: str
    retry: bool = False
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Event: time has passed, or the time has come that was asked for."""


@dataclass(frozen=True, slots=True)
class Send:
    """Command: have this task done."""

    task: Task


@dataclass(frozen=True, slots=True)
class Admit:
    """Command: fold the result of this task into this ask, discounted by `factor`."""

    task: str
    ask: int
    staleness: int = 0
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command: this task, or its result, is not wanted any more."""

    task: str
