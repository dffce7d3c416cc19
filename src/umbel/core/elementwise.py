"""The folds that treat every element alike: exact sums of arrays, and the two means that the core itself needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from .. import files
from ..errors import NothingToFold, StrategyError, UpdateRejected
from .arrays import Array, Arrays, Role, Schema, Spec, is_floating, wide
from .fold import Fold, Unlike
from .settings import positive
from .sums import ArraySum, ExactScalar
from .update import Contribution, Stack

SMALL = 1 << 31
"""Integers up to this size are totalled together: int64 holds four milliards of them."""
BEYOND = "a sum of integers would leave the range of int64"
_BATCH = 16
_BATCH_BYTES = 1 << 20  # several small updates are added at once, which spares calls; large ones gain nothing from it
_MAPPED = 16  # so many updates that are views of files wait, whatever their size: less than that needs no bins


class IntegerSum:
    """The exact sum of integer arrays: unsigned ones modulo 2**bits, signed ones and booleans in int64, which holds
    them while `reach` is below 2**63.
    """

    __slots__ = ("_reach", "_total")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._total: Array = np.zeros(shape, dtype if dtype.kind == "u" else np.int64)
        self._reach = 0

    @property
    def reach(self) -> int:
        """How far from zero the sum can be."""
        return self._reach

    def reserve(self, magnitude: float) -> None:
        """An array none of whose elements exceeds `magnitude` is to be added."""
        if self._total.dtype.kind != "u":
            self._reach += _reach_of(magnitude)

    def add(self, array: Array) -> None:
        """Add an array of the same shape and dtype that was reserved for."""
        np.add(self._total, array, out=self._total, casting="unsafe")

    def merge(self, other: IntegerSum) -> None:
        """Add everything that other holds."""
        self._reach += other._reach
        np.add(self._total, other._total, out=self._total)

    def value(self) -> Array:
        """The sum."""
        return self._total.copy()

    def parts(self) -> tuple[int, Array]:
        """How far from zero the sum can be, and the sum itself."""
        return self._reach, self._total.copy()

    @classmethod
    def of_parts(cls, dtype: np.dtype[Any], reach: int, total: Array) -> IntegerSum:
        """The sum that had these parts; ValueError where they do not fit together."""
        made = cls(total.shape, dtype)
        signed = made._total.dtype.kind != "u"
        if total.dtype != made._total.dtype or not 0 <= reach < (1 << 63 if signed else 1):
            raise ValueError(f"no sum of {dtype.name} has this reach, or is kept as {total.dtype.name}")
        if signed and total.size and max(int(total.max()), -int(total.min())) > reach:
            raise ValueError(f"a sum of {dtype.name} is beyond its own reach")
        made._reach = reach
        made._total[...] = total
        return made


def _reach_of(magnitude: float) -> int:
    largest = int(magnitude)
    return largest + (largest >> 52)  # a float from 2**53 on may have been rounded down


@dataclass(slots=True)
class Sums:
    """The accumulator of the elementwise folds: one sum an array, the total weight, the number of updates.

    `summed` says whether something is in the sums, and does not only wait. `size` is the number of bits of the largest
    integers that are totalled, 0 for those of up to 32: updates of unlike size are summed apart, so that which of them
    are too much for int64 is a question of all, and not of who came last.
    """

    arrays: dict[str, ArraySum | IntegerSum] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weight: ExactScalar = field(default_factory=ExactScalar)
    count: int = 0
    waiting: list[tuple[Stack, list[float]]] = field(default_factory=list)
    batch: int = 1
    summed: bool = False
    size: int = 0

    def is_like(self, other: Sums) -> bool:
        """Whether they are of the same arrays."""
        return (self.roles, self.dtypes, self.shapes) == (other.roles, other.dtypes, other.shapes)

    def holds_with(self, other: Sums) -> bool:
        """Whether int64 can hold the integers of both together."""
        rows = ((self.arrays.get(name), other.arrays.get(name)) for name in {**self.arrays, **other.arrays})
        return all(sum(s.reach for s in row if isinstance(s, IntegerSum)) < 1 << 63 for row in rows)


@dataclass(frozen=True)
class Elementwise(Fold):
    """Base of the folds that treat every element alike; each array is summed by itself, block by block."""

    exact_integers: ClassVar[bool] = False
    stacks: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        if cls.add is not Elementwise.add:  # it wants to see every update
            cls.stacks, cls.add_stack = False, Fold.add_stack  # type: ignore[method-assign]

    def weigh(self, weight: float, factor: float) -> float:
        """What the arrays of an update are multiplied by that claims this weight."""
        return factor

    def zero(self) -> Sums:
        """An accumulator of nothing; arrays appear in it with the first update that has them."""
        return Sums()

    def add(self, acc: Sums, item: Contribution, factor: float = 1.0) -> Sums:
        """Fold one checked update. Raises `Unlike` where its arrays differ from those of the first."""
        return Elementwise.add_stack(self, acc, Stack.of(item), factor)

    def add_stack(self, acc: Sums, items: Stack, factor: float = 1.0) -> Sums:
        weights = [self.weigh(weight, factor) for weight in items.weights]
        if acc.count:
            check_alike(acc, items.arrays, items.arrays.roles)
        size = self._size(items, factor) if self.exact_integers else 0
        if not acc.count:
            self._begin(acc, items.arrays)
            acc.size = size
        elif size != acc.size:
            raise Unlike("the update's integers are of another size than those of other updates")
        for name, total in acc.arrays.items():
            if isinstance(total, IntegerSum):
                total.reserve(items.magnitudes[name][0])
        acc.count += len(items)
        for weight in weights:
            acc.weight.add(weight)
        if not all(weights):
            kept = [place for place, weight in enumerate(weights) if weight]
            items, weights = items.rows(kept), [weights[place] for place in kept]
        if weights:
            acc.waiting.append((items, weights))
            # Views of files cost nothing while they wait, and bins cost several times what is summed in them.
            if sum(len(each) for _, each in acc.waiting) > (_MAPPED if items.mapped else acc.batch - 1):
                self._flush(acc)
        return acc

    def merge(self, acc: Sums, other: Sums) -> Sums:
        """Fold everything that `other` holds."""
        if not other.count:
            return acc
        if acc.count and not (acc.is_like(other) and acc.size == other.size):
            raise Unlike("partials with different arrays cannot be merged")
        acc.size = other.size
        self._flush(other)
        self._flush(acc)
        acc.summed = acc.summed or other.summed
        acc.count += other.count
        acc.weight.merge(other.weight)
        for name, theirs in other.arrays.items():
            if name not in acc.arrays:
                acc.roles[name], acc.dtypes[name] = other.roles[name], other.dtypes[name]
                acc.shapes[name] = other.shapes[name]
                acc.arrays[name] = self._new(other.shapes[name], other.dtypes[name])
            acc.arrays[name].merge(theirs)  # type: ignore[arg-type]
        return acc

    def settle(self, acc: Sums) -> None:
        self._flush(acc)

    def finish(self, acc: Sums) -> Arrays:
        """The answer's arrays. Raises `NothingToFold`."""
        if not acc.count:
            raise NothingToFold("there is no update to fold")
        divisors = {name: self._divisor(acc, role) for name, role in acc.roles.items()}
        if acc.summed:
            self._flush(acc)
            values = {n: self._value(s, acc.dtypes[n], divisors[n]) for n, s in acc.arrays.items()}
            return Arrays.trusted(values, dict(acc.roles))
        # The magnitudes are those of whole arrays. So every stretch is summed at the level of its whole array, and gets
        # its bits.
        specs = {n: Spec(acc.shapes[n], self._dtype(acc.dtypes[n], divisors[n]), role) for n, role in acc.roles.items()}
        answer = Arrays.computed(Schema(specs), partial(self._stretch, acc, divisors))
        return answer if answer.nbytes >= files.LARGE else Arrays.trusted(dict(answer.items()), dict(acc.roles))

    def divisor(self, acc: Sums) -> float | None:
        """What sums are divided by at the end."""
        return None

    def _divisor(self, acc: Sums, role: Role) -> float | None:
        """What the sum of an array of a role is divided by."""
        return self.divisor(acc)

    def _dtype(self, dtype: np.dtype[Any], divisor: float | None) -> np.dtype[Any]:
        """What the answer has for arrays of a dtype."""
        if self.exact_integers and not is_floating(dtype):
            return dtype if dtype.kind == "u" else np.dtype(np.int64)
        if divisor is None:
            return np.dtype(np.float64)
        return wide(dtype) if dtype.kind != "b" else np.dtype(np.int64)

    def _value(self, total: ArraySum | IntegerSum, dtype: np.dtype[Any], divisor: float | None) -> Array:
        if isinstance(total, IntegerSum):
            return total.value()
        return total.value(self._dtype(dtype, divisor), divide_by=divisor)

    def _stretch(self, acc: Sums, divisors: Mapping[str, float | None], name: str, start: int, stop: int) -> Array:
        """Some elements of the answer where all updates wait: so there are never bins of a whole array."""
        total = self._new((stop - start,), acc.dtypes[name])
        rows = [array.reshape(-1)[start:stop] for items, _ in acc.waiting for array in items.arrays[name]]
        add_all(total, rows, acc.waiting, name)
        return self._value(total, acc.dtypes[name], divisors[name])

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArraySum | IntegerSum:
        if self.exact_integers and not is_floating(dtype):
            return IntegerSum(shape, dtype)
        return ArraySum(shape, dtype)

    def _begin(self, acc: Sums, arrays: Arrays) -> None:
        acc.arrays, acc.roles, acc.dtypes, acc.shapes = {}, {}, {}, {}
        each = sum(array[0].nbytes for array in arrays.values())
        acc.batch = max(1, min(_BATCH, _BATCH_BYTES // max(1, each)))
        for name, array in arrays.items():
            acc.roles[name], acc.dtypes[name], acc.shapes[name] = arrays.roles[name], array.dtype, array.shape[1:]
            acc.arrays[name] = self._new(acc.shapes[name], array.dtype)

    def _size(self, items: Stack, factor: float) -> int:
        """The size of an update's integers; see `Sums`. Raises `UpdateRejected` for one that int64 cannot hold."""
        largest = 0
        for name, array in items.arrays.items():
            if is_floating(array.dtype):
                continue
            if factor != 1.0:
                raise StrategyError("integers that are totalled exactly cannot be discounted for staleness")
            if array.dtype.kind != "u":
                largest = max(largest, _reach_of(items.magnitudes[name][0]))
        if largest >= 1 << 63:
            raise UpdateRejected(BEYOND, hint="Send floats, or smaller counts.")
        return largest.bit_length() if largest > SMALL else 0

    def _flush(self, acc: Sums) -> None:
        waiting, acc.waiting = acc.waiting, []
        if not waiting:
            return
        acc.summed = True
        for name, total in acc.arrays.items():
            stacks = [items.arrays[name] for items, _ in waiting]
            rows = stacks[0] if len(stacks) == 1 else [array for stack in stacks for array in stack]
            add_all(total, rows, waiting, name)


def add_all(
    total: ArraySum | IntegerSum,
    arrays: Array | Sequence[Array],
    waiting: Sequence[tuple[Stack, list[float]]],
    name: str,
) -> None:
    """Add the arrays (or a stretch) of this name of all that wait."""
    if isinstance(total, IntegerSum):
        for array in arrays:
            total.add(array)
    else:
        sizes = [size for items, _ in waiting for size in items.magnitudes[name]]
        total.add_many(arrays, [weight for _, weights in waiting for weight in weights], sizes)


class Alike(Protocol):
    """What is known of arrays that were folded."""

    @property
    def roles(self) -> Mapping[str, Role]: ...
    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


def check_alike(acc: Alike, arrays: Mapping[str, Array], roles: Mapping[str, Role]) -> None:
    """Raise `Unlike` where stacked arrays differ in name, role, dtype or shape from those already summed."""
    if acc.roles.keys() != roles.keys():
        raise Unlike("the update's arrays have other names than those of other updates")
    for name, array in arrays.items():
        if acc.roles[name] != roles[name]:
            raise Unlike(f"array {name!r} is a {roles[name]}, but was a {acc.roles[name]} in other updates")
        if acc.dtypes[name] != array.dtype:
            was = acc.dtypes[name].name
            raise Unlike(f"array {name!r} is {array.dtype.name}, but was {was} in other updates")
        if acc.shapes[name] != array.shape[1:]:
            other = list(acc.shapes[name])
            raise Unlike(f"array {name!r} has shape {list(array.shape[1:])}, but {other} in other updates")


@dataclass(frozen=True)
class weighted_mean(Elementwise):
    """The mean of the updates, each counted by its weight (McMahan et al. 2017).

    Floating-point answers are float32 (float64 for float64); integers are rounded to nearest. `max_weight` bounds what
    one client can claim. Raises `NothingToFold` when all weights are zero.
    """

    name: ClassVar[str] = "weighted_mean"
    weights: ClassVar[Literal["claimed", "equal"]] = "claimed"
    max_weight: float | None = None

    def __post_init__(self) -> None:
        if self.max_weight is not None:
            positive(self, "max_weight")

    def weigh(self, weight: float, factor: float) -> float:
        return factor * (weight if self.max_weight is None else min(weight, self.max_weight))

    def divisor(self, acc: Sums) -> float:
        total = acc.weight.value
        if total == 0.0:
            raise NothingToFold(
                f"the weights of all {acc.count} updates are zero",
                hint="A weight is the number of examples, say; do these clients hold any data?",
            )
        return total


@dataclass(frozen=True)
class mean(Elementwise):
    """The plain mean: every update counts alike, whatever weight its client claims. Of stale ones parameters are
    discounted, and still counted; buffers, which are values, count less than fresh ones.
    """

    name: ClassVar[str] = "mean"

    def divisor(self, acc: Sums) -> float:
        return float(acc.count)

    def _divisor(self, acc: Sums, role: Role) -> float:
        return acc.weight.value if role == "buffer" else self.divisor(acc)
