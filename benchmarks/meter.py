"""What processes take: CPU-seconds, memory, and bytes on the disk and on the loopback; and seconds a round.

Linux only: it reads /proc. The processes of a side are those that carry its token in their environment, and all that
descend from them, so that none escapes by another parent or an environment of its own. The standard library alone:
this runs in every environment.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
TOKEN = "BENCH_TOKEN"
SHARE = 0.05
"""How much of the time looking at memory may take: with many processes it happens less often."""


def members(token: str) -> list[int]:
    """The processes whose environment has this token, and all that descend from them."""
    mark, found, parents = f"{TOKEN}={token}".encode(), set(), {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):  # gone, or somebody else's
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def memory(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes of memory that processes hold, pages that they share counted once (PSS); and what of it is in no file."""
    held = own = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
            fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
            held, own = held + fields["Pss"], own + fields["Anonymous"]
    return held, own


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU-seconds that processes have used, with those of their children that have ended."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(fields[place]) for place in (11, 12, 13, 14))  # utime, stime, cutime, cstime
    return ticks / TICKS


def disk_bytes(folder: Path) -> int:
    """The bytes that were ever written to the device on which a folder is, by anybody; what waits is written first."""
    os.sync()
    device = folder.stat().st_dev
    return int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()[6]) * 512


def loopback_bytes() -> int:
    """The bytes that were ever sent over the loopback, by anybody."""
    lines = (PROC / "net" / "dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[8])


class Watch:
    """The most that the processes of a token held at once: `all` memory (PSS), and `own`, what of it was in no file."""

    def __init__(self, token: str, every: float = 0.2) -> None:
        self.all = self.own = 0
        self._token, self._every = token, every

    def look(self) -> float:
        """Look once; how many seconds to wait until the next look."""
        began = time.perf_counter()
        held, own = memory(members(self._token))
        self.all, self.own = max(self.all, held), max(self.own, own)
        return max(self._every, (time.perf_counter() - began) / SHARE)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look now and then while in the block."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(self.look()):
                pass

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@cache
def _slot(folder: str, pid: int) -> mmap.mmap:
    path = Path(folder) / f"handlers-{pid}"
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 8)


@contextmanager
def handling() -> Iterator[None]:
    """The CPU time of the block is a client's own, and no overhead."""
    began = time.thread_time()
    yield
    slot = _slot(os.environ["BENCH_FOLDER"], os.getpid())
    struct.pack_into("d", slot, 0, struct.unpack_from("d", slot)[0] + time.thread_time() - began)


def handled() -> float:
    """The CPU-seconds that all processes of this side have spent in `handling`."""
    files = Path(os.environ["BENCH_FOLDER"]).glob("handlers-*")
    return float(sum(struct.unpack("d", path.read_bytes())[0] for path in files))


class Laps:
    """The rounds of a side, so many in all: `lap` at the end of each, and `report` once they are done.

    The first round does not count: it holds what is done once.
    """

    def __init__(self, rounds: int) -> None:
        self.seconds: list[float] = []
        self._rounds = rounds
        self._done = 0
        self._cpu = self._handled = 0.0
        self._memory = 0
        self._began = self._start = time.perf_counter()
        self._first = 0.0

    def lap(self) -> None:
        """A round is over."""
        now = time.perf_counter()
        self._done += 1
        if self._done > 1:
            self.seconds.append(now - self._began)
        if self._done == 1:
            self._first = now - self._start
            self._cpu, self._handled = -cpu_seconds(self._members()), -handled()
        elif self._done == self._rounds:
            mine = self._members()  # before they end, which costs as well
            self._cpu, self._handled = self._cpu + cpu_seconds(mine), self._handled + handled()
            self._memory, _ = memory(mine)
        self._began = time.perf_counter()

    def report(self, *packages: str, includes: str) -> dict[str, Any]:
        """What the driver wants to know. RuntimeError where rounds are missing."""
        if self._done != self._rounds:
            raise RuntimeError(f"{self._done} of {self._rounds} rounds were done")
        return {
            "seconds": self.seconds,
            "first": self._first,
            "cpu": self._cpu / len(self.seconds),
            "handled": self._handled / len(self.seconds),
            "memory": self._memory,
            "versions": {name: _version(name) for name in packages},
            "includes": includes,
        }

    def _members(self) -> list[int]:
        return members(os.environ[TOKEN])


def say(report: Any) -> None:
    """Print a report as the last line of this process."""
    print(json.dumps(report), flush=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
