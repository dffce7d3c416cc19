"""Where writes are done: in the event loop while they are quick, since a thread's help would cost more than they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Batch = TypeVar("Batch")

QUICK_SECONDS = 0.002
SLOW_FOR = 100
"""After a write that was not quick so many go to a thread."""


class Pace:
    """Does writes, and notes how long they take by `clock`; those are quick that take at most `quick` seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, quick: float = QUICK_SECONDS) -> None:
        self._clock = clock
        self._quick = quick
        self._slow = 1  # the first may have to make files

    async def write(self, write: Callable[[Batch], None], batch: Batch) -> float:
        """Write a batch, here or in a thread, and return the seconds that it took."""
        began = self._clock()
        if self._slow:
            self._slow -= 1
            await asyncio.to_thread(write, batch)
        else:
            write(batch)
        seconds = self._clock() - began
        if seconds > self._quick:
            self._slow = SLOW_FOR
        return seconds
