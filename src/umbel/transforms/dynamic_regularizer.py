"""A regulariser that moves with each client's own gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema
from ..core.correction import Correction
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import as_arrays, register_transform
from ..core.update import Update
from ..entropy import SYSTEM, Entropy
from .differences import OnDifferences, changed_answer, zeros


@register_transform
@dataclass(frozen=True)
class dynamic_regularizer(OnDifferences):
    """FedDyn's regulariser (Acar et al. 2021, arXiv 2111.04263): the training loop adds ``-<g, w> + alpha / 2 * |w -
    model|**2`` to its loss, where g is the client's own gradient at its last optimum, which it keeps.

    The server takes from the mean what the clients' gradients add up to.
    """

    name: ClassVar[str] = "dynamic_regularizer"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "alpha")

    def init(self, schema: Schema | None) -> Any:
        return zeros(schema)

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        return Correction(proximal=self.alpha, linear=None if local is None else local.map(lambda n, g: -g))

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        moved = as_arrays(update).of_role("parameter").map(lambda n, d: -self.alpha * d)
        return update, moved if local is None else moved.map(lambda n, g: local[n] + g)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        if not answer.count:
            return answer, state
        share = self.alpha * answer.count / answer.federation
        value = answer.value
        state = state.map(lambda n, h: h - share * value[n])
        return changed_answer(answer, lambda n, d: d - state[n] / self.alpha), state
