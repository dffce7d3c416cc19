"""The largest entries alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Spec
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import register_transform
from ..core.update import Update
from ..entropy import SYSTEM, Entropy
from .bits import place_bytes, places, places_read
from .compression import Compression, part
from .error_feedback import left_out, with_left_out


@dataclass(frozen=True)
class Sparse(Compression):
    """A step that sends some entries of each parameter, and their places."""

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        size = math.prod(spec.shape)
        return {"places": part(place_bytes(count, size)), "values": Spec((count,), spec.dtype, "parameter")}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        size, values = math.prod(spec.shape), parts["values"]
        dense = np.zeros(size, spec.dtype)
        dense[places_read(parts["places"], values.size, size, name)] = values
        return dense


@register_transform
@dataclass(frozen=True)
class top_k(Sparse):
    """Send only the largest entries of each parameter and keep the rest for the next time (Stich et al. 2018, arXiv
    1809.07599; Karimireddy et al. 2019, arXiv 1901.09847).

    `fraction` of each parameter's entries travel, at least one, as values and places of about 2 + log2(1 / fraction)
    bits. With `error_feedback` what was left out is added to the client's next difference; where a step behind loses
    more than this one (`quantise(1)`), better put `error_feedback()` before both. Buffers travel whole. Needs
    differences.
    """

    name: ClassVar[str] = "top_k"
    version: ClassVar[int] = 2
    fraction: float = 0.01
    error_feedback: bool = True

    def __post_init__(self) -> None:
        positive(self, "fraction", most=1)

    @property
    def grows(self) -> bool:
        return self.error_feedback

    @property
    def feeds_back(self) -> bool:
        return self.error_feedback

    def entries(self, size: int) -> int:
        return max(1, round(self.fraction * size))

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        if not self.error_feedback:
            return super().encode(update, params, None, key, own)
        whole = with_left_out(update, local)
        sent, _ = super().encode(replace(update, arrays=whole), params, None, key, own)
        return sent, left_out(whole, self.decode(sent, params, whole.schema))

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        chosen = largest(flat, self.entries(flat.size))
        return {"places": places(chosen, flat.size), "values": flat[chosen]}


def largest(flat: Array, count: int) -> Array:
    """Where the so many entries of largest absolute value are, in order. Of equal ones the first are taken, so that
    equal arrays give equal choices whatever the sorting method.
    """
    size = np.abs(flat)
    least = np.partition(size, flat.size - count)[flat.size - count]
    above = np.flatnonzero(size > least)
    equal = np.flatnonzero(size == least)[: count - above.size]
    return np.sort(np.concatenate((above, equal)))
