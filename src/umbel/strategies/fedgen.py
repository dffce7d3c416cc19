"""FedGen: a generator at the server says what clients' models agree on (Zhu, Hong & Zhou 2021, arXiv 2105.10056)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays
from ..core.ask import Ask
from ..core.correction import Correction
from ..core.fold import Fold
from ..core.settings import not_negative
from ..core.strategy import State
from ..core.update import Free, Like
from ..folds.collect import collect
from .fedavg import FedAvg
from .feddf import mean_of

Learn = Callable[[Arrays, Sequence[Arrays], Array], Arrays]
"""Makes, of a generator, the clients' models and how many examples of each label each has, the generator that has
learned from them.
"""


@dataclass(frozen=True, kw_only=True)
class FedGen(FedAvg):
    """FedAvg whose server trains a generator of features, without any data, on which the clients' heads say the label
    that was wanted; clients train on such features too, `weight` times.

    `generator` is the generator to begin with, `learn(generator, models, labels)` trains it, such as
    `umbel.torch.FeatureGenerator`. The server holds every update of a round. Needs the procedure `fedgen`:
    `umbel.torch.fit(..., generator=...)` applies it; by hand, updates have as aux array `labels` how many examples of
    each label there are, and `ctx.inbox` has the generator.
    """

    generator: Arrays
    learn: Learn
    weight: float = 1.0
    fold: Fold = field(default_factory=collect)

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "weight")

    def correction(self) -> Correction:
        return Correction(procedure="fedgen", settings={"weight": self.weight})

    def start(self, model: Arrays) -> State:
        return super().start(model).replace(generator=self.generator, learned=False)

    def ask(self, state: State, r: int) -> Ask:
        sent = state.generator if state.learned else None  # one that has learned nothing says nothing
        return replace(super().ask(state, r), inbox=sent, expects=Like(aux=Free()))

    def stepped(self, state: State, answer: Answer) -> State:
        if not answer.count:
            return state
        mean, models = mean_of(state.model, answer)
        labels = np.array([np.asarray(update.aux["labels"], np.float64) for update in answer.value.values()])
        generator = self.learn(state.generator, models, labels)
        return super().stepped(state, mean).replace(generator=generator, learned=True)
