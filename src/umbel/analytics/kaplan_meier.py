"""Kaplan-Meier curves (1958, JASA 53:457) from counts on a grid of times, and the log-rank test between groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.client import Context
from . import survival
from .analysis import Analysis, Answered, Asking, By, by_group, check_by
from .table import Floats, HeldTable, Ints


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """Events and other exits [groups, times + 1]: at place k of those at risk at just k times."""
    codes, groups = table.groups(config["by"])
    times = ctx.inbox["times"]
    last, dies = survival.exits(table, config, times, codes)
    counts = np.zeros((2, groups, len(times) + 1), np.int64)
    known = (codes >= 0) & (last >= 0)
    np.add.at(counts, (dies[known], codes[known], last[known]), 1)
    return {"events": counts[1], "censored": counts[0]}


class Curve(NamedTuple):
    """One group's curve, an element a time: the share that survives it, its 95 % interval, how many are at risk, and
    how many have the event. `median` is when half have had it, infinite if they have not.
    """

    times: Floats
    survival: Floats
    low: Floats
    high: Floats
    at_risk: Ints
    events: Ints
    median: float


@dataclass(frozen=True)
class KaplanMeier(Analysis):
    """The share of rows that have had no event by each time, by group (`by`, as in `Statistics`).

    `time` is a column of times to the event, or to the last that is known (`event` 0). `times` is a grid: an event
    counts at the next time of it, so that the curve is that of all rows in one place where it has all times of events,
    as it does where none is given. Rows that miss either are left out. The result has `times`, and [groups, times]
    `at_risk`, `events`, `survival`, `standard_error` (Greenwood's), `low` and `high` (95 %, by log(-log)); with groups
    `log_rank` (chi squared, degrees of freedom, p-value), which is NaN where it is not determined.

    Leaving the holder: for each group and time how many rows have the event there, and how many leave without. Where
    it has a minimum, it tells of rows at a later time, once so many have come together. Without `times`, eight asks
    first find all times at which it tells of events.
    """

    time: str
    event: str
    by: By | None = None
    times: Any = None

    def questions(self, asking: Asking) -> Answered:
        times = yield from survival.grid(asking, self.time, self.event, self.times)
        config = {"time": self.time, "event": self.event, "by": check_by(self, self.by)}
        told = yield from asking("survival", config, times=times)
        leaving = told["events"] + told["censored"]
        at_risk = leaving[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
        events = told["events"][:, 1:]
        result = {"times": times, "at_risk": at_risk, "events": events, **survival.curves(at_risk, events)}
        if len(events) > 1:
            result["log_rank"] = survival.log_rank(at_risk, events)
        return result

    def read(self, model: Mapping[str, Any]) -> Any:
        """The `Curve`, or, with groups, ``{group: Curve}``."""
        return by_group(self.by, (curve(model, group) for group in range(len(model["survival"]))))

    def table(self, model: Mapping[str, Any]) -> Any:
        """A row for each time, by group."""
        curves = [curve(model, group)._asdict() for group in range(len(model["survival"]))]
        for each in curves:
            del each["median"]
        found = ([dict(zip(each, row, strict=True)) for row in zip(*each.values(), strict=True)] for each in curves)
        return by_group(self.by, found)


def curve(model: Mapping[str, Any], group: int = 0) -> Curve:
    """One group's curve of the result of a run."""
    alive, low, high, at_risk, events = (
        model[name][group] for name in ("survival", "low", "high", "at_risk", "events")
    )
    reached = np.flatnonzero(alive <= 0.5)
    median = float(model["times"][reached[0]]) if len(reached) else np.inf
    return Curve(model["times"], alive, low, high, at_risk, events, median)
