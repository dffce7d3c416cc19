"""FedProx: FedAvg with a proximal term in each client's loss (Li et al. 2020, arXiv 1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import not_negative
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose clients add ``mu / 2 * |w - model|**2`` to their loss.

    Needs the correction. The training loop takes it from its context: `umbel.torch.fit` does, or
    `umbel.torch.correction_loss(net, ctx)`, or `ctx.correction.gradient(weights)` by hand. A loop that takes none fails
    with `UnusedCorrection`, so that FedProx is never silently FedAvg.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "mu")

    def correction(self) -> Correction:
        return Correction(proximal=self.mu)
