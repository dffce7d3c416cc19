"""From one table to a federation: `split`, and the parts that sources name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..core.randomness import Key
from ..errors import DataError
from .partition import Ints, Partition
from .partitioner import Partitioner, check_whole
from .partitioners.by import by as natural
from .partitioners.temporal import temporal
from .partitioners.vertical import vertical
from .stored import read_part, write_part
from .tables import Change, Columns, DataTable, as_table
from .view import Reading, View

Split = Partitioner | Partition | Callable[[DataTable, int, int], Partition | npt.ArrayLike] | str
"""What says who holds what: settings, the column of the owners, a function of (table, clients, seed), or a result."""


def split(
    data: Any,
    by: Split,
    clients: int | None = None,
    *,
    seed: int = 0,
    test: float = 0.0,
    validation: float = 0.0,
    held: str = "random",
    label: Any = None,
    views: Sequence[View | Callable[[Columns, Reading], Columns]] = (),
) -> Parts:
    """Make a federation of one data set: `Simulation(parts.sources)`, and `parts.part(source)` in `@client.data`.

    - `data`: arrays of NumPy or PyTorch, tuples or mappings of them; frames of pandas or polars; data sets of PyTorch
      or Hugging Face; the path of a CSV or Parquet file, or of a folder with a folder of images for each class; or a
      function that returns one of these, which is called once a process, where the data are first needed. They are
      not copied.
    - `by`: who holds what: a partitioner such as ``dirichlet(0.3, label="y")``, the name of a column with the owners,
      a function of (table, clients, seed) that returns each item's client by number or a `Partition`; or a `Partition`.
    - `clients`: how many; without it as many as the data have owners, or as the simulation has.
    - `test`, `validation`: the shares of each client's items that are held out for these; rounded, and somebody who
      has items has at least one to train on. They are drawn at random, or are the client's last ones
      (`held="last"`); of `temporal`, the latest.
    - `label`: the column with the labels, for views and pictures, where `by` names none.
    - `views`: how items look to a client, such as `noise`, `rotation` and `concept_shift`; changed as they are read.

    The same arguments give the same parts.
    """
    return Parts(data, by, clients, seed, test, validation, held, label, views)


def hold_out(
    data: Any, test: float = 0.2, validation: float = 0.0, *, seed: int = 0, held: str = "random", label: Any = None
) -> Part:
    """One holder's own data, some of it not to be trained on: what `@client.data` returns where a client has all of a
    file or table.

    `data`, `test`, `validation`, `held` and `label` are as for `split`. The same arguments give the same part, so that
    what was held out in one round is held out in all. Of no rows all parts are empty.
    """
    return Parts(data, _whole, 1, seed, test, validation, held, label, ())[0]


class Parts(Sequence["Part"]):
    """A data set at many clients, as `split` makes it. It is read where a part of it is first asked for."""

    def __init__(
        self,
        data: Any,
        by: Split,
        clients: int | None,
        seed: int,
        test: float,
        validation: float,
        held: str,
        label: Any,
        views: Sequence[Any],
    ) -> None:
        shares = (test, validation)
        if not all(isinstance(share, int | float) and 0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise DataError(f"test and validation are shares from 0 to below 1 together, not {test} and {validation}")
        if held not in ("random", "last"):
            raise DataError(f"held is 'random' or 'last', not {held!r}")
        if isinstance(by, type):
            raise DataError(f"by is the class {by.__name__} itself", hint=f"Write {by.__name__}(), with parentheses.")
        if not callable(by) and not isinstance(by, str | Partition):
            raise DataError(f"by is a partitioner, a column's name or a function, not {by!r:.60}")
        if clients is not None:
            check_whole("the number of clients", clients)
        check_whole("a seed", seed, -math.inf)
        if not isinstance(views, Sequence) or any(isinstance(view, type) or not callable(view) for view in views):
            raise DataError(f"views are a list such as [noise(0.1)], with parentheses, not {views!r:.80}")
        self.by: Any = natural(by) if isinstance(by, str) else by
        self._data, self._clients, self._seed = data, clients, seed
        self._shares, self._held, self._label, self._views = shares, held, label, tuple(views)
        self._made: dict[int | None, Partition] = {}

    @cached_property
    def table(self) -> DataTable:
        """The data set, read if it has not been yet."""
        return as_table(self._data() if callable(self._data) else self._data)

    @property
    def _natural(self) -> bool:
        return isinstance(self.by, Partition) or bool(getattr(self.by, "natural", False))

    @property
    def label(self) -> Any:
        """The column with the labels, None where none is known."""
        named = getattr(self.by, "label", None) if self._label is None else self._label
        return self.table.label if named is None else named

    @property
    def partition(self) -> Partition:
        """Who holds which items; of `vertical`, which columns."""
        return self._partition(self._clients)

    @property
    def sources(self) -> int | dict[str, dict[str, Any]]:
        """What `Simulation` takes: the number of clients, or each natural owner's source by its name."""
        if self._clients is not None and not self._natural:
            return self._clients
        owners = self.partition.owners
        return {str(name): {"owner": name} for name in owners} if owners else self.partition.clients

    def part(self, source: Any) -> Part:
        """What a source names: a client's number, {"index": 3, "count": 100}, {"owner": "va"}, or {"file": "va.npz"}.

        A file is one that `write` wrote: nothing else is read then, so that a real node needs no more than that.
        """
        if isinstance(source, Part):
            return source
        asked: Mapping[str, Any] = source if isinstance(source, Mapping) else {"index": source}
        if "file" in asked:
            table, lists = read_part(Path(asked["file"]))
            return Part(Path(asked["file"]).stem, table, *lists)
        count = asked.get("count") if self._clients is None and not self._natural else None
        partition = self._partition(self._clients if count is None else count)
        if "count" in asked and asked["count"] != partition.clients:
            raise DataError(
                f"the data are split among {partition.clients} clients, but the federation has {asked['count']}",
                hint="Leave clients out of split, which then makes as many parts as there are clients.",
            )
        if "owner" in asked:
            if asked["owner"] not in partition.owners:
                raise DataError(f"there is no owner {asked['owner']!r} in the data")
            return self._part(partition, partition.owners.index(asked["owner"]))
        if not isinstance(asked.get("index"), int | np.integer):
            raise DataError(f"{source!r:.80} names no part", hint="It has an index, an owner or a file.")
        return self._part(partition, int(asked["index"]))

    def write(self, folder: str | Path) -> dict[str, dict[str, str]]:
        """Write each client's part to a file of its own, and return their sources: {"file": path}, by name.

        ``umbel node ... --source file=PATH`` then gives a real node its part, with the same items to train and to test
        on. Files are .npz, with plain arrays.
        """
        written = {}
        for part in self:
            written[part.name] = {"file": str(write_part(Path(folder), part))}
        return written

    def _partition(self, clients: int | None) -> Partition:
        if clients not in self._made:
            if clients is None and not isinstance(self.by, Partitioner | Partition):
                raise DataError("nobody says how many clients there are", hint="split(..., clients=100)")
            found = self.by if isinstance(self.by, Partition) else self.by(self.table, clients, self._seed)
            found = found if isinstance(found, Partition) else Partition.of(found, clients)
            items = len(self._divided()) if getattr(self.by, "columns", False) else len(self.table)
            if found.items != items:
                raise DataError(f"the data have {items} items, but {found.items} are given to clients")
            self._made[clients] = found
        return self._made[clients]

    def _divided(self) -> list[Any]:
        return self.by.divided(self.table) if isinstance(self.by, vertical) else []

    def _part(self, partition: Partition, client: int) -> Part:
        mine, table, whose = partition.indices(client), self.table, client
        if isinstance(self.by, vertical):
            names = self._divided()
            labels = [self.by.labels(table)] if client == self.by.labelled else []
            own = [names[number] for number in mine] + list(self.by.shared)
            table, whose = table.across(own + [name for name in labels if name is not None]), -1
            mine = np.arange(len(table))  # all parties hold out the same items
        change = self._change(client, partition.clients) if self._views else None
        name = str(partition.owners[client]) if partition.owners else str(client)
        return Part(name, table, *self._held_out(mine, whose), change=change)

    def _held_out(self, mine: Ints, client: int) -> tuple[Ints, Ints, Ints]:
        tested, validated = (round(share * len(mine)) for share in self._shares)
        while tested + validated >= max(1, len(mine)) and tested + validated:
            tested, validated = (tested - 1, validated) if tested >= validated else (tested, validated - 1)
        order = np.arange(len(mine))
        if self._held == "random" and tested + validated:
            order = Key.from_seed(self._seed).derive("partition", "held out", client).draws().permutation(len(mine))
        elif isinstance(self.by, temporal) and self.by.column is not None:
            order = np.argsort(self.table[self.by.column][mine], kind="stable")
        ends = len(mine) - tested - validated, len(mine) - tested
        train, validation, test = (mine[np.sort(places)] for places in np.split(order, ends))
        return train, validation, test

    def _change(self, client: int, clients: int) -> Change:
        key = Key.from_seed(self._seed).derive("view")
        return partial(_changed, self._views, self.table, client, clients, self.label, key)

    def __len__(self) -> int:
        return self.partition.clients if self._clients is None or self._natural else self._clients

    @overload
    def __getitem__(self, client: int) -> Part: ...

    @overload
    def __getitem__(self, client: slice) -> list[Part]: ...

    def __getitem__(self, client: int | slice) -> Part | list[Part]:
        if isinstance(client, slice):
            return [self[number] for number in range(*client.indices(len(self)))]
        return self._part(self.partition, client)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"} | {"_made": {}}

    def __repr__(self) -> str:
        how = self.by if isinstance(self.by, Partitioner) else getattr(self.by, "__name__", self.by)
        return f"Parts(by={how!r}, clients={self._clients}, seed={self._seed})"


@dataclass(frozen=True)
class Part:
    """What one client holds: `train`, `validation` and `test`, each in the form that the data had, read when asked for.

    `train_items`, `validation_items` and `test_items` are the numbers of these items in the whole data set.
    """

    name: str
    table: DataTable = field(repr=False)
    train_items: Ints = field(repr=False)
    validation_items: Ints = field(repr=False)
    test_items: Ints = field(repr=False)
    change: Change | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.train_items) + len(self.validation_items) + len(self.test_items)

    @property
    def indices(self) -> Ints:
        """All items of the client: int64, ascending."""
        return np.sort(np.concatenate((self.train_items, self.validation_items, self.test_items)))

    @property
    def all(self) -> Any:
        """All items of the client."""
        return self.table.rows(self.indices, self.change)

    @property
    def train(self) -> Any:
        """The items to train on."""
        return self.table.rows(self.train_items, self.change)

    @property
    def validation(self) -> Any:
        """The items to choose settings by."""
        return self.table.rows(self.validation_items, self.change)

    @property
    def test(self) -> Any:
        """The items to evaluate on."""
        return self.table.rows(self.test_items, self.change)


def _whole(table: DataTable, clients: int, seed: int) -> Ints:
    return np.zeros(len(table), np.int64)  # where there are no items, too


def _changed(
    views: Sequence[Any],
    table: DataTable,
    client: int,
    clients: int,
    label: Any,
    key: Key,
    columns: Columns,
    items: Ints,
) -> Columns:
    changed: Columns = {}
    for number, view in enumerate(views):
        reading = Reading(table, items, client, clients, label, key.derive(number))
        changed |= view({**columns, **changed}, reading)
    return changed
