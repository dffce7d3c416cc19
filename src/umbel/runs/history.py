"""What a run learned, round by round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.markup import MOST_ROWS, curves, table
from ..errors import SettingError
from .events import RoundCommitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


COUNTED = ("round", "clients", "dropped", "seconds")
"""Numbers of every round: those who took part, those who were missing, and its time."""
METRICS_OF = ("train", "evaluate", "test")
"""What gives a round metrics."""


class History(Sequence[RoundCommitted]):
    """The committed rounds of a run, with their metrics as series named `train.loss`, `evaluate.accuracy`,
    `test.accuracy`, ...
    """

    def __init__(self, rounds: Sequence[RoundCommitted]) -> None:
        self._rounds = list(rounds)

    def __getitem__(self, index: int) -> RoundCommitted:  # type: ignore[override]
        return self._rounds[index]

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[RoundCommitted]:
        return iter(self._rounds)

    @property
    def round(self) -> int:
        """The last round; 0 where there is none."""
        return self._rounds[-1].round if self._rounds else 0

    @property
    def names(self) -> list[str]:
        """All series that some round has a value of."""
        return sorted({f"{part}.{name}" for r in self for part in METRICS_OF for name in getattr(r, part)})

    def series(self, name: str) -> list[tuple[int, float]]:
        """The values of one metric as pairs (round, value). Raises `SettingError` for a name that no round has."""
        if not (pairs := list(_values(name, self._rounds))):
            raise SettingError(f"no round has a metric {name!r}", hint=f"There are: {', '.join(self.names) or 'none'}.")
        return pairs

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where no round has one."""
        return next((value for _, value in _values(name, reversed(self._rounds))), None)

    def metrics(self, round: int | None = None) -> dict[str, float]:
        """The newest value of every metric, by names such as `test.accuracy`; of one `round`, those that it has."""
        chosen = [r for r in self if round in (None, r.round)]
        found = {
            f"{part}.{name}": value for r in chosen for part in METRICS_OF for name, value in getattr(r, part).items()
        }
        return dict(sorted(found.items()))

    def columns(self) -> dict[str, list[float]]:
        """The rounds' numbers, and every metric by its name, as columns with a row a round; NaN where there is none."""
        found: dict[str, list[float]] = {name: [getattr(r, name) for r in self] for name in COUNTED}
        for name in self.names:
            values = dict(self.series(name))
            found[name] = [values.get(r.round, math.nan) for r in self]
        return found

    def _repr_html_(self) -> str:
        panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for name in self.names:
            part, _, metric = name.partition(".")
            panels.setdefault(metric, {})[part] = self.series(name)
        columns = [{r: f"{value:.4g}" for r, value in self.series(name)} for name in self.names]
        last = self._rounds[-MOST_ROWS:]
        rows = [
            (r.round, r.clients, r.dropped, f"{r.seconds:.3g}", *(c.get(r.round, "") for c in columns)) for r in last
        ]
        return curves(panels) + table((*COUNTED, *self.names), rows, len(self) - len(last))

    def frame(self) -> DataFrame:
        """The `columns` as a frame of pandas, by round."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("a frame needs pandas: pip install pandas") from error
        return DataFrame(self.columns()).set_index("round")

    def plot(self, path: str | Path | None = None, *, title: str | None = None, failed: bool = False) -> Figure:
        """Draw every metric over the rounds, one panel a metric, and write the picture to `path` where one is given.

        Where the run has `failed`, its title says so in red. A notebook shows the `Figure` that is a cell's value.
        Raises `SettingError` where no round has a metric.
        """
        metrics = sorted({n.partition(".")[2] for n in self.names})
        figure = _panels(metrics)
        for axes, metric in zip(figure.axes, metrics, strict=True):
            for part, colour in (("train", "#0072B2"), ("evaluate", "#E69F00"), ("test", "#009E73")):
                if f"{part}.{metric}" in self.names:
                    points = _points(self.series(f"{part}.{metric}"))
                    label = {"train": "clients, in training", "evaluate": "clients, evaluated", "test": "test set"}[
                        part
                    ]
                    axes.plot(*points, marker="o", markersize=3, color=colour, label=label)
            axes.legend(frameon=False)
        if title:
            named = f"{title} failed" if failed else title
            figure.suptitle(named, color="#CC3333" if failed else None, parse_math=False)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure


def _values(name: str, rounds: Iterable[RoundCommitted]) -> Iterator[tuple[int, float]]:
    """The values of one metric, by the rounds that have it; it is asked for after every round, of all before."""
    part, _, metric = name.partition(".")
    if part in METRICS_OF:
        for r in rounds:
            values = getattr(r, part)
            if metric in values:
                yield r.round, values[metric]


def plot_together(histories: Mapping[str, History], path: str | Path | None = None) -> Figure:
    """Draw the metrics of several runs, by their names, one panel a metric and one line a run; see `History.plot`."""
    names = sorted({name for history in histories.values() for name in history.names})
    figure = _panels(names)
    for axes, name in zip(figure.axes, names, strict=True):
        for run, history in histories.items():
            points = _points(history.series(name) if name in history.names else [])
            axes.plot(*points, marker="o", markersize=3, label=run)
    figure.axes[0].legend(frameon=False, fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _points(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Rounds and values as they are drawn: what has diverged so far that no axis can hold it is left out."""
    return [r for r, _ in pairs], [value if abs(value) < 1e300 else math.nan for _, value in pairs]


def _panels(names: Sequence[str]) -> Figure:
    """A figure with a panel for each of these, over the rounds. Raises `SettingError` for none."""
    try:
        from matplotlib.ticker import MaxNLocator

        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    if not names:
        raise SettingError("there is nothing to draw: no round has a metric")
    figure = Picture(figsize=(7.5, 0.8 + 2.7 * len(names)), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, number + 1)
        axes.set_ylabel(name, parse_math=False)  # a name with a dollar is no formula
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[-1].set_xlabel("round")
    return figure
