"""Count, sum, mean, variance, extremes and missing values of columns, by group.

Sums and sums of squares are exact, so that results are rounded once, from the true value: the variance has no
cancellation, and all are the same bits however rows are spread over clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.client import Context
from . import order
from .analysis import Analysis, Answered, Asking, By, by_group, check_by
from .exact import powers, rationals
from .table import HeldTable

NUMBERS = ("count", "missing", "withheld", "sum", "mean", "variance", "min", "max")


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """Counts [columns, groups], and sums [columns, groups, limbs]; groups of too few rows are withheld."""
    codes, groups = table.groups(config["by"])
    rows = []
    for name in config["columns"]:
        numbers = table.numbers(name)
        missing = np.isnan(numbers)
        count, absent = (np.bincount(codes[which & (codes >= 0)], minlength=groups) for which in (~missing, missing))
        told = table.told(count)
        kept = np.where(missing, -1, np.where(told > 0, np.arange(groups), -1)[codes])
        kept[codes < 0] = -1
        sums, squares = powers(np.where(missing, 0.0, numbers), kept, groups)
        rows.append((told, table.told(absent), ((count > 0) & (told == 0)).astype(np.int64), sums, squares))
    names = ("count", "missing", "withheld", "sums", "squares")
    return dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True))


@dataclass(frozen=True)
class Statistics(Analysis):
    """Statistics of numeric columns over all rows, or over those of each group.

    `by` names columns with the values to group by (``{"sex": (0, 1)}``); rows with other values are left out. The
    result has arrays [columns, groups]: `count`, `missing`, `sum`, `mean`, `variance` (by count - 1), `min`, `max`, and
    `withheld`, how many clients had fewer rows of a group than they tell of. What is unknown is NaN.

    Leaving the holder: for each column and group how many rows have a value and how many miss it, the sum and the sum
    of squares; with `extremes` (eight further asks) how many are in cells around the smallest and the largest, down to
    the value itself. Under a minimum they are the extremes of what holders tell of: values that so many rows of one
    have, or bounds of the smallest cells that hold so many.
    """

    columns: Sequence[str]
    by: By | None = None
    extremes: bool = True

    def questions(self, asking: Asking) -> Answered:
        by, columns = check_by(self, self.by), list(self.columns)
        told = yield from asking("statistics", {"columns": columns, "by": by})
        count = told["count"]
        sums, squares = rationals(told["sums"]), rationals(told["squares"])
        result = {name: told[name] for name in ("count", "missing", "withheld")}
        result["sum"] = sums.astype(np.float64)
        result["mean"], result["variance"] = np.full((2, *count.shape), np.nan)
        for at, n in np.ndenumerate(count):
            if n > 0:
                result["mean"][at] = sums[at] / int(n)
            if n > 1:
                result["variance"][at] = (squares[at] - sums[at] ** 2 / int(n)) / (int(n) - 1)
        if self.extremes:
            wanted = [order.Rank(c, g, q, trimmed=True) for q in (0.0, 1.0) for c, g in np.ndindex(*count.shape)]
            low, high, _ = yield from order.values(asking, columns, by, wanted)
            result["min"] = low[: count.size].reshape(count.shape)
            result["max"] = high[count.size :].reshape(count.shape)
        return result

    def read(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """``{column: {"mean": ...}}``, or by group ``{column: {group: {"mean": ...}}}``; with the standard deviation
        `sd`.
        """
        numbers = {n: model[n] for n in NUMBERS if n in model} | {"sd": np.sqrt(model["variance"])}
        groups = range(model["count"].shape[1])
        rows = ([{n: of[c, g].item() for n, of in numbers.items()} for g in groups] for c in range(len(self.columns)))
        return {name: by_group(self.by, row) for name, row in zip(self.columns, rows, strict=True)}
