"""Krum and multi-Krum (Blanchard et al. 2017, arXiv 1703.02757)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.settings import whole
from .gathered import Gathered, Updates
from .geometry import Floats, added


@dataclass(frozen=True)
class krum(Gathered):
    """The update that is closest to its neighbours, or with `keep` the mean of so many: multi-Krum.

    An update's score is the sum of its squared distances to the n - f - 2 others that are closest to it; the lowest
    scores are kept, of equal ones those of the clients that come first. `keep=None` is all but `f`. Withstands `f`
    malicious clients of at least 2f + 3. Buffers are those of the kept updates. Costs 2 n**2 d multiplications, by
    blocked products, and n**2 numbers.
    """

    name: ClassVar[str] = "krum"
    measures: ClassVar[bool] = True
    f: int = 1
    keep: int | None = 1

    def __post_init__(self) -> None:
        whole(self, f=0, **({} if self.keep is None else {"keep": 1}))

    @property
    def least(self) -> int:
        return max(2 * self.f + 3, self.keep or 0)

    def made(self, updates: Updates) -> Arrays:
        found = scores(updates.distances(), self.f)
        keep = len(updates) - self.f if self.keep is None else self.keep
        return updates.mean(np.argsort(found, kind="stable")[:keep].tolist())


def scores(distances: Floats, f: int) -> Floats:
    """Krum's score of each row, given all squared distances between them; of few rows by one neighbour at least."""
    near = np.sort(distances, axis=1)[:, 1 : max(2, len(distances) - f - 1)]  # the first is its own, which is zero
    return added(near.T)
