"""What a router knows: runs with their asks, tasks and answers, nodes, and who is connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..wire import messages as m


class Records(Protocol):
    """The store, as far as a router needs it."""

    def rows(self, table: str, /, **where: Any) -> list[dict[str, Any]]:
        """What is on disk."""

    def greatest(self, table: str, /, **where: Any) -> int:
        """The highest number among rows."""

    def put(self, table: str, row: Mapping[str, Any], /) -> None:
        """Keep a row."""

    def delete(self, table: str, /, **where: Any) -> None:
        """Remove rows."""


@dataclass(slots=True)
class Task:
    """A task, who has it, and the id of its answer; `waiting` while it counts for its node's mailbox."""

    message: m.Task
    node: str
    answer: str | None = None
    waiting: bool = False


@dataclass(slots=True)
class Answer:
    """What came for some tasks from a node; not `complete` as long as its blob is on the way, over the connection of
    this `peer`.
    """

    id: str
    message: m.Message
    tasks: tuple[str, ...]
    node: str
    complete: bool = True
    peer: str | None = None


@dataclass(slots=True)
class Ask:
    """An ask that is open."""

    spec: m.AskSpec
    cancelled: set[str] = field(default_factory=set)
    tasks: dict[str, Task] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """A run that goes on; `closed` is its last ask that is over, `log` its last event.

    `over` is how and when it had ended, for one that has connected again and done nothing since.
    """

    id: str
    spec: m.RunSpec | None = None
    peer: str | None = None
    log: int = 0
    closed: int = -1
    over: tuple[str, float] | None = None
    asks: dict[int, Ask] = field(default_factory=dict)
    standings: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """An approved node: the `clients` that it hosts, and those that it has `named`."""

    id: str
    name: str
    peer: str | None = None
    clients: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    seen: float = 0.0
    asks: set[tuple[str, int]] = field(default_factory=set)
    waiting: int = 0


@dataclass(slots=True)
class Peer:
    """A connection."""

    role: str
    id: str


def payload_of(message: m.Message) -> m.Payload | None:
    """Where an answer's arrays are."""
    if message.WhichOneof("body") == "partial":
        return message.partial.partial
    return message.result.done.update if message.result.HasField("done") else None


def sha_of(answer: Answer) -> bytes:
    """The hash of an answer's blob; empty where it has none."""
    payload = payload_of(answer.message)
    return b"" if payload is None else payload.blob.sha256


def ask_of(task: str) -> int:
    """The ask that a task belongs to, by its id; -1 where the id is none."""
    head = task.partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else -1


def attempt_of(answer: Answer) -> int:
    """Which attempt at a task has given an answer; 0 for a partial."""
    return answer.message.result.attempt if answer.message.WhichOneof("body") == "result" else 0


def task_row(run: Run, task: Task) -> dict[str, Any]:
    """A task as the store has it."""
    message = task.message
    return {
        "run": run.id,
        "task": message.task,
        "ask": message.ask,
        "client": message.client,
        "node": task.node,
        "attempt": message.attempt,
        "message": message.SerializeToString(),
        "answer": task.answer,
    }
