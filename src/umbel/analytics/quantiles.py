"""Quantiles of columns, by group, exactly or to a tolerance: by counts in ever smaller cells (see `order`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import SettingError
from . import order, tails
from .analysis import Analysis, Answered, Asking, By, by_group, check_by, check_times, finite, group_names
from .histogram import noisy_counts


@dataclass(frozen=True)
class Quantiles(Analysis):
    """Quantiles of numeric columns, as `numpy.quantile` has them by default: between two ranks linearly.

    `at` are shares from 0 to 1; `by` is as in `Statistics`. Ranks are found in at most eight asks; with a `tolerance`
    sooner, and results are off by at most half of it. The result has arrays [columns, groups, quantiles]: `values`,
    and their bounds `low` and `high`, equal where values are exact; and `count` [columns, groups].

    Leaving the holder: how many of its rows are in 256 cells around each quantile, with each ask smaller ones, down to
    the values next to the quantile themselves. Counts below the holder's minimum are told as 0: where
    the quantile may be among those rows, bounds stay as wide as the cells, and the value is between them.

    With `noise` it asks once, for counts between `edges`, and goes linearly between them: `low` and `high` are then
    the ends of a 95 % interval for the noise, and `count` has noise, too. What the edges are too far apart to tell is
    in no interval, and what is beyond them all is their end.
    """

    counted: ClassVar[bool] = True
    columns: Sequence[str]
    at: Sequence[float] = (0.25, 0.5, 0.75)
    by: By | None = None
    tolerance: float = 0.0
    edges: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at = finite(self.at, "Quantiles' shares")
        if at.ndim != 1 or not at.size or at.min() < 0 or at.max() > 1 or finite(self.tolerance, "Tolerances") < 0:
            raise SettingError("Quantiles takes shares from 0 to 1, and a tolerance of at least 0")
        if (self.edges is None) != (self.noise is None):
            raise SettingError("Quantiles takes edges with noise, and cannot do without them there")
        if self.edges is not None and len(check_times(self.edges, "edges")) < 2:
            raise SettingError("Quantiles takes two edges at least")

    def questions(self, asking: Asking) -> Answered:
        by = check_by(self, self.by)
        groups = len(group_names(self.by))
        if self.noise is not None:
            return (yield from self._noisy(asking, by))
        places = [(c, g, float(q)) for c in range(len(self.columns)) for g in range(groups) for q in self.at]
        wanted = [order.Rank(*place, side) for place in places for side in (0, 1)]
        low, high, count = yield from order.values(asking, list(self.columns), by, wanted, float(self.tolerance))
        shape = (len(self.columns), groups, len(self.at))
        n = count[::2].reshape(shape)
        position = np.array(self.at) * (n - 1)
        part = position - np.floor(position)

        def between(ends: Any) -> Any:
            lower, upper = ends[::2].reshape(shape), ends[1::2].reshape(shape)
            return np.where(part < 0.5, lower + (upper - lower) * part, upper - (upper - lower) * (1 - part))

        bounds = between(low), between(high)
        middle = between(low + (high - low) / 2)
        return {"values": middle, "low": bounds[0], "high": bounds[1], "count": n[:, :, 0]}

    def _noisy(self, asking: Asking, by: Any) -> Answered:
        """By one histogram. That so many rows are below a value, less its share of all, is off by noise of a variance
        that is known: as many rows to either side as two of its standard deviations are where the interval ends.
        """
        edges = np.array(self.edges, np.float64)
        config = {"columns": list(self.columns), "by": by}
        counts, errors = yield from noisy_counts(asking, config, np.tile(edges, (len(self.columns), 1)))
        below = np.maximum.accumulate(np.cumsum(counts, -1)[..., :-1], -1)
        variance = np.cumsum(errors**2, -1)
        shape = (*counts.shape[:2], len(self.at))
        found = {name: np.full(shape, np.nan) for name in ("values", "low", "high")}
        total = counts.sum(-1)
        for c, g in np.ndindex(*shape[:2]):
            for i, share in enumerate(self.at if total[c, g] > 0 else ()):
                inside = min(int(np.searchsorted(below[c, g], share * total[c, g])), len(edges) - 1)
                before, all_of = variance[c, g, inside], variance[c, g, -1]
                off = tails.NORMAL_95 * np.sqrt((1 - share) ** 2 * before + share**2 * (all_of - before))
                for name, rank in (("values", 0.0), ("low", -off), ("high", off)):
                    found[name][c, g, i] = np.interp(share * total[c, g] + rank, below[c, g], edges)
        return {**found, "count": total}

    def read(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """``{column: {share: value}}``, or by group ``{column: {group: {share: value}}}``."""
        values = model["values"].tolist()
        rows = ([dict(zip(self.at, row, strict=True)) for row in groups] for groups in values)
        return {name: by_group(self.by, groups) for name, groups in zip(self.columns, rows, strict=True)}
