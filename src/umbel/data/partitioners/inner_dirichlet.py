"""Skewed labels at clients of given sizes: each client draws its own mixture of the classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Partition, check_cells, check_clients, dealt_by_class, numbered
from ..partitioner import Partitioner, check_positive
from ..skew import filled_counts, log_dirichlet_draws
from ..tables import DataTable
from .sizes import sizes as client_sizes


@dataclass(frozen=True, repr=False)
class inner_dirichlet(Partitioner):
    """Each client draws class proportions from Dirichlet(alpha, ..., alpha), and fills its given size by them.

    Clients take their items by turns; a class that has run out is left out and the rest of the proportions scaled up.
    `sizes` are how many items the clients have, as `umbel.data.sizes` says them: equal unless said otherwise. Acar et
    al. (2021, FedDyn, arXiv 2111.04263, appendix), and FedLab (Zeng et al. 2021, arXiv 2107.11621).
    """

    alpha: float
    label: Any = None
    sizes: client_sizes = field(default_factory=client_sizes)

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        if not isinstance(self.sizes, client_sizes):
            raise DataError(f"sizes are said by sizes(...), such as sizes('linear'), not by {self.sizes!r:.60}")

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        number, classes = numbered(table[self.label])
        check_clients(clients, len(number))
        check_cells(clients, len(classes))
        own = key.derive("partition", "inner_dirichlet")
        priors = np.full((clients, len(classes)), float(self.alpha))
        shares = np.exp(log_dirichlet_draws(priors, own.derive("shares").draws()))
        wanted = self.sizes.of(len(number), clients, own.derive("sizes"))
        counts = filled_counts(shares, wanted, classes, own.derive("fill").draws())
        return dealt_by_class(number, counts, own.derive("items").draws())
