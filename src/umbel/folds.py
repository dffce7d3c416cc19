"""Folds: mergeable accumulators of updates. `zero`, `add`, `merge`, `finish`; the order and the tree of merges cannot
matter.

A `Partial` is what a process that hosts clients returns: updates folded but not finished, with the receipts of what is
inside.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from . import encoding
from .arrays import Array, Arrays, Role, is_floating, wide
from .errors import ClientId, NothingToFold, StrategyError, UpdateRejected
from .sums import ArraySum, ExactScalar
from .update import NO_ARRAYS, Contribution, Receipt, Update

_BATCH = 16
_BATCH_BYTES = 1 << 20  # several small updates are added at once, which spares calls; large ones gain nothing from it


class Fold(ABC):
    """How updates become one answer.

    Accumulators are changed in place; `add` and `merge` return the accumulator to go on with. `finish` must leave it as
    it was.
    """

    name: ClassVar[str]
    weights: ClassVar[Literal["claimed", "equal"]] = "equal"
    """Whether an update counts by the weight that its client claims, or like every other."""
    single: ClassVar[bool] = False
    """Whether the fold needs to see every update by itself, which rules out secure aggregation."""

    @abstractmethod
    def zero(self) -> Any:
        """An accumulator of nothing."""

    @abstractmethod
    def add(self, acc: Any, item: Contribution, factor: float = 1.0) -> Any:
        """Fold one checked update; `factor` discounts a stale one."""

    @abstractmethod
    def merge(self, acc: Any, other: Any) -> Any:
        """Fold everything that `other` holds."""

    @abstractmethod
    def finish(self, acc: Any) -> Any:
        """The answer. Raises `NothingToFold` where there is none."""

    def settle(self, acc: Any) -> None:  # noqa: B027
        """Have nothing wait in the accumulator any more, before it is sent elsewhere."""

    def spec(self) -> Any:
        """A plain description, for the digest of an ask."""
        settings: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return [self.name, settings]


class IntegerSum:
    """The exact sum of integer arrays: unsigned ones modulo 2**bits, signed ones and booleans in int64, checked for
    overflow.
    """

    __slots__ = ("_reach", "_total")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._total: Array = np.zeros(shape, dtype if dtype.kind == "u" else np.int64)
        self._reach = 0.0

    def reserve(self, magnitude: float) -> None:
        """Make sure that an array none of whose elements exceeds `magnitude` still fits. Raises `UpdateRejected`."""
        if self._total.dtype.kind != "u" and self._reach + magnitude >= 2.0**63:
            raise UpdateRejected(
                "a sum of integers would leave the range of int64", hint="Send floats, or smaller counts."
            )
        self._reach += magnitude

    def add(self, array: Array) -> None:
        """Add an array of the same shape and dtype for which there is room."""
        np.add(self._total, array, out=self._total, casting="unsafe")

    def merge(self, other: IntegerSum) -> None:
        """Add everything that other holds."""
        self.reserve(other._reach)
        np.add(self._total, other._total, out=self._total)

    def value(self) -> Array:
        """The sum."""
        return self._total.copy()


@dataclass(slots=True)
class Sums:
    """The accumulator of the elementwise folds: one sum an array, the total weight, the number of updates."""

    arrays: dict[str, ArraySum | IntegerSum] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weight: ExactScalar = field(default_factory=ExactScalar)
    count: int = 0
    waiting: list[tuple[Contribution, float]] = field(default_factory=list)
    batch: int = 1


@dataclass(frozen=True)
class Elementwise(Fold):
    """Base of the folds that treat every element alike; each array is summed by itself, block by block."""

    exact_integers: ClassVar[bool] = False

    def weigh(self, item: Contribution, factor: float) -> float:
        """What the arrays of an update are multiplied by."""
        return factor

    def zero(self) -> Sums:
        """An accumulator of nothing; arrays appear in it with the first update that has them."""
        return Sums()

    def add(self, acc: Sums, item: Contribution, factor: float = 1.0) -> Sums:
        """Fold one checked update. Raises `UpdateRejected` where its arrays differ from those of the first."""
        weight = self.weigh(item, factor)
        if acc.count:
            check_alike(acc, item.arrays)
        else:
            self._begin(acc, item.arrays)
        if self.exact_integers:
            self._reserve(acc, item, factor)
        acc.count += 1
        acc.weight.add(weight)
        if weight:
            acc.waiting.append((item, weight))
            if len(acc.waiting) >= acc.batch:
                self._flush(acc)
        return acc

    def merge(self, acc: Sums, other: Sums) -> Sums:
        """Fold everything that `other` holds."""
        if acc.count and other.count and (acc.dtypes, acc.shapes) != (other.dtypes, other.shapes):
            raise UpdateRejected("partials with different arrays cannot be merged")
        self._flush(other)
        self._flush(acc)
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
        self._flush(acc)
        divisor = self.divisor(acc)
        values = {n: self._value(s, acc.dtypes[n], divisor) for n, s in acc.arrays.items()}
        return Arrays.trusted(values, dict(acc.roles))

    def divisor(self, acc: Sums) -> float | None:
        """What sums are divided by at the end."""
        return None

    def _value(self, total: ArraySum | IntegerSum, dtype: np.dtype[Any], divisor: float | None) -> Array:
        if isinstance(total, IntegerSum):
            return total.value()
        if divisor is None:
            return total.value(np.float64)
        return total.value(wide(dtype) if dtype.kind != "b" else np.dtype(np.int64), divide_by=divisor)

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArraySum | IntegerSum:
        if self.exact_integers and not is_floating(dtype):
            return IntegerSum(shape, dtype)
        return ArraySum(shape, dtype)

    def _begin(self, acc: Sums, arrays: Arrays) -> None:
        acc.arrays, acc.roles, acc.dtypes, acc.shapes = {}, {}, {}, {}
        acc.batch = max(1, min(_BATCH, _BATCH_BYTES // max(1, arrays.nbytes)))
        for name, array in arrays.items():
            acc.arrays[name] = self._new(array.shape, array.dtype)
            acc.roles[name], acc.dtypes[name], acc.shapes[name] = arrays.roles[name], array.dtype, array.shape

    def _reserve(self, acc: Sums, item: Contribution, factor: float) -> None:
        for name, total in acc.arrays.items():
            if isinstance(total, IntegerSum):
                if factor != 1.0:
                    raise StrategyError("integers that are totalled exactly cannot be discounted for staleness")
                total.reserve(item.magnitudes[name])

    def _flush(self, acc: Sums) -> None:
        waiting, acc.waiting = acc.waiting, []
        if not waiting:
            return
        weights = [w for _, w in waiting]
        for name, total in acc.arrays.items():
            magnitudes = [item.magnitudes[name] for item, _ in waiting]
            if isinstance(total, IntegerSum):
                for item, _ in waiting:
                    total.add(item.arrays[name])
            else:
                total.add_many([item.arrays[name] for item, _ in waiting], weights, magnitudes)


def check_alike(acc: Sums, arrays: Arrays) -> None:
    """Raise `UpdateRejected` where arrays differ in name, dtype or shape from those already summed."""
    if acc.roles.keys() != arrays.keys():
        raise UpdateRejected("the update's arrays have other names than those of the updates before it")
    for name, array in arrays.items():
        if acc.dtypes[name] != array.dtype:
            was = acc.dtypes[name].name
            raise UpdateRejected(f"array {name!r} is {array.dtype.name}, but was {was} in another update")
        if acc.shapes[name] != array.shape:
            other = list(acc.shapes[name])
            raise UpdateRejected(f"array {name!r} has shape {list(array.shape)}, but {other} in another update")


@dataclass(frozen=True)
class weighted_mean(Elementwise):
    """The mean of the updates, each counted by its weight (McMahan et al. 2017).

    Floating-point answers are float32 (float64 for float64); integers are rounded to nearest. `max_weight` bounds what
    one client can claim. Raises `NothingToFold` when all weights are zero.
    """

    name: ClassVar[str] = "weighted_mean"
    weights: ClassVar[Literal["claimed", "equal"]] = "claimed"
    max_weight: float | None = None

    def weigh(self, item: Contribution, factor: float) -> float:
        weight = item.weight if self.max_weight is None else min(item.weight, self.max_weight)
        return weight * factor

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
    """The plain mean: every update counts alike, whatever weight its client claims. Stale ones are discounted, and
    still counted.
    """

    name: ClassVar[str] = "mean"

    def divisor(self, acc: Sums) -> float:
        return float(acc.count)


@dataclass(frozen=True)
class total(Elementwise):
    """The plain sum: floats in float64, signed integers and booleans exactly in int64, unsigned integers modulo
    2**bits.
    """

    name: ClassVar[str] = "total"
    exact_integers: ClassVar[bool] = True


@dataclass(frozen=True)
class collect(Fold):
    """All updates, by client in the order of their ids. Memory grows with the number of clients."""

    name: ClassVar[str] = "collect"
    single: ClassVar[bool] = True

    def zero(self) -> dict[ClientId, Update]:
        return {}

    def add(self, acc: dict[ClientId, Update], item: Contribution, factor: float = 1.0) -> dict[ClientId, Update]:
        if item.client in acc:
            raise StrategyError(f"client {item.client} is in this collection already")
        acc[item.client] = Update(item.arrays, item.weight * factor, aux=item.aux)
        return acc

    def merge(self, acc: dict[ClientId, Update], other: dict[ClientId, Update]) -> dict[ClientId, Update]:
        if twice := acc.keys() & other.keys():
            raise StrategyError(f"clients {sorted(twice, key=_order)} are in both collections")
        acc.update(other)
        return acc

    def finish(self, acc: dict[ClientId, Update]) -> dict[ClientId, Update]:
        return {client: acc[client] for client in sorted(acc, key=_order)}


def _order(client: ClientId) -> tuple[bool, ClientId]:
    return (isinstance(client, str), client)


@dataclass(frozen=True)
class Answer:
    """What a strategy is sent back for an ask.

    `value` is what the fold made: `Arrays` for the elementwise folds, updates by client for `collect`. `aux` is the
    plain mean of the aux arrays (under `collect` they stay with their updates). `metrics` are means over clients by
    weight. `clients` contributed, in the order of their ids; `failed` says why others did not.
    """

    value: Any
    aux: Arrays = field(default_factory=Arrays)
    metrics: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    receipts: tuple[Receipt, ...] = ()
    failed: Mapping[ClientId, str] = field(default_factory=dict)
    asked: int = 0

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """The clients whose updates are in the answer, in the order of their ids."""
        return tuple(r.client for r in self.receipts)

    @property
    def count(self) -> int:
        """How many updates are in the answer."""
        return len(self.receipts)


class Partial:
    """Updates folded but not finished, with the receipts of what is inside."""

    __slots__ = ("_acc", "_aux", "fold", "receipts")

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self._acc = fold.zero()
        self._aux: Sums | None = None
        self.receipts: dict[str, Receipt] = {}

    def add(self, item: Contribution, receipt: Receipt, factor: float = 1.0) -> None:
        """Fold one checked update under its receipt; the same task twice is an error."""
        if receipt.task in self.receipts:
            raise StrategyError(f"task {receipt.task} is folded already")
        averaged = len(item.aux) > 0 and not self.fold.single
        if averaged and self._aux is not None:
            check_alike(self._aux, item.aux)  # first, so that a refused update leaves nothing behind
        self._acc = self.fold.add(self._acc, item, factor)
        if averaged:
            aux = Contribution(item.client, item.aux, NO_ARRAYS, 1.0, item.aux_magnitudes, {})
            self._aux = mean().add(self._aux if self._aux is not None else Sums(), aux, factor)
        self.receipts[receipt.task] = receipt

    def merge(self, other: Partial) -> None:
        """Fold everything that `other` holds; receipts that both have are an error, and nothing is changed."""
        if twice := self.receipts.keys() & other.receipts.keys():
            raise StrategyError(f"tasks {sorted(twice)} are in both partials")
        self._acc = self.fold.merge(self._acc, other._acc)
        if other._aux is not None:
            self._aux = mean().merge(self._aux if self._aux is not None else Sums(), other._aux)
        self.receipts.update(other.receipts)

    def contents(self) -> tuple[Any, ...]:
        """All that is inside, to be sent to another process; `merge_contents` takes it in there."""
        self.fold.settle(self._acc)
        if self._aux is not None:
            mean().settle(self._aux)
        return self._acc, self._aux, _columns(self.receipts.values())

    def merge_contents(self, contents: tuple[Any, ...]) -> None:
        """Fold what `contents` gave of a partial of the same fold."""
        other = Partial(self.fold)
        other._acc, other._aux, columns = contents
        other.receipts = {receipt.task: receipt for receipt in map(Receipt, *columns)} if columns else {}
        self.merge(other)

    def finish(self, failed: Mapping[ClientId, str] | None = None, asked: int = 0) -> Answer:
        """The answer. Raises `NothingToFold` where the fold has none."""
        receipts = tuple(sorted(self.receipts.values(), key=lambda r: (*_order(r.client), r.task)))
        return Answer(
            value=self.fold.finish(self._acc),
            aux=mean().finish(self._aux) if self._aux is not None else NO_ARRAYS,
            metrics=mean_metrics(receipts),
            weight=math.fsum(r.weight for r in receipts),
            receipts=receipts,
            failed=dict(failed or {}),
            asked=asked,
        )


def mean_metrics(receipts: Iterable[Receipt]) -> dict[str, float]:
    """Mean of each metric over the clients that have it, by weight, or plain where all weights are zero; the order
    cannot matter.
    """
    terms: dict[str, list[tuple[float, float]]] = {}
    for receipt in receipts:
        for name, value in receipt.metrics.items():
            terms.setdefault(name, []).append((value, receipt.weight))
    return {name: _mean(terms[name]) for name in sorted(terms)}


def _mean(terms: list[tuple[float, float]]) -> float:
    weight = math.fsum(w for _, w in terms)
    if weight == 0.0:
        terms, weight = [(v, 1.0) for v, _ in terms], float(len(terms))
    products = [v * w for v, w in terms if w]
    if not all(math.isfinite(p) for p in products):
        return math.nan
    try:
        return math.fsum(products) / weight
    except OverflowError:
        return math.nan


def _columns(receipts: Iterable[Receipt]) -> list[list[Any]]:
    """Receipts as one list for each of their fields, which is several times faster to write than one record each."""
    rows = [(r.task, r.client, r.weight, dict(r.metrics), r.seconds, r.staleness) for r in receipts]
    return [list(column) for column in zip(*rows, strict=True)]


encoding.register(
    Answer,
    "answer",
    lambda a: [a.value, a.aux, dict(a.metrics), a.weight, _columns(a.receipts), dict(a.failed), a.asked],
    lambda p: Answer(p[0], p[1], p[2], p[3], tuple(map(Receipt, *p[4])) if p[4] else (), p[5], p[6]),
)
