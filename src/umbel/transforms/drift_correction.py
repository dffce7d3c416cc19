"""Each client's drift, learned, and put on top of what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import as_arrays, register_transform, taken_aux, with_aux
from ..core.update import Update
from .differences import PerParameter, changed, zeros


@register_transform
@dataclass(frozen=True)
class drift_correction(PerParameter):
    """FedDC's local drift (Gao et al. 2022, arXiv 2203.11751): each client keeps by how much it has moved in all, h;
    the loop adds ``alpha / 2 * |w + h - model|**2`` and a control variate to its loss, and what is sent is moved by h.

    The updates bring how they moved a step, so that they are twice as large, and the metrics `steps` and `lr`.
    """

    name: ClassVar[str] = "drift_correction"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "alpha")

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        linear = params.map(lambda n, c: -c)
        if local is not None:
            drift, own = local
            linear = params.map(lambda n, c: self.alpha * drift[n] + own[n] - c)
        return Correction(proximal=self.alpha, linear=linear, reports=self.reports)

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        drift, own = local if local is not None else (zeros(params.schema), zeros(params.schema))
        span = update.metrics["steps"] * update.metrics["lr"]
        if span > 0:  # else it had nothing to learn from
            moved = as_arrays(update).of_role("parameter")
            drift, own = drift.map(lambda n, h: h + moved[n]), moved.map(lambda n, d: d / span)
        update = changed(update, lambda n, d: d + drift[n])
        return with_aux(update, self, own), (drift, own)

    def finish(self, answer: Answer, state: Any, key: Key) -> tuple[Answer, Any]:
        moved, answer = taken_aux(answer, self)
        return answer, state.map(lambda n, c: moved[n].astype(c.dtype, copy=False)) if moved else state
