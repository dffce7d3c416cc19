"""How far runs are, by their logs: kept as events come, and beside them in the store."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, get_type_hints

from ..errors import ProtocolError
from ..runs.events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed, RunStarted
from ..runs.schema import fits
from ..store.records import Row, Store
from .fields import event_in

PARTS = ("test", "evaluate", "train")
MOST_METRICS = 600
LONGEST_NAME = 300
UNWRITTEN = 16
"""So many rounds of a run that goes on are kept in memory: those that may not be on disk yet."""
CHUNK = 64
"""So many events are read from the store at once."""

_LOG = logging.getLogger("umbel.server")


@dataclass
class Summary:
    """How far a run is: `bytes` is what its log takes, `full` whether it has taken more than it may; `ending` is how
    the run ended by its last event. `best` are the metrics of the `best_round`, `unread` counts events in the store
    that make no sense.
    """

    rounds: int = 0
    asked: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    best_round: int | None = None
    best: dict[str, float | None] = field(default_factory=dict)
    ending: str | None = None
    full: bool = False
    unread: int = 0
    bytes: int = 0


class Summaries:
    """For each run how many rounds it has done, how many it is to have, and its metrics: the newest, or those of the
    round that it ended with as the best. Nothing is read twice: what an event changes is written with the event.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Summary] = {}
        self._last: dict[str, deque[RoundCommitted]] = {}

    def of(self, run: str) -> dict[str, Any]:
        """A run's ``{"rounds", "asked", "metrics", "best_round"}``; metrics that are not finite are None."""
        known = self.known(run)
        metrics = known.metrics if known.best_round is None else known.best
        return {
            "rounds": known.rounds,
            "asked": max(known.asked, known.rounds),
            "metrics": dict(metrics),
            "best_round": known.best_round,
        }

    def known(self, run: str) -> Summary:
        """How far a run is; to be read only."""
        found = self._known.get(run)
        if found is None:
            rows = self._store.rows("runs", id=run)
            found = _restored(rows[0]) if rows else None
            if found is None:
                found = self._read(run)
                if rows:
                    self._write(run, found, whole=True)
            self._known[run] = found
        return found

    def take(self, run: str, event: RunEvent | None, size: int) -> None:
        """An event has come, whose `size` in the log is 0 where it is not kept."""
        known = self.known(run)
        known.bytes += size
        if isinstance(event, RoundCommitted):
            self._last.setdefault(run, deque(maxlen=UNWRITTEN)).append(event)
        self._write(run, known, whole=_changed(known, event, lambda best: self._best(run, best)))
        if known.ending is not None:
            self._last.pop(run, None)

    def filled(self, run: str) -> None:
        """A run's log takes nothing more."""
        self.known(run).full = True
        self._write(run, self.known(run), whole=True)

    def _write(self, run: str, known: Summary, *, whole: bool) -> None:
        row: Row = {"id": run, "logged": known.bytes}
        if whole:
            row["summary"] = asdict(known)
        self._store.put("runs", row)

    def _best(self, run: str, best: int) -> dict[str, float | None] | None:
        """The metrics of a round; None where the log does not tell them."""
        for last in self._last.get(run, ()):
            if last.round == best:
                return _metrics(last)
        for row in self._store.rows("events", run=run, round=best, limit=1):
            event = _event(row)
            return _metrics(event) if isinstance(event, RoundCommitted) else None
        return None

    def _read(self, run: str) -> Summary:
        """A run that has no summary yet, by its events."""
        known, metrics, after = Summary(), dict[int, dict[str, float | None]](), 0
        while rows := self._store.rows("events", above=after, limit=CHUNK, run=run):
            for row in rows:
                after, event = row["number"], _event(row)
                known.bytes += len(row["body"].encode(errors="replace"))
                known.unread += event is None and not _is_sound(row)
                if isinstance(event, RoundCommitted):
                    metrics[event.round] = _metrics(event)
                _changed(known, event, metrics.get)
        if known.unread:
            _LOG.warning("%d events of run %s make no sense, and are left out", known.unread, run)
        return known


def _restored(row: Mapping[str, Any]) -> Summary | None:
    """The summary of a run as it was written; None where it was not, or makes no sense."""
    kept = row["summary"]
    hints = get_type_hints(Summary)
    if type(kept) is not dict or kept.keys() != hints.keys():
        return None
    if not all(fits(hint)(kept[name]) for name, hint in hints.items()):
        return None
    return Summary(**{**kept, "bytes": row["logged"] or 0})


def _changed(known: Summary, event: RunEvent | None, best: Any) -> bool:
    """Take in an event; true where it changes anything. `best` gives the metrics of a round."""
    before = known.ending
    known.ending = None
    if isinstance(event, RunStarted | RunResumed):
        known.asked = max(known.asked, event.rounds)
        known.best_round = None
    elif isinstance(event, RoundCommitted):
        known.rounds = event.round
        known.metrics.update(_metrics(event))
        known.metrics = dict(islice(known.metrics.items(), MOST_METRICS))
    elif isinstance(event, RunInterruption):
        known.ending = "stopped"
    elif isinstance(event, RunFinished):
        known.ending = "failed" if event.error is not None else "finished"
        if event.best_round is not None and (metrics := best(event.best_round)) is not None:
            known.best_round, known.best = event.best_round, metrics
    else:
        return before is not None
    return True


def _event(row: Row) -> RunEvent | None:
    """The event of a row; None for one that makes no sense, or that this release does not know."""
    try:
        return event_in(row["body"])
    except ProtocolError:
        return None


def _is_sound(row: Row) -> bool:
    try:
        event_in(row["body"])
    except ProtocolError:
        return False
    return True


def _metrics(event: RoundCommitted) -> dict[str, float | None]:
    found = {
        f"{part}.{name}"[:LONGEST_NAME]: value if math.isfinite(value) else None
        for part in PARTS
        for name, value in getattr(event, part).items()
    }
    return dict(islice(found.items(), MOST_METRICS))
