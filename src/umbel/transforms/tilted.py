"""Weights that grow exponentially with the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema
from ..core.correction import Correction
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import number
from ..core.transform import Transform, register_transform
from ..core.update import Expectation, Update
from ..entropy import SYSTEM, Entropy
from ..errors import SettingError, StrategyError

_MOST = 300.0  # of an exponent


@register_transform
@dataclass(frozen=True)
class tilted(Transform):
    """TERM's weights over clients (Li et al. 2021, arXiv 2007.01162): an update's weight is multiplied by ``exp(t *
    loss)``. With t > 0 clients for which the model is bad count more (fairness), with t < 0 less (outliers).

    The updates bring the metric `initial_loss`. Losses are taken relative to the last round's mean, which changes no
    weight relative to another.
    """

    name: ClassVar[str] = "tilted"
    reports: ClassVar[tuple[str, ...]] = ("initial_loss",)
    t: float = 1.0

    def __post_init__(self) -> None:
        if not number(self.t):
            raise SettingError(f"tilted takes a finite t, not {self.t!r:.60}")

    def check(self, fold: Fold, expects: Expectation) -> None:
        if fold.weights != "claimed":
            raise StrategyError(
                f"tilted changes weights, and {fold.name} takes none", hint="Fold with weighted_mean()."
            )

    def init(self, schema: Schema | None) -> Any:
        return 0.0

    def send(self, state: Any) -> Any:
        return state

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        return Correction(reports=self.reports)

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        exponent = self.t * (update.metrics["initial_loss"] - params)
        return replace(update, weight=update.weight * math.exp(min(max(exponent, -_MOST), _MOST))), local

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        return answer, answer.metrics.get("initial_loss", state)
