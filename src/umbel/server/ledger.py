"""What a router knows: runs with their asks, tasks and answers, and nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..store.records import Readers, Store
from ..wire import messages as m
from ..wire.bodies import tasks_of
from .signals import Hold, Outbox, RunBegun, RunEnded

ENDED = ("finished", "failed", "stopped")
"""What becomes of runs that nobody goes on with."""
RESTING = 8
"""So many runs that were stopped or have failed are kept in memory; others are read again if they go on."""


def _names(value: Any) -> None:
    if type(value) is not list or not all(type(each) is str for each in value):
        raise TypeError(f"{value!r:.40} is no list of names")


def _object(value: Any) -> None:
    if type(value) is not dict:
        raise TypeError(f"{value!r:.40} is no object")


def _standings(value: Any) -> None:
    _object(value)
    if any(type(each) is not list or len(each) != 2 or type(each[0]) is not str for each in value.values()):
        raise TypeError(f"{value!r:.40} are no standings")


def _submission(value: Any) -> None:
    _object(value)
    _object(value["settings"])
    for part in ("client", "app"):
        if part in value:
            bytes.fromhex(value[part]["sha256"])


def _bounds(value: Any) -> None:
    _object(value)
    _names(value["names"])
    if value["most"] is not None and type(value["most"]) is not int:
        raise TypeError(f"{value['most']!r:.40} is no number of names")


def _or_none(read: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda value: None if value is None else read(value)


def _text(value: Any) -> None:
    if value is None:
        raise TypeError("it has to be there")


READERS: Readers = {
    ("nodes", "name"): _text,
    ("nodes", "status"): _text,
    ("nodes", "clients"): _or_none(_names),
    ("nodes", "capabilities"): _or_none(_object),
    ("nodes", "bounds"): _or_none(_bounds),
    ("tokens", "bounds"): _or_none(_bounds),
    ("runs", "submission"): _or_none(_submission),
    ("runs", "exit"): _or_none(_object),
    ("runs", "members"): _or_none(_standings),
    ("runs", "spec"): _or_none(m.RunSpec.FromString),
    ("asks", "spec"): m.AskSpec.FromString,
    ("tasks", "client"): _text,
    ("tasks", "message"): m.Task.FromString,
    ("answers", "message"): m.Message.FromString,
    ("events", "body"): _text,
}
"""What a server keeps in its columns is read by these: a row where that cannot be done is set aside by the store."""


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

    @property
    def body(self) -> m.Result | m.Partial:
        """What was said."""
        return self.message.result if self.message.HasField("result") else self.message.partial


@dataclass(slots=True)
class AskEntry:
    """An ask that is open: `theirs` are its tasks by node, `own` counts the blobs that its tasks name, by node; `named`
    are the blobs of answers that its run was told of; `unanswered` are tasks without an answer.
    """

    spec: m.AskSpec
    named: set[bytes] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    answers: dict[str, AnswerEntry] = field(default_factory=dict)
    theirs: dict[str, dict[str, TaskEntry]] = field(default_factory=dict)
    own: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    def add(self, task: TaskEntry) -> TaskEntry:
        """Add a task, in the place of an earlier one of its id."""
        id = task.message.task
        self.remove(id)
        self.tasks[id] = task
        self.answer(id, task.answer)
        self.theirs.setdefault(task.node, {})[id] = task
        self.own[task.node, task.message.own.blob.sha256] += 1
        return task

    def answer(self, id: str, answer: str | None) -> TaskEntry:
        """A task has this answer, or none any more."""
        (self.unanswered.add if answer is None else self.unanswered.discard)(id)
        self.tasks[id].answer = answer
        return self.tasks[id]

    def remove(self, id: str) -> TaskEntry | None:
        """Remove a task, and give it, if it is there."""
        task = self.tasks.pop(id, None)
        self.unanswered.discard(id)
        if task is not None:
            del self.theirs[task.node][id]
            if not self.theirs[task.node]:
                del self.theirs[task.node]
            key = (task.node, task.message.own.blob.sha256)
            self.own[key] -= 1
            if not self.own[key]:
                del self.own[key]
        return task


@dataclass(slots=True)
class RunEntry:
    """A run that goes on; `owner` began it, `closed` is its last ask that is over, `log` its last event.

    `wanted` are the clients that its spec names, `mine` those of each node of them: for as long as neither changes.
    `over` is how and when it had ended, for one that has connected again and done nothing since.
    """

    id: str
    spec: m.RunSpec | None = None
    peer: str | None = None
    owner: str = ""
    log: int = 0
    closed: int = -1
    over: tuple[str, float] | None = None
    asks: dict[int, AskEntry] = field(default_factory=dict)
    standings: dict[str, tuple[int, str]] = field(default_factory=dict)
    wanted: tuple[m.RunSpec | None, frozenset[str]] = (None, frozenset())
    mine: dict[str, tuple[tuple[str, ...], m.RunSpec, list[str]]] = field(default_factory=dict)

    def tasks(self) -> Iterator[tuple[AskEntry, TaskEntry]]:
        """All tasks of its open asks."""
        return ((ask, task) for ask in self.asks.values() for task in ask.tasks.values())


@dataclass(slots=True)
class NodeEntry:
    """An approved node: the `clients` that it hosts, those that it has `named`, and why others were `refused`; and what
    it says is its `problem`.
    """

    id: str
    name: str
    peer: str | None = None
    clients: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    seen: float = 0.0
    asks: set[tuple[str, int]] = field(default_factory=set)
    waiting: int = 0
    problem: str = ""


OWNER = "the server above"
"""Whose a relay's runs are there."""


class Ledger:
    """The runs of a server, by id: `runs` are those that go on, `ended` says how and when others ended."""

    def __init__(self, store: Store, out: Outbox) -> None:
        self._store, self._out = store, out
        self.runs: dict[str, RunEntry] = {}
        self.ended: dict[str, tuple[str, float]] = {}
        self._resting: dict[str, RunEntry] = {}
        for row in store.rows("runs"):
            if row["status"] in ENDED:
                self.ended[row["id"]] = (row["status"], row["ended_at"] or 0.0)
            else:
                self.runs[row["id"]] = _restored(store, row)

    # What is known

    def connected(self, run: str) -> bool:
        """Whether a run's process is connected."""
        return run in self.runs and self.runs[run].peer is not None

    def standings(self, run: str) -> dict[str, tuple[int, str]]:
        """Each client's standing in a run, and why it is refused."""
        return dict(self.runs[run].standings) if run in self.runs else {}

    def waiting(self, run: str) -> int:
        """How many tasks of a run wait for an answer."""
        return sum(task.waiting for _, task in self.runs[run].tasks()) if run in self.runs else 0

    def held(self) -> Iterator[Hold]:
        """The blobs that are needed, to be held again after a restart."""
        for run in self._kept():
            if run.spec is not None and run.spec.archive.HasField("blob"):
                yield Hold(run.spec.archive.blob.sha256, f"{run.id}/")
            for id, ask in run.asks.items():
                sent = [ask.spec.model, ask.spec.shared, *(task.message.own for task in ask.tasks.values())]
                for payload in [*sent, *(payload_of(answer.message) for answer in ask.answers.values())]:
                    if payload is not None and payload.HasField("blob"):
                        yield Hold(payload.blob.sha256, f"{run.id}/{id}")

    def stored(self) -> Iterator[tuple[str, m.Blob]]:
        """The blobs of answers, each with the node that it came from."""
        for run in self._kept():
            for answer in [answer for ask in run.asks.values() for answer in ask.answers.values()]:
                payload = payload_of(answer.message)
                if payload is not None and payload.HasField("blob"):
                    yield answer.node, payload.blob

    def _kept(self) -> Iterator[RunEntry]:
        """All runs of which anything is kept."""
        yield from self.runs.values()
        yield from (_restored(self._store, row) for row in self._store.rows("runs") if row["status"] in ENDED[1:])

    # How runs begin and end

    def begin(self, id: str, owner: str, now: float) -> RunEntry:
        """A run that is new, or was over: with the answers that it had then. By a connection alone it does not go on:
        see `goes_on`.
        """
        rows = self._store.rows("runs", id=id)
        run = self._resting.pop(id, None) or (_restored(self._store, rows[0]) if rows else RunEntry(id, owner=owner))
        run.spec = None  # until the run says it: nodes have to hear of it anew
        run.over = self.ended.pop(id, None)
        if run.over is None and rows and rows[0]["status"] in ENDED:
            run.over = (rows[0]["status"], rows[0]["ended_at"] or 0.0)
        self.runs[id] = run
        if run.over is None:
            begun = {} if rows else {"owner": owner, "created_at": now}
            self._store.put("runs", {"id": id, "status": "running", "ended_at": None, **begun})
        return run

    def resumed(self, id: str) -> None:
        """The server itself goes on with a run that was over, as its store says by now."""
        self.ended.pop(id, None)

    def goes_on(self, run: RunEntry) -> None:
        """A run has done something that it had not done before: if it was over, it is not any more."""
        if run.over is not None:
            run.over = None
            self._store.put("runs", {"id": run.id, "status": "running", "ended_at": None})
            self._out.effects.append(RunBegun(run.id))

    def end(self, run: RunEntry, status: str, now: float) -> None:
        """A run is over. One that has not finished may go on, and then gets the answers that there are."""
        members = {client: [m.Standing.Name(s), why] for client, (s, why) in run.standings.items()}  # type: ignore[arg-type]
        self._store.put("runs", {"id": run.id, "status": status, "ended_at": now, "members": members})
        del self.runs[run.id]
        self.ended[run.id] = (status, now)
        if status != "finished":
            self._shed(run)
            run.peer, run.standings = None, {}
            self._resting[run.id] = run
            while len(self._resting) > RESTING:
                del self._resting[next(iter(self._resting))]
        self._out.effects.append(RunEnded(run.id, status))

    def _shed(self, run: RunEntry) -> None:
        """Keep its updates; let go of failures, and of what is still under way."""
        for ask in run.asks.values():
            for answer in list(ask.answers.values()):
                if answer.complete and payload_of(answer.message) is not None:
                    continue
                del ask.answers[answer.id]
                self._store.delete("answers", run=run.id, id=answer.id)
                for name in answer.tasks if answer.complete else ():
                    ask.answer(name, None)


def _restored(store: Store, row: Mapping[str, Any]) -> RunEntry:
    """A run as it is on disk, by its row; none of its tasks is `waiting` yet."""
    run = RunEntry(row["id"], m.RunSpec.FromString(row["spec"]) if row["spec"] else None, owner=row["owner"] or "")
    run.log = max(store.greatest("events", run=run.id), row["log"] or 0)
    run.closed = -1 if row["closed"] is None else row["closed"]
    for row in store.rows("asks", run=run.id):
        run.asks[row["ask"]] = AskEntry(m.AskSpec.FromString(row["spec"]))
    for row in store.rows("tasks", run=run.id):
        if (ask := run.asks.get(row["ask"])) is not None:
            ask.add(TaskEntry(m.Task.FromString(row["message"]), row["node"]))
    for row in store.rows("answers", run=run.id):
        if (ask := run.asks.get(row["ask"])) is not None:
            message = m.Message.FromString(row["message"])
            tasks = tuple(task for task in tasks_of(message) if task in ask.tasks)
            node = ask.tasks[tasks[0]].node if tasks else ""
            answer = ask.answers[row["id"]] = AnswerEntry(row["id"], message, tasks, node)
            ask.named.add(sha_of(answer))
            for task in tasks:
                ask.answer(task, answer.id)
    return run


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
    }
