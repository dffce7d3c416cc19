"""Shards of the items in the order of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Partition, check_clients, dealt_in_order, numbered
from ..partitioner import Partitioner, check_whole
from ..tables import DataTable


@dataclass(frozen=True, repr=False)
class shards(Partitioner):
    """Sort the items by label, cut them into equal shards and give each client some of the shards at random.

    A client so has few classes: about `each` where a shard is smaller than a class. Shards are equal up to one item.
    McMahan et al. (2017, arXiv 1602.05629), section 3.
    """

    each: int = 2
    label: Any = None

    def __post_init__(self) -> None:
        check_whole("the shards of a client", self.each)

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        number, _ = numbered(table[self.label])
        check_clients(clients, len(number))
        pieces = clients * self.each
        if pieces > len(number):
            raise DataError(
                f"{clients} clients with {self.each} shards each cannot be made of {len(number)} items",
                hint="There cannot be more shards than there are items.",
            )
        own = key.derive("partition", "shards")
        holders = np.empty(pieces, dtype=np.int64)
        holders[own.derive("shards").draws().permutation(pieces)] = np.arange(pieces) // self.each
        lengths = np.diff(np.arange(pieces + 1) * len(number) // pieces)
        return dealt_in_order(number, holders, lengths, clients, own.derive("items").draws())
