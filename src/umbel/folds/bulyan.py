"""Bulyan (El Mhamdi, Guerraoui & Rouault 2018, arXiv 1802.07927)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..core.arrays import Array, Arrays
from ..core.settings import whole
from .gathered import Gathered, Updates, in_order, middle
from .geometry import added
from .krum import scores


@dataclass(frozen=True)
class bulyan(Gathered):
    """Krum chooses n - 2f updates, one after the other; of these the mean of each element over the n - 4f values that
    are closest to its median.

    Krum scores anew whenever an update is taken away, by one neighbour at least. Of two values as close the lower one
    stays. Withstands `f` malicious clients of at least 4f + 3, also those that hide a large change of few elements
    among many. Costs 2 n**2 d multiplications, n sorts of n**2 numbers, and a sort for each element.
    """

    name: ClassVar[str] = "bulyan"
    measures: ClassVar[bool] = True
    f: int = 1

    def __post_init__(self) -> None:
        whole(self, f=0)

    @property
    def least(self) -> int:
        return 4 * self.f + 3

    def made(self, updates: Updates) -> Arrays:
        left, chosen, distances = list(range(len(updates))), [], updates.distances()
        for _ in range(len(updates) - 2 * self.f):
            best = int(np.argmin(scores(distances[np.ix_(left, left)], self.f))) if len(left) > 1 else 0
            chosen.append(left.pop(best))
        return updates.by_element(lambda block: self._middle(block[sorted(chosen)]))

    def _middle(self, block: Array) -> Array:
        rows = in_order(block)
        count, median = len(rows), middle(rows)
        low = np.zeros(rows.shape[1], np.intp)
        for dropped in range(2 * self.f):
            high = low + (count - 1 - dropped)
            ends = (np.take_along_axis(rows, at[None], axis=0)[0] for at in (low, high))
            below, above = (np.abs(end - median) for end in ends)
            low += below > above
        keep = count - 2 * self.f
        return added(np.stack([np.take_along_axis(rows, (low + at)[None], axis=0)[0] for at in range(keep)])) / keep
