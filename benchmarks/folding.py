"""What it costs to fold 100 updates of 25 million float32 each, and how much memory that takes."""

from __future__ import annotations

import json
from statistics import median

import numpy as np

import umbel
from umbel.core.partial import Partial
from umbel.core.update import Receipt, check

from .measure import Row, alternate, child, over, peak_memory

UPDATES = 100
RATIO, MEMORY = 2.2, 8.0


def rows(quick: bool) -> list[Row]:
    """Measure the time and the memory of a fold."""
    size, updates, times = (1_000_000, 4, 2) if quick else (25_000_000, UPDATES, 11)
    return [_time(size, updates, times), _memory(size, (2, 4) if quick else (5, 30))]


def fold(model: umbel.Arrays, buffers: list[np.ndarray], updates: int) -> umbel.Arrays:
    """Check, fold and finish so many updates; they take turns with the buffers."""
    partial, expects = Partial(umbel.weighted_mean()), umbel.Like()
    for client in range(updates):
        weight = 1.0 + client % 7
        update = umbel.Update({"w": buffers[client % len(buffers)]}, weight=weight, delta=True)
        item = check(update, expects, model, client)
        partial.add(item, Receipt(f"0.{client}", client, weight, {}))
    answer = partial.finish().value
    assert isinstance(answer, umbel.Arrays)
    return answer


def loop(size: int, buffers: list[np.ndarray], updates: int) -> np.ndarray:
    """The same mean, unchecked and order-dependent, in float64."""
    total, weights = np.zeros(size), 0.0
    for client in range(updates):
        weight, x = 1.0 + client % 7, buffers[client % len(buffers)]
        total += weight * x
        weights += weight
    return (total / weights).astype(np.float32)


def held(size: int, updates: int) -> None:
    """Print how many bytes this process takes more for the model, one update at a time and the fold of so many."""
    before = peak_memory()
    model = umbel.Arrays({"w": np.zeros(size, np.float32)})
    buffer = _values(size, 0)
    fold(model, [buffer], updates)
    print(json.dumps(peak_memory() - before))


def _time(size: int, updates: int, times: int) -> Row:
    model = umbel.Arrays({"w": np.zeros(size, np.float32)})
    buffers = [_values(size, seed) for seed in range(3)]
    if not np.allclose(fold(model, buffers, updates)["w"], loop(size, buffers, updates), atol=1e-6):
        raise RuntimeError("the fold and the loop do not agree")
    ours, theirs = alternate(lambda: fold(model, buffers, updates), lambda: loop(size, buffers, updates), times=times)
    ratio = over(ours, theirs)
    what = f"fold of {UPDATES} updates of 25 M float32, validation included: CPU time over the loop"
    beside = f"float64 `acc += w * x` in numpy: {median(theirs):.2f} s, the fold: {median(ours):.2f} s"
    return Row(what, f"{ratio:.2f}", f"<= {RATIO}", ratio <= RATIO, beside + _reduced(size, updates))


def _memory(size: int, counts: tuple[int, int]) -> Row:
    few, many = (
        child("import sys; from benchmarks import folding; folding.held(int(sys.argv[1]), int(sys.argv[2]))", *pair)
        for pair in ((str(size), str(n)) for n in counts)
    )
    ratios = few.said / (4 * size), many.said / (4 * size)
    what = "the same fold: peak memory over the model's size"
    beside = f"{ratios[0]:.1f} with {counts[0]} updates, {ratios[1]:.1f} with {counts[1]}; model and update included"
    return Row(
        what, f"{max(ratios):.1f}", f"<= {MEMORY:.0f}", max(ratios) <= MEMORY, beside + _reduced(size, counts[1])
    )


def _values(size: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    values *= 0.01
    return values


def _reduced(size: int, updates: int) -> str:
    return "" if size == 25_000_000 else f" (quick: {updates} updates of {size:,})"
