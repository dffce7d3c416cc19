"""The owners that the data name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Ints, Partition
from ..partitioner import Partitioner, column_of
from ..tables import DataTable


@dataclass(frozen=True, repr=False)
class by(Partitioner):
    """Give every item to the owner that the data name: a hospital, a writer, a school (LEAF: Caldas et al. 2018, arXiv
    1812.01097).

    The clients are the distinct owners in ascending order, and their names are the partition's `owners`. An item
    without an owner (None or NaN) is a `DataError`.
    """

    natural: ClassVar[bool] = True
    column: Any = None

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        names, number = owners_of(table, self.column)
        return Partition.of(number, len(names), tuple(names.tolist()))


def owners_of(table: DataTable, column: Any) -> tuple[Any, Ints]:
    """The distinct owners in ascending order, and the number of each item's owner."""
    try:
        column = column_of(table, column)
        column = np.datetime_as_string(column, "s") if column.dtype.kind == "M" else column
        names, number = np.unique(column, return_inverse=True)
    except TypeError as error:
        raise DataError(f"owners cannot be put in order: {error}", hint="Name all of them by strings.") from error
    return names, number
