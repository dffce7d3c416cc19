"""The levels that are best for normally distributed entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array
from ..core.randomness import Key
from ..core.transform import register_transform
from ..errors import SettingError
from .coded import Coded

LEVELS = {
    1: (0.7978845608,),
    2: (0.4527800346, 1.5104176085),
    4: (
        0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.6180463860, 2.0690172265, 2.7325895710,
    ),
}  # fmt: skip
"""The positive levels of least squared error for a standard normal entry, by the bits that name one."""


@register_transform
@dataclass(frozen=True)
class lloyd_max(Coded):
    """Send the nearest of 2^`bits` levels (1, 2 or 4 bits) that are best for standard normal entries (Lloyd 1982, Max
    1960), and a scale S for each `block` of entries.

    Entries x of a block are made normal by sqrt(length) / |x|; with c the levels nearest to them, S is |x|^2 / <x, c>,
    so that what is received has the product |x|^2 with x: behind `rotate` its mean is x (EDEN, Vargaftik et al. 2022,
    arXiv 2108.08842). The norm grows. Needs differences.
    """

    name: ClassVar[str] = "lloyd_max"
    grows: ClassVar[bool] = True
    bits: int = 4
    block: int = 4096

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in LEVELS:
            raise SettingError(f"lloyd_max takes 1, 2 or 4 bits, not {self.bits!r}")
        self.blocks_are_right()

    def coded(self, blocks: Array, sizes: Array, key: Key) -> tuple[Array, Array]:
        largest = np.abs(blocks).max(1)
        rows = blocks / np.where(largest > 0, largest, 1)[:, None]
        norms = np.sqrt(np.square(rows, dtype=np.float64).sum(1))
        factors = np.sqrt(sizes) / np.where(norms > 0, norms, 1)
        normal = rows * factors.astype(rows.dtype)[:, None]
        levels, codes = self.levels(rows.dtype), np.zeros(rows.shape, np.uint8)
        for middle in (levels[1:] + levels[:-1]) / 2:
            codes += normal >= middle
        product = np.multiply(rows, levels[codes], dtype=np.float64).sum(1)
        return codes, norms**2 / np.where(product > 0, product, 1) * largest

    def levels(self, dtype: np.dtype[Any]) -> Array:
        half = np.array(LEVELS[self.bits])
        return np.concatenate((-half[::-1], half)).astype(dtype)
