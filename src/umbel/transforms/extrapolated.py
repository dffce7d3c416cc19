"""A server's step as large as clients' disagreement allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Schema
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import as_arrays, register_transform, taken_aux, with_aux
from ..core.update import Update
from ..entropy import SYSTEM, Entropy
from .clip_by_norm import parameter_norm, with_roles
from .differences import OnDifferences, changed_answer


@register_transform
@dataclass(frozen=True)
class extrapolated(OnDifferences):
    """FedExP's step size (Jhunjhunwala et al. 2023, arXiv 2301.09604): the mean difference d of M clients is taken
    ``max(1, sum |d_i|**2 / (2 M (|d|**2 + epsilon)))`` times. Norms are taken where updates are folded.
    """

    name: ClassVar[str] = "extrapolated"
    brings_aux: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        positive(self, "epsilon")

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        norm = parameter_norm(with_roles(as_arrays(update), schema))
        return with_aux(update, self, {"square": np.float64(norm**2)})

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        sent, answer = taken_aux(answer, self)
        if not sent:
            return answer, state
        square = parameter_norm(answer.value) ** 2
        times = max(1.0, float(sent["square"]) / (2 * (square + self.epsilon)))
        return changed_answer(answer, lambda n, d: d * times), state
