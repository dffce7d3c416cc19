"""Skew in a quantity: age, price, brightness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Partition, check_clients
from ..partitioner import Partitioner, check_positive, check_whole, column_of, ranked
from ..tables import ArrayTable, DataTable
from .dirichlet import dirichlet


@dataclass(frozen=True, repr=False)
class continuous(Partitioner):
    """Split by a column of numbers: each client a range of it, or ranges in Dirichlet proportions.

    Without `alpha` client 0 has the lowest values, the next those above, in equal shares up to one item (quantiles);
    `mixed` of the items, drawn at random, change places with each other first, so that 0 is the strict order and 1 is
    IID. With `alpha` the values are cut into `bins` of equally many items, which are dealt out as `dirichlet` deals out
    classes: the "Dirichlet over bins" of regression benchmarks (Hsu, Qi & Brown 2019, arXiv 1909.06335, applied to
    quantiles).
    """

    column: Any = None
    alpha: float | None = None
    bins: int = 10
    mixed: float = 0.0
    minimum: int = 1

    def __post_init__(self) -> None:
        check_whole("bins", self.bins)
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        check_whole("the minimum of items for a client", self.minimum, 0)
        if isinstance(self.mixed, bool) or not (isinstance(self.mixed, int | float) and 0 <= self.mixed <= 1):
            raise DataError(f"the share of mixed items lies between 0 and 1, not {self.mixed!r:.60}")

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        values = column_of(table, self.column)
        if values.dtype.kind not in "iufbmM":
            raise DataError(f"column {self.column!r} has to be numbers, not {values.dtype}", hint="See dirichlet, by.")
        check_clients(clients, len(values), self.minimum)
        own = key.derive("partition", "continuous")
        rank = ranked(values)
        if self.alpha is not None:
            bins = rank * self.bins // len(values)
            dealer = dirichlet(self.alpha, minimum=self.minimum)
            return dealer.deal(ArrayTable(bins), clients, own)
        moving = own.derive("mixed").draws().permutation(len(values))[: round(self.mixed * len(values))]
        rank[np.sort(moving)] = rank[moving]
        return Partition.of(rank * clients // len(values), clients)
