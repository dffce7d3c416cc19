"""Gradients at perturbed weights, which look for flat minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.settings import not_negative
from ..core.transform import Transform, register_transform


@register_transform
@dataclass(frozen=True)
class perturbed_gradient(Transform):
    """The training loop mixes into its gradient, by the share `alpha`, that at ``w + rho * g``, as sharpness-aware
    minimisation does (Foret et al. 2021, arXiv 2010.01412) and FedSpeed (Sun et al. 2023, arXiv 2302.10429).
    """

    name: ClassVar[str] = "perturbed_gradient"
    rho: float = 0.1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        not_negative(self, "rho")
        not_negative(self, "alpha", most=1)

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction | None:
        return Correction(perturbation=(self.rho, self.alpha)) if self.rho and self.alpha else None
