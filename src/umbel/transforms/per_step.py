"""Updates by the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.transform import register_transform
from ..core.update import Expectation, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError
from .differences import OnDifferences, changed, changed_answer


@register_transform
@dataclass(frozen=True)
class per_step(OnDifferences):
    """FedNova's normalisation (Wang et al. 2020, arXiv 2007.07481): what is folded is by how much each client moved a
    local step, and the mean is taken as many steps far as clients did on average.

    So clients that do more steps do not pull the model towards their own optimum. The updates bring the metric
    `steps`: of a local optimiser with momentum or another one the effective number of them, the paper's ``|a|_1``.
    """

    name: ClassVar[str] = "per_step"
    reports: ClassVar[tuple[str, ...]] = ("steps",)

    def check(self, fold: Fold, expects: Expectation) -> None:
        super().check(fold, expects)
        if fold.weights != "claimed":
            raise StrategyError(
                f"per_step averages steps by weight, but {fold.name} has every client count alike",
                hint="Fold with weighted_mean(); where clients are to count alike, give each the weight 1.",
            )

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        return Correction(reports=self.reports)

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        steps = max(1.0, update.metrics["steps"])
        return changed(update, lambda n, d: d / d.dtype.type(steps)), local

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        if not answer.count:
            return answer, state
        return changed_answer(answer, lambda n, d: d * answer.metrics["steps"]), state
