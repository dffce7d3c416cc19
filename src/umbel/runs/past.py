"""Runs that were: find one in a folder, open it, remove it; what it comes to is read from its folder alone."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from html import escape
from pathlib import Path

from .. import files
from ..core.arrays import Arrays
from ..errors import CorruptFile, JournalMissing, SettingError
from .events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed, RunStarted
from .history import History
from .journal import LOG, Journal, RunLog, load_checked, read_log, sorted_out
from .run import RUNS, Result
from .words import duration, plural

LAST = "last"


@dataclass(frozen=True)
class PastRun:
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
        return max(self.log.started.rounds, self.log.rounds_wanted, self.log.round)

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
    def error(self) -> str | None:
        """Why it failed, or could not begin, if it did."""
        finished = self.log.finished
        return finished.error if finished is not None and self.state != "unfinished" else None

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it is, by what that is called."""
        return {"folder": str(self.folder)}

    def model(self, round: int | None = None) -> tuple[Arrays, int]:
        """The model after a round (0: the initial one), by default the result's, and which round that is.

        Raises `SettingError` for a round whose model is not kept, `CorruptFile` for a file that is not what was
        written.
        """
        if round == 0 or (round is None and not self.log.rounds):
            started = self.log.started
            if started.model_file is None:
                raise CorruptFile(f"{self.folder} has no initial model")
            tree = load_checked(self.folder, {"file": started.model_file, "sha256": started.model_sha256})
            return tree["state"]["model"], 0
        kept = [r for r in self.log.rounds if r.checkpoint and (self.folder / r.checkpoint["file"]).exists()]
        chosen = self.result if round is None else next((event for event in kept if event.round == round), None)
        if chosen is None:
            listed = ", ".join(str(event.round) for event in kept) or "none"
            raise SettingError(f"the model of round {round} is not kept", hint=f"Rounds whose models are: 0, {listed}.")
        assert chosen.checkpoint is not None
        model = load_checked(self.folder, chosen.checkpoint)["state"].model
        assert isinstance(model, Arrays)
        return model, chosen.round

    def _repr_html_(self) -> str:
        done = f"{self.log.round} of {plural(self.rounds_asked, 'round')}"
        head = f"<b>{escape(self.id)}</b> {escape(self.state)}, {done} in {duration(self.seconds)}"
        return f"{head}<br>{History(self.log.rounds)._repr_html_()}"

    def remove(self) -> None:
        """Remove its folder, for good. Raises `StorageError` where the run goes on in another process."""
        with closing(Journal(self.folder)), files.writing(self.folder):
            gone = self.folder.with_name(f".{self.id}.gone")  # at once it is no run any more
            os.replace(self.folder, gone)
            shutil.rmtree(gone)


def open(reference: str | Path = LAST, folder: str | Path = RUNS) -> Result:
    """Open a run of the past as what `run` gave: its model, history, clients and why it ended.

    `reference` is ``"last"``, the path of a run's folder, an id, or a part of one that no other run in `folder` has.
    The app is not needed. A run that is going on, or was killed, has the reason ``"unfinished"`` and what it has
    learned so far. Raises `JournalMissing`, `SettingError` or `CorruptFile`.
    """
    found = find(str(reference), Path(folder))
    log = found.log
    return Result(
        run=found.id,
        model=found.model()[0],
        history=History(log.rounds),
        reason={"finished": "rounds"}.get(found.state, found.state),
        seconds=found.seconds,
        folder=found.folder,
        best_round=found.best_round,
        failed=found.error,
    )


@dataclass(frozen=True)
class FetchedRun(PastRun):
    """A run on a server, whose log has been fetched."""

    heard: RunLog | None = None
    status: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str, log: RunLog, status: str, about: Mapping[str, str]) -> FetchedRun:
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


def past_runs(folder: Path) -> list[PastRun]:
    """All runs in a folder, the one that was last active at the end; where a log is empty, none has begun."""
    if not folder.is_dir():
        return []
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))  # else it is being removed
    found = [PastRun(path) for path in shown if (path / LOG).is_file() and (path / LOG).stat().st_size]
    return sorted(found, key=lambda record: (record.touched, record.id))


def find(reference: str, folder: Path) -> PastRun:
    """The run that `reference` means: `last`, the path of a run's folder, an id, or the beginning or another part of an
    id that no other run has. Raises `JournalMissing` for none, `SettingError` for several.
    """
    if not reference:  # as of a shell's variable that is not set: part of every id
        raise SettingError("a run is named by no text at all", hint="`umbel runs` lists them; `last` is the last.")
    path = Path(reference)
    if (path / LOG).is_file():
        return PastRun(path.resolve())
    known = past_runs(folder)
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


def _last(known: Sequence[PastRun], folder: Path) -> PastRun:
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
    return log.round >= max(log.started.rounds, log.rounds_wanted, rounds or 0)
