"""Counts that hide who was counted: of each client so many contributions at most, and noise on the sum."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Schema
from ..core.fold import Fold
from ..core.randomness import Draws, Key
from ..core.settings import positive, whole
from ..core.transform import Transform, as_arrays, register_transform
from ..core.update import Expectation, Like, Update
from ..entropy import SYSTEM, Entropy, Words
from ..errors import SettingError, StrategyError, UpdateRejected
from .discrete import Floats, Integers, discrete_laplace

LEAST_EPSILON, MOST_EPSILON, MOST_CONTRIBUTIONS = 1e-3, 100.0, 2**32
ERROR = ":error"
"""After the name of an array, that of the standard deviation of its noise, in each cell or in all."""


@dataclass(frozen=True)
class NoisyCounts(Transform):
    """What mechanisms for counts share: a client has arrays of counts, of which each contribution, one in one cell,
    counts alike, and `told` makes what leaves the holder of few of them, drawn at random. The answer has beside each
    array the standard deviation of its noise, ``<name>:error``.

    Needs the fold `total`, and an ask that expects int64 arrays of shapes that it says, as values.
    """

    epsilon: float

    def __post_init__(self) -> None:
        positive(self, "epsilon", most=MOST_EPSILON)
        if self.epsilon < LEAST_EPSILON:
            raise SettingError(f"{self.name} takes an epsilon of at least {LEAST_EPSILON:g}, not {self.epsilon!r:.60}")

    @property
    def private(self) -> bool:
        return True

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not isinstance(expects, Like) or expects.delta:
            raise StrategyError(
                f"{self.name} hides counts, but the ask expects something else",
                hint="Use Like(Arrays({...}), delta=False), or an analysis with privacy=...",
            )
        if fold.name != "total":
            raise StrategyError(
                f"{self.name} works on sums of counts, and {fold.name} makes something else of them",
                hint="Write fold=umbel.total().",
            )

    def init(self, schema: Schema | None) -> Any:
        """The shapes of an answer that nobody contributed to."""
        if schema is None or any(spec.dtype != np.int64 for spec in schema.values()):
            raise StrategyError(f"{self.name} has to know the shapes of the counts, which are int64")
        return {name: list(spec.shape) for name, spec in schema.items()}

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays = as_arrays(update)
        flat = np.maximum(_flat(arrays), 0)
        cells, made, at = self.told(flat, own), {}, 0
        for name, array in arrays.items():
            made[name] = cells[at : at + array.size].reshape(array.shape)
            at += array.size
        return Update(Arrays(made, dict(arrays.roles)), delta=update.delta), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = as_arrays(update)
        for name, array in arrays.items():
            if array.dtype != np.int64 or (array < 0).any():
                raise UpdateRejected(f"array {name!r} holds no counts")
        self.check_told(_flat(arrays).astype(np.float64))  # whose sums are exact, or above all bounds
        return Update(arrays, delta=update.delta)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        size = sum(math.prod(shape) for shape in state.values())
        value: dict[str, Any] = {}
        for name in sorted(state):
            total = answer.value[name] if name in answer.value else np.zeros(state[name], np.int64)
            value[name], value[name + ERROR] = self.estimated(total, answer.count, size, own)
        return replace(answer, value=Arrays(value), aux=Arrays(), metrics={}, weight=0.0), state

    @abstractmethod
    def told(self, counts: Integers, own: Entropy) -> Integers:
        """What leaves a holder for its counts in all cells."""

    @abstractmethod
    def check_told(self, cells: Floats) -> None:
        """Raise `UpdateRejected` for counts that no holder tells."""

    @abstractmethod
    def estimated(self, total: Array, clients: int, size: int, own: Entropy) -> tuple[Array, Array]:
        """Of the sum of an array over so many clients, of `size` cells in all, what is released, and its error."""


@register_transform
@dataclass(frozen=True)
class central_counts(NoisyCounts):
    """Hide every client behind discrete Laplace noise, added once to the sum of counts (Ghosh, Roughgarden &
    Sundararajan 2012, arXiv 0811.2841).

    Of one client at most `most` contributions count, of more it draws so many at random; where they are folded that is
    checked again. So the sum changes by `most` at most, in L1, where a client is added or removed, and noise of the
    scale most / epsilon makes each answer `epsilon`-differentially private, without a delta. The server sees each
    client's counts, and is trusted to add the noise.
    """

    name: ClassVar[str] = "central_counts"
    most: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, most=1)
        positive(self, "most", most=MOST_CONTRIBUTIONS)

    def told(self, counts: Integers, own: Entropy) -> Integers:
        return sampled(counts, self.most, own)

    def check_told(self, cells: Floats) -> None:
        if (total := float(cells.sum())) > self.most:
            raise UpdateRejected(f"the update has {total:,.0f} contributions, of {self.most:,} at most")

    def estimated(self, total: Array, clients: int, size: int, own: Entropy) -> tuple[Array, Array]:
        noise = discrete_laplace(self._scale, total.size, own).reshape(total.shape)
        rate = float(1 / self._scale)
        return np.asarray(total + noise), np.array(math.sqrt(2 * math.exp(-rate)) / -math.expm1(-rate))

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return {
            "mechanism": "pure",
            "unit": "client",
            "neighbours": "add or remove one",
            "noise": 1 / self.epsilon,
            "norm": float(self.most),
            "steps": None,
            "denominator": 1.0,
        }

    @property
    def _scale(self) -> Fraction:
        return self.most / Fraction(self.epsilon)


def _flat(arrays: Arrays) -> Integers:
    return np.concatenate([np.zeros(0, np.int64), *(array.ravel() for array in arrays.values())])


def sampled(counts: Integers, most: int, own: Entropy) -> Integers:
    """So many contributions of all that there are, each set of them equally likely; all where they are no more."""
    total = int(counts.sum())
    if total <= most:
        return counts
    places = np.searchsorted(np.cumsum(counts), OwnDraws(own).sample(total, most), "right")
    return np.bincount(places, minlength=counts.size).astype(np.int64)


class OwnDraws(Draws):
    """Draws of words that nobody else knows."""

    def __init__(self, own: Entropy) -> None:
        self._own = own

    def words(self, n: int) -> Words:
        return self._own.words(n)
