"""What a router knows: runs with their asks, tasks and answers, nodes, and who is connected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
class TaskEntry:
    """A task, who has it, and the id of its answer; `waiting` while it counts for its node's mailbox."""

    message: m.Task
    node: str
    answer: str | None = None
    waiting: bool = False


@dataclass(slots=True)
class AnswerEntry:
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
class AskEntry:
    """An ask that is open."""

    spec: m.AskSpec
    cancelled: set[str] = field(default_factory=set)
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    answers: dict[str, AnswerEntry] = field(default_factory=dict)


@dataclass(slots=True)
class RunEntry:
    """A run that goes on; `closed` is its last ask that is over, `log` its last event.

    `over` is how and when it had ended, for one that has connected again and done nothing since.
    """

    id: str
    spec: m.RunSpec | None = None
    peer: str | None = None
    log: int = 0
    closed: int = -1
    over: tuple[str, float] | None = None
    asks: dict[int, AskEntry] = field(default_factory=dict)
    standings: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(slots=True)
class NodeEntry:
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
class PeerEntry:
    """A connection."""

    role: str
    id: str


def restored(store: Records, row: Mapping[str, Any]) -> RunEntry:
    """A run as it is on disk, by its row; none of its tasks is `waiting` yet."""
    run = RunEntry(row["id"], m.RunSpec.FromString(row["spec"]) if row["spec"] else None)
    run.log = store.greatest("events", run=run.id)
    run.closed = -1 if row["closed"] is None else row["closed"]
    for row in store.rows("asks", run=run.id):
        run.asks[row["ask"]] = AskEntry(m.AskSpec.FromString(row["spec"]))
    for row in store.rows("tasks", run=run.id):
        if (ask := run.asks.get(row["ask"])) is not None:
            ask.tasks[row["task"]] = TaskEntry(m.Task.FromString(row["message"]), row["node"], row["answer"])
    for row in store.rows("answers", run=run.id):
        if (ask := run.asks.get(row["ask"])) is not None:
            message = m.Message.FromString(row["message"])
            tasks = tuple(id for id, task in ask.tasks.items() if task.answer == row["id"])
            node = ask.tasks[tasks[0]].node if tasks else ""
            ask.answers[row["id"]] = AnswerEntry(row["id"], message, tasks, node)
    return run


def blobs_of(run: RunEntry) -> Iterator[tuple[m.Blob, str]]:
    """The blobs that a run needs, each with its owner: the run, or one of its asks."""
    if run.spec is not None and run.spec.archive.HasField("blob"):
        yield run.spec.archive.blob, f"{run.id}/"
    for id, ask in run.asks.items():
        sent = [ask.spec.model, ask.spec.shared, *(task.message.own for task in ask.tasks.values())]
        for payload in [*sent, *(payload_of(answer.message) for answer in ask.answers.values())]:
            if payload is not None and payload.HasField("blob"):
                yield payload.blob, f"{run.id}/{id}"


def shed(store: Records, run: RunEntry) -> None:
    """Of a run that is over but may go on: keep its updates; let go of failures, and of what is still under way."""
    for ask in run.asks.values():
        for answer in list(ask.answers.values()):
            if answer.complete and payload_of(answer.message) is not None:
                continue
            del ask.answers[answer.id]
            store.delete("answers", run=run.id, id=answer.id)
            for name in answer.tasks if answer.complete else ():
                ask.tasks[name].answer = None
                store.put("tasks", {"run": run.id, "task": name, "answer": None})


def payload_of(message: m.Message) -> m.Payload | None:
    """Where an answer's arrays are."""
    if message.WhichOneof("body") == "partial":
        return message.partial.partial
    return message.result.done.update if message.result.HasField("done") else None


def sha_of(answer: AnswerEntry) -> bytes:
    """The hash of an answer's blob; empty where it has none."""
    payload = payload_of(answer.message)
    return b"" if payload is None else payload.blob.sha256


def ask_of(task: str) -> int:
    """The ask that a task belongs to, by its id; -1 where the id is none."""
    head = task.partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else -1


def attempt_of(answer: AnswerEntry) -> int:
    """Which attempt at a task has given an answer; 0 for a partial."""
    return answer.message.result.attempt if answer.message.WhichOneof("body") == "result" else 0


def task_row(run: RunEntry, task: TaskEntry) -> dict[str, Any]:
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
