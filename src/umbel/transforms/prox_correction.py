"""A proximal term without its bias, and gradients at perturbed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.randomness import Key
from ..core.settings import not_negative, positive
from ..core.transform import as_arrays, register_transform
from ..core.update import Update
from .differences import OnDifferences, changed


@register_transform
@dataclass(frozen=True)
class prox_correction(OnDifferences):
    """FedSpeed's local side (Sun et al. 2023, arXiv 2302.10429): the training loop adds ``|w - model|**2 / (2 *
    lamda)`` less a term that corrects the bias of it, which the client keeps, and mixes into its gradient, by the share
    `alpha`, that at ``w + rho * g``. What is sent is moved by that correction.
    """

    name: ClassVar[str] = "prox_correction"
    lamda: float = 10.0
    rho: float = 0.1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lamda")
        not_negative(self, "rho")
        not_negative(self, "alpha", most=1)

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction:
        return Correction(
            proximal=1 / self.lamda,
            linear=None if local is None else local.map(lambda n, g: -g),
            perturbation=(self.rho, self.alpha) if self.rho and self.alpha else None,
        )

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        moved = as_arrays(update).of_role("parameter").map(lambda n, d: d / -self.lamda)
        kept = moved if local is None else moved.map(lambda n, g: local[n] + g)
        return changed(update, lambda n, d: d - self.lamda * kept[n]), kept
