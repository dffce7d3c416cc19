"""What the runs of a setting came to, in virtual time, as tables and pictures: for `benchmarks.heterogeneity`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Point:
    """How things stood after a round: virtual seconds, joules of all devices, updates folded, accuracy on the test."""

    seconds: float
    joules: float
    updates: float
    accuracy: float


def smoothed(run: Sequence[Point]) -> list[Point]:
    """A run with the mean of the last three tests as its accuracy, from the third on: one lucky test is no result."""
    return [
        replace(point, accuracy=statistics.fmean(p.accuracy for p in run[max(0, number - 3) : number]))
        for number, point in enumerate(run, 1)
        if number >= min(3, len(run))
    ]


@dataclass(frozen=True)
class Outcome:
    """The runs of one setting, one for each seed."""

    label: str
    runs: Sequence[Sequence[Point]]

    def mean(self, value: Callable[[Sequence[Point]], float]) -> float:
        """The mean over the runs."""
        return statistics.fmean(value(run) for run in self.runs)

    @property
    def accuracies(self) -> list[float]:
        """At the end of each run."""
        return [smoothed(run)[-1].accuracy for run in self.runs]

    @property
    def accuracy(self) -> float:
        """At the end, of all runs."""
        return statistics.fmean(self.accuracies)

    @property
    def minutes(self) -> float:
        """Of a whole run."""
        return self.mean(lambda run: run[-1].seconds) / 60

    @property
    def kilojoules(self) -> float:
        """Of a whole run."""
        return self.mean(lambda run: run[-1].joules) / 1000

    def reached(self, target: float) -> Point | None:
        """What it took to come to the target, as a mean; None where a run never did."""
        found = [next((p for p in smoothed(run) if p.accuracy >= target), None) for run in self.runs]
        there = [p for p in found if p is not None]
        if len(there) < len(found):
            return None
        return Point(*(statistics.fmean(values) for values in zip(*map(astuple, there), strict=True)))

    def curve(self, x: str) -> tuple[list[float], list[float]]:
        """The values of a `Point`'s field and accuracies, both as means over the runs, test by test."""
        steps = list(zip(*map(smoothed, self.runs), strict=True))
        along = [statistics.fmean(getattr(p, x) for p in step) for step in steps]
        return along, [statistics.fmean(p.accuracy for p in step) for step in steps]


def points(history: Sequence[Any]) -> Iterator[Point]:
    """The tested rounds of a run, with what was spent until then."""
    joules, updates = 0.0, 0
    for r in history:
        joules += r.account.get("joules", 0.0)
        updates += r.clients
        if r.test:
            yield Point(r.clock, joules, updates, r.test["accuracy"])


def duration(minutes: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def energy(kilojoules: float) -> str:
    """Kilojoules, or megajoules where there are many."""
    return f"{kilojoules:.0f} kJ" if kilojoules < 1000 else f"{kilojoules / 1000:.1f} MJ"


def common_target(outcomes: Sequence[Outcome]) -> float:
    """A whole number of percent that every run came to."""
    return math.floor(100 * min(max(p.accuracy for p in smoothed(run)) for o in outcomes for run in o.runs)) / 100


def table(outcomes: Sequence[Outcome], target: float) -> str:
    """What the settings came to, and what it took to a target, in Markdown."""
    to = f"to {target:.0%}"
    rows = [["", "accuracy", "range", "time", "energy", f"{to}: time", "energy", "updates"]]
    rows.append(["---"] + ["---:"] * 7)
    for o in outcomes:
        least, most = min(o.accuracies), max(o.accuracies)
        row = [o.label, f"{o.accuracy:.1%}", f"{least:.1%} to {most:.1%}", duration(o.minutes), energy(o.kilojoules)]
        at = o.reached(target)
        row += ["-"] * 3 if at is None else [duration(at.seconds / 60), energy(at.joules / 1000), f"{at.updates:,.0f}"]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def canvas(title: str, panels: int = 1) -> tuple[Any, list[Any]]:
    """A picture of 800 pixels across with empty panels."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def lines(axes: Any, outcomes: Sequence[Outcome], x: str, unit: float, name: str) -> None:
    """Accuracy along a quantity, one line a setting."""
    for o, colour in zip(outcomes, COLOURS, strict=False):
        along, accuracy = o.curve(x)
        label = f"{o.label}: {duration(o.minutes)}, {energy(o.kilojoules)}"
        axes.plot([v / unit for v in along], [100 * a for a in accuracy], color=colour, label=label)
    axes.set_xlabel(name)
    axes.set_ylabel("accuracy on the test set (%)")


def gain(first: Outcome, last: Outcome) -> str:
    """By how much a setting is more accurate than another."""
    return f"{100 * (last.accuracy - first.accuracy):+.1f} points of accuracy"


def times(first: float, last: float, what: str) -> str:
    """How many times as much of something."""
    ratio = last / first
    return f"the same {what}" if abs(ratio - 1) < 0.02 else f"{ratio:.2g} times the {what}"


def draw_epochs(outcomes: Sequence[Outcome], target: float) -> Any:
    """Accuracy over updates and over time."""
    first, last = outcomes[0], outcomes[-1]
    title = (
        f"10 local epochs instead of 1, as many rounds: {gain(first, last)},\n"
        f"{times(first.minutes, last.minutes, 'time')}, {times(first.kilojoules, last.kilojoules, 'energy')}"
    )
    figure, (left, right) = canvas(title, 2)
    lines(left, outcomes, "updates", 1, "updates folded (10 a round)")
    lines(right, outcomes, "seconds", 60, "virtual minutes (logarithmic)")
    right.set_xscale("log")
    right.xaxis.set_major_formatter("{x:g}")
    right.set_ylabel("")
    left.legend(frameon=False, loc="lower right")
    return figure


def draw_clients(outcomes: Sequence[Outcome], target: float) -> Any:
    """Accuracy over time, and the energy of each number of clients."""
    first, last = outcomes[0], outcomes[-1]
    title = (
        f"10 clients instead of 4, each with data of its own: {gain(first, last)},\n"
        f"{times(first.minutes, last.minutes, 'time')}, {times(first.kilojoules, last.kilojoules, 'energy')}"
    )
    figure, (left, right) = canvas(title, 2)
    lines(left, outcomes, "seconds", 60, "virtual minutes")
    left.legend(frameon=False, loc="lower right")
    bars = right.bar([o.label for o in outcomes], [o.kilojoules for o in outcomes], 0.6, color=COLOURS[: len(outcomes)])
    right.bar_label(bars, [energy(o.kilojoules) for o in outcomes], padding=2)
    right.margins(y=0.1)
    right.set_ylabel("energy of all phones (kJ)")
    return figure


def draw_cut_off(outcomes: Sequence[Outcome], target: float) -> Any:
    """Accuracy against time, one point a setting: on one kind of processor, and on both."""
    named = {o.label: o for o in outcomes}
    cpu, cut = named["CPU"], named["CPU, τ = 1.99 min"]
    saved = 1 - cut.minutes / cpu.minutes
    figure, (left, right) = canvas(f"A cut-off of 1.99 minutes: {saved:.0%} less time on CPUs, {gain(cpu, cut)}", 2)
    right.sharex(left)
    right.sharey(left)
    alone = [o for o in outcomes if o.label.startswith("CPU")]
    left.plot([o.minutes for o in alone], [100 * o.accuracy for o in alone], color=COLOURS[0])
    for o in outcomes:
        axes, colour = (right, COLOURS[1]) if o.label.startswith("both") else (left, COLOURS[0])
        dot(axes, o, COLOURS[2] if o.label == "GPU" else colour, *_PLACES.get(o.label, (o.label, 5, 5)))
    left.set_title("ten GPUs, or ten CPUs with a cut-off of τ minutes", fontsize=10)
    right.set_title("CPUs and GPUs together", fontsize=10)
    left.set_ylabel("accuracy on the test set (%)")
    for axes in (left, right):
        axes.set_xlabel("virtual minutes of the whole run")
        axes.margins(x=0.2, y=0.12)
    return figure


_PLACES = {
    "GPU": ("GPU", -28, 6),
    "CPU": ("no τ", 0, -16),
    "CPU, τ = 2.23 min": ("2.23", -4, -16),
    "CPU, τ = 1.99 min": ("1.99", -22, -16),
    "CPU, τ = 1 min": ("τ = 1", 2, -15),
    "CPU, τ = 0.25 min": ("τ = 0.25", 8, -4),
    "both": ("wait for all", -26, -16),
    "both, CPU τ = 1.99 min": ("τ = 1.99 for CPUs", -112, -4),
    "both, deadline 2.1 min": ("deadline of 2.1", -98, -4),
}
"""What stands beside a setting's point, and how many pixels from it."""


def dot(axes: Any, o: Outcome, colour: str, text: str, right: float, up: float) -> None:
    """A setting as a point, with the range of its runs, and its name."""
    least, most = min(o.accuracies), max(o.accuracies)
    axes.plot([o.minutes] * 2, [100 * least, 100 * most], color=colour, alpha=0.4, linewidth=3)
    axes.plot(o.minutes, 100 * o.accuracy, color=colour, marker="o")
    place = {"xytext": (right, up), "textcoords": "offset points"}
    axes.annotate(text, (o.minutes, 100 * o.accuracy), fontsize=9, color=colour, **place)


def draw_asynchronous(outcomes: Sequence[Outcome], target: float) -> Any:
    """Accuracy over the hours of a night."""
    hours = {o.label: at.seconds / 3600 for o in outcomes if (at := o.reached(target)) is not None}
    first, last = (hours.get(o.label, math.nan) for o in (outcomes[0], outcomes[-1]))
    figure, (axes,) = canvas(f"FedBuff comes to {target:.0%} in {last:.1f} virtual hours, FedAvg in {first:.1f}")
    lines(axes, outcomes, "seconds", 3600, "virtual hours since midnight")
    axes.axhline(100 * target, color="black", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, loc="lower right")
    return figure
