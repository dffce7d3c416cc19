"""FedRep: a common representation, and a head of everyone's own that is trained first (Collins et al. 2021, arXiv
2102.07078).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.correction import Correction
from ..core.settings import whole
from .fedper import FedPer


@dataclass(frozen=True, kw_only=True)
class FedRep(FedPer):
    """FedPer whose clients train their head alone for `head_epochs`, then the base alone.

    Needs the procedure `fedrep`: `umbel.torch.fit` applies it.
    """

    head_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, head_epochs=1)

    def correction(self) -> Correction:
        return Correction(procedure="fedrep", settings={"head_epochs": self.head_epochs})
