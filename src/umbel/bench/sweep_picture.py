"""The picture of a sweep: its metric over the rounds, and by each setting that was varied."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .picture import COLOURS
from .space import plain_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .swept import Sweep, SweepGroup

MOST_SETTINGS = 3
"""So many settings have a panel, those with the most values first."""


def draw(sweep: Sweep, path: str | Path | None = None) -> Figure:
    """Draw a sweep: over the rounds the mean over seeds of each choice of settings, the best ones in colours with their
    range shaded; then each run's metric by the settings that were varied. Needs matplotlib.
    """
    try:
        from matplotlib.ticker import MaxNLocator

        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    if sweep.metric is None or not any(math.isfinite(sweep.value(row)) for row in sweep.rows):
        raise SettingError("there is nothing to draw: no run of the sweep has a metric")
    values = {name: set(column) for name in _names(sweep) if (column := [r.settings.get(name) for r in sweep.rows])}
    varied = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
    shown = [name for name in _names(sweep) if name in varied[:MOST_SETTINGS]]
    figure = Picture(figsize=(6.0 + 3.0 * len(shown), 4.2), layout="constrained")
    ratios = {"width_ratios": [2.0, *([1.0] * len(shown))]}
    curves, *others = figure.subplots(1, 1 + len(shown), squeeze=False, gridspec_kw=ratios)[0]
    for number, group in reversed(list(enumerate(sweep.groups))):
        _curve(curves, sweep, group, number, varied)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set_xlabel("round")
    curves.set_ylabel(sweep.metric)
    curves.grid(alpha=0.3)
    handles, labels = curves.get_legend_handles_labels()
    if labels:
        curves.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8)
    for axes, name in zip(others, shown, strict=True):
        _points(axes, sweep, name)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _names(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(name for row in sweep.rows for name in row.settings))


def _curve(axes: Any, sweep: Sweep, group: SweepGroup, number: int, varied: Sequence[str]) -> None:
    """A line for a choice of settings: in a colour and named where it is among the best."""
    name = str(sweep.metric)
    series = [dict(row.history.series(name)) for row in group.rows if name in row.history.names]
    rounds = sorted({r for each in series for r in each})
    found = {r: [each[r] for each in series if r in each] for r in rounds}
    best = number < len(COLOURS)
    label = ", ".join(f"{name} {value}" for name, value in group.settings.items() if name in varied)
    colour = COLOURS[number] if best else "0.8"
    means = [statistics.fmean(found[r]) for r in rounds]
    axes.plot(rounds, means, color=colour, linewidth=1.5 if best else 0.8, label=label if best and label else None)
    if best and len(series) > 1:
        least, most = [min(found[r]) for r in rounds], [max(found[r]) for r in rounds]
        axes.fill_between(rounds, least, most, color=colour, alpha=0.15, linewidth=0)


def _points(axes: Any, sweep: Sweep, name: str) -> None:
    """What each run came to by one setting."""
    rows = [row for row in sweep.rows if math.isfinite(sweep.value(row)) and name in row.settings]
    plain = [plain_value(row.settings[name]) for row in rows]
    if all(type(value) in (int, float) for value in plain):
        numbers = [float(value) for value in plain]
        if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
            axes.set_xscale("log")
        axes.plot(numbers, [sweep.value(row) for row in rows], "o", markersize=4, color=COLOURS[0], alpha=0.7)
    else:
        texts = [row.settings[name] for row in rows]
        axes.plot(texts, [sweep.value(row) for row in rows], "o", markersize=4, color=COLOURS[0], alpha=0.7)
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)
