"""What came out: medians, ratios within the turns, whether the sides agree, and the tables of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from ..measure import Row
from .launch import Outcome, Side
from .workloads import Model, Workload

Turn = Mapping[str, Outcome]
"""What each side did in one turn."""

ACCURACY, APART = 0.01, 0.02
"""Sides agree whose accuracies differ by no more than this, and whose models, by this share of what was learned."""

HEADS = ("side", "ms a client", "CPU ms", "over loop 2", "over Umbel", "memory", "start to exit", "accuracy", "agrees")


@dataclass(frozen=True)
class Verdict:
    """How good a side's model is, and how far it is from the reference's, as a share of what that one learned."""

    accuracy: float | None
    apart: float

    def agrees(self, other: Verdict) -> bool:
        """Whether two sides may be compared: they computed the same."""
        if (self.accuracy is None) != (other.accuracy is None):
            return False
        near = self.accuracy is None or other.accuracy is None or abs(self.accuracy - other.accuracy) <= ACCURACY
        return near and self.apart <= APART


def per_client(outcome: Outcome, workload: Workload) -> float:
    """Milliseconds a client: the mean of the rounds that count, over the cohort."""
    assert outcome.said is not None
    return 1e3 * fmean(outcome.said["seconds"]) / workload.cohort


def cpu_per_client(outcome: Outcome, workload: Workload) -> float:
    """CPU-milliseconds a client, of all processes of the side."""
    assert outcome.said is not None
    return 1e3 * float(outcome.said["cpu"]) / workload.cohort


def done(turns: Sequence[Turn], side: str) -> list[Outcome]:
    """The turns in which a side came to its end."""
    return [turn[side] for turn in turns if side in turn and turn[side].why is None]


def ratio(turns: Sequence[Turn], side: str, other: str, of: Callable[[Outcome], float]) -> float | None:
    """The median of the ratios within the turns in which both came to their end."""
    return _paired(turns, side, other, lambda a, b: of(a) / of(b) if of(b) else float("inf"))


def difference(turns: Sequence[Turn], side: str, other: str, of: Callable[[Outcome], float]) -> float | None:
    """The median of the differences within the turns in which both came to their end."""
    return _paired(turns, side, other, lambda a, b: of(a) - of(b))


def _paired(turns: Sequence[Turn], side: str, other: str, of: Callable[[Outcome, Outcome], float]) -> float | None:
    pairs = [(turn[side], turn[other]) for turn in turns if side in turn and other in turn]
    both = [of(a, b) for a, b in pairs if a.why is None and b.why is None]
    return median(both) if both else None


def verdicts(
    workload: Workload, turns: Sequence[Turn], begin: Model, judge: Callable[[Model], float] | None
) -> dict[str, Verdict]:
    """Each side's verdict, beside the model of the first side of the workload that came to its end."""
    models = {side: found.model for side in workload.sides for found in done(turns, side) if found.model is not None}
    if not models:
        return {}
    reference = next(iter(models.values()))
    return {
        side: Verdict(judge(model) if judge is not None else None, apart(model, reference, begin))
        for side, model in models.items()
    }


def apart(model: Model, reference: Model, begin: Model) -> float:
    """How far a model is from another one, as a share of how far that is from where it began; the plain distance where
    it never moved. Infinite for different names or shapes.
    """
    shapes = [{name: array.shape for name, array in each.items()} for each in (model, reference, begin)]
    if any(each != shapes[0] for each in shapes):
        return float("inf")
    moved = _distance(reference, begin)
    return _distance(model, reference) / (moved or 1.0)


def _distance(a: Model, b: Model) -> float:
    return float(np.sqrt(sum(float(np.sum((a[n].astype(np.float64) - b[n]) ** 2)) for n in a)))


def cells(
    workload: Workload, turns: Sequence[Turn], sides: Iterable[Side], judged: Mapping[str, Verdict]
) -> list[tuple[str, ...]]:
    """The rows of a workload's table under `HEADS`; a side that failed has its reason in place of figures."""
    rows: list[tuple[str, ...]] = []
    reference = next(iter(judged.values()), None)
    for side in sides:
        good = done(turns, side.name)
        if not good:
            why = next((turn[side.name].why for turn in turns if side.name in turn), "left out")
            rows.append((side.title, f"failed: {why}"))
            continue

        def wall(outcome: Outcome) -> float:
            return per_client(outcome, workload)

        verdict = judged.get(side.name)
        agrees = verdict is not None and reference is not None and verdict.agrees(reference)
        rows.append(
            (
                side.title,
                _figure(median(wall(outcome) for outcome in good)),
                _figure(median(cpu_per_client(outcome, workload) for outcome in good)),
                _times(ratio(turns, side.name, "loop-2", wall)),
                _times(ratio(turns, side.name, "umbel", wall)),
                f"{median(outcome.peak for outcome in good) / 1e6:,.0f} MB",
                f"{median(outcome.whole for outcome in good):.1f} s",
                "-" if verdict is None or verdict.accuracy is None else f"{verdict.accuracy:.1%}",
                f"{'yes' if agrees else 'NO'}, to {verdict.apart:.0e}" if verdict is not None else "no model",
            )
        )
    return rows


def notes(turns: Sequence[Turn], sides: Iterable[Side]) -> list[str]:
    """What each side's figures include, with its versions and rounds, and turns that failed."""
    lines = []
    for side in sides:
        good = done(turns, side.name)
        if not good:
            continue
        said = good[-1].said
        assert said is not None
        versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
        lines.append(
            f"{side.title} ({versions}; {len(said['seconds'])} rounds, {len(good)} times): {said['includes']}."
        )
        lines += [f"{side.title}: once it failed: {turn[side.name].why}." for turn in turns if _failed(turn, side.name)]
    return lines


def bars(workload: Workload, turns: Sequence[Turn]) -> list[Row]:
    """What Umbel is held to on this workload."""
    good = done(turns, "umbel")
    if not good:
        return []

    def wall(outcome: Outcome) -> float:
        return per_client(outcome, workload)

    def cpu(outcome: Outcome) -> float:
        return cpu_per_client(outcome, workload)

    peers = ", ".join(
        f"{side} {ours:.2f}" for side in ("flwr", "pfl") if (ours := ratio(turns, side, "loop-2", cpu)) is not None
    )
    rows: list[Row] = []
    if workload.name == "regression" and (added := difference(turns, "umbel", "loop-2", cpu)) is not None:
        clock = difference(turns, "umbel", "loop-2", wall) or 0.0
        what = f"{workload.title}: CPU time a client beyond the loop in 2 processes"
        rows.append(
            Row(what, f"{1e3 * added:.0f} us", "<= 50 us", 1e3 * added <= 50, f"by the clock {1e3 * clock:.0f} us")
        )
    if workload.name == "cnn" and (over := ratio(turns, "umbel", "loop-2", cpu)) is not None:
        clock = ratio(turns, "umbel", "loop-2", wall) or 0.0
        beside = f"by the clock {clock:.2f}; CPU time of others over the loop: {peers}"
        rows.append(
            Row(
                f"{workload.title}: CPU time over the loop in 2 processes",
                f"{over:.2f}",
                "<= 1.06",
                over <= 1.06,
                beside,
            )
        )
    seconds = median(wall(outcome) for outcome in good) * workload.cohort / 1e3
    bar = {"noop-3000": 0.15, "pool-15000000": 0.08}.get(workload.name)
    if bar is not None:
        rows.append(Row(f"{workload.title}: a round", f"{seconds:.3f} s", f"<= {bar} s", seconds <= bar))
    if workload.name == "pool-15000000":
        peak = median(outcome.peak for outcome in good) / 1e6
        rows.append(Row(f"{workload.title}: memory of all processes", f"{peak:.0f} MB", "<= 400 MB", peak <= 400))
    return rows


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Rows under `HEADS` as aligned text; the second cell of a short row may run on to the end of the line."""
    whole = [row for row in (HEADS, *rows) if len(row) == len(HEADS)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(HEADS))]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows)) if rows else widths[0]
    ruled = [HEADS, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in ruled
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows under `HEADS` as a table in Markdown."""
    filled = [(*row, *[""] * (len(HEADS) - len(row))) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEADS, ("---",) * len(HEADS), *filled))


def _failed(turn: Turn, side: str) -> bool:
    return side in turn and turn[side].why is not None


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.0f}"
