"""Some entries, drawn at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Spec
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import register_transform
from .compression import Compression


@register_transform
@dataclass(frozen=True)
class random_k(Compression):
    """Send a random `fraction` of each parameter's entries, at least one (Konečný et al. 2016, arXiv 1610.05492; Stich
    et al. 2018, arXiv 1809.07599).

    Values travel times n / k, so that the mean of what is received is what was there, the squared error n / k - 1
    times its squared norm. With `unbiased=False` they travel as they are, as `error_feedback()` needs it. Which entries
    they are both sides draw from a seed of 8 bytes, so that no places travel. Needs differences.
    """

    name: ClassVar[str] = "random_k"
    linear: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    fraction: float = 0.01
    unbiased: bool = True

    def __post_init__(self) -> None:
        positive(self, "fraction", most=1)

    @property
    def grows(self) -> bool:
        return self.unbiased

    def entries(self, size: int) -> int:
        return max(1, round(self.fraction * size))

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        return {"values": Spec((count,), spec.dtype, "parameter")}

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        values = flat[self._drawn(key, flat.size)]
        return {"values": values * flat.dtype.type(flat.size / values.size) if self.unbiased else values}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        dense = np.zeros(math.prod(spec.shape), spec.dtype)
        dense[self._drawn(key, dense.size)] = parts["values"]
        return dense

    def _drawn(self, key: Key, size: int) -> Array:
        return key.draws().sample(size, self.entries(size))
