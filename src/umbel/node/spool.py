"""What a node keeps across its own restart: answers, what it has answered, and the states of its clients."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..errors import CorruptFile, StorageError


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


Step: TypeAlias = StoredAnswer | Acknowledged | Settled | Advanced | Ended
Batch: TypeAlias = Sequence[Step]


class Spool(Protocol):
    """What a node keeps. Writes are queued by `put`, and on disk once a `write` of the batch that has them returns."""

    def put(self, step: Step) -> None:
        """Queue a write."""

    def take(self) -> Batch:
        """All that is queued and was not taken yet; batches have to be written in the order in which they are taken."""

    def write(self, batch: Batch) -> None:
        """Write a batch, all of it or nothing; it is on disk on return. To be called from any one thread at a time.

        Raises `StorageError`; the same batch can then be written again.
        """

    def commit(self) -> None:
        """Take and write."""

    def close(self) -> None:
        """Let go of the file; what is queued is lost."""

    def answers(self) -> list[bytes]:
        """The answers that are on disk and not acknowledged, as Result messages, in order of run and task."""

    def runs(self) -> set[str]:
        """The runs of which anything is on disk, without those that ended."""

    def digest(self, run: str, task: str) -> bytes | None:
        """The digest of the question that a task has answered; queued ones count."""

    def state(self, run: str, task: str) -> bytes | None:
        """The state that a task left at its client; queued ones count."""

    def ended(self, run: str) -> bool:
        """Whether a run is over for good; queued ones count."""


class _Queue(ABC):
    """The writes that are queued or under way, in order, and what they hold that is looked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unwritten: list[Step] = []
        self._taken = 0
        self._answered: dict[tuple[str, str], StoredAnswer] = {}
        self._ending: set[str] = set()

    def put(self, step: Step) -> None:
        with self._lock:
            self._unwritten.append(step)
            if isinstance(step, StoredAnswer):
                self._answered[step.run, step.task] = step
            elif isinstance(step, Ended):
                self._ending.add(step.run)

    def take(self) -> Batch:
        with self._lock:
            batch = tuple(self._unwritten[self._taken :])
            self._taken = len(self._unwritten)
        return batch

    def write(self, batch: Batch) -> None:
        self._write(batch)
        with self._lock:
            del self._unwritten[: len(batch)]
            self._taken -= len(batch)
            for step in batch:
                if isinstance(step, StoredAnswer) and self._answered.get((step.run, step.task)) is step:
                    del self._answered[step.run, step.task]

    def commit(self) -> None:
        self.write(self.take())

    def digest(self, run: str, task: str) -> bytes | None:
        queued = self._answered.get((run, task))
        return queued.digest if queued is not None and queued.digest else self._digest(run, task)

    def state(self, run: str, task: str) -> bytes | None:
        queued = self._answered.get((run, task))
        return queued.state if queued is not None and queued.digest else self._state(run, task)

    def ended(self, run: str) -> bool:
        return run in self._ending or self._ended(run)

    @abstractmethod
    def _write(self, batch: Batch) -> None: ...

    @abstractmethod
    def _digest(self, run: str, task: str) -> bytes | None: ...

    @abstractmethod
    def _state(self, run: str, task: str) -> bytes | None: ...

    @abstractmethod
    def _ended(self, run: str) -> bool: ...


@dataclass(slots=True)
class _State:
    client: str
    ask: int
    data: bytes
    settled: int | None = None


@dataclass(slots=True)
class _Disk:
    answers: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    digests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    states: dict[tuple[str, str], _State] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


class MemorySpool(_Queue):
    """A spool for tests: what would be on disk is in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._disk = _Disk()

    def crash(self) -> None:
        """Forget what was not written, as a node does that is killed; whatever was taken must not be written then."""
        self._unwritten, self._taken, self._answered, self._ending = [], 0, {}, set()

    def close(self) -> None:
        self.crash()

    def answers(self) -> list[bytes]:
        return [message for _, (_, message) in sorted(self._disk.answers.items())]

    def runs(self) -> set[str]:
        return {run for kept in (self._disk.answers, self._disk.digests, self._disk.states) for run, _ in kept}

    def _digest(self, run: str, task: str) -> bytes | None:
        return self._disk.digests.get((run, task))

    def _state(self, run: str, task: str) -> bytes | None:
        found = self._disk.states.get((run, task))
        return found.data if found else None

    def _ended(self, run: str) -> bool:
        return run in self._disk.ended

    def _write(self, batch: Batch) -> None:
        disk = self._disk
        for step in batch:
            match step:
                case StoredAnswer(run, ask, client, task, message, digest, state):
                    disk.answers[run, task] = (ask, message)
                    if digest is not None:
                        disk.digests.setdefault((run, task), digest)
                    if state is not None:
                        disk.states[run, task] = _State(client, ask, state)
                case Acknowledged(run, task):
                    disk.answers.pop((run, task), None)
                case Settled(run, ask, newest):
                    disk.answers = {k: kept for k, kept in disk.answers.items() if (k[0], kept[0]) != (run, ask)}
                    for (of, _), kept in disk.states.items() if newest is not None else ():
                        if (of, kept.ask) == (run, ask):
                            kept.settled = newest
                case Advanced():
                    disk.states = {k: kept for k, kept in disk.states.items() if not _outdated(k, kept, step)}
                case Ended(run):
                    disk.answers = {k: kept for k, kept in disk.answers.items() if k[0] != run}
                    disk.digests = {k: digest for k, digest in disk.digests.items() if k[0] != run}
                    disk.states = {k: kept for k, kept in disk.states.items() if k[0] != run}
                    disk.ended.add(run)


def _outdated(key: tuple[str, str], state: _State, step: Advanced) -> bool:
    mine = (key[0], state.client) == (step.run, step.client) and key[1] not in step.bases
    return mine and state.settled is not None and state.settled < step.ask


_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (run TEXT, task TEXT, ask INTEGER, message BLOB, PRIMARY KEY (run, task));
CREATE TABLE IF NOT EXISTS digests (run TEXT, task TEXT, digest BLOB, PRIMARY KEY (run, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states
    (run TEXT, task TEXT, client TEXT, ask INTEGER, settled INTEGER, data BLOB, PRIMARY KEY (run, task));
CREATE TABLE IF NOT EXISTS ended (run TEXT PRIMARY KEY);
CREATE INDEX IF NOT EXISTS answers_by_ask ON answers (run, ask);
CREATE INDEX IF NOT EXISTS states_by_ask ON states (run, ask);
CREATE INDEX IF NOT EXISTS states_by_client ON states (run, client);
"""


class SqliteSpool(_Queue):
    """A spool in an SQLite file. Raises `StorageError`, or `CorruptFile` where the file is something else."""

    def __init__(self, path: Path) -> None:
        import sqlite3

        super().__init__()
        self._path = path
        with self._explained("opened"):
            # One connection writes, from whichever thread; the other reads meanwhile what was written before.
            self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("read"):
                self._writer.execute("PRAGMA journal_mode=WAL")
                self._writer.execute("PRAGMA synchronous=FULL")
                self._writer.executescript(_SCHEMA)
                self._reader = sqlite3.connect(path, isolation_level=None)
        except BaseException:
            self._writer.close()
            raise

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def answers(self) -> list[bytes]:
        return [row[0] for row in self._rows("SELECT message FROM answers ORDER BY run, task")]

    def runs(self) -> set[str]:
        return {
            row[0]
            for row in self._rows("SELECT run FROM answers UNION SELECT run FROM digests UNION SELECT run FROM states")
        }

    def _digest(self, run: str, task: str) -> bytes | None:
        rows = self._rows("SELECT digest FROM digests WHERE run = ? AND task = ?", run, task)
        return rows[0][0] if rows else None

    def _state(self, run: str, task: str) -> bytes | None:
        rows = self._rows("SELECT data FROM states WHERE run = ? AND task = ?", run, task)
        return rows[0][0] if rows else None

    def _ended(self, run: str) -> bool:
        return bool(self._rows("SELECT 1 FROM ended WHERE run = ?", run))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._explained("read"):
            return self._reader.execute(query, values).fetchall()

    def _write(self, batch: Batch) -> None:
        if not batch:
            return
        with self._explained("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            for step in batch:
                for query, values in _statements(step):
                    self._writer.execute(query, values)

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        import sqlite3  # here, because loading it would be a tenth of `import umbel`

        try:
            yield
        except sqlite3.DatabaseError as error:
            told = f"what this node keeps in {self._path} cannot be {done}: {error}"
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(told, hint="Make room or mend the folder, then start the node again.") from error
            hint = "Move the file away and start the node again; answers and client states in it are lost."
            raise CorruptFile(told, hint=hint) from error


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
