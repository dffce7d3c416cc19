"""What regressions have in common: Newton's method over asks, and coefficients with their errors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.ask import Ask
from ..errors import StrategyError
from . import tails
from .covariance import Moments
from .table import Floats

Point = tuple[float, Floats, Floats]
"""The log-likelihood, its gradient, and its Hessian's negative, the information."""


def maximum(
    at: Callable[[Floats], Generator[Ask, Answer, Point]], ridge: Floats, iterations: int
) -> Generator[Ask, Answer, tuple[Floats, Point, int]]:
    """The coefficients that maximise a concave log-likelihood less half the sum of ``ridge * coefficients**2``, what
    `at` says there, and how many steps it took; `at` asks for the likelihood of some coefficients. Raises
    `StrategyError`.
    """
    beta = np.zeros(len(ridge))
    point = yield from at(beta)
    for steps in range(1, iterations + 1):
        slope = point[1] - ridge * beta
        try:
            step = np.linalg.solve(point[2] + np.diag(ridge), slope)
        except np.linalg.LinAlgError:
            raise _undetermined() from None
        worth, enough = point[0] - ridge @ beta**2 / 2, max(1.0, abs(point[0]))
        gain = float(slope @ step)
        while True:
            point = yield from at(beta + step)
            if point[0] - ridge @ (beta + step) ** 2 / 2 >= worth - 1e-12 * enough:
                break
            step = step / 2
        beta = beta + step
        # Newton's method squares what is left. Long steps that gain nothing go towards a maximum at infinity.
        if gain < 1e-12 * enough and np.abs(step).max(initial=0.0) < 0.01:
            return beta, point, steps
    raise StrategyError(
        f"the likelihood has no maximum within {iterations} steps",
        hint="Do the columns tell outcomes apart without error? They grow for ever then: give a ridge of 1, say.",
    )


def fitted(
    at: Callable[[Floats], Generator[Ask, Answer, Point]], found: Moments, scale: Floats, ridge: Floats, iterations: int
) -> Generator[Ask, Answer, dict[str, Any]]:
    """The result of a regression by `maximum` on the first columns, scaled, and how it came to it."""
    beta, (value, _, information), steps = yield from maximum(at, ridge, iterations)
    covariance = inverse(information + np.diag(ridge))
    return {
        **with_errors(*unscaled(beta, covariance, found.mean[: len(scale)], scale)),
        "log_likelihood": np.array(value),
        "iterations": np.array(steps),
        "count": np.array(found.rows),
        "incomplete": np.array(found.incomplete),
    }


def inverse(information: Floats) -> Floats:
    """The covariance of coefficients with this information. Raises `StrategyError`."""
    try:
        found = np.linalg.inv(information)
    except np.linalg.LinAlgError:
        raise _undetermined() from None
    if not (np.diag(found) > 0).all() or np.linalg.cond(information) > 1e13:
        raise _undetermined()
    return np.asarray((found + found.T) / 2)


def _undetermined() -> StrategyError:
    return StrategyError(
        "the coefficients are not determined: a column is a sum of others, or there are fewer rows than columns",
        hint="Leave a column out.",
    )


def with_errors(beta: Floats, covariance: Floats, df: int | None = None) -> dict[str, Any]:
    """Coefficients with standard errors, 95 % intervals and two-sided p-values: normal, or Student's with `df`."""
    errors = np.sqrt(np.diag(covariance))
    statistic = np.divide(beta, errors, out=np.full(len(beta), np.inf), where=errors > 0)
    reach = tails.NORMAL_95 if df is None else tails.student_95(df)
    return {
        "coefficients": beta,
        "standard_errors": errors,
        "statistics": statistic,
        "p_values": np.array([tails.normal(z) if df is None else tails.student(z, df) for z in statistic]),
        "low": beta - reach * errors,
        "high": beta + reach * errors,
        "covariance": covariance,
    }


def unscaled(beta: Floats, covariance: Floats, centre: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Coefficients of columns from those of ``(columns - centre) / scale``; a first one more is an intercept's."""
    back = np.diag(1.0 / scale)
    if len(beta) > len(scale):
        back = np.block([[np.ones((1, 1)), -(centre / scale)[None, :]], [np.zeros((len(scale), 1)), back]])
    return back @ beta, back @ covariance @ back.T


def read(names: Sequence[str], model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A row for each name: coefficient, standard error, p-value, and interval."""
    shown = {"coefficient": "coefficients", "standard_error": "standard_errors", "p": "p_values"}
    shown |= {"low": "low", "high": "high"}
    return {name: {k: float(model[v][place]) for k, v in shown.items()} for place, name in enumerate(names)}
