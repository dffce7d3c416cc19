"""The runs in a folder: find one, and say what its log says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from ..errors import CorruptFile, JournalMissing, SettingError
from ..runs.events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed, RunStarted
from ..runs.journal import LOG, RunLog, read_log, sorted_out

LAST = "last"


@dataclass(frozen=True)
class RunRecord:
    """A run's folder; its log is read when it is asked for, and raises `CorruptFile` where it is damaged."""

    folder: Path

    @property
    def id(self) -> str:
        """The run's id."""
        return self.folder.name

    @cached_property
    def log(self) -> RunLog:
        """What the log says."""
        return read_log(self.folder)

    @property
    def touched(self) -> int:
        """When the log last grew, in nanoseconds."""
        return (self.folder / LOG).stat().st_mtime_ns

    @property
    def began(self) -> datetime:
        """When the run began: its id says."""
        found = re.search(r"(\d{8}-\d{6})-[0-9a-f]+$", self.id)
        if found:
            try:
                return datetime.strptime(found[1], "%Y%m%d-%H%M%S")
            except ValueError:
                pass
        return datetime.fromtimestamp(self.touched / 1e9)

    @property
    def rounds_asked(self) -> int:
        """How many rounds the run is to have."""
        return max(self.log.started.rounds, self.log.rounds_wanted, len(self.log.rounds))

    @property
    def state(self) -> str:
        """`finished`, `early stop`, `failed`, `refused` (it could not begin), `interrupted`, or `unfinished`: it is
        running, or was killed.
        """
        kinds = (RunStarted, RunResumed, RunInterruption, RunFinished)
        last = next(event for event in reversed(self.log.events) if isinstance(event, kinds))
        if isinstance(last, RunFinished):
            return {"rounds": "finished"}.get(last.reason, last.reason)
        return "interrupted" if isinstance(last, RunInterruption) else "unfinished"

    @property
    def seconds(self) -> float:
        """How long its rounds took."""
        return sum(event.seconds for event in self.log.rounds)

    @property
    def best_round(self) -> int | None:
        """The round whose model is the result, where the run is over and says that it is the best."""
        finished = self.log.finished
        return finished.best_round if finished is not None and self.state != "unfinished" else None

    @property
    def result(self) -> RoundCommitted | None:
        """The round whose model is the result: the best where the run says so, or else the last."""
        fitting = [event for event in self.log.rounds if self.best_round in (None, event.round)]
        return fitting[-1] if fitting else None

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it is, by what that is called."""
        return {"folder": str(self.folder)}


@dataclass(frozen=True)
class RemoteRecord(RunRecord):
    """A run on a server, whose log has been fetched."""

    heard: RunLog | None = None
    status: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str, log: RunLog, status: str, about: Mapping[str, str]) -> RemoteRecord:
        """The record of a run by its id, log and status; `about` says where it is, and so on."""
        return cls(Path(run), log, status, about)

    @property
    def log(self) -> RunLog:
        """What the log says."""
        assert self.heard is not None
        return self.heard

    @property
    def state(self) -> str:
        """As the log has it; what the server says where the log does not."""
        found = super().state
        return self.status if found == "unfinished" else found

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it is, by what that is called."""
        return self.about


def log_of(events: Sequence[RunEvent]) -> RunLog:
    """A run's log by its events. Raises `CorruptFile` where they do not begin with the start of a run."""
    if not events or not isinstance(events[0], RunStarted):
        raise CorruptFile("the log does not begin with the start of a run")
    return sorted_out(list(events), events[0])


def records(folder: Path) -> list[RunRecord]:
    """All runs in a folder, the one that was last active at the end; where a log is empty, none has begun."""
    if not folder.is_dir():
        return []
    found = [RunRecord(path) for path in folder.iterdir() if (path / LOG).is_file() and (path / LOG).stat().st_size]
    return sorted(found, key=lambda record: (record.touched, record.id))


def find(reference: str, folder: Path) -> RunRecord:
    """The run that `reference` means: `last`, the path of a run's folder, an id, or the beginning or another part of an
    id that no other run has. Raises `JournalMissing` for none, `SettingError` for several.
    """
    path = Path(reference)
    if (path / LOG).is_file():
        return RunRecord(path.resolve())
    known = records(folder)
    if not known:
        raise JournalMissing(f"there are no runs in {folder}", hint="--folder DIR says where else to look.")
    if reference == LAST:
        return _last(known, folder)
    ids = {record.id: record for record in known}
    if reference in ids:
        return ids[reference]
    fitting = [id for id in ids if id.startswith(reference)] or [id for id in ids if reference in id]
    if len(fitting) == 1:
        return ids[fitting[0]]
    if fitting:
        listed = "\n".join(fitting[-8:])
        raise SettingError(f"{reference} may mean {len(fitting)} runs", hint=f"Type more of one of these:\n{listed}")
    close = difflib.get_close_matches(reference, ids, n=3)
    guess = f"Did you mean {' or '.join(close)}?" if close else f"`umbel runs` lists them; the last is {known[-1].id}."
    raise JournalMissing(f"there is no run {reference} in {folder}", hint=guess)


def _last(known: Sequence[RunRecord], folder: Path) -> RunRecord:
    """The run that was last active, of those that have begun. Raises `JournalMissing` where none has."""
    for record in reversed(known):
        try:
            if record.state != "refused":
                return record
        except CorruptFile:
            return record
    finished = known[-1].log.finished
    why = finished.error if finished is not None else ""
    raise JournalMissing(
        f"no run in {folder} could begin; the last, {known[-1].id}, was refused: {why}",
        hint=f"Mend that and run it again. `umbel show {known[-1].id}` shows it all the same.",
    )


def is_over(log: RunLog, rounds: int | None) -> bool:
    """Whether nothing is left to do of a run that is to have so many rounds."""
    if log.finished is None or log.finished.error is not None:
        return False
    return len(log.rounds) >= max(log.started.rounds, log.rounds_wanted, rounds or 0)
