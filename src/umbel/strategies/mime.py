"""Mime and MimeLite: the server's momentum, kept still while clients train (Karimireddy et al. 2021, arXiv
2008.03606).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.arrays import Arrays
from ..core.correction import Correction
from ..core.settings import number
from ..core.strategy import Asks, State
from ..errors import SettingError
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Mime(FedAvg):
    """Clients step along ``(1 - momentum) * gradient + momentum * m``, where m is the server's running mean of
    gradients.

    A round asks its cohort twice: for the gradient of the model (the query `gradient`), then to train. In Mime the
    gradient of each batch is corrected by that of the model sent (SVRG), in MimeLite (`lite`) not. Needs the
    correction, which is more than a term in the loss: `umbel.torch.fit` applies it.
    """

    momentum: float = 0.9
    lite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (number(self.momentum) and 0 <= self.momentum < 1):
            raise SettingError(f"Mime takes a momentum from 0 and below 1, not {self.momentum!r:.60}")

    def start(self, model: Arrays) -> State:
        state = super().start(model)
        known = {**model.of_role("parameter"), **state.masters}
        return state.replace(momentum=Arrays({n: 0 * a for n, a in known.items()}))

    def round(self, state: State, r: int) -> Asks:
        ask = self.ask(state, r)
        measured = yield replace(ask, kind="query:gradient", transforms=(), lane=None)
        if not measured.value:
            return state
        beta, kept, gradient = self.momentum, state.momentum, measured.value
        linear = kept.map(lambda n, m: beta * m + (0 if self.lite else (1 - beta) * gradient[n]))
        correction = Correction(linear=linear, scale=1 - beta, control=not self.lite)
        answer = yield replace(ask, clients=measured.clients, correction=correction)
        moved = kept.map(lambda n, m: beta * m + (1 - beta) * gradient[n].astype(m.dtype, copy=False))
        return self.apply(state, answer).replace(momentum=moved)


def MimeLite(**settings: object) -> Mime:
    """Mime without the correction by the gradient of each batch at the model that was sent, at half the cost.

    Needs the correction, as Mime does.
    """
    return Mime(lite=True, **settings)  # type: ignore[arg-type]
