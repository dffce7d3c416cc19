"""What steps share that send a code for each entry and a scale for each block."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Spec
from ..core.randomness import Key
from ..core.settings import whole
from ..errors import SettingError
from .bits import code_bytes, in_blocks, looked_up, packed
from .compression import Compression, part


class Coded(Compression):
    """A step that sends `bits` for each entry, which name one of its levels, and a scale for each `block` of entries by
    which the receiver multiplies them. Subclasses have these two settings, `levels`, and make codes and scales.
    """

    keeps_norm: ClassVar[bool] = False
    bits: int  # no field here, so that subclasses have their settings in an order of their own
    block: int

    def blocks_are_right(self) -> None:
        """Raise `SettingError` for blocks that do not end where bytes do."""
        whole(self, block=8)
        if self.block % 8:
            raise SettingError(f"{self.name} takes blocks of a multiple of 8 entries, not {self.block!r}")

    @abstractmethod
    def levels(self, dtype: np.dtype[Any]) -> Array:
        """What each code stands for, in units of the scale."""

    @abstractmethod
    def coded(self, blocks: Array, sizes: Array, key: Key) -> tuple[Array, Array]:
        """A code for each entry of each block, the last of which is filled with zeros, and a scale for each block."""

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        return {"codes": part(code_bytes(count, self.bits)), "scales": part(-(-count // self.block), spec.dtype)}

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        codes, scales = self.coded(*in_blocks(flat, self.block), key)
        return {"codes": packed(codes.reshape(-1)[: flat.size], self.bits), "scales": scales.astype(flat.dtype)}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        size = math.prod(spec.shape)
        blocks, _ = in_blocks(looked_up(parts["codes"], self.levels(spec.dtype), size), self.block)
        blocks *= parts["scales"][:, None]
        return blocks.reshape(-1)[:size]
