"""`umbel logs`: what has happened in a run, a line for each event."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, RunFailed
from ..runs.events import (
    AskClosed,
    RoundCommitted,
    RunEvent,
    RunFinished,
    RunInterruption,
    RunResumed,
    RunStarted,
    Waiting,
    Warned,
)
from ..runs.journal import LOG, LogChain
from ..runs.past import find
from ..runs.watch import WORDS, Watch, failure, heading, round_line, warning
from ..wire.names import shown
from .following import read
from .terminal import duration, json_text, plural

PAUSE = 0.2
"""How often the log of a run on this machine is looked at, in seconds."""


def logs(reference: str, folder: Path, *, follow: bool, json: bool) -> None:
    """Print what has happened in a run on this machine, and, to follow it, what happens until it is over. Raises
    `RunFailed` where a run that was followed has failed.
    """
    printer, run = LogPrinter(json), find(reference, folder)
    for record in lines(run.folder / LOG, follow):
        printer.print(record)
    if follow:
        printer.check(run.id)


def lines(path: Path, follow: bool) -> Iterator[dict[str, Any]]:
    """The records of a log; with `follow` also those that come, up to one that says that the run is over. Raises
    `CorruptFile`.
    """
    over, chain = False, LogChain()
    with path.open("rb") as file:
        rest = b""
        while True:
            data = file.readline()
            rest += data
            if rest.endswith(b"\n"):
                try:
                    record = chain.unseal(rest)
                except ValueError as error:
                    raise CorruptFile(f"a line of {path} is damaged: {error}") from error
                rest = b""
                over = record.get("event") in (RunFinished.name, RunInterruption.name)
                yield record
            elif not data:
                if not follow or over:
                    return
                time.sleep(PAUSE)


_PLACES = {RunStarted.name: False, RunResumed.name: False, RunInterruption.name: True, RunFinished.name: True}
"""Whether a run is over with an event."""


class LogPrinter:
    """Prints events as they come: as lines for people, or as they are."""

    def __init__(self, json: bool) -> None:
        self._json = json
        self._watch = Watch()
        self._error: str | None = None
        self.ended = False

    def check(self, run: str, error: str | None = None) -> None:
        """Raise `RunFailed` where the run has failed: by its last event or, where none says how it ended, with this
        `error`.
        """
        if why := self._error if self.ended else error:
            raise RunFailed(f"the run failed: {why}", run=run)

    def print(self, record: Mapping[str, Any]) -> None:
        """Print one."""
        if (place := _PLACES.get(str(record.get("event")))) is not None:
            self.ended, self._error = place, record.get("error")
        if self._json:
            print(json_text(record), flush=True)
            return
        event, senseless = read(record)
        if senseless:
            print(shown(f"left out: {senseless}"), flush=True)
        if event is None:
            return
        self._watch.see(event)
        at = record.get("at")
        stamp = time.strftime("%H:%M:%S  ", time.localtime(at)) if isinstance(at, int | float) else ""
        for text in self._texts(event):
            print(stamp + shown(text), flush=True)

    def _texts(self, event: RunEvent) -> Iterator[str]:
        if isinstance(event, RunStarted | RunResumed | Waiting):
            yield heading(event) or ""
        elif isinstance(event, AskClosed):
            for reason, count, clients in event.failed:
                yield f"round {event.round}, {WORDS.get(event.kind, event.kind)}: {failure(reason, count, clients)}"
        elif isinstance(event, RoundCommitted):
            yield round_line(self._watch, event)
        elif isinstance(event, Warned):
            yield f"warning: {warning(event)}"
        elif isinstance(event, RunInterruption):
            yield f"stopped after round {event.round}"
        elif isinstance(event, RunFinished):
            how = f"failed: {event.error}" if event.error else f"finished ({event.reason})"
            done = f"{plural(event.rounds, 'round')} in {duration(event.seconds)}"
            yield f"{how}, {done}, model {event.model_sha256[:12]}"
