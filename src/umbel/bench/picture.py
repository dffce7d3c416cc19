"""Curves of a comparison: a metric by client updates, one line an algorithm, with the range over seeds."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .trial import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .table import ResultTable

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#555555")
STYLES = ("-", "--", ":", "-.")
COLUMN = 16
"""So many names stand below each other."""


def draw(table: ResultTable, problem: str, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the problem's metric by client updates, which rounds of all algorithms have in common: of each algorithm the
    mean over seeds, and shaded their range; the best stands first. Writes `path` where one is given. Needs matplotlib.
    """
    try:
        from matplotlib.ticker import MaxNLocator

        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    cells = {cell.name: cell for cell in table.of(problem)}
    p = next(iter(cells.values())).problem
    rows = [row for row in table.rows if row.problem == problem and not math.isnan(row.score)]
    figure = Picture(figsize=(9.0 if len(rows) <= COLUMN else 11.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(rows):
        outcomes = [outcome for _, outcome in cells[row.algorithm].runs if outcome.failed is None]
        rounds, means, least, most = curve(outcomes, p.metric)
        spent = [r * row.updates / row.rounds for r in rounds]
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        label = f"{row.algorithm}  {row.score:.4g}"
        axes.plot(spent, means, color=colour, linestyle=style, linewidth=1.5, label=label)
        if len(rows) <= len(COLOURS):  # more shades than these hide each other
            axes.fill_between(spent, least, most, color=colour, alpha=0.15, linewidth=0)
    target = table.target(p)
    if not math.isnan(target):
        axes.axhline(target, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_xlabel("client updates")
    axes.set_ylabel(p.metric)
    axes.set_title(problem, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        columns = -(-len(rows) // COLUMN)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, ncols=columns)
    if path is not None:
        figure.savefig(path, dpi=100)
    return figure


def curve(outcomes: Sequence[Outcome], metric: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """The rounds that all have evaluated, with the mean over the outcomes, their least and their most."""
    series = [{int(r): value for r, value in outcome.series.get(metric, ())} for outcome in outcomes]
    rounds = sorted(set.intersection(*map(set, series))) if series else []
    values = [[each[r] for each in series] for r in rounds]
    return rounds, [statistics.fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values]
