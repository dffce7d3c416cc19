"""Folds that need to see every update by itself: what they fold into is a collection of updates.

The collection is in the order of the clients' ids when it is looked at, so that neither order nor merges matter. It
takes the memory of its updates up to `HELD` bytes; what is beyond that is moved to temporary files that are mapped, and
updates that are views of files already are not copied. What is made of them is made a stretch at a time, so that beside
the updates there is one block of each. In a simulation with workers what one gathered comes to the main process through
shared memory once the ask closes.

Secure aggregation, which shows nobody a single update, rules such folds out; relays pass the updates on as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .. import files
from ..core import encoding
from ..core.answer import client_order
from ..core.arrays import Array, Arrays, Make, Role, Schema, Spec, is_floating, wide
from ..core.elementwise import check_alike
from ..core.fold import Fold, Unlike
from ..core.sums import ArraySum, magnitude
from ..core.update import NO_ARRAYS, Contribution
from ..errors import ClientId, NothingToFold, UpdateRejected
from . import geometry
from .geometry import Floats

HELD = 4 * files.LARGE
"""So many bytes of updates are held in memory; where there are more, they are moved to a file."""
_BLOCK = 1 << 19  # elements of all updates that are worked on at a time: they stay in a 2 MiB cache
_NARROW = 256  # elements of one update at a time at least


@dataclass(slots=True)
class GatheredRow:
    """One update: what its client said, by how much it is discounted, the largest element of each array, and how many
    bytes of memory it holds.
    """

    client: ClientId
    factor: float
    arrays: Arrays
    magnitudes: Mapping[str, float] = field(default_factory=dict)
    aux: Arrays = field(default_factory=lambda: NO_ARRAYS)
    weight: float = 1.0
    held: int = 0


@dataclass(slots=True)
class Gathering:
    """The accumulator: updates with the same arrays, in whatever order they came."""

    rows: list[GatheredRow] = field(default_factory=list)
    schema: Schema = field(default_factory=lambda: Schema({}))
    clients: set[ClientId] = field(default_factory=set)
    held: int = 0

    @property
    def roles(self) -> Mapping[str, Role]:
        """The role of each array."""
        return self.schema.roles

    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """The dtype of each array."""
        return {name: spec.dtype for name, spec in self.schema.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each array."""
        return {name: spec.shape for name, spec in self.schema.items()}

    def take(self, rows: Sequence[GatheredRow]) -> None:
        """Take in updates, and move what is in memory to a file once it is too much."""
        self.rows += rows
        self.clients.update(row.client for row in rows)
        self.held += sum(row.held for row in rows)
        if self.held <= HELD:
            return
        held = [row for row in self.rows if row.held]
        data = files.spilled(encoding.pieces([[row.arrays, row.aux] for row in held]))
        for row, (arrays, aux) in zip(held, encoding.decode(data, views=True), strict=True):
            row.arrays, row.aux, row.held = arrays, aux, 0
        self.held = 0


@dataclass(frozen=True)
class Gathered(Fold):
    """Base of the folds that see every update by itself: a subclass says in `made` what becomes of them.

    Every update counts alike, whatever weight its client claims. One that is stale counts as its factor times its
    difference, as under `mean`; its buffers, which are values, count less beside others. A client that has two updates
    in one ask, for one was late, has two. `kept` is what `for_round` brought along.
    """

    single: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    """Whether distances between updates matter, so that one beyond all measure has to be rejected."""
    kept: Any = field(default=None, kw_only=True, repr=False, compare=False)

    @abstractmethod
    def made(self, updates: Updates) -> Arrays:
        """What becomes of the updates, of which there are `least` or more."""

    def zero(self) -> Gathering:
        return Gathering()

    def add(self, acc: Gathering, item: Contribution, factor: float = 1.0) -> Gathering:
        arrays = item.arrays
        if acc.rows and acc.schema != arrays.schema:
            check_alike(acc, {name: array[None] for name, array in arrays.items()}, arrays.roles)
        largest = max((m for n, m in item.magnitudes.items() if arrays.roles[n] == "parameter"), default=0.0)
        if self.measures and largest > geometry.LARGEST:
            raise UpdateRejected(f"the update's elements are as large as {largest:.3g}: {self.name} cannot measure it")
        if not acc.rows:
            acc.schema = arrays.schema
        held = 0 if item.mapped else arrays.nbytes
        acc.take([GatheredRow(item.client, factor, arrays, item.magnitudes, held=held)])
        return acc

    def merge(self, acc: Gathering, other: Gathering) -> Gathering:
        if not acc.rows:
            acc.schema = other.schema
        if other.rows and acc.schema != other.schema:
            raise Unlike("partials with different arrays cannot be merged")
        acc.take(other.rows)
        return acc

    def finish(self, acc: Gathering) -> Arrays:
        if len(acc.rows) < self.least:
            raise NothingToFold(
                f"{self} needs {self.least} update{'s' if self.least > 1 else ''}, and {len(acc.rows)} came: ask more "
                "clients, or have it withstand fewer malicious ones"
            )
        return self.made(Updates(acc))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}  # whoever only gathers need not have it


class Updates:
    """The updates that were gathered, in the order of their clients' ids; `clients` has these."""

    def __init__(self, acc: Gathering) -> None:
        def tied(row: GatheredRow, other: GatheredRow) -> bool:
            return (row.client, row.factor) == (other.client, other.factor)

        rows = sorted(acc.rows, key=lambda row: (*client_order(row.client), -row.factor))
        if any(tied(*pair) for pair in pairwise(rows)):
            rows = sorted(rows, key=lambda row: (*client_order(row.client), -row.factor, row.arrays.sha256))
        self._rows = rows
        self.clients = [row.client for row in rows]
        self.factors: Floats = np.array([row.factor for row in rows])
        self.arrays = [row.arrays for row in rows]
        self.schema = acc.schema

    def __len__(self) -> int:
        return len(self._rows)

    def products(self, *others: Arrays) -> Floats:
        """The inner products of the updates, and of others after them, with each other: over all parameters. 2 n**2 d
        multiplications for n updates of d parameters.
        """
        found: Floats = geometry.products([*self.arrays, *others])
        factors = np.concatenate([self.factors, np.ones(len(others))])
        found *= factors[:, None] * factors
        return found

    def distances(self) -> Floats:
        """The squared distances between the updates."""
        return geometry.squared_distances(self.products())

    def mean(self, chosen: Sequence[int] | None = None) -> Arrays:
        """The mean of the updates at some places, by default of all: of fresh ones the bits that `mean` gives."""
        weights = np.zeros(len(self))
        weights[slice(None) if chosen is None else list(chosen)] = 1.0
        return self.combined(weights, float(weights.sum()))

    def combined(
        self, weights: Sequence[float] | Floats, divisor: float = 1.0, others: Sequence[tuple[Arrays, float]] = ()
    ) -> Arrays:
        """The parameters' sum, each update times its weight and others times theirs, over the divisor. Buffers take the
        plain mean of those updates that have any weight.
        """
        return self.computed(self._combination(weights, divisor, others))

    def _combination(self, weights: Sequence[float] | Floats, divisor: float, others: Any = ()) -> Make:
        counted = [(row, float(w)) for row, w in zip(self._rows, weights, strict=True) if w and row.factor]
        terms = [(row.arrays, w * row.factor, row.magnitudes) for row, w in counted]
        terms += [(a, w, {n: magnitude(x) for n, x in a.items()}) for a, w in others if w]
        values = [(row.arrays, row.factor, row.magnitudes) for row, _ in counted]
        fresh = math.fsum(row.factor for row, _ in counted) or 1.0

        def make(name: str, start: int, stop: int) -> Array:
            _, dtype, role = self.schema[name]
            held = _held(dtype)
            total = ArraySum((stop - start,), held)
            mine, over = (terms, divisor) if role == "parameter" else (values, fresh)
            each = [a.stretch(name, start, stop).astype(held, copy=False) for a, _, _ in mine]
            total.add_many(each, [w for _, w, _ in mine], [sizes[name] for _, _, sizes in mine])
            return total.value(held, divide_by=over)

        return make

    def by_element(self, rule: Callable[[Array], Array]) -> Arrays:
        """What a rule makes of every element by itself, that of floating-point buffers included: it gets the elements
        of all updates, [updates, elements], and gives [elements]. Integers take their plain mean.
        """
        plain = self._combination(np.ones(len(self)), len(self))
        width = max(_NARROW, _BLOCK // len(self))

        def make(name: str, start: int, stop: int) -> Array:
            _, dtype, role = self.schema[name]
            if not is_floating(dtype):
                return plain(name, start, stop)
            made = np.empty(stop - start, wide(dtype))
            for at in range(start, stop, width):
                block = geometry.stacked(self.arrays, name, at, min(at + width, stop))
                if role == "parameter" and (self.factors != 1.0).any():
                    block *= self.factors[:, None].astype(block.dtype)
                made[at - start : at - start + width] = rule(block)
            made += 0.0  # a zero has no sign, which would depend on how a processor sorts
            return made

        return self.computed(make)

    def computed(self, make: Make) -> Arrays:
        """Arrays like those of the updates, in the dtype of means: those that are large where they are written."""
        specs = {n: Spec(shape, _held(dtype), role) for n, (shape, dtype, role) in self.schema.items()}
        found = Arrays.computed(Schema(specs), make)
        return found if found.nbytes >= files.LARGE else Arrays.trusted(dict(found.items()), dict(found.roles))


def in_order(block: Array) -> Array:
    """The elements [updates, elements] of a block, sorted for each element by itself."""
    turned = np.ascontiguousarray(block.T)  # rows that lie together are sorted several times faster
    turned.sort(axis=1)
    return np.ascontiguousarray(turned.T)


def middle(rows: Array) -> Array:
    """The median of sorted rows: what is between the two in the middle, where they are even in number."""
    half = len(rows) // 2
    found: Array = rows[half] if len(rows) % 2 else rows[half - 1] / 2 + rows[half] / 2
    return found


def knowing(fold: Gathered, kept: Any) -> Gathered:
    """The fold with what it is to know in one round."""
    return replace(fold, kept=kept)


def _held(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return wide(dtype) if dtype.kind != "b" else np.dtype(np.int64)
