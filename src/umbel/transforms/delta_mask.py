"""What has changed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Spec
from ..core.randomness import Key
from ..core.settings import not_negative
from ..core.transform import register_transform
from .bits import places
from .top_k import Sparse


@register_transform
@dataclass(frozen=True)
class delta_mask(Sparse):
    """Send only entries that have changed, by more than `threshold` in absolute value (Strom 2015; Aji & Heafield 2017,
    arXiv 1704.05021): for clients that train a part of a model, as adapters, rows of embeddings or frozen layers.

    With the threshold 0 nothing is lost. The size depends on the values: each entry that is sent costs itself and 2 to
    2 + log2(n / count) bits. Put `error_feedback()` before it to send small changes once they have added up. Needs
    differences.
    """

    name: ClassVar[str] = "delta_mask"
    counted: ClassVar[bool] = True
    threshold: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self, "threshold")

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        chosen = np.flatnonzero(np.abs(flat) > self.threshold)
        count = np.array(chosen.size, np.int64)
        return {"count": count, "places": places(chosen, flat.size), "values": flat[chosen]}
