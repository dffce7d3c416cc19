"""FedGen: a generator at the server says what clients' models agree on (Zhu, Hong & Zhou 2021, arXiv 2105.10056)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays
from ..core.ask import Ask
from ..core.correction import Correction
from ..core.fold import Fold
from ..core.settings import functions, not_negative
from ..core.strategy import State
from ..core.update import Free, Like, Update
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
    each label there are, and `ctx.inbox` has the generator, which learns nothing from those who tell of none.
    """

    collects: ClassVar[bool] = True
    generator: Arrays
    learn: Learn
    weight: float = 1.0
    fold: Fold = field(default_factory=collect)

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "weight")
        functions(self, "learn")

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
        after, told = super().stepped(state, mean), counts_of(answer.value.values())
        if not told:
            return after
        labels = np.array(list(told.values()))
        generator = self.learn(state.generator, [models[place] for place in told], labels)
        return after.replace(generator=generator, learned=True)


def counts_of(updates: Iterable[Update]) -> dict[int, Array]:
    """By its place how many examples of each label an update tells of, where that can be, and as long as most tell."""
    told = {place: np.asarray(update.aux.get("labels", ())) for place, update in enumerate(updates)}
    told = {place: row for place, row in told.items() if row.ndim == 1 and row.size and row.dtype.kind in "iuf"}
    told = {place: row.astype(np.float64) for place, row in told.items() if (row >= 0).all() and row.any()}
    length, _ = max(Counter(map(len, told.values())).items(), key=itemgetter(1), default=(0, 0))
    return {place: row for place, row in told.items() if len(row) == length}
