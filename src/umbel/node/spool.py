"""What a node keeps across its own restart: answers, what it has answered, and the states of its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..store.sqlite import Database


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A task has an answer: a Result message as bytes.

    `digest` is that of the question, `state` what the client leaves; a failure has neither.
    """

    run: str
    ask: int
    client: str
    task: str
    message: bytes
    digest: bytes | None = None
    state: bytes | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The server has the answer to a task."""

    run: str
    task: str


@dataclass(frozen=True, slots=True)
class Settled:
    """An ask is closed: its answers are not wanted any more.

    Which of its states count is decided, and known to all tasks of asks that are newer than `newest`; None where it is
    not known which that are.
    """

    run: str
    ask: int
    newest: int | None


@dataclass(frozen=True, slots=True)
class Advanced:
    """A client gets a task of an ask: states that were settled before that ask was asked go, but for these tasks'."""

    run: str
    client: str
    ask: int
    bases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run is over for good: all of it goes but its name."""

    run: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A record of the node's audit."""

    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unnoted:
    """A record of the node's audit that is kept no more."""

    number: int


Step: TypeAlias = StoredAnswer | Acknowledged | Settled | Advanced | Ended | Noted | Unnoted
Batch: TypeAlias = Sequence[Step]


_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (run TEXT, task TEXT, ask INTEGER, message BLOB, PRIMARY KEY (run, task));
CREATE TABLE IF NOT EXISTS digests (run TEXT, task TEXT, digest BLOB, PRIMARY KEY (run, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states
    (run TEXT, task TEXT, client TEXT, ask INTEGER, settled INTEGER, data BLOB, PRIMARY KEY (run, task));
CREATE TABLE IF NOT EXISTS ended (run TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS audit
    (number INTEGER PRIMARY KEY, at REAL, who TEXT, did TEXT, what TEXT, peer TEXT, before BLOB, seal BLOB);
CREATE INDEX IF NOT EXISTS answers_by_ask ON answers (run, ask);
CREATE INDEX IF NOT EXISTS states_by_ask ON states (run, ask);
CREATE INDEX IF NOT EXISTS states_by_client ON states (run, client);
"""


_NOTED = ("number", "at", "who", "did", "what", "peer", "before", "seal")


class Spool:
    """What a node keeps, in an SQLite file, or in memory without a `path`. Writes are queued by `put`, and on disk once
    a `write` of the batch that has them returns. Raises `StorageError`, or `CorruptFile` where the file is something
    else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._database = Database(
            path,
            _SCHEMA,
            what="what this node keeps",
            mend="Make room or mend the folder, then start the node again.",
            large="Have the clients return less, and keep less in ctx.state.",
            lost="Move the file away and start the node again; answers and client states in it are lost.",
        )
        self._lock = threading.Lock()
        self.crash()

    def crash(self) -> None:
        """Forget what is not written, as a node does that is killed; whatever was taken must not be written then."""
        self._unwritten: list[Step] = []
        self._taken = 0
        self._answered: dict[tuple[str, str], StoredAnswer] = {}
        self._ended = {row[0] for row in self._database.rows("SELECT run FROM ended")}
        self._stateful = set(self._database.rows("SELECT DISTINCT run, client FROM states"))
        # The newest ask of which a digest is kept, and its tasks where all are known: most need not be looked for.
        newest = self._database.rows("SELECT run, max(CAST(task AS INTEGER)) FROM digests GROUP BY run")
        self._newest: dict[str, tuple[int, set[str] | None]] = {run: (ask, None) for run, ask in newest}

    def put(self, step: Step) -> None:
        """Queue a write."""
        with self._lock:
            self._unwritten.append(step)
            if isinstance(step, StoredAnswer):
                self._answered[step.run, step.task] = step
                if step.ask > self._newest.get(step.run, (-1, None))[0]:
                    self._newest[step.run] = (step.ask, set())
                newest, tasks = self._newest[step.run]
                if tasks is not None and step.ask == newest and step.digest is not None:
                    tasks.add(step.task)
                if step.state is not None:
                    self._stateful.add((step.run, step.client))
            elif isinstance(step, Ended):
                self._ended.add(step.run)

    def take(self) -> Batch:
        """All that is queued and was not taken yet; batches have to be written in the order in which they are taken."""
        with self._lock:
            batch = tuple(self._unwritten[self._taken :])
            self._taken = len(self._unwritten)
        return batch

    def write(self, batch: Batch) -> None:
        """Write a batch, all of it or nothing; it is on disk on return. To be called from any one thread at a time.

        Raises `StorageError`; the same batch can then be written again.
        """
        if not batch:
            return
        with self._database.write() as execute:
            for step in batch:
                for query, values in _statements(step):
                    execute(query, values)
        with self._lock:
            del self._unwritten[: len(batch)]
            self._taken -= len(batch)
            for step in batch:
                if isinstance(step, StoredAnswer) and self._answered.get((step.run, step.task)) is step:
                    del self._answered[step.run, step.task]

    def commit(self) -> None:
        """Take and write."""
        self.write(self.take())

    def close(self) -> None:
        """Let go of the file; what is queued is lost."""
        self._database.close()

    def answers(self) -> list[bytes]:
        """The answers that are on disk and not acknowledged, as Result messages, in order of run and task."""
        return [row[0] for row in self._database.rows("SELECT message FROM answers ORDER BY run, task")]

    def runs(self) -> set[str]:
        """The runs of which anything is on disk, without those that ended."""
        query = "SELECT run FROM answers UNION SELECT run FROM digests UNION SELECT run FROM states"
        return {row[0] for row in self._database.rows(query)}

    def digest(self, run: str, task: str) -> bytes | None:
        """The digest of the question that a task has answered; queued ones count."""
        ask, (newest, tasks) = int(task.partition(".")[0]), self._newest.get(run, (-1, None))
        if ask > newest or (ask == newest and tasks is not None and task not in tasks):
            return None
        queued = self._answered.get((run, task))
        if queued is not None and queued.digest:
            return queued.digest
        return self._bytes("SELECT digest FROM digests WHERE run = ? AND task = ?", run, task)

    def state(self, run: str, task: str) -> bytes | None:
        """The state that a task left at its client; queued ones count."""
        queued = self._answered.get((run, task))
        if queued is not None and queued.digest:
            return queued.state
        return self._bytes("SELECT data FROM states WHERE run = ? AND task = ?", run, task)

    def ended(self, run: str) -> bool:
        """Whether a run is over for good; queued ones count."""
        return run in self._ended

    def has_states(self, run: str, client: str) -> bool:
        """Whether tasks have left states at a client, which may be gone by now; queued ones count."""
        return (run, client) in self._stateful

    def noted(self, above: int, did: str | None = None) -> list[dict[str, Any]]:
        """The records of the audit on disk after a number, of one kind where that is said."""
        query = f"SELECT {', '.join(_NOTED)} FROM audit WHERE number > ? AND ? IN (did, '') ORDER BY number"
        return [dict(zip(_NOTED, row, strict=True)) for row in self._database.rows(query, above, did or "")]

    def last_noted(self) -> int:
        """The number of the last record of the audit on disk."""
        return self._database.rows("SELECT max(number) FROM audit")[0][0] or 0

    def _bytes(self, query: str, run: str, task: str) -> bytes | None:
        rows = self._database.rows(query, run, task)
        return rows[0][0] if rows else None


def _statements(step: Step) -> Iterator[tuple[str, tuple[Any, ...]]]:
    match step:
        case StoredAnswer(run, ask, client, task, message, digest, state):
            yield "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (run, task, ask, message)
            if digest is not None:
                yield "INSERT OR IGNORE INTO digests VALUES (?, ?, ?)", (run, task, digest)
            if state is not None:
                yield "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, NULL, ?)", (run, task, client, ask, state)
        case Acknowledged(run, task):
            yield "DELETE FROM answers WHERE run = ? AND task = ?", (run, task)
        case Settled(run, ask, newest):
            yield "DELETE FROM answers WHERE run = ? AND ask = ?", (run, ask)
            if newest is not None:
                yield "UPDATE states SET settled = ? WHERE run = ? AND ask = ?", (newest, run, ask)
        case Advanced(run, client, ask, bases):
            marks = ", ".join("?" * len(bases))
            query = f"DELETE FROM states WHERE run = ? AND client = ? AND settled < ? AND task NOT IN ({marks})"
            yield query, (run, client, ask, *bases)
        case Ended(run):
            for table in ("answers", "digests", "states"):
                yield f"DELETE FROM {table} WHERE run = ?", (run,)
            yield "INSERT OR IGNORE INTO ended VALUES (?)", (run,)
        case Noted(row):
            yield (
                f"INSERT OR REPLACE INTO audit VALUES ({', '.join('?' * len(_NOTED))})",
                tuple(row[name] for name in _NOTED),
            )
        case Unnoted(number):
            yield "DELETE FROM audit WHERE number = ?", (number,)
