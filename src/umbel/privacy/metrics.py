"""Evaluations that hide who evaluated: metrics within ranges, one vote a client, and noise on the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import number, positive
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Like, Update
from ..entropy import SYSTEM, Entropy
from ..errors import SettingError, StrategyError, UpdateRejected
from .discrete import discrete_gaussian
from .local import MOST_NOISE

HALF = 2**20
"""Half a range has so many steps."""


@register_transform
@dataclass(frozen=True)
class central_metrics(Transform):
    """Hide every client that evaluates behind discrete Gaussian noise, added once to the sum of its metrics (Canonne,
    Kamath & Steinke 2020, arXiv 2004.00010); for an app's `evaluate_noise`.

    `ranges` says which metrics, and for each its least and largest value, to which a client's own is clipped; one that
    it has not, or that is not finite, counts as the middle. Clients count alike, whatever weight they claim. As whole
    numbers, from -2^20 to 2^20 over a range, k metrics have an L2 norm of sqrt(k) * 2^20 at most, which is checked
    where they are added up. The sum gets noise of `noise` times that, and is divided by `expected`, how many evaluate
    on average. So a mean has noise of ``noise * sqrt(k) / expected`` half ranges, and is drawn to the middle where
    fewer come. All other metrics are dropped.
    """

    name: ClassVar[str] = "central_metrics"
    ranges: Mapping[str, tuple[float, float]]
    noise: float
    expected: float

    def __post_init__(self) -> None:
        positive(self, "expected")
        positive(self, "noise", most=MOST_NOISE)
        given = dict(self.ranges) if isinstance(self.ranges, Mapping) else {}
        if not given or not all(isinstance(name, str) and _range(ends) for name, ends in given.items()):
            raise SettingError(
                f"central_metrics takes ranges of metrics, the least and the largest value, not {self.ranges!r:.60}",
                hint='Write ranges={"accuracy": (0.0, 1.0)}.',
            )
        ranges = {name: (float(given[name][0]), float(given[name][1])) for name in sorted(given)}
        object.__setattr__(self, "ranges", ranges)

    @property
    def private(self) -> bool:
        return True

    @property
    def of_metrics(self) -> Expectation | None:
        return Like(Arrays({"metrics": np.zeros(len(self.ranges), np.int64)}), delta=False)

    def check(self, fold: Fold, expects: Expectation) -> None:
        if fold.name != "total" or expects.spec() != self.of_metrics.spec():  # type: ignore[union-attr]
            raise StrategyError(
                "central_metrics hides what clients say when they evaluate, and nothing else",
                hint="Write umbel.App(..., evaluate_noise=central_metrics(...)).",
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        steps = []
        for name, (low, high) in self.ranges.items():
            value = float(update.metrics.get(name, math.nan))
            middle, half = low / 2 + high / 2, high / 2 - low / 2
            steps.append(round(min(max((value - middle) / half, -1.0), 1.0) * HALF) if math.isfinite(value) else 0)
        return Update(Arrays({"metrics": np.array(steps, np.int64)})), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = as_arrays(update)
        for name, array in arrays.items():
            if array.dtype != np.int64 or (array < -HALF).any() or (array > HALF).any():
                raise UpdateRejected(f"array {name!r} holds no metrics within their ranges")
        return Update(arrays)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        noise, found = discrete_gaussian(self._variance, len(self.ranges), own), {}
        total = answer.value["metrics"] if "metrics" in answer.value else np.zeros(len(self.ranges), np.int64)
        for (name, (low, high)), steps in zip(self.ranges.items(), (total + noise).tolist(), strict=True):
            mean = low / 2 + high / 2 + (high / 2 - low / 2) * (steps / HALF / self.expected)
            found[name] = min(max(mean, low), high)
        return replace(answer, value=Arrays(), aux=Arrays(), metrics=found, weight=0.0), state

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return {
            "mechanism": "discrete_gaussian",
            "unit": "client",
            "neighbours": "add or remove one",
            "noise": self.noise,
            "norm": math.sqrt(len(self.ranges)),
            "steps": math.sqrt(self._variance),
            "denominator": self.expected,
        }

    @property
    def _variance(self) -> int:
        return math.ceil(Fraction(self.noise) ** 2 * len(self.ranges) * HALF**2)


def _range(ends: Any) -> bool:
    return isinstance(ends, list | tuple) and len(ends) == 2 and all(map(number, ends)) and ends[0] / 2 < ends[1] / 2
