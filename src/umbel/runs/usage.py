"""What the process of a run takes of its machine."""

from __future__ import annotations

import os
import time
from pathlib import Path


class ProcessUsage:
    """The processor time and the memory of this process; workers, and nodes, are others."""

    def __init__(self) -> None:
        self._spent = time.process_time()

    def since(self) -> dict[str, float]:
        """``cpu``, the CPU-seconds since this was last asked, and ``rss``, the bytes of memory that are resident now,
        where the system tells (Linux).
        """
        spent, self._spent = self._spent, time.process_time()
        found = {"cpu": round(self._spent - spent, 6)}
        try:
            pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        except OSError:
            return found
        return {**found, "rss": pages * os.sysconf("SC_PAGE_SIZE")}
