"""The journal of a run: its event log, checkpoints and recorded answers, in the run's folder; and how to read them
back.

A record is one line of JSON that ends with the CRC-32 of the rest. A torn last line is what a crash leaves, and is
dropped; damage anywhere else is a `CorruptFile`. Files are written aside, synced and renamed, and a record names their
hash, so a record never refers to a file that is not whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..core import encoding
from ..errors import CorruptFile, JournalMissing, StorageError
from ..store.patience import Patience
from .events import EVENTS, AskClosed, RoundCommitted, RunEvent, RunFinished, RunResumed, RunStarted

_LOG = logging.getLogger("umbel.runs")
FORMAT = 3
LOG = "events.jsonl"
CHECKPOINTS_LEFT = "The checkpoints beside it can still be used: `umbel run APP --init <checkpoint>`."


def seal(record: Mapping[str, Any]) -> bytes:
    """One record as a line of the log."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=True)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def unseal(line: bytes) -> dict[str, Any]:
    """The record in a line of the log. Raises ValueError for a line that is not what `seal` wrote."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a record")
    crc = record.pop("crc", None)
    if seal(record) != line or crc is None:
        raise ValueError("its checksum is wrong")
    return record


@dataclass
class RunLog:
    """What a log says: how the run started, its committed rounds, asks closed since the last of them, and how it
    ended, if it has since it was last gone on with; `resumed_after` is the round after which it was.
    """

    started: RunStarted
    rounds: list[RoundCommitted] = field(default_factory=list)
    pending: list[AskClosed] = field(default_factory=list)
    finished: RunFinished | None = None
    events: list[RunEvent] = field(default_factory=list)
    intact: int = 0
    rounds_wanted: int = 0
    resumed_after: int = 0


class Journal:
    """The folder of one run, open for writing; without a folder nothing is kept. `patience` is had with a full disk."""

    def __init__(self, folder: Path | None, patience: Patience | None = None) -> None:
        self.folder = folder
        self._patience = patience or Patience(0.0, _LOG.warning)
        self._log: int | None = None
        self._told = False
        self._unsynced: list[Path] = []
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

    def append(self, event: RunEvent, *, at: float, durable: bool = False) -> None:
        """Append an event, with the wall time `at`; `durable` waits until it is on the disk. Raises `StorageError`."""
        if self._log is None or self.folder is None or not event.logged:
            self._told |= event.logged
            return
        self._patience(
            self._append, self.folder / LOG, self._log, seal({**event.record(), "at": round(at, 3)}), durable
        )

    @staticmethod
    def _append(path: Path, log: int, line: bytes, durable: bool) -> None:
        with files.writing(path):
            before = os.fstat(log).st_size
            try:
                written = os.write(log, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(log)
            except OSError:
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

    def _save(self, path: Path, name: str, tree: Any, durable: bool) -> dict[str, str]:
        if durable:
            files.sync(beside for beside in self._unsynced if beside.parent == path.parent)
            self._unsynced = [other for other in self._unsynced if other.parent != path.parent]
        else:
            self._unsynced.append(path)
        sha256, _ = encoding.save_file(path, tree, durable=durable)
        return {"file": name, "sha256": sha256}

    def mapped(self, reference: Mapping[str, str] | None, tree: Any) -> Any:
        """A tree that was just saved, as it is in its file: where that is large, its arrays need no memory of their
        own from then on, and are read-only. The tree itself where it is small or was kept nowhere.
        """
        if reference is None or self.folder is None or not files.is_large(self.folder / reference["file"]):
            return tree
        return encoding.load_file(self.folder / reference["file"])

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

    def keep_checkpoints(self, names: Iterable[str]) -> None:
        """Remove all checkpoints but these."""
        if self.folder is not None:
            kept = set(names)
            for path in (self.folder / "checkpoints").glob("round-*.safetensors"):
                if f"checkpoints/{path.name}" not in kept:
                    path.unlink(missing_ok=True)

    def truncate(self, size: int) -> None:
        """Drop what follows the intact records of the log."""
        if self._log is not None:
            os.ftruncate(self._log, size)

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
    intact = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            events.append(_event(unseal(line + b"\n")))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) - 1 and not lines[-1]:
                break  # a power cut can leave the last line whole in length, and wrong
            what = f"line {number} of {path} is damaged: {error}"
            first = events[0] if events else None
            if isinstance(first, RunStarted) and first.format != FORMAT and not isinstance(error, ValueError):
                # The line is whole, and not what this release writes.
                what = f"{path} has format {first.format}; this release reads {FORMAT}"
            raise CorruptFile(what, hint=CHECKPOINTS_LEFT) from error
        intact += len(line) + 1
    if not events or not isinstance(events[0], RunStarted):
        raise CorruptFile(f"{path} does not begin with the start of a run", hint="Start the run again.")
    return sorted_out(events, events[0], intact)


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
    record.pop("at", None)
    return EVENTS[record.pop("event")](**record)


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
    return encoding.decode(data, views=large)


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is either all there or not there. Raises `StorageError`."""
    files.write_pieces(path, (data,), durable=durable)
