"""FedDC: FedAvg with local drift, decoupled and corrected (Gao et al. 2022, arXiv 2203.11751)."""

from __future__ import annotations

from typing import Any

from ..core.elementwise import mean
from ..core.transform import chain
from ..transforms.control_variates import control_variates
from ..transforms.dynamic_regularizer import dynamic_regularizer
from .fedavg import FedAvg


def FedDC(*, alpha: float = 0.1, transforms: Any = (), **settings: Any) -> FedAvg:
    """FedAvg whose clients learn by how much they drift in all, which the server adds to the model; `alpha` weighs how
    close to the model they stay with it.

    As its authors' program has it: SCAFFOLD's control variates, and a drift that is FedDyn's regulariser, of which the
    server has the mean over all clients, those that were not asked as they were. Its clients keep state. `settings` are
    those of `FedAvg`; every client counts alike unless a `fold` is given. Needs the correction and the metrics `steps`
    and `lr`.
    """
    own = chain(control_variates(), dynamic_regularizer(alpha), transforms)
    return FedAvg(transforms=own, **{"fold": mean(), **settings})
