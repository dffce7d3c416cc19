"""Following a run on a server: the same display as that of a run here, and how it ended."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunFailed, RunInterrupted, TrackingFailed, UmbelError
from ..office.operator import Operator
from ..office.pulling import pull
from ..runs.events import UNREADABLE, RoundCommitted, RunEvent, RunFinished, RunInterruption, RunStarted
from ..runs.history import History
from ..runs.journal import RunLog
from ..runs.past import log_of
from ..runs.schema import event_of
from ..trackers.tracking import Tracking
from .ending import Ending
from .faults import stop_signals, warn
from .progress import progress
from .terminal import stderr


@dataclass
class Followed:
    """What has been heard of a run on a server."""

    server: str
    events: list[RunEvent] = field(default_factory=list)
    senseless: int = 0

    def take(self, record: Mapping[str, Any]) -> RunEvent | None:
        """Take in an event as it came, and return it; None for one that this release does not know."""
        event, senseless = read(record)
        if senseless:
            self.senseless += 1
            if self.senseless == 1:
                warn(f"{senseless}; it is left out, as are others like it")
        if event is not None and event.logged:
            self.events.append(event)
        return event

    def log(self) -> RunLog:
        """The log so far."""
        return log_of(self.events)

    @property
    def ended(self) -> bool:
        """Whether the log says how the run ended."""
        return any(isinstance(event, RunFinished | RunInterruption) for event in self.events)

    def ending(self, why: str | None = None) -> Ending:
        """How the run ended; `why` is what the server says of one whose log does not say it. Raises `RunFailed` where
        it failed, `RunInterrupted` where somebody stopped it.
        """
        run = next((event.run for event in self.events if isinstance(event, RunStarted)), "")
        kinds = RunFinished | RunInterruption
        last = next((event for event in reversed(self.events) if isinstance(event, kinds)), None)
        again = shlex.join(["umbel", "resume", run, "--on", self.server])
        if isinstance(last, RunInterruption):
            raise RunInterrupted("the run was stopped; what it learned is kept", run=run, hint=f"Go on with: {again}")
        if last is None or last.error is not None:
            reason = (why or "its process ended before it was done") if last is None else last.error
            raise RunFailed(f"the run failed: {reason}", run=run, hint=f"When that is mended: {again}")
        history = History([event for event in self.events if isinstance(event, RoundCommitted)])
        on = ["--on", self.server]
        return Ending(
            run=run,
            reason=last.reason,
            history=history,
            seconds=last.seconds,
            model_sha256=last.model_sha256,
            best_round=last.best_round,
            place={"server": self.server},
            commands={"curves": ["umbel", "show", run, *on], "model": ["umbel", "pull", run, *on]},
        )


def read(record: Any) -> tuple[RunEvent | None, str]:
    """The event of a record of a log, or None and why it makes no sense; None also for one of another release."""
    if isinstance(record, Mapping) and record.get("event") == UNREADABLE:
        return None, "an event in the store of the server makes no sense"
    try:
        return event_of(record), ""
    except TypeError as error:
        return None, f"an event of the log makes no sense: {error}"


def follow(office: Operator, run: str, on: str, trackings: Sequence[Tracking] = ()) -> Ending:
    """Show a run until it is over, tell trackers of it, and say how it ended. Ctrl-C stops following, not the run."""
    followed = Followed(on)
    try:
        with stop_signals(), progress(stderr()) as observer, tracked(trackings, office, run):
            for _, record in office.logs(run, lost=lambda error: warn("the server is gone; trying to reach it again")):
                if (event := followed.take(record)) is not None:
                    observer(event)
                    tell(trackings, event, record)
    except KeyboardInterrupt:
        raise RunInterrupted(  # noqa: B904  the exit code is the interrupt's
            "you follow the run no more; it goes on",
            run=run,
            hint="\n".join(
                f"{why}: {shlex.join(['umbel', *words, '--on', on])}"
                for why, words in (("Follow it again", ["logs", run, "-f"]), ("Stop it", ["stop", run]))
            ),
        )
    if followed.ended:
        return followed.ending()
    found = office.call("runs.show", run=run)
    why = why_ended(found)
    if not followed.events:
        raise RunFailed(f"the run {found['status']} before it began: {why or 'the server does not say why'}", run=run)
    return followed.ending(why)


@contextmanager
def tracked(trackings: Sequence[Tracking], office: Operator, run: str) -> Iterator[None]:
    """Have trackers closed, with the final model of a server's run, once it is followed no more."""
    with tempfile.TemporaryDirectory() as place:
        try:
            yield
            if any(tracking.keeps_model for tracking in trackings):
                folder = pulled(office, run, Path(place))
                for tracking in trackings:
                    tracking.folder = folder
        finally:
            for tracking in trackings:
                with _warned(tracking):
                    tracking.close()


def tell(trackings: Sequence[Tracking], event: RunEvent, record: Mapping[str, Any]) -> None:
    """Tell trackers of an event of a server's run, of the time that its record says, if it does."""
    for tracking in trackings:
        with _warned(tracking):
            tracking.catch_up([event], [time_of(record)])


def time_of(record: Mapping[str, Any]) -> float | None:
    """The wall time of an event, where its record has one."""
    at = record.get("at")
    return float(at) if isinstance(at, int | float) else None


@contextmanager
def _warned(tracking: Tracking) -> Iterator[None]:
    try:
        yield
    except TrackingFailed as error:
        warn(f"{tracking.__qualname__}: {error.message}; the run goes on")


def pulled(office: Operator, run: str, folder: Path) -> Path | None:
    """The folder of a server's run, fetched below `folder`; None where it is not to be had, as of a run that a program
    of its own drives.
    """
    try:
        return pull(office, run, folder)[0]
    except UmbelError as error:
        warn(f"the final model is not tracked: {error.message}")
        return None


def why_ended(found: Mapping[str, Any]) -> str:
    """Why a run failed, by what the server says of it; empty where it does not say."""
    ended = found.get("exit")
    if isinstance(ended, Mapping):
        return str(ended.get("error") or ended.get("reason") or ended)
    return str(ended or "")
