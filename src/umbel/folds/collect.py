"""All updates as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.answer import client_order
from ..core.fold import Fold
from ..core.update import Contribution, Update
from ..errors import ClientId, StrategyError
from .gathered import GatheredRow, Gathering


@dataclass(frozen=True)
class collect(Fold):
    """All updates, by client in the order of their ids. Memory grows with the number of clients, until updates are
    moved to files (`umbel.folds.gathered`).
    """

    name: ClassVar[str] = "collect"
    single: ClassVar[bool] = True
    keeps_aux: ClassVar[bool] = True

    def zero(self) -> Gathering:
        return Gathering()

    def add(self, acc: Gathering, item: Contribution, factor: float = 1.0) -> Gathering:
        held = 0 if item.mapped else item.arrays.nbytes + item.aux.nbytes
        row = GatheredRow(item.client, factor, item.arrays, aux=item.aux, weight=item.weight, held=held)
        return self._with(acc, [row])

    def merge(self, acc: Gathering, other: Gathering) -> Gathering:
        return self._with(acc, other.rows)

    def _with(self, acc: Gathering, rows: Sequence[GatheredRow]) -> Gathering:
        if twice := sorted((row.client for row in rows if row.client in acc.clients), key=client_order):
            raise StrategyError(f"clients {twice} have two updates in one collection")
        acc.take(rows)
        return acc

    def finish(self, acc: Gathering) -> dict[ClientId, Update]:
        rows = sorted(acc.rows, key=lambda row: client_order(row.client))
        return {row.client: Update(row.arrays, row.weight * row.factor, aux=row.aux) for row in rows}
