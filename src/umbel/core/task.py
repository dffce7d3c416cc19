"""Tasks, one a client of an ask; what happens to them, and what is to be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ClientId


class Task(NamedTuple):
    """One client's share of an ask, as it is sent. `id` is ``<ask>.<client>``; `attempt` counts from 1."""

    id: str
    ask: int
    client: ClientId
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: these tasks have a checked result, in this order, which their executor holds."""

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
    """Command: have these tasks done."""

    tasks: list[Task]


@dataclass(frozen=True, slots=True)
class Admit:
    """Command: fold the results of these tasks into this ask, discounted by `factor`."""

    tasks: list[str]
    ask: int
    staleness: int = 0
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command: these tasks, or their results, are not wanted any more."""

    tasks: list[str]
