"""How far a comparison is, told line by line."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from ..runs.events import RoundCommitted, RunEvent

EVERY = 10.0
"""A run that goes on is told of after so many seconds, and again."""


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts the runs of a comparison or a sweep, and says how long the others may take, by those that were run now."""

    def __init__(
        self, runs: int, tell: Callable[[str], None] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.runs = runs
        self.count = 0
        self._tell = tell
        self._clock = clock
        self._fresh: list[float] = []
        self._began = self._said = clock()

    def watch(self, title: str, rounds: int) -> Callable[[RunEvent], None]:
        """An observer of the run that begins now, and is to have so many rounds."""
        self._began = self._said = self._clock()

        def observe(event: RunEvent) -> None:
            now = self._clock()
            if self._tell is not None and isinstance(event, RoundCommitted) and now - self._said >= EVERY:
                self._said = now
                self._tell(f"{self._head(title)}: round {event.round} of {rounds}")

        return observe

    def done(self, title: str, what: str, fresh: bool) -> None:
        """A run is done, or was done before."""
        head = self._head(title)
        self.count += 1
        if fresh:
            self._fresh.append(self._clock() - self._began)
        if self._tell is None or not fresh:
            return
        left = (self.runs - self.count) * sum(self._fresh) / len(self._fresh)
        self._tell(f"{head}: {what} ({self._fresh[-1]:.1f} s; {lasting(left)} left)")

    def _head(self, title: str) -> str:
        return f"[{self.count + 1}/{self.runs}] {title}"


def outcome_said(score: float, failed: str | None) -> str:
    """What came of a run, in short."""
    return f"failed: {failed:.100}" if failed else "no score" if math.isnan(score) else f"{score:.4g}"


def lasting(seconds: float) -> str:
    """A time in the unit that reads well."""
    for unit, size, least in (("h", 3600.0, 5400.0), ("min", 60.0, 90.0)):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
