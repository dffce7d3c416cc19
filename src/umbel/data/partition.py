"""Split one labelled data set over many clients, to simulate a federation.

Each function returns a `Partition`, which says which items of the data set each client holds; every item has exactly
one holder. The same arguments and seed give the same partition.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.randomness import Draws, Key
from ..errors import DataError
from .skew import balanced_counts, skewed_counts

Ints = npt.NDArray[np.int64]

_MOST_CELLS = 2**27  # of a clients x classes table: 1 GiB


@dataclass(frozen=True, repr=False, eq=False)
class Partition:
    """Which items of a data set each client holds.

    `order` has the items of client 0, then those of client 1, and so on, ascending within each client; those of
    client `i` are `order[offsets[i]:offsets[i + 1]]`. Both are read-only int64 arrays, so the memory is that of the
    items. `owners` has the clients' names where the data had owners (see `by`), else it is empty. A `DataError` says
    which item is doubled or missing.
    """

    order: Ints
    offsets: Ints
    owners: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        order, offsets = (_frozen(array) for array in (self.order, self.offsets))
        if order.ndim != 1 or offsets.ndim != 1 or not len(offsets):
            raise DataError("a partition needs a 1-D order of the items and the 1-D offsets of the clients in it")
        if offsets[0] != 0 or offsets[-1] != len(order) or (np.diff(offsets) < 0).any():
            raise DataError(f"the offsets of a partition must ascend from 0 to its {len(order)} items")
        if len(order) and (order.min() < 0 or order.max() >= len(order)):
            raise DataError(f"the items of a partition of {len(order)} are numbered 0 to {len(order) - 1}")
        held = np.bincount(order, minlength=len(order))
        if (held != 1).any():
            item = int(np.argmax(held != 1))
            raise DataError(f"item {item} is given to {held[item]} clients; every item belongs to exactly one")
        if self.owners and len(self.owners) != len(offsets) - 1:
            raise DataError(f"{len(self.owners)} owners are named for {len(offsets) - 1} clients")
        holders = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        object.__setattr__(self, "order", _frozen(order[np.lexsort((order, holders))]))
        object.__setattr__(self, "offsets", offsets)

    @property
    def clients(self) -> int:
        """How many clients there are, the empty ones included."""
        return len(self.offsets) - 1

    @property
    def items(self) -> int:
        """How many items the data set has."""
        return len(self.order)

    @property
    def sizes(self) -> Ints:
        """How many items each client holds: int64 [clients]."""
        return np.diff(self.offsets)

    def indices(self, client: int) -> Ints:
        """Return the items of one client: an ascending, read-only int64 view; `IndexError` for no such client."""
        number = operator.index(client)
        if not 0 <= number < self.clients:
            raise IndexError(f"client {number} is not one of the {self.clients} clients, which are numbered from 0")
        return self.order[self.offsets[number] : self.offsets[number + 1]]

    def counts(self, labels: npt.ArrayLike, classes: int | None = None) -> Ints:
        """Count the items of each class at each client: int64 [clients, classes].

        Column `c` is label `c`; `classes` defaults to the largest label plus one.
        """
        found = label_array(labels, self.items)
        least = int(found.max()) + 1
        width = least if classes is None else classes
        if found.min() < 0 or width < least:
            raise DataError(f"labels must lie between 0 and {width - 1}, but they go from {found.min()} to {least - 1}")
        _check_cells(self.clients, width)
        holders = np.repeat(np.arange(self.clients), self.sizes)
        cells = np.bincount(holders * width + found[self.order], minlength=self.clients * width)
        return cells.reshape(self.clients, width).astype(np.int64, copy=False)

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> Ints:
        return self.indices(client)

    def __iter__(self) -> Iterator[Ints]:
        return (self.indices(client) for client in range(self.clients))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        same = np.array_equal(self.order, other.order) and np.array_equal(self.offsets, other.offsets)
        return same and self.owners == other.owners

    def __hash__(self) -> int:
        return hash((self.clients, self.items, self.owners))

    def __reduce__(self) -> tuple[Any, ...]:
        return Partition, (self.order, self.offsets, self.owners)  # a copy made otherwise would be writeable

    def __repr__(self) -> str:
        if not self.clients:
            return "Partition(no clients)"
        least, middle, most = np.quantile(self.sizes, (0, 0.5, 1))
        sizes = f"sizes {least:.0f}..{most:.0f}, median {middle:g}"
        return f"Partition({self.clients:,} clients, {self.items:,} items, {sizes})"


def iid(items: int | npt.ArrayLike, clients: int, seed: int) -> Partition:
    """Deal the items at random, in equal shares up to one item.

    `items` is their number, or the labels, of which only the number counts.
    """
    count = operator.index(items) if isinstance(items, (int, np.integer)) else len(label_array(items))
    _check_clients(clients, count)
    shuffled = Key.from_seed(seed).derive("partition", "iid").draws().permutation(count)
    owners = np.empty(count, dtype=np.int64)
    owners[shuffled] = np.arange(count) % clients
    return _held_by(owners, clients)


def dirichlet(
    labels: npt.ArrayLike, clients: int, alpha: float, seed: int, minimum: int = 1, *, balanced: bool = False
) -> Partition:
    """Deal the items with a skew in the labels: the smaller `alpha`, the fewer classes a client has.

    By default each class is dealt out in proportions over the clients drawn from Dirichlet(alpha, ..., alpha), so
    that sizes differ too; the whole draw is repeated until the smallest client has at least `minimum` items, and a
    `DataError` ends a search that finds none. This is the form of Yurochkin et al. (2019, arXiv 1905.12022) and of
    NIID-Bench (Li et al. 2021, arXiv 2102.02079), and what "Dirichlet(0.3)" means in most papers, so it is the
    default.

    With `balanced`, sizes are equal up to one: each client draws class proportions from Dirichlet(alpha * prior),
    where the prior is the classes' share of the data, and then its items one by one; a class that has run out is left
    out and the rest of the proportions scaled up (Hsu, Qi & Brown 2019, arXiv 1909.06335). Clients draw in a random
    order, because the last ones have to take what is left.
    """
    number, sizes = _numbered(labels)
    _check_clients(clients, len(number), minimum)
    _check_cells(clients, len(sizes))
    if not (math.isfinite(alpha) and alpha > 0):
        raise DataError(f"alpha must be a positive number, not {alpha}")
    key = Key.from_seed(seed).derive("partition", "dirichlet", "balanced" if balanced else "skewed")
    if balanced:
        counts = balanced_counts(sizes, clients, alpha, key)
    else:
        counts = skewed_counts(sizes, clients, alpha, minimum, key)
    owners = np.empty(len(number), dtype=np.int64)
    holders = np.tile(np.arange(clients), len(sizes))
    owners[_by_class(number, key.derive("items").draws())] = np.repeat(holders, counts.T.ravel())
    return _held_by(owners, clients)


def shards(labels: npt.ArrayLike, clients: int, shards_per_client: int = 2, *, seed: int) -> Partition:
    """Sort the items by label, cut them into equal shards and give each client some of the shards at random.

    A client so has few classes: about `shards_per_client` where a shard is smaller than a class. Shards are equal up
    to one item. McMahan et al. (2017, arXiv 1602.05629), section 3.
    """
    number, _ = _numbered(labels)
    _check_clients(clients, len(number))
    pieces = clients * shards_per_client
    if shards_per_client < 1 or pieces > len(number):
        raise DataError(
            f"{clients} clients with {shards_per_client} shards each cannot be made of {len(number)} items",
            hint="Give each client at least one shard, and not more shards than there are items.",
        )
    key = Key.from_seed(seed).derive("partition", "shards")
    holders = np.empty(pieces, dtype=np.int64)
    holders[key.derive("shards").draws().permutation(pieces)] = np.arange(pieces) // shards_per_client
    lengths = np.diff(np.arange(pieces + 1) * len(number) // pieces)
    owners = np.empty(len(number), dtype=np.int64)
    owners[_by_class(number, key.derive("items").draws())] = np.repeat(holders, lengths)
    return _held_by(owners, clients)


def by(owners: npt.ArrayLike) -> Partition:
    """Give every item to the owner that the data names: a hospital, a writer, a school.

    `owners[i]` is the owner of item `i`, a number or a string. The clients are the distinct owners in ascending
    order, and their names are the partition's `owners`. An item without an owner (None or NaN) is a `DataError`.
    """
    named = np.asarray(owners)
    if named.ndim != 1 or not named.size:
        raise DataError(f"owners must be a 1-D array with the owner of each item, not one of shape {named.shape}")
    missing = [i for i, name in enumerate(named.tolist()) if name is None or name != name]
    if missing:
        raise DataError(
            f"item {missing[0]} has no owner, nor have {len(missing) - 1} others",
            hint="Leave these items out, or name an owner for them.",
        )
    try:
        names, number = np.unique(named, return_inverse=True)
    except TypeError as error:
        raise DataError(f"owners cannot be put in order: {error}", hint="Name all of them by strings.") from error
    return _held_by(number, len(names), tuple(names.tolist()))


def label_array(labels: npt.ArrayLike, items: int | None = None) -> Ints:
    """Return labels as int64 [items]; a `DataError` says what is wrong when they are no such thing."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"labels must be 1-D, one for each item, not of shape {array.shape}")
    if not array.size:
        raise DataError("there are no labels: the data set is empty")
    if array.dtype.kind not in "iub":
        raise DataError(
            f"labels must be whole numbers, not {array.dtype}",
            hint="np.unique(labels, return_inverse=True)[1] numbers any labels.",
        )
    if items is not None and len(array) != items:
        raise DataError(f"there are {len(array)} labels for a partition of {items} items")
    return array.astype(np.int64, copy=False)


def _numbered(labels: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Each item's class, numbered from 0 without gaps, and the size of each class."""
    _, number, sizes = np.unique(label_array(labels), return_inverse=True, return_counts=True)
    return number.astype(np.int64, copy=False), sizes.astype(np.int64, copy=False)


def _by_class(number: Ints, draws: Draws) -> Ints:
    """The items, class after class, in random order within each."""
    shuffled = draws.permutation(len(number))
    return shuffled[np.argsort(number[shuffled], kind="stable")]


def _held_by(owners: npt.NDArray[np.integer[Any]], clients: int, names: tuple[Any, ...] = ()) -> Partition:
    offsets = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=clients), out=offsets[1:])
    return Partition(np.argsort(owners, kind="stable"), offsets, names)


def _frozen(array: npt.ArrayLike) -> Ints:
    copy = np.array(array)
    if copy.dtype.kind not in "iu" and copy.size:
        raise DataError(f"a partition holds whole numbers, not {copy.dtype}")
    copy = copy.astype(np.int64, copy=False)
    copy.flags.writeable = False
    return copy


def _check_clients(clients: int, items: int, minimum: int = 1) -> None:
    if clients < 1:
        raise DataError(f"there must be at least one client, not {clients}")
    if minimum < 0:
        raise DataError(f"the minimum of items for a client must be 0 or more, not {minimum}")
    if clients * max(minimum, 1) > items:
        each = f"{minimum} items each" if minimum > 1 else "one item each"
        raise DataError(f"{items} items are too few for {clients} clients with at least {each}")


def _check_cells(clients: int, classes: int) -> None:
    if clients * classes > _MOST_CELLS:
        raise DataError(
            f"a table of {clients} clients x {classes} classes is too large",
            hint="Labels are class numbers; np.unique(labels, return_inverse=True)[1] numbers them without gaps.",
        )
