"""Clients of unlike sizes, each with a like sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Partition, Spans, check_clients
from ..partitioner import Partitioner, check_positive, check_whole
from ..shuffling import Shuffle
from ..skew import log_gamma_draws
from ..tables import DataTable

LAWS = ("uniform", "linear", "square", "exponential", "lognormal", "dirichlet")


@dataclass(frozen=True, repr=False)
class sizes(Partitioner):
    """Give clients numbers of items by a law, or just those given, and everybody at least one item.

    Client i of n has a share proportional to: 1 ("uniform"), i + 1 ("linear"), (i + 1)^2 ("square"), and e^i
    ("exponential", with the exponent scaled to end at `spread`, so that the last has e^spread times the first's); or
    to a draw of a log-normal distribution with the sigma `spread` ("lognormal", FedLab: Zeng et al. 2021, arXiv
    2107.11621), or of Dirichlet(spread) ("dirichlet", the quantity skew of NIID-Bench: Li et al. 2021, arXiv
    2102.02079). Items are drawn at random; with `contiguous` they go as they stand, the first ones to client 0.
    """

    law: str | Sequence[int] = "uniform"
    spread: float = 1.0
    contiguous: bool = False

    def __post_init__(self) -> None:
        check_positive("spread", self.spread)
        if isinstance(self.law, str):
            if self.law not in LAWS:
                raise DataError(f"there is no law {self.law!r} of sizes", hint=f"There are {', '.join(LAWS)}.")
        else:
            given: Any = self.law if isinstance(self.law, Sequence | np.ndarray) else [self.law]
            for size in given:
                check_whole("each of the given sizes", size, 0)
            object.__setattr__(self, "law", tuple(map(int, given)))

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        if self.contiguous and self.law == "uniform":
            return Spans(len(table), clients)
        own = key.derive("partition", "sizes")
        holders = np.repeat(np.arange(clients), self.of(len(table), clients, own.derive("sizes")))
        if not self.contiguous:
            holders = holders[Shuffle(len(table), own.derive("items"))(np.arange(len(table)))]
        return Partition.of(holders, clients)

    def of(self, items: int, clients: int, key: Key) -> npt.NDArray[np.int64]:
        """How many of so many items each client has: int64 [clients], which sums to them."""
        if not isinstance(self.law, str):
            if len(self.law) != clients or sum(self.law) != items or min(self.law, default=0) < 0:
                raise DataError(
                    f"the given sizes are {len(self.law)}, which sum to {sum(self.law)}; there are {clients} clients "
                    f"for {items} items"
                )
            return np.array(self.law, dtype=np.int64)
        check_clients(clients, items)
        logs = self._logs(clients, key)
        shares = np.exp(logs - logs.max())
        return 1 + rounded(shares / shares.sum() * (items - clients), items - clients)

    def _logs(self, clients: int, key: Key) -> npt.NDArray[np.float64]:
        place = np.arange(1, clients + 1)
        match self.law:
            case "linear" | "square":
                return (1 if self.law == "linear" else 2) * np.log(place)
            case "exponential":
                return self.spread * (place - 1) / max(1, clients - 1)
            case "lognormal":
                return self.spread * key.draws().normal(clients)
            case "dirichlet":
                return log_gamma_draws(np.full(clients, float(self.spread)), key.draws())
        return np.zeros(clients)


def rounded(exact: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Whole numbers next to these, which sum to `total`: the largest remainders are rounded up."""
    found = np.floor(exact).astype(np.int64)
    up = np.argsort(found - exact, kind="stable")[: total - int(found.sum())]
    found[up] += 1
    return found
