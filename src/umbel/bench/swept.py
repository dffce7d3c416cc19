"""What a sweep came to: a row for each run, the best of them, a table and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CorruptFile, JournalMissing, SettingError
from ..runs.history import History
from ..runs.past import LAST, PastRun, past_runs
from .space import Point, plain_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Goal = Literal["max", "min"]
PARTS = ("test", "evaluate", "train")
FALLING = ("loss", "error", "perplexity", "mse", "mae", "rmse")
"""What metrics end in that are to be small."""
GOOD = ("finished", "early stop")


@dataclass(frozen=True)
class SweepRow:
    """A run of a sweep: its settings as texts, its seed, its id, and how it ended (`state`: `finished`, `early stop`,
    `pruned`, `failed`, ..., with the `error` where there is one). `metrics` are those of the round whose model is its
    result.
    """

    settings: Point
    seed: int
    run: str | None
    state: str
    rounds: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    history: History = field(default_factory=lambda: History(()), repr=False, compare=False)

    @property
    def title(self) -> str:
        """Its settings and its seed."""
        return ", ".join([*(f"{name} {value}" for name, value in self.settings.items()), f"seed {self.seed}"])

    @classmethod
    def of(cls, record: PastRun, settings: Point, seed: int) -> SweepRow:
        """The row of a run by its folder."""
        history = History(record.log.rounds)
        metrics = history.metrics(record.best_round)
        seconds, state = round(record.seconds, 3), record.state
        return cls(settings, seed, record.id, state, len(history), seconds, metrics, record.error, history)


@dataclass(frozen=True)
class SweepGroup:
    """The runs of one choice of settings, which differ in their seeds; `values` has the metric of those that came to
    their end, and what `failed` is said of the first of the others.
    """

    settings: Point
    rows: Sequence[SweepRow]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean of the metric; NaN where no run has it."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Its standard deviation over seeds; NaN for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def failed(self) -> str | None:
        """What became of the first run that has no result."""
        for row in self.rows:
            if row.state not in GOOD:
                return f"{row.state}: {row.error}" if row.error else f"{row.state} after round {row.rounds}"
        return None


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep by what they came to in `metric`, the more (`goal` "max") or the less ("min") the better."""

    id: str
    rows: Sequence[SweepRow]
    metric: str | None = None
    goal: Goal = "max"

    def __len__(self) -> int:
        return len(self.rows)

    def value(self, row: SweepRow) -> float:
        """The metric of a run that came to its end; NaN for another."""
        return row.metrics.get(self.metric or "", math.nan) if row.state in GOOD else math.nan

    @cached_property
    def groups(self) -> list[SweepGroup]:
        """The choices of settings, the best first by the mean over seeds; those with a run that came to nothing follow
        the others.
        """
        found: dict[tuple[tuple[str, str], ...], list[SweepRow]] = {}
        for row in self.rows:
            found.setdefault(tuple(sorted(row.settings.items())), []).append(row)
        sign = -1 if self.goal == "max" else 1

        def place(group: SweepGroup) -> tuple[int, float]:
            return len(group.rows) - len(group.values), sign * group.mean if group.values else 0.0

        made = [
            SweepGroup(rows[0].settings, rows, [v for row in rows if math.isfinite(v := self.value(row))])
            for rows in found.values()
        ]
        return sorted(made, key=place)

    @property
    def best(self) -> SweepRow | None:
        """The best run of the best settings; None where no run has the metric."""
        if not self.groups or not self.groups[0].values:
            ranked = [row for row in self.rows if math.isfinite(self.value(row))]
        else:
            ranked = [row for row in self.groups[0].rows if math.isfinite(self.value(row))]
        choose = max if self.goal == "max" else min
        return choose(ranked, key=self.value) if ranked else None

    def columns(self) -> dict[str, list[Any]]:
        """The runs' settings and what they came to, as columns with a row a run; NaN where there is no value."""
        names = dict.fromkeys(name for row in self.rows for name in row.settings)
        metrics = sorted({name for row in self.rows for name in row.metrics})
        found: dict[str, list[Any]] = {
            name: [plain_value(row.settings.get(name, "none")) for row in self.rows] for name in names
        }
        for name in ("seed", "state", "rounds", "seconds", "run", "error"):
            found[name] = [getattr(row, name) for row in self.rows]
        return found | {name: [row.metrics.get(name, math.nan) for row in self.rows] for name in metrics}

    def frame(self) -> DataFrame:
        """The `columns` as a frame of pandas."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("a frame needs pandas: pip install pandas") from error
        return DataFrame(self.columns())

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the metric over the rounds, a line for each choice of settings, and what it is by each setting; write
        the picture to `path` where one is given. Raises `SettingError` where no run has the metric.
        """
        from .sweep_picture import draw

        return draw(self, path)

    def __str__(self) -> str:
        heads, lines = self.table()
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        rows = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (heads, *lines)]
        return "\n".join("  ".join(row).rstrip() for row in rows)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The groups as texts: the heads of the columns, and the rows, the best first."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.settings))
        lines = []
        for group in self.groups:
            shown = f"{group.mean:.4g}" if group.values else ""
            shown += f" ± {group.spread:.2g}" if len(group.values) > 1 else ""
            seconds = f"{sum(row.seconds for row in group.rows):.1f} s"
            settings = [group.settings.get(name, "") for name in names]
            lines.append([*settings, str(len(group.rows)), shown, seconds, group.failed or ""])
        return [*names, "runs", self.metric or "no metric", "time", ""], lines


def by_metric(id: str, rows: Sequence[SweepRow], metric: str | None, goal: Goal | None) -> Sweep:
    """The sweep of these rows. Where no `metric` is named it is the accuracy of the test or else of the evaluation, or
    else the first that there is; its `goal` is that of its name. Raises `SettingError` for a metric that no run has.
    """
    known = {name for row in rows for name in row.metrics}
    if metric is not None and known and metric not in known:
        raise SettingError(f"no run has a metric {metric!r}", hint=f"There are: {', '.join(sorted(known))}.")
    if metric is None and known:
        ordered = sorted(known, key=lambda name: (PARTS.index(name.partition(".")[0]), name))
        metric = next((name for name in ("test.accuracy", "evaluate.accuracy") if name in known), ordered[0])
    return Sweep(id, list(rows), metric, goal or goal_of(metric or ""))


def goal_of(metric: str) -> Goal:
    """Whether a metric of this name is to be great or small: a loss, an error and the like are to be small."""
    return "min" if metric.rpartition(".")[2].lower().endswith(FALLING) else "max"


def marked(folder: str | Path) -> dict[str, list[PastRun]]:
    """The runs of a folder that belong to a sweep, by its id; the sweep that was last active is the last."""
    found: dict[str, list[PastRun]] = {}
    for record in past_runs(Path(folder)):
        try:
            mark = record.log.started.settings.get("sweep")
        except CorruptFile:
            continue
        if isinstance(mark, Mapping):
            id = str(mark["id"])
            found[id] = [*found.pop(id, []), record]
    return found


def point_of(record: PastRun) -> Point:
    """The settings that a sweep gave to a run."""
    said = (item.partition("=") for item in record.log.started.settings["set"])
    return {name: value for name, _, value in said}


def open_sweep(
    reference: str = LAST, folder: str | Path = "umbel-runs", *, metric: str | None = None, goal: Goal | None = None
) -> Sweep:
    """What a sweep of a folder has come to so far; `reference` is its id, a part of it that no other has, or "last".
    Raises `JournalMissing` for none, `SettingError` for several.
    """
    found = marked(folder)
    if not found:
        raise JournalMissing(f"no sweep is in {folder}", hint="`umbel sweep APP --set lr=0.1,0.03` makes one.")
    fitting = [list(found)[-1]] if reference == LAST else [id for id in found if reference in id]
    fitting = [reference] if reference in found else fitting
    if len(fitting) != 1:
        listed = ", ".join(fitting or found)
        if fitting:
            raise SettingError(f"{reference} may mean {len(fitting)} sweeps", hint=f"Type more of one of: {listed}.")
        raise JournalMissing(f"there is no sweep {reference} in {folder}", hint=f"There are: {listed}.")
    records = sorted(found[fitting[0]], key=lambda record: record.log.started.settings["sweep"].get("number", 0))
    rows = [SweepRow.of(record, point_of(record), record.log.started.seed) for record in records]
    mark = records[0].log.started.settings["sweep"]
    metric = metric or mark.get("metric")
    return by_metric(fitting[0], rows, metric, goal or (mark.get("goal") if metric == mark.get("metric") else None))
