"""What a partitioner is: a description of who is to hold what, without the data."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..core.randomness import Key
from ..errors import DataError
from .partition import Partition
from .tables import DataTable, as_table


class Partitioner:
    """Who is to hold what: settings, which become a `Partition` when they are called with data.

    ``dirichlet(0.3)(labels, clients=100, seed=0)``, or with any other data that `split` takes, of which `label` or
    `column` then names a column. The same settings, data and seed give the same partition, in any version. `split`
    takes any function of (table, clients, seed) in its place, see `umbel.data.DataTable`.
    """

    columns: ClassVar[bool] = False
    """Whether columns are divided, not items."""
    natural: ClassVar[bool] = False
    """Whether the data say how many clients there are."""

    def __call__(self, data: Any, clients: int | None = None, seed: int = 0) -> Partition:
        table = as_table(data)
        check_whole("a seed", seed, -math.inf)
        if clients is not None:
            check_whole("the number of clients", clients, 0)
        if clients is None and not self.natural:
            raise DataError(f"{type(self).__name__} has to be told how many clients there are", hint="clients=...")
        found = self.deal(table, 0 if clients is None else clients, Key.from_seed(seed))
        if clients is not None and found.clients != clients:
            raise DataError(
                f"{type(self).__name__} finds {found.clients} clients in the data, not {clients}",
                hint="Leave clients out; grouped(...) makes fewer clients of many owners.",
            )
        return found

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        """The partition; `clients` is 0 where the data say how many there are."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings: Any = self
        said = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(settings) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(said)})"


def column_of(table: DataTable, name: Any) -> Any:
    """A column with one value for each item; a `DataError` where it has none for some. Text is text, not objects."""
    values = table[name]
    if values.ndim != 1 or not values.size:
        raise DataError(f"a column to split by is a 1-D array with a value of each item, not one of {values.shape}")
    if values.dtype.kind == "O":
        missing = [item for item, value in enumerate(values.tolist()) if value is None or value != value]
    else:
        missing = np.flatnonzero(values != values).tolist()
    if missing:
        more = f", nor have {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"item {missing[0]} has no value to split by{more}", hint="Leave these items out.")
    return values


def ranked(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The place of each value among all in ascending order, equal ones in the order in which they stand."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values.astype(np.str_) if values.dtype.kind == "O" else values, kind="stable")] = np.arange(
        len(rank)
    )
    return rank


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is no positive number."""
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise DataError(f"{name} must be a positive number, not {value}")


def check_whole(name: str, value: int, least: float = 1) -> None:
    """Refuse a setting that is no whole number of at least so many."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        bound = f" of at least {least}" if least > -math.inf else ""
        raise DataError(f"{name} must be a whole number{bound}, not {value!r:.60}")
