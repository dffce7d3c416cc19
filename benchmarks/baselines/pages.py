"""docs/baselines.md and its pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .chance import spread
from .experiment import Curve, Experiment, Finding
from .papers import Paper

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#555555", "#999933")
INTRO = """\
# Baselines

Settings of papers, run anew at a size for two cores by `make baselines`, which writes this page; one paper alone by the
command below it. What is done is kept in the folder `umbel-bench/baselines`, and is not run again.

Most of the papers' data are in no package, and models and rounds are smaller here, so that a paper's figure is no
measure of ours. Beside ours stands that of an **independent reference**: a plain loop of the same algorithm in one
process (`benchmarks/baselines/reference.py`), which uses nothing of Umbel and draws splits, cohorts, batches and
initial models by generators of its own. "Published" says where the paper has the like, and its figure where data,
model and setting are the same.

Both sides are means over seeds with their standard deviation. They *agree* where they differ by no more than chance
makes the means of so few seeds differ in 99 of 100 cases (a t-test), or by a point of accuracy, or a tenth of the
rounds, whatever is more: few seeds tell little, and `--seeds 10` tells more. In pictures lines are Umbel's
and dashes the reference's, with the range over seeds shaded.
"""


def figure(experiment: Experiment, values: Sequence[float]) -> str:
    """A side's figure with its spread."""
    if not values:
        return "-"
    if experiment.target is not None:
        there = [value for value in values if math.isfinite(value)]
        some = f" ({len(there)} of {len(values)} seeds)" if len(there) < len(values) else ""
        return f"{statistics.fmean(there):.3g} ± {spread(there):.2g} rounds{some}" if there else "not reached"
    return f"{statistics.fmean(values):.2%} ± {spread(values):.2%}"


def row(found: Finding) -> str:
    """A line of the table."""
    e, (ours, theirs) = found.experiment, found.values
    what = f"rounds to {e.target:.0%}" if e.target is not None else "accuracy"
    verdict = {True: "agrees", False: "**differs**", None: "-"}[found.agrees]
    said = ", ".join(f"{'client lr' if n == 'client rate' else f'server {n}'} {v}" for n, v in found.settings.items())
    verdict = f"failed: {found.failed}" if found.failed else verdict
    cells = [e.setting, said, what, figure(e, ours), figure(e, theirs), verdict, e.counterpart, f"{found.seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def section(
    paper: Paper, findings: Sequence[Finding], missing: Sequence[Experiment], picture: str | None
) -> Iterator[str]:
    """A paper's part of the page."""
    yield f"## {paper.title}\n\n{paper.says}\n\n```sh\npython -m benchmarks.baselines {paper.name}\n```\n"
    if findings:
        yield "| setting | rates | measured | Umbel | reference | | published | s a run |"
        yield "| --- | --- | --- | ---: | ---: | --- | --- | ---: |"
        yield from map(row, findings)
        seeds = max(len(found.theirs) for found in findings)
        yield f"\nSeeds 1 to {seeds}.\n"
    yield from (f"Not run: {each.setting}, for Umbel has no strategy {each.missing}.\n" for each in missing)
    if picture is not None:
        yield f"![accuracy by round]({picture})\n"


def draw(paper: Paper, findings: Sequence[Finding], path: Path) -> None:
    """The accuracy by round of each experiment, by Umbel and by the reference."""
    from umbel.core.figure import Picture

    figure = Picture(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for number, found in enumerate(findings):
        colour = COLOURS[number % len(COLOURS)]
        for curves, style, label in ((found.ours, "-", found.experiment.setting), (found.theirs, "--", None)):
            if curves:
                line(axes, curves, color=colour, linestyle=style, label=label)
    targets: Mapping[Any, None] = dict.fromkeys(
        f.experiment.target for f in findings if f.experiment.target is not None
    )
    for target in targets:
        axes.axhline(target, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on the test")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def line(axes: Any, curves: Sequence[Curve], **style: Any) -> None:
    """The mean of the curves, and their range; one that has come to its target stays where it is."""
    rounds = [r for r, *_ in max(curves, key=len)]
    values = np.array([[accuracy for _, accuracy, *_ in curve] for curve in map(partial(_full, len(rounds)), curves)])
    axes.plot(rounds, values.mean(0), linewidth=1.5, **style)
    axes.fill_between(rounds, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)


def _full(length: int, curve: Curve) -> Curve:
    return [*curve, *[curve[-1]] * (length - len(curve))]
