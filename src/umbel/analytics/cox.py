"""Cox's proportional hazards (1972, JRSS B 34:187) by Newton's method on the partial likelihood, ties by Breslow, as
distributed by Lu et al. 2015 (WebDISCO, JAMIA 22:1212): the fit of all rows in one place.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.client import Context
from . import coefficients, survival
from .analysis import Analysis, Answered, Asking
from .covariance import moments
from .table import Floats, HeldTable


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """By the time at which rows leave: how many have the event, and the sums over rows of hazard, hazard times columns,
    and hazard times products of columns; and the sum of columns over events.
    """
    columns = config["columns"]
    rows, whole = table.complete([*columns, config["time"], config["event"]])
    last, dies = survival.exits(table, config, ctx.inbox["times"], np.where(whole, 0, -1))
    used = last[whole] > 0  # at risk at one time at least
    x = ((rows[:, : len(columns)] - ctx.inbox["centre"]) / ctx.inbox["scale"])[used]
    last, dies = last[whole][used], dies[whole][used]
    hazard = np.exp(np.clip(x @ ctx.inbox["beta"], -300.0, 300.0))
    with_one = np.column_stack([np.ones(len(x)), x])
    pairs = [(a, b) for a in range(len(columns) + 1) for b in range(a, len(columns) + 1)]
    size = len(ctx.inbox["times"]) + 1
    sums = [np.bincount(last, hazard * with_one[:, a] * with_one[:, b], size)[1:] for a, b in pairs]
    return {
        "events": np.bincount(last, dies, size)[1:].astype(np.int64),
        "columns": (x * dies[:, None]).sum(0),
        "hazards": np.stack(sums, 1),
    }


@dataclass(frozen=True)
class Cox(Analysis):
    """The coefficients of columns in the logarithm of the hazard, over the rows that miss nothing.

    `time`, `event` and `times` are as in `KaplanMeier`. `ridge` is subtracted from the log-likelihood times half the
    squares of the coefficients of columns scaled to variance 1. The result has `coefficients` with `standard_errors`,
    `statistics` (z), `p_values`, `low`, `high` (95 %) and `covariance`; `log_likelihood`, `log_likelihood_null`
    (without columns), `iterations`, `count`, `incomplete`, `events`; `times` and `cumulative_hazard` (Breslow's) of a
    row whose columns are their means, `mean`.

    Leaving the holder: what leaves it for `Covariance`; for each of about six steps and each time the sums of hazards,
    of columns and of products of columns, weighted by hazards, over the rows that leave then: where that is one row,
    and no other holder's is added, that row's columns can be had from them. A minimum of the holder keeps so many rows
    together, as in `KaplanMeier`; so does a coarse grid. Without `times`, eight asks first find the times of events.
    """

    time: str
    event: str
    columns: Sequence[str]
    times: Any = None
    ridge: float = 0.0
    iterations: int = 30

    def questions(self, asking: Asking) -> Answered:
        found = yield from moments(asking, (*self.columns, self.time, self.event))
        centre, scale = found.mean[:-2], found.scale(self.columns)
        times = yield from survival.grid(asking, self.time, self.event, self.times)
        config = {"columns": list(self.columns), "time": self.time, "event": self.event}
        size = len(scale) + 1
        seen: list[tuple[float, Floats, Any]] = []

        def at(beta: Floats) -> Generator[Ask, Answer, coefficients.Point]:
            told = yield from asking("risk_sets", config, beta=beta, centre=centre, scale=scale, times=times)
            events = told["events"].astype(np.float64)
            some = events > 0
            sums = np.zeros((int(some.sum()), size, size))
            rows, columns = np.triu_indices(size)
            at_risk = told["hazards"][::-1].cumsum(0)[::-1][some]
            sums[:, rows, columns] = sums[:, columns, rows] = at_risk
            hazard, mean = sums[:, 0, 0], sums[:, 0, 1:] / sums[:, :1, 0]
            d = events[some]
            value = float(told["columns"] @ beta - d @ np.log(hazard))
            second = np.einsum("t,tij->ij", d / hazard, sums[:, 1:, 1:]) - (mean.T * d) @ mean
            seen.append((value, np.cumsum(d / hazard), (some, int(events.sum()))))
            return value, told["columns"] - d @ mean, second

        penalty = np.full(len(scale), float(self.ridge))
        result = yield from coefficients.fitted(at, found, scale, penalty, self.iterations)
        _, cumulative, (some, events) = seen[-1]
        return {
            **result,
            "log_likelihood_null": np.array(seen[0][0]),
            "events": np.array(events),
            "mean": centre,
            "times": times[some],
            "cumulative_hazard": cumulative,
        }

    def read(self, model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """``{column: {"coefficient", "standard_error", "p", "low", "high", "hazard_ratio"}}``."""
        rows = coefficients.read(tuple(self.columns), model)
        return {name: {**row, "hazard_ratio": float(np.exp(row["coefficient"]))} for name, row in rows.items()}
