"""MOON: a contrastive loss between what models make of the same data (Li, He & Song 2021, arXiv 2103.16257)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import not_negative, positive
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Moon(FedAvg):
    """FedAvg whose clients add `mu` times a contrastive loss: their features shall be like those of the model that was
    sent, and unlike those of the model that they trained last, at the given `temperature`.

    Needs the procedure `moon`: `umbel.torch.fit(..., features=...)` applies it. Its clients keep their last model.
    """

    mu: float = 1.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "mu")
        positive(self, "temperature")

    def correction(self) -> Correction:
        return Correction(procedure="moon", settings={"mu": self.mu, "temperature": self.temperature})
