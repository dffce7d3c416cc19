"""APFL: an adaptive mixture of the common model and one of everyone's own (Deng, Kamani & Mahdavi 2020, arXiv
2003.13461).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import not_negative
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class APFL(FedAvg):
    """FedAvg whose clients also train a model of their own, v, so that ``alpha * v + (1 - alpha) * w`` is good.

    `alpha` begins as given; with `adaptive` each client moves its own by the gradient. Needs the procedure `apfl`:
    `umbel.torch.fit` applies it, and keeps the mixture in ``ctx.state["personal"]``.
    """

    alpha: float = 0.5
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "alpha", most=1)

    def correction(self) -> Correction:
        return Correction(procedure="apfl", settings={"alpha": self.alpha, "adaptive": self.adaptive})
