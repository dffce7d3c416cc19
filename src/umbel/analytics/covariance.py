"""Means and covariances of columns, exactly: what linear models and principal components need of a holder."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.client import Context
from ..errors import StrategyError
from .analysis import Analysis, Answered, Asking
from .exact import products, rationals
from .table import Floats, HeldTable


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """How many rows miss nothing, and the sums of products of their columns, the first of which is 1."""
    rows, whole = table.complete(config["columns"])
    with_one = np.column_stack([np.ones(len(rows)), rows])
    sums = products(with_one, with_one)
    return {"products": sums[np.triu_indices(len(sums))], "incomplete": table.told(np.array((~whole).sum()))}


class Moments(NamedTuple):
    """Of the rows that miss nothing: how many, their means, and the sums of products about the means, as fractions."""

    rows: int
    incomplete: int
    mean: Floats
    about: npt.NDArray[Any]

    @property
    def covariance(self) -> Floats:
        """Sums of products about the means, by count - 1."""
        return (self.about / (self.rows - 1)).astype(np.float64)

    def scale(self, columns: Sequence[str]) -> Floats:
        """The standard deviations of the first columns. Raises `StrategyError` for one that does not vary."""
        scale = np.sqrt(np.diag(self.covariance)[: len(columns)])
        if fixed := [name for name, sd in zip(columns, scale, strict=True) if sd == 0.0]:
            raise StrategyError(f"{', '.join(fixed)}: the same in all {self.rows} rows", hint="Leave the column out.")
        return scale


def moments(asking: Asking, columns: Sequence[str]) -> Generator[Ask, Answer, Moments]:
    """Ask for the moments of columns. Raises `StrategyError` where fewer than two rows are told of."""
    told = yield from asking("covariance", {"columns": list(columns)})
    size = len(columns) + 1
    sums = np.empty((size, size), object)
    upper = np.triu_indices(size)
    sums[upper] = sums.T[upper] = rationals(told["products"])
    count = int(sums[0, 0])
    if count < 2:
        raise StrategyError(f"clients tell of {count} rows that miss none of {', '.join(columns)}")
    first = sums[0, 1:]
    about = sums[1:, 1:] - first[:, None] * first * Fraction(1, count)
    return Moments(count, int(told["incomplete"]), (first / count).astype(np.float64), about)


@dataclass(frozen=True)
class Covariance(Analysis):
    """Means, covariances and correlations of numeric columns over the rows that miss none of them, in one ask.

    The result has `count`, `incomplete` (rows left out), `mean` [columns], `covariance` (by count - 1) and
    `correlation` [columns, columns], rounded once from the true values.

    Leaving the holder: how many rows miss nothing and how many do, the sums of columns and of their products; nothing
    where they are fewer rows than its minimum.
    """

    columns: Sequence[str]

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, self.columns)
        scale = found.scale(self.columns)
        covariance = found.covariance
        return {
            "count": np.array(found.rows),
            "incomplete": np.array(found.incomplete),
            "mean": found.mean,
            "covariance": covariance,
            "correlation": np.clip(covariance / scale[:, None] / scale, -1.0, 1.0),
        }

    def read(self, model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Correlations, ``{column: {column: correlation}}``."""
        rows = (dict(zip(self.columns, row.tolist(), strict=True)) for row in model["correlation"])
        return dict(zip(self.columns, rows, strict=True))
