"""FedBuff: asynchronous training, a new model every few updates (Nguyen et al. 2022, arXiv 2106.06639)."""

from __future__ import annotations

from typing import Any

from ..core.elementwise import mean
from ..core.optimizers import sgd
from ..core.window import Window
from .fedavg import FedAvg


def FedBuff(
    *, concurrency: int = 100, buffer: int = 10, lr: float = 1.0, staleness_exponent: float = 0.5, **settings: Any
) -> FedAvg:
    """FedAvg that never waits: `concurrency` clients train at any time, and every `buffer` updates make a new model.

    An update that began s models ago counts by ``1 / (1 + s) ** staleness_exponent``. `lr` is the server's.
    `settings` are those of `FedAvg`. It needs nothing of clients.
    """
    window = Window(in_flight=concurrency, close_after=buffer, late="keep", staleness_exponent=staleness_exponent)
    return FedAvg(window=window, **{"cohort": concurrency, "fold": mean(), "server": sgd(lr), **settings})
