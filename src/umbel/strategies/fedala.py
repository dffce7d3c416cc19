"""FedALA: everyone begins from a mixture of its own model and the common one (Zhang et al. 2023, arXiv 2212.01197)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import positive, whole
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedALA(FedAvg):
    """FedAvg whose clients begin from ``own + w * (model - own)``: of the last `layers` arrays the weights w are
    learned on a `share` of their data at the rate `eta`; all others are taken from the model.

    Needs the procedure `fedala`: `umbel.torch.fit` applies it. Its clients keep their model and their weights.
    """

    layers: int = 2
    eta: float = 1.0
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, layers=1)
        positive(self, "eta")
        positive(self, "share", most=1)

    def correction(self) -> Correction:
        settings = {"layers": self.layers, "eta": self.eta, "share": self.share}
        return Correction(procedure="fedala", settings=settings)
