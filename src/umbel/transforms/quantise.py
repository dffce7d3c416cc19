"""Few bits for each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array
from ..core.randomness import Key
from ..core.transform import register_transform
from ..errors import SettingError
from .bits import BITS, thresholds
from .coded import Coded


@register_transform
@dataclass(frozen=True)
class quantise(Coded):
    """Send each entry in `bits` bits (8, 4, 2 or 1), and a scale for each `block` of entries (QSGD, Alistarh et al.
    2017, arXiv 1610.02132; with 1 bit the sign with a scale, Seide et al. 2014, Bernstein et al. 2018, arXiv
    1802.04434; with 2 bits TernGrad, Wen et al. 2017, arXiv 1705.07878).

    Levels are evenly spaced up to the largest entry of the block (the scale), or with `kind="e3m0"` the 4-bit floats
    0 and ±2^-6 to ±1 times it (Douillard et al. 2025, arXiv 2501.18512). `stochastic` draws one of the two levels
    around an entry so that its mean is the entry, to within 2^-17 of their distance; otherwise it is the nearer one,
    the upper of two as near, and for 1 bit the scale is the mean of the absolute values. An entry is off by one
    distance at most, half of it where not stochastic (1 bit apart). With `bounded` the scale of a block is lowered
    where its norm would grow, as has to be behind `clip_by_norm`; which biases a little. Needs differences.
    """

    name: ClassVar[str] = "quantise"
    bits: int = 8
    stochastic: bool = True
    block: int = 256
    kind: str = "uniform"
    bounded: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise SettingError(f"quantise takes 1, 2, 4 or 8 bits, not {self.bits!r}")
        if self.kind not in ("uniform", "e3m0") or (self.kind == "e3m0" and self.bits != 4):
            raise SettingError(
                f"quantise takes the kinds 'uniform' and, with 4 bits, 'e3m0', not {self.kind!r} with {self.bits}",
                hint="Write quantise(4, kind='e3m0').",
            )
        self.blocks_are_right()

    @property
    def grows(self) -> bool:
        return not self.bounded and not self._sign

    @property
    def _sign(self) -> bool:
        return self.bits == 1 and not self.stochastic

    def levels(self, dtype: np.dtype[Any]) -> Array:
        if self.kind == "e3m0":
            sizes = np.concatenate(([0.0], 2.0 ** np.arange(-6, 1)))
            return np.concatenate((sizes, -sizes)).astype(dtype)
        half = 1 << (self.bits - 1)
        steps = np.array([-1.0, 1.0]) if self.bits == 1 else (np.arange(2 * half) - half) / (half - 1)
        return steps.astype(dtype)

    def coded(self, blocks: Array, sizes: Array, key: Key) -> tuple[Array, Array]:
        size = np.abs(blocks)
        scales = (size.sum(1, np.float64) / sizes).astype(size.dtype) if self._sign else size.max(1)
        ratio = np.divide(blocks, np.where(scales > 0, scales, 1)[:, None], out=size)
        at = thresholds(key.draws(), ratio.size, ratio.dtype).reshape(ratio.shape) if self.stochastic else 0.5
        codes = self._codes(ratio, at)
        if self.bounded:
            scales = scales * np.minimum(1, _growth(ratio, self.levels(np.dtype(np.float64))[codes], sizes))
        return codes, scales

    def _codes(self, ratio: Array, at: Any) -> Array:
        """The codes of entries in units of the scale, given thresholds; may change `ratio` unless `bounded`."""
        if self.kind == "e3m0":
            size = np.abs(ratio)
            mantissa, exponent = np.frexp(size)
            low = np.where(size < 2**-6, 0, exponent + 6)
            steps = low + (np.where(low > 0, 2 * mantissa - 1, size * 64) >= 1 - at) + 8 * (ratio < 0)
        elif self.bits == 1:
            steps = ratio > 1 - 2 * at if self.stochastic else ratio >= 0
        else:
            half = 1 << (self.bits - 1)
            steps = np.multiply(ratio, half - 1, out=None if self.bounded else ratio)
            steps += at
            np.floor(steps, out=steps)
            steps += half
        made: Array = steps.astype(np.uint8)
        return made


def _growth(ratio: Array, sent: Array, sizes: Array) -> Array:
    """For each block its norm over that of the levels sent for it."""
    sent = np.where(np.arange(sent.shape[1]) < sizes[:, None], sent, 0)
    before, after = (np.square(rows, dtype=np.float64).sum(1) for rows in (ratio, sent))
    made: Array = np.sqrt(np.divide(before, after, out=np.ones_like(after), where=after > 0))
    return made
