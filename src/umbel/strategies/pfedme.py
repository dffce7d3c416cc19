"""pFedMe: personal models by Moreau envelopes (Dinh, Tran & Nguyen 2020, arXiv 2006.08848)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.correction import Correction
from ..core.elementwise import mean
from ..core.fold import Fold
from ..core.settings import positive, whole
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class PFedMe(FedAvg):
    """Clients find, for each batch, the personal model that minimises its loss and ``lamda / 2 * |theta - w|**2`` by
    `inner` steps, then move w towards it: ``w - lr * lamda * (w - theta)``. `server` has the paper's beta as its lr.

    Needs the procedure `pfedme`: `umbel.torch.fit` applies it, with its own lr for the inner steps, and keeps the
    personal model in ``ctx.state["personal"]``.
    """

    lamda: float = 15.0
    inner: int = 5
    lr: float = 0.005
    fold: Fold = field(default_factory=mean)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "lamda", "lr")
        whole(self, inner=1)

    def correction(self) -> Correction:
        return Correction(procedure="pfedme", settings={"lamda": self.lamda, "inner": self.inner, "lr": self.lr})
