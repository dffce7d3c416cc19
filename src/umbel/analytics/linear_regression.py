"""Linear regression by least squares, from exact sums of products in one ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from . import coefficients
from .analysis import Analysis, Answered, Asking
from .covariance import moments


@dataclass(frozen=True)
class LinearRegression(Analysis):
    """The least-squares fit of `target` by columns and an intercept, over the rows that miss none of them: that of all
    rows in one place, to the last digits, however far their means are from 0.

    The result has `coefficients`, the intercept first, with `standard_errors`, `statistics` (t), `p_values`, `low` and
    `high` (95 %) and `covariance`; `r_squared`, `residual_variance` (by degrees of freedom), `df`, `count` and
    `incomplete`.

    Leaving the holder: what leaves it for `Covariance`, of the columns and the target.
    """

    target: str
    columns: Sequence[str]

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, (*self.columns, self.target))
        scale = found.scale((*self.columns, self.target))[:-1]
        about, x, y = found.about, slice(-1), -1
        covariance = coefficients.inverse(about[x, x].astype(np.float64) / scale[:, None] / scale)
        covariance = covariance / scale[:, None] / scale
        beta = covariance @ about[x, y].astype(np.float64)
        for _ in range(2):  # what is left to explain is known without error
            exact = np.array([Fraction(b) for b in beta.tolist()], object)
            beta = beta + covariance @ (about[x, y] - about[x, x] @ exact).astype(np.float64)
        signs = np.array([*(-Fraction(b) for b in beta.tolist()), Fraction(1)], object)
        residual = float(signs @ about @ signs)
        df = found.rows - len(beta) - 1
        variance = residual / df if df > 0 else np.nan
        mean = found.mean[x]
        with_intercept = np.block(
            [
                [np.array([[1 / found.rows + mean @ covariance @ mean]]), -(mean @ covariance)[None, :]],
                [-(covariance @ mean)[:, None], covariance],
            ]
        )
        intercept = found.mean[y] - mean @ beta
        return {
            **coefficients.with_errors(np.array([intercept, *beta]), variance * with_intercept, df),
            "r_squared": np.array(1.0 - residual / float(about[y, y])),
            "residual_variance": np.array(variance),
            "df": np.array(df),
            "count": np.array(found.rows),
            "incomplete": np.array(found.incomplete),
        }

    def read(self, model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """``{column: {"coefficient", "standard_error", "p", "low", "high"}}``, and one for `intercept`."""
        return coefficients.read(("intercept", *self.columns), model)
