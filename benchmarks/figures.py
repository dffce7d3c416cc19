"""What was measured, beside what bounds it: rows with their spread and verdict, and sides that take turns."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 500
"""So much is shown of why a side failed."""
FEWEST = 3
"""Of fewer turns nobody knows the spread."""
VOID = "A smoke test (--quick): these figures say nothing."
HEADS = ("what", "bar", "measured", "verdict", "Umbel", "limit", "peer")

T = TypeVar("T")


def turns(sides: Mapping[str, Callable[[], T]], times: int) -> dict[str, list[T | None]]:
    """What each side gave in each of so many turns, every second one backwards; None where it failed, which is said."""
    found: dict[str, list[T | None]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(times):
        for name in order:
            began = time.perf_counter()
            try:
                found[name].append(sides[name]())
                told = ""
            except (RuntimeError, AssertionError, OSError) as error:
                found[name].append(None)
                told = f": {str(error)[-LONGEST:]}"
            print(f"  {name}, {time.perf_counter() - began:.1f} s{told}", file=sys.stderr)
        order.reverse()
    return found


def spread(values: Sequence[float]) -> float | None:
    """How far the middle half of the values reaches; None for too few."""
    if len(values) < FEWEST:
        return None
    first, _, third = quantiles(values, n=4, method="inclusive")
    return third - first


@dataclass(frozen=True)
class Row:
    """One thing that was measured, a value a turn; `limit` and `peer` are of the same turns, None where one failed.

    `judged` says what is held to the bar: `value` ours, `over` ours over the limit, `beyond` ours less the limit,
    `peer` ours over the peer's. No bar is held where it is None.
    """

    name: str
    what: str
    unit: str
    bar: float | None
    ours: Sequence[float | None]
    limit: Sequence[float | None] = ()
    peer: Sequence[float | None] = ()
    limit_is: str = ""
    peer_is: str = ""
    judged: str = "value"
    at_least: bool = False
    beside: str = ""

    @property
    def values(self) -> list[float]:
        """What is judged, of each turn in which all came to their ends."""
        other = {"over": self.limit, "beyond": self.limit, "peer": self.peer}.get(self.judged)
        if other is None:
            return [value for value in self.ours if value is not None]
        both = [(a, b) for a, b in zip(self.ours, other, strict=False) if a is not None and b is not None]
        return [a - b if self.judged == "beyond" else a / b for a, b in both if b or self.judged == "beyond"]

    @property
    def verdict(self) -> str:
        """Whether the bar is held; `noisy` where the spread is larger than what lies between the median and the bar,
        `FAILED` where Umbel did not come to its end in a turn.
        """
        if None in self.ours:
            return "FAILED"
        values = self.values
        if not values:
            return "not measured"
        if self.bar is None:
            return "-"
        reach, middle = spread(values), median(values)
        if reach is None:
            return "too few turns"
        if reach > abs(middle - self.bar):
            return "noisy"
        return "holds" if (middle >= self.bar if self.at_least else middle <= self.bar) else "MISSED"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table under `HEADS`."""
        unit = {"over": "x", "peer": "x"}.get(self.judged, self.unit)
        sense = ">=" if self.at_least else "<="
        bar = "-" if self.bar is None else f"{sense} {shown(self.bar, unit)}"
        sides = ((self.ours, ""), (self.limit, self.limit_is), (self.peer, self.peer_is))
        ours, limit, peer = (_side(values, name, self.unit) for values, name in sides)
        return self.what, bar, with_spread(self.values, unit), self.verdict, ours, limit, peer


def _side(values: Sequence[float | None], name: str, unit: str) -> str:
    told = with_spread([value for value in values if value is not None], unit)
    return " ".join(part for part in (told if values or not name else "", name) if part)


def with_spread(values: Sequence[float], unit: str) -> str:
    """The median, and how far the middle half reaches."""
    if not values:
        return "-"
    reach = spread(values)
    return shown(median(values), unit) + ("" if reach is None else f" ± {shown(reach / 2, '').strip()}")


def shown(value: float, unit: str) -> str:
    """A figure in three digits with its unit."""
    size = abs(value)
    text = f"{value:,.0f}" if size >= 99.5 or not value else f"{value:.3g}"
    return f"{text}{'' if unit in ('x', '') else ' '}{unit}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent of the values are."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def plain(rows: Sequence[Row]) -> str:
    """The rows as aligned text, each with its sides on a line of their own."""
    cells = [HEADS, *(row.cells for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join(_lines(cells, widths, [None, *rows]))


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], rows: Sequence[Row | None]) -> Iterator[str]:
    for row, found in zip(cells, rows, strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        if found is None:
            yield "  ".join("-" * width for width in widths)
            continue
        sides = zip(HEADS[4:], row[4:], strict=True)
        told = [f"{name}: {cell}" for name, cell in sides if cell != "-"] + [found.beside] * bool(found.beside)
        yield f"    {'; '.join(told)}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown; what stands beside them is a list beneath it."""
    cells = [HEADS, ("---",) * len(HEADS), *(row.cells for row in rows)]
    table = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    notes = [f"- `{row.name}`: {row.beside}" for row in rows if row.beside]
    return "\n".join([*table, *([""] if notes else []), *notes])


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
