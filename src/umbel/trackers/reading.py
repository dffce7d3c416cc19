"""Reading a run's events for a tracker: the same whether they come one by one or long after the run."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptFile, JournalMissing
from ..runs.events import AskClosed, RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed, RunStarted
from ..runs.history import History
from ..runs.past import LAST, PastRun, find
from ..runs.receipts import QUANTILES, quantiles_of
from ..runs.run import RUNS
from .tracker import Point, RoundPoints, Tracker, tracker_of

MOST_CLIENTS = 100
"""Clients of larger asks have no numbers of their own, but quantiles of all."""
MOST_POINTS = 2000
"""So many numbers are written as soon as they are there."""
PAUSE = 1.0
"""Seconds after which fewer are written."""


class Reader:
    """Tells a tracker of a run by its events. What the tracker raises comes through, and what it was to write is kept
    for the next time.

    `folder` is where the final model is, if it is here; by default where the events say. `clock` counts seconds.
    """

    def __init__(
        self,
        tracker: Tracker,
        folder: Path | None = None,
        *,
        local: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._tracker = tracker
        self._draws = type(tracker).picture is not Tracker.picture
        self._local = local and folder is None
        self._clock = clock
        self._written = -1
        self._begun = self._failing = False
        self._flushed = -math.inf  # what cannot be reached is to be known at once
        self._started: RunStarted | None = None
        self._run = ""
        self._spent = 0.0
        self._asks: dict[int, list[Point]] = {}
        self._rounds: list[RoundCommitted] = []
        self._waiting: list[RoundPoints] = []
        self._reason: tuple[str, str | None] = ("unfinished", None)

    def read(self, event: RunEvent, at: float | None) -> None:
        """Take in the next event of the log, of the wall time `at`. Where there is none, as in a server's log, the time
        is that of the run's beginning, as its id has it, and of its rounds since.
        """
        if isinstance(event, RunStarted):
            self._started, self._run = event, event.run
            self._moved(event.folder)
        elif isinstance(event, RunResumed):
            self._reason, self._run = ("unfinished", None), event.run
            self._moved(event.changed.get("folder", ["", ""])[1])
        elif isinstance(event, AskClosed):
            self._asks = {ask: points for ask, points in self._asks.items() if ask < event.ask}  # else done again
            self._asks[event.ask] = list(_of_clients(event))
        elif isinstance(event, RoundCommitted):
            self._rounds.append(event)
            of_clients = [point for points in self._asks.values() for point in points]
            self._asks.clear()
            self._spent += event.seconds
            at = at or _beginning(self._run) + self._spent
            points = {(point.name, point.client): point for point in (*_of_round(event), *of_clients)}
            self._waiting.append(RoundPoints(event.round, at, [*points.values()]))  # of two asks the last counts
            due = not self._failing and sum(len(each.points) for each in self._waiting) >= MOST_POINTS
            if due or self._clock() - self._flushed >= PAUSE:
                self.flush()
        elif isinstance(event, RunInterruption):
            self._reason = ("interrupted", None)
        elif isinstance(event, RunFinished):
            self._reason = (event.reason, event.error)

    def flush(self) -> None:
        """Have the tracker write what waits."""
        self._failing = True
        try:
            self._write()
            self._failing = False
        finally:
            self._flushed = self._clock()  # the time that it took, to no avail perhaps, is no reason to hurry

    def _write(self) -> None:
        if not self._begun and self._run:
            self._written = self._tracker.begin(self._run, settings_of(self._started) if self._started else {})
            self._begun = True
            if self._draws:
                with suppress(ImportError):  # while the run goes on, so that its end need not wait for it
                    import_module("umbel.core.figure")
        new = [each for each in self._waiting if each.round > self._written]
        if new:
            self._tracker.write(new)
            self._written = new[-1].round
        self._waiting.clear()

    def close(self) -> None:
        """The run is over, or nobody tells of it any more: write the rest, the picture and the model, and end. What
        raises first is raised, once all else is done.
        """
        if not self._run:
            return
        first: Exception | None = None
        for work in (self.flush, self._picture, self._model, lambda: self._tracker.end(*self._reason)):
            try:
                work()
            except Exception as error:
                first = first or error
                if not self._begun:
                    break
        if first is not None:
            raise first

    def _moved(self, folder: str) -> None:
        if self._local and folder:
            self.folder = Path(folder)

    def _picture(self) -> None:
        history = History(self._rounds)
        if not history.names or not self._draws:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "metrics.png"
            try:
                history.plot(path, title=self._run, failed=self._reason[0] == "failed")
            except ImportError:  # a run can be tracked without matplotlib
                return
            self._tracker.picture(path)

    def _model(self) -> None:
        if self.folder is None or not self._rounds or not self._tracker.keeps_model:
            return
        try:
            model, _ = PastRun(self.folder).model()
        except (CorruptFile, JournalMissing, OSError):  # it was removed meanwhile
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            model.to_file(path)
            self._tracker.model(path)


def _beginning(run: str) -> float:
    try:
        return PastRun(Path(run)).began.timestamp()
    except OSError:  # it says nothing of that
        return 0.0


def read_run(tracker: Tracker | str, reference: str | Path = LAST, folder: str | Path = RUNS) -> None:
    """Tell a tracker of a run of the past, which `reference` names as for `umbel.open`: the same as it would have been
    told while the run went on, but for what it has already.
    """
    record = find(str(reference), Path(folder))
    reader = Reader(tracker_of(tracker), record.folder)
    for event, at in zip(record.log.events, record.log.times, strict=True):
        reader.read(event, at)
    reader.close()


def settings_of(started: RunStarted) -> dict[str, Any]:
    """Everything that a run began with, as plain values by name."""
    said = {**started.record(), "settings": {**started.settings, "set": " ".join(started.settings.get("set", ()))}}
    chosen = ("strategy", "seed", "rounds", "clients", "app", "settings", "software", "federation")
    found = dict(_flat({name: said[name] for name in chosen}))
    return {name.removeprefix("settings."): value for name, value in found.items()}


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{above}{name}", value
        elif value is not None and name != "members":
            yield f"{above}{name}", str(value)


def _of_round(event: RoundCommitted) -> Iterator[Point]:
    for part in ("train", "evaluate", "test"):
        for name, value in getattr(event, part).items():
            yield Point(f"{part}.{name}", value)
    system = {"seconds": event.seconds, "clients": event.clients, "dropped": event.dropped, **event.account}
    if event.clock is not None:
        system["clock"] = event.clock
    for name, value in system.items():
        if value or name in ("seconds", "clients", "dropped"):
            yield Point(f"system.{name}", float(value))


def _of_clients(event: AskClosed) -> Iterator[Point]:
    names = event.clients.get("client", ())
    columns = {**event.clients.get("metrics", {}), "seconds": event.clients.get("seconds", ())}
    spread = {name.removeprefix("metrics."): row for name, row in event.spread.items()}
    for metric, column in columns.items():
        known = [(client, value) for client, value in zip(names, column, strict=False) if value is not None]
        if len(names) > MOST_CLIENTS:
            values = np.array([value for _, value in known], np.float64)
            spread[metric] = quantiles_of(values, [client for client, _ in known])
            continue
        for client, value in known:
            if not math.isnan(value):
                yield Point(f"{event.kind}.{metric}", float(value), client)
    for metric, row in spread.items():
        for quantile in ("least", *QUANTILES, "greatest"):
            if quantile in row:
                yield Point(f"{event.kind}.{metric}.{quantile}", float(row[quantile]))
