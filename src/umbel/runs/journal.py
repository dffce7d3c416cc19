"""The journal of a run: its event log, checkpoints and recorded answers, in the run's folder; and how to read them
back.

A record is one line of JSON that ends with a hash of the rest and of all lines before. A torn last line is what a crash
leaves, and is dropped; damage anywhere else is a `CorruptFile`. Files are written aside, synced and renamed, and a
record names their hash, so a record never refers to a file that is not whole.

The hashes show where lines were changed, removed, exchanged or put in, and tie each checkpoint to all that led to it.
They have no key: whoever may write all of the folder can write another log anew, as the run itself does, and no key in
its reach would hinder that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import files
from ..core import encoding
from ..core.arrays import Arrays, Stored
from ..core.randomness import Key
from ..core.strategy import State
from ..entropy import SYSTEM
from ..errors import CorruptFile, JournalMissing, StorageError
from ..store.patience import Patience
from .events import AskClosed, RoundCommitted, RunEvent, RunFinished, RunResumed, RunStarted
from .schema import event_of

_LOG = logging.getLogger("umbel.runs")
FORMAT = 5
READ = (3, 4, 5)
"""The formats that this release goes on with."""
LOG = "events.jsonl"
ARRAYS = "arrays"
"""The folder of what is large, models above all, as plain files by their SHA-256."""
SECRET = "secret"
"""The file of what a run draws by that its seed must not tell."""
CHECKPOINTS_LEFT = "The checkpoints beside it can still be used: `umbel run APP --init <checkpoint>`."


class LogChain:
    """The hash of all lines of a log so far, which the next one is sealed with."""

    def __init__(self, before: bytes = b"") -> None:
        self._before = hashlib.sha256(before)
        self._old = True

    def seal(self, record: Mapping[str, Any]) -> bytes:
        """One more record as a line of the log."""
        text = json.dumps(record, separators=(",", ":"), allow_nan=True)
        whole = self._before.copy()
        whole.update(text.encode())
        line = f'{text[:-1]},"hash":"{whole.hexdigest()[:32]}"}}\n'.encode()
        self._before.update(line)
        return line

    def unseal(self, line: bytes) -> dict[str, Any]:
        """The record in the next line. Raises ValueError for one that is not what `seal` wrote after the lines before,
        nor, in front of all of these, what releases with format 3 wrote, whose lines have a CRC-32 each.
        """
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("not a record")
        if self._old and "crc" in record:
            crc = record.pop("crc")
            if _sealed_by_3(record) != line or crc is None:
                raise ValueError("its checksum is wrong")
            self._before.update(line)
            return record
        found = record.pop("hash", None)
        before = self._before.copy()
        if self.seal(record) != line or found is None:
            self._before = before
            raise ValueError("its checksum is wrong")
        self._old = False
        return record


def sealed(records: Iterable[Mapping[str, Any]]) -> bytes:
    """A whole log."""
    return b"".join(map(LogChain().seal, records))


def _sealed_by_3(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"), allow_nan=True)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


@dataclass
class RunLog:
    """What a log says: how the run started, its committed rounds, asks closed since the last of them, and how it
    ended, if it has since it was last gone on with; `resumed_after` is the round after which it was. `times` are the
    wall times of the events, in a run's own log.
    """

    started: RunStarted
    rounds: list[RoundCommitted] = field(default_factory=list)
    pending: list[AskClosed] = field(default_factory=list)
    finished: RunFinished | None = None
    events: list[RunEvent] = field(default_factory=list)
    intact: int = 0
    rounds_wanted: int = 0
    resumed_after: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def round(self) -> int:
        """The last committed round; 0 where there is none."""
        return self.rounds[-1].round if self.rounds else 0


class Journal:
    """The folder of one run, open for writing; without a folder nothing is kept. `patience` is had with a full disk."""

    def __init__(self, folder: Path | None, patience: Patience | None = None) -> None:
        self.folder = folder
        self._patience = patience or Patience(0.0, _LOG.warning)
        self._log: int | None = None
        self._chain: LogChain | None = None
        self._told = False
        self._unsynced: list[Path] = []
        self._named: dict[str, set[str]] = {}
        self._secret: Key | None = None
        if folder is not None:
            with files.writing(folder):
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                (folder / "answers").mkdir(exist_ok=True)
                self._log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if not files.locked(self._log):
                    raise StorageError(
                        f"the run in {folder} is still going on in another process",
                        hint="Wait for it, or stop it first.",
                    )
            except BaseException:
                self.close()
                raise

    @property
    def begun(self) -> bool:
        """Whether it has an event."""
        return self._told if self._log is None else os.fstat(self._log).st_size > 0

    @property
    def secret(self) -> Key:
        """A key of the run's own, of which its seed tells nothing; made when it is first wanted. Raises `StorageError`,
        and `CorruptFile` for one that is none.
        """
        if self._secret is None:
            path = None if self.folder is None else self.folder / SECRET
            if path is not None and path.exists():
                with files.reading(path):
                    raw = path.read_bytes()
            else:
                raw = SYSTEM.words(4).tobytes()
                if path is not None:
                    self._patience(_write_secret, path, raw)
            if len(raw) != 32:
                raise CorruptFile(f"{path} is not what the run wrote: a secret has 32 bytes, and it has {len(raw)}")
            self._secret = Key(raw)
        return self._secret

    def append(self, event: RunEvent, *, at: float, durable: bool = False) -> None:
        """Append an event, with the wall time `at`; `durable` waits until it is on the disk. Raises `StorageError`."""
        if self._log is None or self.folder is None or not event.logged:
            self._told |= event.logged
            return
        self._patience(self._append, self.folder / LOG, self._log, {**event.record(), "at": round(at, 3)}, durable)

    def _append(self, path: Path, log: int, record: dict[str, Any], durable: bool) -> None:
        with files.writing(path):
            if self._chain is None:
                self._chain = LogChain(path.read_bytes())
            line = self._chain.seal(record)
            before = os.fstat(log).st_size
            try:
                written = os.write(log, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(log)
            except OSError:
                self._chain = None
                os.ftruncate(log, before)
                raise

    def save(self, name: str, tree: Any, *, durable: bool = False) -> dict[str, str] | None:
        """Write a tree to a file of the run and return its name and hash. Raises `StorageError`; an older file stays
        whole.

        `durable` waits until it is on the disk, and so are the files beside it that were written before.
        """
        if self.folder is None:
            return None
        path = self.folder / name
        return self._patience(self._save, path, name, tree, durable)

    def kept(self, tree: Any) -> Any:
        """A tree, or a state, whose computed arrays are kept in files of the run, or in memory where there are none."""
        if isinstance(tree, Arrays) and tree.is_computed:
            if self.folder is None:
                return Arrays(dict(tree.items()), tree.roles)
            found = finder(self.folder)(self._patience(self._write, tree, False))
            chosen = found.select(tree)
            chosen.stored = found.stored
            return chosen
        if isinstance(tree, State):
            return tree.replace(**self.kept(tree.parts()))
        return {name: self.kept(part) for name, part in tree.items()} if type(tree) is dict else tree

    def _save(self, path: Path, name: str, tree: Any, durable: bool) -> dict[str, str]:
        if durable:
            assert self.folder is not None
            arrays = self.folder / ARRAYS  # what the files beside it name
            files.sync(beside for beside in self._unsynced if beside.parent in (path.parent, arrays))
            self._unsynced = [other for other in self._unsynced if other.parent not in (path.parent, arrays)]
            if arrays.exists():
                with files.writing(arrays):
                    files.sync_folder(arrays)
        else:
            self._unsynced.append(path)
        named: set[str] = set()

        def keep(arrays: Arrays) -> str | None:
            if arrays.nbytes < files.LARGE:
                return None
            named.add(sha256 := self._write(arrays, durable))
            return sha256

        sha256, _ = encoding.save_file(path, tree, durable=durable, keep=keep)
        self._named[name] = named
        return {"file": name, "sha256": sha256}

    def _write(self, arrays: Arrays, durable: bool) -> str:
        """Have arrays in a file of the run, and give its hash: what a file holds already is not written again."""
        assert self.folder is not None
        folder, stored = self.folder / ARRAYS, arrays.stored
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        place = folder if stored is None else place_of(self.folder, stored.sha256)
        if stored is None or stored.path != place or not place.exists():
            aside = folder / "new"
            with files.writing(aside):
                aside.unlink(missing_ok=True)
            if stored is None or not files.linked(stored.path, aside):
                # What it takes the place of may be on the disk already.
                stored = Stored(place, *arrays.to_file(aside, durable=stored is not None))
            place = place_of(self.folder, stored.sha256)
            with files.writing(place):  # what is there by this name may be what a loss of power has left
                os.replace(aside, place)
                aside.unlink(missing_ok=True)  # another name of the same file
            arrays.stored = stored = stored._replace(path=place)
        if durable:
            files.sync([place])
            with files.writing(folder):
                files.sync_folder(folder)
        else:
            self._unsynced.append(place)
        return stored.sha256

    def mapped(self, reference: Mapping[str, str] | None, tree: Any) -> Any:
        """A tree that was just saved, as it is in its file: where that is large, its arrays need no memory of their
        own from then on, and are read-only. The tree itself where it is small or was kept nowhere.
        """
        if reference is None or self.folder is None:
            return tree
        path = self.folder / reference["file"]
        if not self._named[reference["file"]] and not files.is_large(path):
            return tree
        return encoding.load_file(path, finder(self.folder))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, how the run ended in one small file."""
        if self.folder is not None:
            data = (json.dumps(summary, indent=2) + "\n").encode()
            self._patience(write_whole, self.folder / "summary.json", data)

    def load(self, reference: Mapping[str, str]) -> Any:
        """Read a file of the run that `save` wrote. Raises `CorruptFile`."""
        assert self.folder is not None
        try:
            return load_checked(self.folder, reference)
        except CorruptFile as error:
            error.hint = error.hint or CHECKPOINTS_LEFT
            raise

    def clear_answers(self) -> None:
        """Remove recorded answers, once the round that they belong to is committed."""
        if self.folder is not None:
            self._unsynced.clear()
            for path in (self.folder / "answers").iterdir():
                path.unlink(missing_ok=True)

    def _collect(self) -> None:
        """Remove the arrays that no file names any more."""
        assert self.folder is not None
        kept = list((self.folder / ARRAYS).glob("*.safetensors")) if (self.folder / ARRAYS).exists() else []
        there = [*self.folder.glob("*.safetensors"), *self.folder.glob("*/*.safetensors")] if kept else []
        names = {path.relative_to(self.folder).as_posix(): path for path in there if path.parent.name != ARRAYS}
        try:
            self._named = {
                name: self._named[name] if name in self._named else encoding.named_files(path)
                for name, path in names.items()
            }
        except CorruptFile:
            return  # nobody knows what an old checkpoint named that was damaged since
        needed = set().union(*self._named.values())
        for path in kept:
            if path.stem not in needed:
                path.unlink(missing_ok=True)

    def keep_checkpoints(self, names: Iterable[str]) -> None:
        """Remove all checkpoints but these."""
        if self.folder is not None:
            kept, folder = set(names), self.folder / "checkpoints"
            for name in os.listdir(folder) if folder.exists() else ():
                if name.startswith("round-") and name.endswith(".safetensors") and f"checkpoints/{name}" not in kept:
                    (folder / name).unlink(missing_ok=True)
            self._collect()

    def truncate(self, size: int) -> None:
        """Drop what follows the intact records of the log."""
        if self._log is not None:
            os.ftruncate(self._log, size)
            self._chain = None

    def close(self) -> None:
        """Let go of the log."""
        log, self._log = self._log, None
        if log is not None:
            os.close(log)


def has_log(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    path = folder / LOG
    return path.is_file() and path.stat().st_size > 0


def read_log(folder: Path) -> RunLog:
    """Read a run's log. A torn last line is left out; damage before it raises `CorruptFile`, a missing log
    `JournalMissing`.
    """
    path = folder / LOG
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise JournalMissing(
            f"there is no run in {folder}: it has no {LOG}", hint="`umbel runs` lists the runs."
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    events: list[RunEvent] = []
    times: list[float] = []
    intact, chain = 0, LogChain()
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = chain.unseal(line + b"\n")
            events.append(_event(record))
            times.append(record.get("at", 0.0))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) - 1 and not lines[-1]:
                break  # a power cut can leave the last line whole in length, and wrong
            what = f"line {number} of {path} is damaged: {error}"
            first = events[0] if events else None
            if isinstance(first, RunStarted) and first.format not in READ and not isinstance(error, ValueError):
                # The line is whole, and not what this release writes.
                what = f"{path} has format {first.format}; this release reads {READ[0]} to {FORMAT}"
            raise CorruptFile(what, hint=CHECKPOINTS_LEFT) from error
        intact += len(line) + 1
    if not events or not isinstance(events[0], RunStarted):
        raise CorruptFile(f"{path} does not begin with the start of a run", hint="Start the run again.")
    return replace(sorted_out(events, events[0], intact), times=times)


def sorted_out(events: list[RunEvent], started: RunStarted, intact: int = 0) -> RunLog:
    """What the events of a log say."""
    history = RunLog(started, events=events, intact=intact)
    for event in events:
        if isinstance(event, RoundCommitted):
            history.rounds.append(event)
            history.pending.clear()
        elif isinstance(event, AskClosed):
            if any(before.ask == event.ask for before in history.pending):  # it was done again, with what follows it
                history.pending = [before for before in history.pending if before.ask < event.ask]
            history.pending.append(event)
        elif isinstance(event, RunFinished):
            history.finished = event
        elif isinstance(event, RunResumed):
            history.rounds_wanted = max(history.rounds_wanted, event.rounds)
            history.finished, history.resumed_after = None, event.round
    return history


def _event(record: dict[str, Any]) -> RunEvent:
    if (event := event_of(record)) is None:
        raise TypeError(f"there is no event {record['event']!r:.60}")
    return event


def load_checked(folder: Path, reference: Mapping[str, str]) -> Any:
    """Read a file that a record names, and check its hash; the arrays of a large one are read-only views of the file.
    Raises `CorruptFile`.
    """
    path = folder / reference["file"]
    try:
        large = files.is_large(path)
        data = files.mapped(path) if large else path.read_bytes()
    except OSError as error:
        raise CorruptFile(f"{path} is missing or cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        raise CorruptFile(f"{path} is not what the run wrote: its hash differs from the log's")
    return encoding.decode(data, views=large, find=finder(folder, check=True))


def place_of(folder: Path, sha256: str) -> Path:
    """Where the file of a run's folder is that has this hash."""
    return folder / ARRAYS / f"{sha256}.safetensors"


def finder(folder: Path, *, check: bool = False) -> Callable[[str], Arrays]:
    """What finds the arrays of a run's folder by the hash of their file, and may `check` it. Raises `CorruptFile`."""

    def find(sha256: str) -> Arrays:
        path = place_of(folder, sha256)
        try:
            data = files.mapped(path)
        except OSError as error:
            raise CorruptFile(f"{path} is missing or cannot be read: {error.strerror}") from error
        if check and hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptFile(f"{path} is not what the run wrote: its hash is not its name")
        found = Arrays.from_bytes(data)
        found.stored = Stored(path, sha256, len(data))
        return found

    return find


def _write_secret(path: Path, raw: bytes) -> None:
    write_whole(path, raw)
    with files.writing(path):
        path.chmod(0o600)


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is either all there or not there. Raises `StorageError`."""
    files.write_pieces(path, (data,), durable=durable)
