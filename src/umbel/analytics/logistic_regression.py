"""Logistic regression by Newton's method on sums of gradients and Hessians (Wu et al. 2012, GLORE, JAMIA 19:758): the
fit of all rows in one place.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.client import Context
from ..errors import HandlerFailed
from . import coefficients
from .analysis import Analysis, Answered, Asking
from .covariance import moments
from .table import Floats, HeldTable


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """The log-likelihood, its gradient and the information at some coefficients of scaled columns."""
    rows, _ = table.complete([*config["columns"], config["target"]])
    y = rows[:, -1]
    if not np.isin(y, (0.0, 1.0)).all():
        raise HandlerFailed(f"column {config['target']!r} has values other than 0 and 1", client=ctx.client)
    x = np.column_stack([np.ones(len(rows)), (rows[:, :-1] - ctx.inbox["centre"]) / ctx.inbox["scale"]])
    eta = x @ ctx.inbox["beta"]
    p = 1.0 / (1.0 + np.exp(-np.clip(eta, -700.0, 700.0)))
    value = (y * eta - np.logaddexp(0.0, eta)).sum()
    return {"value": np.array(value), "gradient": x.T @ (y - p), "information": (x.T * (p * (1.0 - p))) @ x}


@dataclass(frozen=True)
class LogisticRegression(Analysis):
    """The most likely coefficients of `target` (0 or 1) by columns and an intercept, over the rows that miss none.

    `ridge` is subtracted from the log-likelihood times half the squares of the coefficients (but for the intercept's)
    of columns scaled to variance 1; standard errors are those of the penalised information then. The result has
    `coefficients`, the intercept first, with `standard_errors`, `statistics` (z), `p_values`, `low` and `high` (95 %)
    and `covariance`; `log_likelihood`, `aic`, `iterations`, `count` and `incomplete`.

    Leaving the holder: what leaves it for `Covariance` (first, to scale columns), then for each of about six steps the
    log-likelihood, its gradient and Hessian over the holder's rows.
    """

    target: str
    columns: Sequence[str]
    ridge: float = 0.0
    iterations: int = 30

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, (*self.columns, self.target))
        centre, scale = found.mean[:-1], found.scale((*self.columns, self.target))[:-1]
        config = {"columns": list(self.columns), "target": self.target}

        def at(beta: Floats) -> Generator[Ask, Answer, coefficients.Point]:
            told = yield from asking("logistic", config, beta=beta, centre=centre, scale=scale)
            return float(told["value"]), told["gradient"], told["information"]

        penalty = np.array([0.0, *([self.ridge] * len(scale))])
        result = yield from coefficients.fitted(at, found, scale, penalty, self.iterations)
        return {**result, "aic": 2.0 * (len(penalty) - result["log_likelihood"])}

    def read(self, model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """``{column: {"coefficient", "standard_error", "p", "low", "high"}}``, and one for `intercept`."""
        return coefficients.read(("intercept", *self.columns), model)
