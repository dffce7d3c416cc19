"""The columns divided among parties that know the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...core.randomness import Key
from ...errors import DataError
from ..partition import Partition, check_clients
from ..partitioner import Partitioner, check_whole
from ..tables import DataTable


@dataclass(frozen=True, repr=False)
class vertical(Partitioner):
    """Divide columns, not items: each party has some features of everybody (Yang et al. 2019, arXiv 1902.04885).

    `parties` names each party's columns, or positions of an array's; without it columns are dealt in equal shares, as
    they stand or, with `shuffled`, at random. `shared` columns, such as a key, go to all parties and are divided among
    none; the labels, `label`, to the party numbered `labelled` alone. The partition's items are the columns that are
    divided, in the table's order.
    """

    columns: ClassVar[bool] = True
    natural: ClassVar[bool] = True
    parties: Sequence[Sequence[Any]] | None = None
    label: Any = None
    shared: Sequence[Any] = ()
    labelled: int = 0
    shuffled: bool = False

    def __post_init__(self) -> None:
        check_whole("the number of the party with the labels", self.labelled, 0)

    def deal(self, table: DataTable, clients: int, key: Key) -> Partition:
        divided = self.divided(table)
        if self.labelled >= (count := clients if self.parties is None else len(self.parties)):
            raise DataError(f"party {self.labelled} has the labels, but the {count} parties are numbered from 0")
        if self.parties is None:
            check_clients(clients, len(divided))
            holders = np.arange(len(divided)) * clients // len(divided)
            if self.shuffled:
                holders = holders[key.derive("partition", "vertical").draws().permutation(len(divided))]
            return Partition.of(holders, clients)
        named = [name for party in self.parties for name in party]
        if sorted(map(repr, named)) != sorted(map(repr, divided)):
            odd = {repr(name) for name in set(named) ^ set(divided)} or {repr(n) for n in named if named.count(n) > 1}
            raise DataError(
                f"each column belongs to just one party, but this is not so of {', '.join(sorted(odd))}",
                hint="Columns for all parties are named by shared=, the labels by label=.",
            )
        party = {name: number for number, names in enumerate(self.parties) for name in names}
        return Partition.of([party[name] for name in divided], len(self.parties))

    def divided(self, table: DataTable) -> list[Any]:
        """The columns that are divided, in the table's order."""
        return [name for name in table.features if name not in self.shared and name != self.labels(table)]

    def labels(self, table: DataTable) -> Any:
        """The column with the labels, "label" for what stands beside an array of features; None where there is none."""
        if table.features != table.names:
            return "label"
        return table.label if self.label is None else self.label
