"""Updates that count the more, the worse the model is for their client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema
from ..core.correction import REPORTS, Correction
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import not_negative, positive
from ..core.transform import as_arrays, checked_aux, register_transform, taken_aux, with_aux
from ..core.update import Expectation, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected
from .clip_by_norm import parameter_norm, with_roles
from .differences import OnDifferences, changed, changed_answer

_LEAST = 1e-10  # a loss of zero would make a power below one infinite


@register_transform
@dataclass(frozen=True)
class fair_weights(OnDifferences):
    """q-FedAvg's weights (Li et al. 2020, arXiv 1905.10497): the difference d of a client whose loss was F counts
    ``F**q``, and their sum is divided by that of ``q F**(q-1) |d|**2 / lr + F**q``, which bounds how curved it is.

    The updates bring the metric `initial_loss`; `lr` is the clients' learning rate. With q = 0 it is the mean.
    """

    name: ClassVar[str] = "fair_weights"
    brings_aux: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("initial_loss",)
    q: float = 1.0
    lr: float = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "q")
        positive(self, "lr")

    def check(self, fold: Fold, expects: Expectation) -> None:
        super().check(fold, expects)
        if fold.weights == "claimed":
            raise StrategyError(
                f"fair_weights weighs clients by their loss, not as {fold.name}", hint="Fold with mean()."
            )

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        return Correction(reports=self.reports)

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        loss = max(0.0, update.metrics["initial_loss"]) + _LEAST
        update = changed(update, lambda n, d: d * d.dtype.type(loss**self.q))
        return with_aux(update, self, {"bend": np.float64(loss)}), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        """The bend takes the place of the loss: so it is that of what is folded, whatever the holder says."""
        loss = float(checked_aux(update, self, {"bend": ()}).aux[f"{self.name}:bend"])
        if not _LEAST <= loss <= REPORTS["initial_loss"][1] + 1:
            raise UpdateRejected(f"the loss by which the update is weighed is {loss}")
        factor = loss**self.q
        square = (parameter_norm(with_roles(as_arrays(update), schema)) / factor) ** 2
        bend = self.q * loss ** (self.q - 1) * square / self.lr + factor
        return with_aux(update, self, {"bend": np.float64(bend)})

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        sent, answer = taken_aux(answer, self)
        return changed_answer(answer, lambda n, d: d / float(sent["bend"])) if sent else answer, state
