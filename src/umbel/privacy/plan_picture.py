"""The picture of a plan: what a budget, a cohort and rounds ask of each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .plan import PrivacyPlan, around, tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4477aa", "#ee6677", "#228833")


def draw(plan: PrivacyPlan, path: str | Path | None = None) -> Figure:
    """Draw the noise that the budget needs over the cohort, as it is and on the mean, for fewer and more rounds; and
    what the plan's noise spends over the rounds. Needs matplotlib and some seconds.
    """
    try:
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    figure = Picture(figsize=(12.0, 4.0), layout="constrained")
    budget = f"epsilon {plan.epsilon:g}, delta {plan.delta:g}"
    figure.suptitle(f"{budget}: {plan.population:,} clients, each in a round by its own throw of the dice", fontsize=11)
    noise, mean, spent = figure.subplots(1, 3)
    cohorts = around(plan.cohort, (0.1, 0.3, 1, 3, 10), plan.population)
    for rounds, colour in zip(around(plan.rounds, (0.25, 1, 4)), COLOURS, strict=False):
        row = tradeoff(replace(plan, rounds=rounds), cohorts)
        for axes, values in ((noise, [p.noise for p in row]), (mean, [p.mean_noise for p in row])):
            axes.plot(cohorts, values, "o-", markersize=3, color=colour, label=f"{rounds:,} rounds")
    for axes, value, words in (
        (noise, plan.noise, "noise multiplier"),
        (mean, plan.mean_noise, "noise on the mean / clip bound"),
    ):
        axes.plot([plan.cohort], [value], "o", markersize=9, markerfacecolor="none", color="black")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(cohorts, [f"{n:,}" for n in cohorts])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        _labelled(axes, "clients in the mean round", words)
    for cohort, colour in zip(around(plan.cohort, (0.5, 1, 2), plan.population), COLOURS, strict=False):
        counts = around(plan.rounds, (0, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2))
        values = [plan.with_same_noise(cohort, n) for n in counts]
        spent.plot(counts, values, "o-", markersize=3, color=colour, label=f"{cohort:,} in the mean round")
    spent.axhline(plan.epsilon, color="0.4", linestyle="--", linewidth=1)
    spent.plot([plan.rounds], [plan.spent], "o", markersize=9, markerfacecolor="none", color="black")
    spent.set_ylim(bottom=0)
    _labelled(spent, "rounds", f"epsilon at a noise multiplier of {plan.noise:g}")
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _labelled(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
