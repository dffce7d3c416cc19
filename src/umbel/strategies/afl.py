"""AFL: the model that is best for the worst mixture of clients (Mohri, Sivek & Suresh 2019, arXiv 1902.00146)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.answer import client_order
from ..core.arrays import Array, Arrays
from ..core.ask import Ask
from ..core.correction import Correction
from ..core.settings import not_negative
from ..core.strategy import Asks, State
from ..errors import ClientId, StrategyError
from .fedavg import FedAvg

LEAST = 1e-12
"""What a client without a share counts, so that there is an answer where nobody who has one was asked."""


@dataclass(frozen=True, kw_only=True)
class AFL(FedAvg):
    """FedAvg whose clients count by shares that the server moves towards those with a high loss, at the rate `lr`; the
    shares stay on the simplex. For federations in which all clients are asked, as by default: a smaller cohort is
    weighed by its shares, and whoever was not asked keeps the share that it had, less what others gain.

    Needs the metric `initial_loss`. `State.shares` has the shares. With lr = 0 all clients count alike.
    """

    cohort: Any = "all"
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "lr")
        if self.fold.weights != "claimed":
            raise StrategyError(
                f"AFL has clients count by its shares, and {self.fold.name} has all count alike",
                hint="Fold with weighted_mean().",
            )

    def correction(self) -> Correction:
        return Correction(reports=("initial_loss",))

    def start(self, model: Arrays) -> State:
        return super().start(model).replace(shares={})

    def ask(self, state: State, r: int) -> Ask:
        shares: Mapping[ClientId, float] = state.shares
        rest = 1 / len(shares) if shares else 1.0  # of those who have not answered so far
        return replace(super().ask(state, r), weight=lambda client: max(shares.get(client, rest), LEAST))

    def round(self, state: State, r: int) -> Asks:
        answer = yield self.ask(state, r)
        losses = {receipt.client: receipt.metrics["initial_loss"] for receipt in answer.receipts}
        clients = sorted({*state.shares, *losses}, key=client_order)
        if not clients:
            return self.apply(state, answer)  # nobody has answered so far
        before = [state.shares.get(client, 1 / len(clients)) for client in clients]
        moved = projected(np.array(before) + self.lr * np.array([losses.get(client, 0.0) for client in clients]))
        return self.apply(state, answer).replace(shares=dict(zip(clients, moved.tolist(), strict=True)))


def projected(point: Array) -> Array:
    """The point of the simplex that is closest (Duchi et al. 2008, "Efficient projections onto the l1-ball")."""
    point = point - point.max()  # which moves no point of the simplex, and keeps what is small beside large numbers
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    return np.asarray(np.maximum(point - excess[np.flatnonzero(falling > excess)[-1]], 0.0))
