"""Measuring: CPU-seconds in alternation, fresh processes, their peak memory, and the table of what came out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Row:
    """One line of the table. `beside` names what it is compared with, and what else was seen; `holds` is None where
    nothing was measured.
    """

    what: str
    measured: str
    bar: str
    holds: bool | None
    beside: str = ""

    @property
    def verdict(self) -> str:
        """Whether the bar is held."""
        return "not measured" if self.holds is None else "holds" if self.holds else "MISSED"


@dataclass(frozen=True)
class Child:
    """What a fresh process printed on its last line, and the seconds from its start to its end."""

    said: Any
    cpu: float
    wall: float


def alternate(*sides: Callable[[], object], times: int) -> list[list[float]]:
    """Process CPU-seconds, all threads, of each side at each of `times` alternations; every second one runs backwards.

    All sides are run once before that counts.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    order = list(range(len(sides)))
    for side in sides:
        side()
    for _ in range(times):
        for which in order:
            before = time.process_time()
            sides[which]()
            seconds[which].append(time.process_time() - before)
        order.reverse()
    return seconds


def over(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios within the alternations."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def beyond(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the differences within the alternations."""
    return median(a - b for a, b in zip(ours, theirs, strict=True))


def child(code: str, *arguments: str) -> Child:
    """Run code in a fresh Python process that has one thread for arrays. RuntimeError, with what it said, if it
    fails.
    """
    path = os.pathsep.join([str(_package_root()), str(ROOT)])
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process would compile all modules anew
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"a process of the benchmark failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    lines = done.stdout.strip().splitlines()
    try:
        return Child(json.loads(lines[-1]), cpu, wall)
    except (IndexError, ValueError):
        return Child(done.stdout, cpu, wall)


def peak_memory() -> int:
    """Bytes of memory that this process has held at most.

    Not getrusage, where Linux has better: its figure starts from what the parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def family() -> dict[int, float]:
    """The CPU-seconds that this process and all that descend from it have had each; Linux only."""
    parents, seconds = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(status.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: seconds.get(pid, 0.0) for pid in found}


def resident() -> dict[int, int]:
    """Bytes that this process and all that descend from it hold each, shared pages shared out (PSS); Linux only."""
    held = {}
    for pid in family():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        held[pid] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return held


def memory_of_all() -> int:
    """Bytes that this process and all that descend from it hold together; 0 where the system does not say."""
    return sum(resident().values()) if Path("/proc/self/smaps_rollup").exists() else 0


def machine() -> str:
    """What this was measured on."""
    facts = [f"{os.cpu_count()} cores", platform.machine(), platform.system(), f"Python {platform.python_version()}"]
    for package in ("numpy", "torch"):
        try:
            facts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            facts.append(f"no {package}")
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), None)
    return ", ".join([model, *facts] if model else facts)


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows as aligned text, each with what is beside it on a line of its own, or as a table in Markdown."""
    heads = ("what", "measured", "bar", "verdict", "beside")
    cells = [heads, *((r.what, r.measured, r.bar, r.verdict, r.beside) for r in rows)]
    if markdown:
        ruled = [heads, ("---",) * len(heads), *cells[1:]]
        return "\n".join(f"| {' | '.join(row)} |" for row in ruled)
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = []
    for row in cells:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
        if row is heads:
            lines.append("  ".join("-" * width for width in widths))
        elif row[4]:
            lines.append(f"    {row[4]}")
    return "\n".join(lines)


def _package_root() -> Path:
    import umbel

    return Path(umbel.__file__).resolve().parent.parent
