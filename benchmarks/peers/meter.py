"""What a side's processes take: seconds a round, CPU-seconds and memory of all of them together.

Linux only: it reads /proc. The processes of a side are those that carry its token in their environment, so that none
escapes by changing its parent. The standard library alone: this runs in every environment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def members(token: str) -> list[int]:
    """The processes whose environment has this token."""
    mark, found = f"PEERS_TOKEN={token}".encode(), []
    for folder in PROC.glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # gone, or somebody else's
    return found


def memory(pids: Iterable[int]) -> int:
    """Bytes of memory that processes hold, pages that they share counted once (PSS)."""
    total = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU-seconds that processes have used, with those of their children that have ended."""
    ticks = 0
    for pid in pids:
        try:
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(fields[place]) for place in (11, 12, 13, 14))  # utime, stime, cutime, cstime
    return ticks / TICKS


class Laps:
    """The rounds of a side, so many in all: `lap` at the end of each, and `report` once they are done.

    The first round does not count: it holds what is done once.
    """

    def __init__(self, rounds: int) -> None:
        self.seconds: list[float] = []
        self._rounds = rounds
        self._done = 0
        self._cpu = 0.0
        self._memory = 0
        self._began = 0.0

    def lap(self) -> None:
        """A round is over."""
        now = time.perf_counter()
        self._done += 1
        if self._done > 1:
            self.seconds.append(now - self._began)
        if self._done == 1:
            self._cpu = -cpu_seconds(self._members())
        elif self._done == self._rounds:
            mine = self._members()  # before they end, which costs as well
            self._cpu += cpu_seconds(mine)
            self._memory = memory(mine)
        self._began = time.perf_counter()

    def report(self, *packages: str, includes: str) -> dict[str, Any]:
        """What the driver wants to know. RuntimeError where rounds are missing."""
        if self._done != self._rounds:
            raise RuntimeError(f"{self._done} of {self._rounds} rounds were done")
        return {
            "seconds": self.seconds,
            "cpu": self._cpu / len(self.seconds),
            "memory": self._memory,
            "versions": {name: _version(name) for name in packages},
            "includes": includes,
        }

    def _members(self) -> list[int]:
        return members(os.environ["PEERS_TOKEN"])


def say(report: dict[str, Any]) -> None:
    """Print a report as the last line of this process."""
    print(json.dumps(report), flush=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
