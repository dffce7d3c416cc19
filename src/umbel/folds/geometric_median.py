"""The geometric median, as in RFA (Pillutla, Kakade & Harchaoui 2019, arXiv 1912.13445)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.settings import positive, whole
from .gathered import Gathered, Updates
from .geometry import squared_distances_from


@dataclass(frozen=True)
class geometric_median(Gathered):
    """The point whose distances to all updates sum up to the least, by the smoothed algorithm of Weiszfeld.

    Begins at the mean; in each of `iterations` an update weighs 1 / max(smoothing, its distance). Fewer than half of
    the updates cannot carry it away. The paper weighs by numbers of examples too, which a client could claim at will;
    here all count alike. All iterations happen in the n**2 inner products: it costs 2 n**2 d multiplications once, and
    a weighted mean.
    """

    name: ClassVar[str] = "geometric_median"
    measures: ClassVar[bool] = True
    iterations: int = 100
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        whole(self, iterations=1)
        positive(self, "smoothing")

    def made(self, updates: Updates) -> Arrays:
        inner, weights = updates.products(), np.ones(len(updates))
        for _ in range(self.iterations):
            squares = squared_distances_from(inner, weights / math.fsum(weights))
            weights = 1 / np.maximum(self.smoothing, np.sqrt(squares))
        return updates.combined(weights, math.fsum(weights))
