"""Ditto: a model of everyone's own beside the common one (Li et al. 2021, arXiv 2012.04221)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import not_negative
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    """FedAvg whose clients also train a personal model, which ``mu / 2 * |v - model|**2`` keeps close to the common
    one.

    Needs the procedure `ditto`: `umbel.torch.fit` applies it, and keeps the personal model in
    ``ctx.state["personal"]``, where `umbel.torch.load_personal_` finds it.
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "mu")

    def correction(self) -> Correction:
        return Correction(procedure="ditto", settings={"mu": self.mu})
