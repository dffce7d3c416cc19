"""Differences of bounded norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Arrays, Schema, wide
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected

_PART = 1 << 13
"""So many elements are squared at a time: that stays in the cache, and on one thread, so that the order is the same."""


@register_transform
@dataclass(frozen=True)
class clip_by_norm(Transform):
    """Scale a client's difference down so that the L2 norm over all its parameters is at most `norm` (McMahan et al.
    2018).

    Buffers are left as they are. The bound is checked again where the update is folded: an update beyond it (by more
    than float32 rounding) is rejected. Needs differences, and a fold under which one client's claimed weight cannot
    multiply its share.
    """

    name: ClassVar[str] = "clip_by_norm"
    linear: ClassVar[bool] = True
    norm: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "norm")

    @property
    def bound(self) -> float:
        return self.norm * (1 + 1e-5)

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError(
                "clip_by_norm bounds differences, but the ask expects values", hint="Use Like(delta=True)."
            )
        if fold.weights == "claimed":
            raise StrategyError(
                f"clip_by_norm under {fold.name} bounds nothing: a client that claims a large weight still moves the "
                "mean at will",
                hint="Fold with mean(), so that every client counts alike.",
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays = as_arrays(update)
        norm = parameter_norm(arrays)
        if not norm > self.norm:  # a NaN goes on, to be rejected by name
            return update, local
        scale = self.norm / norm
        scaled = {n: _scaled(a, scale) if arrays.roles[n] == "parameter" else a for n, a in arrays.items()}
        return replace(update, arrays=Arrays.trusted(scaled, dict(arrays.roles))), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        norm = parameter_norm(with_roles(as_arrays(update), schema))
        if norm > self.bound:
            raise UpdateRejected(f"the update's norm is {norm:.6g}, but it had to be clipped to {self.norm:.6g}")
        return update


def parameter_norm(arrays: Arrays) -> float:
    """The L2 norm over all parameters together, in float64; NaN where one holds NaN or infinity."""
    parameters = [arrays[n] for n in sorted(arrays) if arrays.roles[n] == "parameter"]
    for scale in (1.0, 2.0**-600):  # finite values whose squares overflow must not pass for NaN
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [_square(a, scale) for a in parameters]
        if math.isfinite(sum(squares)):
            return math.sqrt(math.fsum(squares)) / scale
    return math.nan


def _square(array: Array, scale: float) -> float:
    flat, squares = np.ravel(array), list[float]()
    for at in range(0, len(flat), _PART):
        part = flat[at : at + _PART].astype(np.float64)
        if scale != 1.0:
            part *= scale
        squares.append(float(np.dot(part, part)))
    return sum(squares)


def with_roles(arrays: Arrays, schema: Schema | None) -> Arrays:
    """The arrays with the roles that `schema` gives them; what it does not name is a parameter where it is a float."""
    if schema is None:
        return arrays
    return Arrays(dict(arrays), {n: schema[n].role for n in arrays if n in schema})


def _scaled(array: Array, scale: float) -> Array:
    # In float32 a scale below 1e-38 would have few digits, and the result might be beyond the bound.
    scaled = np.multiply(array, scale, dtype=np.float64 if scale < 1e-30 else wide(array.dtype))
    return np.asarray(scaled, wide(array.dtype))
