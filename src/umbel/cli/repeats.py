"""Notes that repeat themselves: so many a minute are shown, and then how many were not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..wire.limits import NOTES

SECONDS = 60.0
KINDS = 1000
"""So many kinds of notes are told apart; beyond that they are counted anew."""


class Repeats(logging.Filter):
    """Lets through so many notes of one kind a minute; the next one after that says how many were left out. Notes are
    of one kind where they differ only in what is filled into them. `clock` counts seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a note is shown."""
        now, kind = self._clock(), (record.name, str(record.msg)[:100])
        if len(self._kinds) >= KINDS and kind not in self._kinds:
            self._kinds.clear()
        since = self._kinds.setdefault(kind, [now, 0.0])
        if now - since[0] >= SECONDS:
            left_out = int(since[1]) - NOTES
            since[:] = [now, 0.0]
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out:,} others like it were left out)"
                record.args = ()
        since[1] += 1
        return since[1] <= NOTES
