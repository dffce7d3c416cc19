"""PerFedAvg: a model that is one step away from being good for anyone (Fallah, Mokhtari & Ozdaglar 2020, arXiv
2002.07948).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import not_negative
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class PerFedAvg(FedAvg):
    """FedAvg whose clients step by the gradient of another batch at the weights that a step of size `alpha` leads to:
    the paper's first-order form, FO-MAML.

    Needs the procedure `perfedavg`: `umbel.torch.fit` applies it. `umbel.torch.adapt_` takes the step that makes the
    model personal, before it is evaluated or used.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "alpha")

    def correction(self) -> Correction:
        return Correction(procedure="perfedavg", settings={"alpha": self.alpha})
