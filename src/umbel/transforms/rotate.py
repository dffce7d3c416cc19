"""A random rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Spec
from ..core.randomness import Key
from ..core.settings import whole
from ..core.transform import register_transform
from ..errors import SettingError
from .compression import Compression


@register_transform
@dataclass(frozen=True)
class rotate(Compression):
    """Rotate each parameter at random, so that its entries are nearly normal whatever they were and none sticks out:
    what a coarse quantiser likes (Ailon & Chazelle 2009; Suresh et al. 2017, arXiv 1611.00429).

    `block` entries at a time (a power of two) get random signs, and then the Hadamard transform; the last block is
    filled with zeros up to a power of two. It saves nothing itself, and costs up to that many entries and a seed of 8
    bytes an update. The receiver rotates back, to within rounding. Norms stay. Needs differences.
    """

    name: ClassVar[str] = "rotate"
    linear: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    block: int = 4096

    def __post_init__(self) -> None:
        whole(self, block=2)
        if self.block & (self.block - 1):
            raise SettingError(f"rotate takes blocks of a power of two, not {self.block!r}")

    def applies(self, spec: Spec) -> bool:
        return math.prod(spec.shape) > 1

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        return {"rotated": Spec((self._filled(count),), spec.dtype, "parameter")}

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        made = np.zeros(self._filled(flat.size), flat.dtype)
        made[: flat.size] = flat
        made *= _signs(key, made.size, flat.dtype)
        self._turn(made)
        return {"rotated": made}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        made = parts["rotated"].copy()
        self._turn(made)
        made *= _signs(key, made.size, made.dtype)
        return made[: math.prod(spec.shape)]

    def _filled(self, size: int) -> int:
        whole, rest = divmod(size, self.block)
        return whole * self.block + (1 << (rest - 1).bit_length() if rest else 0)

    def _turn(self, filled: Array) -> None:
        """Transform whole blocks, and what is left, in place."""
        whole = filled.size // self.block * self.block
        for rows in (filled[:whole].reshape(-1, self.block), filled[None, whole:]):
            if rows.size:
                rows[:] = hadamard(rows)


def hadamard(rows: Array) -> Array:
    """The orthonormal Hadamard transform of each row, of a length that is a power of two; its own inverse."""
    count, length = rows.shape
    made = np.ascontiguousarray(rows.T)  # steps are over whole rows of memory, however near the elements
    step = 1
    while step < length:
        pairs = made.reshape(-1, 2, step, count)
        made = np.empty_like(made)
        halves = made.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=halves[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=halves[:, 1])
        step *= 2
    made *= made.dtype.type(1 / math.sqrt(length))
    return made.T


def _signs(key: Key, count: int, dtype: np.dtype[Any]) -> Array:
    """1 or -1 for each bit of the key's words, from the lowest on: -1 where it is set."""
    words = key.draws().words(-(-count // 64)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    made: Array = np.array([1, -1], dtype)[bits]
    return made
