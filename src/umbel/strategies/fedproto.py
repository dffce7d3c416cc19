"""FedProto: clients share what classes look like, and no model (Tan et al. 2022, arXiv 2105.00243)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.correction import Correction
from ..core.elementwise import Sums
from ..core.settings import not_negative, whole
from ..core.strategy import Asks, State, Strategy
from ..core.update import Contribution, Free
from ..errors import UpdateRejected
from ..folds.total import total
from ..samplers.shorthand import as_sampler


@dataclass(frozen=True)
class class_sums(total):
    """All clients' sums and counts, of so many classes and features where these are known (not 0)."""

    name: ClassVar[str] = "class_sums"
    single: ClassVar[bool] = True
    classes: int = 0
    features: int = 0

    def add(self, acc: Sums, item: Contribution, factor: float = 1.0) -> Sums:
        looks = {name: array.shape for name, array in item.arrays.items()}
        shape = (self.classes, self.features) if self.classes else looks.get("sums", ())
        if len(shape) != 2 or 0 in shape or looks != {"sums": shape, "counts": shape[:1]}:
            raise UpdateRejected(f"the update has {looks!r:.200}, not sums {shape!r:.60} and a count for each class")
        if item.magnitudes["sums"] > 2.0**100 or not (item.arrays["counts"] >= 0).all():  # means are float32
            raise UpdateRejected("the update's sums are too large for features, or it counts fewer than no examples")
        return super().add(acc, item, factor)


@dataclass(frozen=True, kw_only=True)
class FedProto(Strategy):
    """Every client keeps a model of its own, which may have a shape of its own, and learns features close to the
    prototypes of its classes: the mean features of each class over all clients. `weight` weighs how close.

    Needs the procedure `fedproto`: `umbel.torch.fit(..., features=...)` applies it; by hand, an update has the arrays
    `sums` [classes, features] and `counts` [classes], and `ctx.inbox` has `prototypes` and `known` after the first
    round. `State.model` stays as it began; `State.prototypes` is what is learned together.
    Classes and features are as many as most of the first cohort have; what has others, or more bytes than `max_bytes`,
    is rejected.
    """

    cohort: Any = 10
    weight: float = 1.0
    max_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        as_sampler(self.cohort)
        not_negative(self, "weight")
        whole(self, max_bytes=1)

    def start(self, model: Arrays) -> State:
        return State(model, prototypes=Arrays())

    def round(self, state: State, r: int) -> Asks:
        before: Arrays = state.prototypes
        correction = Correction(procedure="fedproto", settings={"weight": self.weight})
        fold = class_sums(*before["prototypes"].shape) if before else class_sums()
        expects = Free(max_bytes=self.max_bytes)
        answer = yield Ask(
            clients=self.cohort, model=state.model, inbox=before, correction=correction, expects=expects, fold=fold
        )
        sums, counts = answer.value["sums"], answer.value["counts"]
        means = sums / np.maximum(counts, 1)[:, None]
        if before:  # a class that nobody had this time is as it was
            means = np.where(counts[:, None] > 0, means, before["prototypes"])
            counts = np.maximum(counts, before["known"])
        known = (counts > 0).astype(np.float32)
        return state.replace(prototypes=Arrays({"prototypes": means.astype(np.float32), "known": known}))
