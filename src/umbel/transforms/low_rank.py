"""Matrices of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Spec
from ..core.randomness import Key
from ..core.settings import whole
from ..core.transform import register_transform
from ..entropy import SYSTEM, Entropy
from .compression import Compression
from .subspace import orthonormal, projected


@register_transform
@dataclass(frozen=True)
class low_rank(Compression):
    """Send two thin factors in place of each matrix, the product of which is near to it (Halko, Martinsson & Tropp
    2011, arXiv 0909.4061).

    A parameter of two or more dimensions is a matrix of its first by the product of the others; vectors, and what two
    factors of rank `rank` would not make smaller, travel whole. The holder takes `iterations` steps of subspace
    iteration from a random start, or with `warm_start` from the subspace of the last answer, which the server keeps and
    sends with each task. A matrix of that rank or less is received as it was, to within rounding; of others the
    projection, so that the norm does not grow. See `power_sgd`. Needs differences.
    """

    name: ClassVar[str] = "low_rank"
    keeps_norm: ClassVar[bool] = False
    rank: int = 4
    iterations: int = 1
    warm_start: bool = False

    def __post_init__(self) -> None:
        whole(self, rank=1, iterations=1)

    def layout(self, spec: Spec, count: int) -> dict[str, Spec]:
        if len(spec.shape) < 2:
            return {}
        rows, columns = _matrix(spec)
        rank = min(self.rank, rows, columns)
        left, right = (Spec((rank, size), spec.dtype, "parameter") for size in (rows, columns))
        return {"left": left, "right": right}

    def init(self, schema: Any) -> Any:
        return {} if self.warm_start else None

    def send(self, state: Any) -> Any:
        return state

    def pack(self, name: str, flat: Array, spec: Spec, key: Key, params: Any) -> dict[str, Array]:
        matrix = flat.reshape(_matrix(spec))
        right = self._start(matrix, params, name, key)
        for _ in range(self.iterations):
            left = orthonormal(matrix, right).astype(flat.dtype)
            right = projected(left, matrix)
        return {"left": left, "right": right.astype(flat.dtype)}

    def unpack(self, name: str, parts: Mapping[str, Array], spec: Spec, key: Key, params: Any) -> Array:
        dense = np.zeros(_matrix(spec), spec.dtype)
        for left, right in zip(parts["left"], parts["right"], strict=True):
            dense += left[:, None] * right  # one rounding each, so that the sum is the same everywhere
        return dense.reshape(-1)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        if not self.warm_start or not isinstance(answer.value, Arrays):
            return answer, state
        kept = dict(state)
        for name, spec in self.split(answer.value.schema):
            matrix = answer.value[name].reshape(_matrix(spec))
            left = orthonormal(matrix, self._start(matrix, state, name, key.derive(name)))
            kept[name] = projected(left, matrix).astype(np.float32)
        return answer, kept

    def _start(self, matrix: Array, kept: Any, name: str, key: Key) -> Array:
        """The subspace to begin with, with random rows where there is none."""
        rank = min(self.rank, *matrix.shape)
        found = np.zeros((rank, matrix.shape[1]))
        if kept and name in kept and kept[name].shape == found.shape:
            found += kept[name]
        empty = ~found.any(1)
        found[empty] = key.draws().normal(int(empty.sum()) * matrix.shape[1]).reshape(-1, matrix.shape[1])
        return found


def _matrix(spec: Spec) -> tuple[int, int]:
    return spec.shape[0], math.prod(spec.shape[1:])
