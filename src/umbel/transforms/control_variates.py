"""What clients drift by, estimated and taken off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.randomness import Key
from ..core.transform import as_arrays, register_transform, taken_aux, with_aux
from ..core.update import Update
from ..entropy import SYSTEM, Entropy
from .differences import PerParameter, zeros


@register_transform
@dataclass(frozen=True)
class control_variates(PerParameter):
    """SCAFFOLD's control variates (Karimireddy et al. 2020, arXiv 1910.06378), option II of its algorithm.

    Each client keeps an estimate of its own gradient, the server of all clients'; the training loop adds the
    difference to its gradient. The updates bring how both moved, so that they are twice as large, and the metrics
    `steps` and `lr`.
    """

    name: ClassVar[str] = "control_variates"

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        drift = params if local is None else params.map(lambda n, c: c - local[n])
        return Correction(linear=drift, reports=self.reports)

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        before = zeros(params.schema) if local is None else local
        span = update.metrics["steps"] * update.metrics["lr"]
        if span == 0:  # it had nothing to learn from
            return with_aux(update, self, zeros(params.schema)), local
        moved = as_arrays(update).of_role("parameter").map(lambda n, d: -params[n] - d / span)
        return with_aux(update, self, moved), before.map(lambda n, c: c + moved[n])

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        moved, answer = taken_aux(answer, self)
        if not moved:
            return answer, state
        share = answer.count / answer.federation
        return answer, state.map(lambda n, c: c + share * moved[n].astype(c.dtype, copy=False))
