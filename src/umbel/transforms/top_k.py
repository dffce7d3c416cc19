"""The largest entries alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Array, Arrays, Schema
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Update
from ..errors import StrategyError, UpdateRejected


@register_transform
@dataclass(frozen=True)
class top_k(Transform):
    """Send only the largest entries of each parameter and keep the rest for the next time (Stich et al. 2018;
    Karimireddy et al. 2019).

    `fraction` of each parameter's entries travel, at least one, as indices and values. With `error_feedback` what was
    left out is added to the client's next difference. Buffers travel whole. Needs differences.
    """

    name: ClassVar[str] = "top_k"
    fraction: float = 0.01
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction <= 1):
            raise StrategyError(f"top_k takes a fraction above 0 and up to 1, not {self.fraction!r}")

    @property
    def grows(self) -> bool:
        return self.error_feedback

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError(
                "top_k drops entries, which makes sense for differences only", hint="Use Like(delta=True)."
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        arrays = as_arrays(update)
        residual: Mapping[str, Array] = local if local is not None and self.error_feedback else {}
        sent: dict[str, Any] = {}
        left: dict[str, Array] = {}
        for name, array in arrays.items():
            if arrays.roles[name] != "parameter" or array.size == 0:
                sent[name] = array
                continue
            whole = np.add(array, residual[name]) if name in residual else array
            flat = whole.reshape(-1)
            chosen = _largest(flat, self._count(flat.size))
            sent[f"{name}:shape"] = np.asarray(array.shape, np.int64)
            sent[f"{name}:indices"] = chosen
            sent[f"{name}:values"] = flat[chosen]
            rest = np.array(whole)
            rest.reshape(-1)[chosen] = 0
            left[name] = rest
        whole_roles = {n: arrays.roles[n] for n in sent if n in arrays}
        return replace(update, arrays=Arrays(sent, whole_roles)), Arrays(left) if self.error_feedback else None

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = as_arrays(update)
        dense: dict[str, Array] = {}
        for key in arrays:
            name, _, part = key.rpartition(":")
            sparse = part in ("shape", "indices", "values") and f"{name}:values" in arrays
            if not sparse or (schema is not None and key in schema):
                dense[key] = arrays[key]
            elif part == "values":
                dense[name] = self._scatter(arrays, name, schema)
        return replace(update, arrays=Arrays(dense))

    def _count(self, size: int) -> int:
        return max(1, round(self.fraction * size))

    def _scatter(self, arrays: Arrays, name: str, schema: Schema | None) -> Array:
        try:
            shape, indices, values = (arrays[f"{name}:{part}"] for part in ("shape", "indices", "values"))
        except KeyError as error:
            raise UpdateRejected(f"array {name!r} lacks its indices or its shape") from error
        fits = shape.ndim == indices.ndim == values.ndim == 1 and indices.shape == values.shape
        if not fits or not shape.dtype == indices.dtype == np.int64:
            raise UpdateRejected(f"the indices, values and shape of array {name!r} do not fit together")
        claimed = tuple(shape.tolist())
        _check_claim(name, claimed, schema)
        size = math.prod(claimed)
        if values.size != self._count(size):
            raise UpdateRejected(f"the indices, values and shape of array {name!r} do not fit together")
        if indices[0] < 0 or indices[-1] >= size or (np.diff(indices) <= 0).any():
            raise UpdateRejected(f"the indices of array {name!r} are not rising within its {size} elements")
        dense = np.zeros(size, values.dtype)
        dense[indices] = values
        return dense.reshape(claimed)


def _check_claim(name: str, claimed: tuple[int, ...], schema: Schema | None) -> None:
    """Refuse the shape that a holder gives a sparse array unless the ask expects it: it says how much is allocated."""
    spec = schema.get(name) if schema is not None else None
    if spec is not None and spec.role == "parameter":
        if claimed != spec.shape or not math.prod(claimed):
            raise UpdateRejected(f"array {name!r} has shape {list(claimed)}, expected {list(spec.shape)}")
        return
    whole = name  # the values of an array that an earlier step made sparse are at most as many as it has elements
    while spec is None and whole.endswith(":values"):
        whole = whole.removesuffix(":values")
        spec = schema.get(whole) if schema is not None else None
        if spec is not None and len(claimed) == 1 and 0 < claimed[0] <= math.prod(spec.shape):
            return
    raise UpdateRejected(f"array {name!r} is sparse, and the ask expects no such parameter")


def _largest(flat: Array, count: int) -> Array:
    # Ties go to the lower index, so that equal arrays give equal choices whatever the sorting method. A NaN counts as
    # the largest: it has to travel, to be rejected by name, or it would stay in the residual for good.
    size = np.abs(flat.astype(np.float64))
    size[np.isnan(size)] = math.inf
    order = np.argsort(-size, kind="stable")[:count]
    return np.sort(order).astype(np.int64)
