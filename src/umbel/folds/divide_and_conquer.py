"""Divide and conquer, DnC (Shejwalkar & Houmansadr 2021, "Manipulating the Byzantine", NDSS)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Arrays
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import positive, whole
from .gathered import Gathered, Updates, knowing
from .geometry import products


@dataclass(frozen=True)
class divide_and_conquer(Gathered):
    """The mean of those updates that do not stand out along the direction in which all differ most.

    In each of `iterations`, `sketch` elements are drawn; the updates there are centred, and the `share` * f that lie
    farthest out along their first principal direction are taken away. Those that no iteration takes away are averaged.
    Withstands `f` malicious clients that are fewer than half. What is drawn depends on the `seed`, which clients must
    not be able to guess, and on the round, where a strategy says it (`Fold.for_round`). Costs n * sketch numbers,
    n**2 * sketch multiplications, an eigenvector of an n x n matrix, and a mean; which of two updates is farther out
    when they are equal to nine digits depends on the numeric library.
    """

    name: ClassVar[str] = "divide_and_conquer"
    measures: ClassVar[bool] = True
    f: int = 1
    share: float = 1.0
    sketch: int = 10_000
    iterations: int = 1
    seed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        whole(self, f=0, sketch=1, iterations=1, seed=-math.inf)
        positive(self, "share")

    @property
    def least(self) -> int:
        return max(2 * self.f, self.iterations * self._outliers) + 1

    @property
    def _outliers(self) -> int:
        return math.ceil(self.share * self.f)

    def spec(self) -> Any:
        name, settings = super().spec()
        return [name, {**settings, "seed": self._key.derive("spec").hex()}]  # which clients get to see

    @property
    def _key(self) -> Key:
        return Key.from_seed(self.seed).derive(self.name)

    def for_round(self, memory: Any, model: Arrays, r: int) -> Fold:
        return knowing(self, r)

    def made(self, updates: Updates) -> Arrays:
        left = set(range(len(updates)))
        draws = self._key.derive("round", self.kept or 0).draws()
        names = sorted(n for n, spec in updates.schema.items() if spec.role == "parameter")
        ends = np.cumsum([0, *(math.prod(updates.schema[n].shape) for n in names)])
        for _ in range(self.iterations if self._outliers and ends[-1] else 0):
            places = np.sort(draws.sample(int(ends[-1]), min(self.sketch, int(ends[-1]))))
            parts = [places[(places >= low) & (places < high)] - low for low, high in pairwise(ends)]
            drawn = np.stack([_drawn(each, names, parts) for each in updates.arrays]) * updates.factors[:, None]
            left -= set(np.argsort(-_outlying(drawn), kind="stable")[: self._outliers].tolist())
        return updates.mean(sorted(left))


def _drawn(arrays: Arrays, names: list[str], places: list[Array]) -> Array:
    """Some elements of an update, in float64."""
    return np.concatenate([arrays[n].reshape(-1)[at].astype(np.float64) for n, at in zip(names, places, strict=True)])


def _outlying(rows: Array) -> Array:
    """How far out each row lies along the first principal direction, squared, and rounded beside the largest."""
    centred = rows - np.add.reduce(rows, axis=0) / len(rows)
    inner = products([Arrays({"drawn": row}) for row in centred])
    values, vectors = np.linalg.eigh(inner)
    found: Array = values[-1] * vectors[:, -1] ** 2
    return np.round(found / (found.max() or 1.0), 9)
