"""FedAsync: every update makes a new model (Xie, Koyejo & Gupta 2019, arXiv 1903.03934)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.elementwise import mean
from ..core.fold import Fold
from ..core.settings import positive
from ..core.strategy import State
from ..core.transform import chain
from ..core.update import Like
from ..core.window import Window
from ..errors import StrategyError
from .fedavg import FedAvg

VALUES = Like(delta=False)


@dataclass(frozen=True, kw_only=True)
class FedAsync(FedAvg):
    """Each update is mixed into the model as it comes: ``model + alpha / (1 + s) ** exponent * (update - model)``,
    where the client was sent the model s versions ago.

    `cohort` is how many train at any time; `window.staleness_exponent` is the exponent. It needs nothing of clients.
    """

    alpha: float = 0.6
    fold: Fold = field(default_factory=mean)
    window: Window = field(default_factory=lambda: Window(in_flight=10, close_after=1, late="keep"))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "alpha", most=1)
        chain(self.transforms).check(self.fold, VALUES)
        if self.window.close_after != 1:
            raise StrategyError(
                "FedAsync makes a model of each update", hint="Its window has close_after=1; FedBuff waits for several."
            )

    def ask(self, state: State, r: int) -> Ask:
        return replace(super().ask(state, r), expects=VALUES)

    def stepped(self, state: State, answer: Answer) -> State:
        if not answer.count:
            return state
        (receipt,) = answer.receipts
        factor = self.window.discount(receipt.staleness)  # the fold has applied it to the values, which it is not for
        model, known = state.model, {**state.model, **state.masters}
        mixed = {
            name: self.alpha * (array - factor * known[name]) if model.roles[name] == "parameter" else array
            for name, array in answer.value.items()
        }
        return super().stepped(state, replace(answer, value=answer.value.replace(mixed)))
