"""Sketches that add up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Spec
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import not_negative, positive, whole
from ..core.transform import register_transform
from ..core.update import Expectation
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError
from .compression import Compression
from .tables import Tables
from .top_k import largest


@register_transform
@dataclass(frozen=True)
class count_sketch(Compression):
    """Send a sketch of each parameter; the server takes the heavy hitters out of the mean sketch, and keeps the rest
    for the next time (FetchSGD, Rothchild et al. 2020, arXiv 2007.07682). Clients keep nothing.

    Each of `rows` rows of a table adds every entry, with a random sign, to one of its columns (Charikar, Chen &
    Farach-Colton 2002); the table has about `size` times as many numbers as the parameter, and all clients the same
    hashes, from `seed`. `decode` estimates an entry by the mean over rows, not the median: that is linear, so the fold
    of estimates is the estimate of the mean sketch, and sketches need not be folded as such. It is unbiased, with a
    variance of at most the squared norm over the table's size. In `finish` the server adds that to momentum and to
    what is left from before, takes the `fraction` of each parameter's entries that are largest, and takes their sketch
    from what is left. It is for updates whose norm lies in few entries: of dense ones, as of small networks, estimates
    are mostly noise, which adds up until training diverges, unless `fraction` is a small part of ``size / rows``. Needs
    differences, and a fold that is a mean or a sum.
    """

    name: ClassVar[str] = "count_sketch"
    grows: ClassVar[bool] = True
    keeps_norm: ClassVar[bool] = False
    size: float = 0.1
    fraction: float = 0.01
    rows: int = 5
    momentum: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "size", "fraction", most=1)
        whole(self, rows=1, seed=0)
        not_negative(self, "momentum", most=math.nextafter(1.0, 0.0))

    def check(self, fold: Fold, expects: Expectation) -> None:
        super().check(fold, expects)
        if fold.single:
            why = f"single sketches are mostly noise, which {fold.name} would judge"
            raise StrategyError(f"count_sketch under {fold.name}: {why}", hint="Fold with weighted_mean() or mean().")

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        return {"table": Spec((self.rows * self._columns(count),), spec.dtype, "parameter")}

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        return {"table": self._tables(name, spec).sketch(flat).astype(flat.dtype)}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        return self._tables(name, spec).estimate(parts["table"]).astype(spec.dtype)

    def init(self, schema: Any) -> Any:
        return {"speed": {}, "left": {}}

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        if not isinstance(answer.value, Arrays):
            return answer, state
        speeds, lefts, taken = dict(state["speed"]), dict(state["left"]), {}
        for name, spec in self.split(answer.value.schema):
            step, tables = answer.value[name].reshape(-1), self._tables(name, spec)
            if self.momentum:
                step = speeds[name] = step + self.momentum * speeds.get(name, 0.0)
            left = step + lefts.get(name, 0.0)
            chosen = largest(left, max(1, round(self.fraction * left.size)))
            hitters = np.zeros_like(left)
            hitters[chosen] = left[chosen]
            lefts[name] = left - tables.estimate(tables.sketch(hitters)).astype(left.dtype)
            taken[name] = hitters.reshape(spec.shape)
        return replace(answer, value=answer.value.replace(taken)), {"speed": speeds, "left": lefts}

    def _columns(self, size: int) -> int:
        return max(1, round(self.size * size / self.rows))

    def _tables(self, name: str, spec: Spec) -> Tables:
        size = math.prod(spec.shape)
        return Tables(Key.from_seed(self.seed).derive(self.name, name), self.rows, self._columns(size), size)
