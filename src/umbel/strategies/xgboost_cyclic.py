"""XGBoost by turns: each round one client boosts the ensemble on its own data and passes it on, as models pass from
holder to holder in cyclical transfer (Chang et al. 2018, JAMIA 25:945).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import xgboost
from ..core.randomness import Key
from ..core.strategy import Asks, State, Strategy
from ..core.update import Update
from ..core.window import Window
from ..errors import ClientId
from ..samplers.fixed import Fixed
from .xgboost_bagging import ask_for_trees


@dataclass(frozen=True)
class Turn:
    """The client whose turn it is: that of a place in the federation's order, which begins again at its end."""

    place: int

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """One client; the key is not used."""
        return (clients[self.place % len(clients)],) if len(clients) else ()

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "turn", "place": self.place}


@dataclass(frozen=True, kw_only=True)
class XGBoostCyclic(Strategy):
    """Each round the next client boosts the ensemble (`umbel.xgboost.fit`), and its trees count in full.

    `order` says who comes after whom, by default as in the federation. A client whose turn comes when it is away is
    passed over: that round adds no tree. Needs clients that boost by `umbel.xgboost.fit`.
    """

    order: Sequence[ClientId] | None = None
    window: Window = field(default_factory=Window)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.order is not None:
            object.__setattr__(self, "order", Fixed(self.order).clients)  # type: ignore[arg-type]

    def round(self, state: State, r: int) -> Asks:
        who = Turn(r - 1) if self.order is None else [self.order[(r - 1) % len(self.order)]]
        answer = yield ask_for_trees(who, state.model, self.config, self.window)
        updates: dict[ClientId, Update] = answer.value or {}
        return State(xgboost.grown(state.model, ((u.arrays, 1.0) for u in updates.values() if u.weight)))
