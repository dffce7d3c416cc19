"""What a worker is doing just now, in memory that it shares with the main process: a row of words for each worker."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress

from .channel import memory_file

BATCH, PLACE, STEPS, CANCELLED = range(4)
"""The words of a row: the batch in work, the place of the task in it (from 1; 0: none), how often its `ctx.step()` was
called, and, written by the main process, the last batch whose tasks are not wanted any more.
"""
_WORDS = 8  # a cache line each


class Status:
    """The rows of so many workers; `descriptor` and `file` are how a worker finds them."""

    def __init__(self, workers: int, *, named: bool) -> None:
        size = 8 * _WORDS * workers
        self.file = ""
        if named:
            self.descriptor, self.file = tempfile.mkstemp(prefix="umbel-status-")
            os.ftruncate(self.descriptor, size)
        else:
            self.descriptor = memory_file(size)
        self._map = mmap.mmap(self.descriptor, size)
        self._words = memoryview(self._map).cast("Q")

    def row(self, worker: int) -> memoryview:
        """A worker's words."""
        return self._words[worker * _WORDS : (worker + 1) * _WORDS]

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self.descriptor)
        if self.file:
            with suppress(OSError):
                os.unlink(self.file)


def row_of(descriptor: int, worker: int) -> memoryview:
    """A worker's words, as the worker itself sees them."""
    words = memoryview(mmap.mmap(descriptor, 0)).cast("Q")
    return words[worker * _WORDS : (worker + 1) * _WORDS]
