"""The mean of updates of bounded norm (Sun et al. 2019, arXiv 1911.07963)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.elementwise import Sums, mean
from ..core.settings import positive
from ..core.sums import magnitude
from ..core.update import Contribution
from .geometry import norm


@dataclass(frozen=True)
class norm_bounded(mean):
    """The plain mean of the updates, each scaled down, where it is folded, to an L2 norm of `norm` over its parameters.

    No malicious client moves the answer by more than norm / n, and none is left out. Unlike the transform
    `clip_by_norm` it needs nothing of the clients, and rejects nobody. Needs differences; buffers are left as they are.
    Updates are summed, so memory does not grow with their number; each is read once more to measure it.
    """

    name: ClassVar[str] = "norm_bounded"
    needs_differences: ClassVar[bool] = True
    single: ClassVar[bool] = True
    norm: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "norm")

    def add(self, acc: Sums, item: Contribution, factor: float = 1.0) -> Sums:
        size = norm(item.arrays)
        if size > self.norm:
            item = scaled(item, self.norm / size)
        return super().add(acc, item, factor)


def scaled(item: Contribution, scale: float) -> Contribution:
    """An update whose parameters are scaled."""
    made = {
        n: np.asarray(np.multiply(a, scale, dtype=np.float64), a.dtype) if item.arrays.roles[n] == "parameter" else a
        for n, a in item.arrays.items()
    }
    sizes = {n: magnitude(a) for n, a in made.items()}
    return replace(item, arrays=Arrays.trusted(made, item.arrays.roles), magnitudes=sizes, mapped=False)
