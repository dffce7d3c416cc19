"""Values by their rank in all rows: counts in ever smaller cells, 256 times smaller with each question.

Cells are ranges of float64 in its own order, so that nobody has to know where values lie, and eight questions find any
value exactly. Leaving the holder: how many of its rows are in each cell.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.client import Context
from .analysis import Asking
from .table import Floats, HeldTable, Ints

Keys = npt.NDArray[np.uint64]
_TOP = np.uint64(1 << 63)


class Cell(NamedTuple):
    """Where values of a column and a group lie: all of those whose keys begin with these bits."""

    column: int
    group: int
    prefix: int


class Rank(NamedTuple):
    """The value of a rank: the `side`-th after ``floor(share * (count - 1))``, as quantiles need them. A share of 0
    or 1 may be `trimmed`: then rows that holders do not tell of, for there are too few in a cell, do not count at all.
    """

    column: int
    group: int
    share: float
    side: int = 0
    trimmed: bool = False


class Searched(NamedTuple):
    """Where a value is: in a cell of so many rows, and between which ranks among them."""

    cell: Cell
    held: int
    first: int
    last: int


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """Counts [cells asked about, 256] of the rows in their parts."""
    codes, _ = table.groups(config["by"])
    depth = int(config["depth"])
    columns, groups, prefixes = (ctx.inbox[name] for name in ("column", "group", "prefix"))
    counts = np.zeros((len(prefixes), 256), np.int64)
    parts = np.arange(256, dtype=np.uint64)
    for column, group in {*zip(columns.tolist(), groups.tolist(), strict=True)}:
        numbers = table.numbers(config["columns"][column])
        keys = np.sort(to_keys(numbers[(codes == group) & ~np.isnan(numbers)]))
        here = (columns == column) & (groups == group)
        low = (prefixes[here, None].astype(np.uint64) << np.uint64(8) | parts) << np.uint64(56 - depth)
        high = low | np.uint64((1 << 56 - depth) - 1)
        counts[here] = np.searchsorted(keys, high, "right") - np.searchsorted(keys, low, "left")
    return {"counts": table.told(counts)}


def values(
    asking: Asking, columns: list[str], by: Any, wanted: list[Rank], tolerance: float = 0.0
) -> Generator[Ask, Answer, tuple[Floats, Floats, Ints]]:
    """Bounds, low and high, of each value wanted: equal, or no further apart than the tolerance, but where holders do
    not tell small counts; NaN where there is no value. And how many values there are in its column and group.
    """
    low, high = np.full((2, len(wanted)), np.nan)
    count = np.zeros(len(wanted), np.int64)
    searched: dict[int, Searched] = {}
    for place, each in enumerate(wanted):
        searched[place] = Searched(Cell(each.column, each.group, 0), 0, 0, 0)
    for depth in range(0, 64, 8):
        if not searched:
            break
        counts = yield from _counts(asking, columns, by, (each.cell for each in searched.values()), depth)
        for place, (cell, held, first, last) in list(searched.items()):
            told = np.cumsum(counts[cell])
            if depth == 0 or wanted[place].trimmed:
                held = int(told[-1])
                first = last = min(int(wanted[place].share * (held - 1)) + wanted[place].side, held - 1)
            count[place] = count[place] if depth else held
            hidden = held - int(told[-1])  # so many rows are in parts that are not told of, wherever these are
            begin, end = (int(np.searchsorted(told, rank, "right")) for rank in (first - hidden, last))
            if told[-1] and end < 256:
                (low[place], _), (_, high[place]) = (_ends(cell.prefix << 8 | part, depth + 8) for part in (begin, end))
            if told[-1] == 0 or begin < end or high[place] - low[place] <= tolerance:
                del searched[place]
                continue
            before = int(told[end - 1]) if end else 0
            inside = cell._replace(prefix=cell.prefix << 8 | end)
            searched[place] = Searched(inside, int(counts[cell][end]), max(0, first - before - hidden), last - before)
    return low, high, count


def distinct(asking: Asking, column: str, by: Any, groups: int) -> Generator[Ask, Answer, Floats]:
    """All values of a column that a row of some group has, ascending; where holders do not tell small counts, the upper
    ends of the smallest cells that they tell of.
    """
    cells = {Cell(0, group, 0): 0 for group in range(groups)}
    found = set[float]()
    for depth in range(0, 64, 8):
        counts = yield from _counts(asking, [column], by, cells, depth)
        found.update(float(_ends(c.prefix, depth)[1]) for c, held in cells.items() if counts[c].sum() < held)
        cells = {
            cell._replace(prefix=cell.prefix << 8 | int(part)): int(counts[cell][part])
            for cell in cells
            for part in np.flatnonzero(counts[cell])
        }
        if not cells:
            break
    return np.array(sorted(found.union(float(_ends(cell.prefix, 64)[0]) for cell in cells)))


def _counts(
    asking: Asking, columns: list[str], by: Any, cells: Iterable[Cell], depth: int
) -> Generator[Ask, Answer, dict[Cell, Ints]]:
    unlike = sorted(set(cells))
    column, group, prefix = zip(*unlike, strict=True)
    inbox = {"column": np.array(column), "group": np.array(group), "prefix": np.array(prefix, np.uint64)}
    sums = yield from asking("cells", {"columns": columns, "by": by, "depth": depth}, **inbox)
    return dict(zip(unlike, sums["counts"], strict=True))


def _ends(prefix: int, depth: int) -> Floats:
    """The lowest and the highest number whose keys begin with these bits, `depth` of them."""
    return from_keys(np.array([prefix << 64 - depth, (prefix + 1 << 64 - depth) - 1], np.uint64))


def to_keys(numbers: Floats) -> Keys:
    """Integers in the order of the numbers."""
    bits = np.ascontiguousarray(numbers, np.float64).view(np.uint64)
    return np.where(bits & _TOP, ~bits, bits | _TOP)


def from_keys(keys: Keys) -> Floats:
    """The numbers again; the largest there are for keys beyond them."""
    numbers = np.where(keys & _TOP, keys ^ _TOP, ~keys).view(np.float64)
    largest = np.finfo(np.float64).max
    return np.clip(np.where(np.isnan(numbers), np.where(keys & _TOP, np.inf, -np.inf), numbers), -largest, largest)
