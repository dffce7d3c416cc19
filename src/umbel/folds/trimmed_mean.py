"""The coordinate-wise trimmed mean (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.arrays import Array, Arrays
from ..core.settings import whole
from .gathered import Gathered, Updates, in_order
from .geometry import added


@dataclass(frozen=True)
class trimmed_mean(Gathered):
    """The mean of each element without its `f` largest and its `f` smallest values; without any, `mean`.

    Withstands `f` malicious clients of more than 2f. Costs a sort of n values for each element, and a sum.
    """

    name: ClassVar[str] = "trimmed_mean"
    f: int = 1

    def __post_init__(self) -> None:
        whole(self, f=0)

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def made(self, updates: Updates) -> Arrays:
        return updates.by_element(self._inner) if self.f else updates.mean()

    def _inner(self, block: Array) -> Array:
        kept = in_order(block)[self.f : len(block) - self.f]
        return added(kept) / len(kept)
