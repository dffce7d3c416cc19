"""Answers: what a strategy is sent back for an ask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ClientId
from . import encoding
from .arrays import Arrays
from .update import MOST_METRICS, Receipt


def client_order(client: ClientId) -> tuple[bool, ClientId]:
    """By what clients are sorted: numbers first, then names."""
    return (isinstance(client, str), client)


def receipt_order(receipt: Receipt) -> tuple[bool, ClientId, str]:
    """By what receipts are sorted: their clients' ids."""
    return (*client_order(receipt.client), receipt.task)


@dataclass(frozen=True)
class Answer:
    """What a strategy is sent back for an ask.

    `value` is what the fold made: `Arrays` for the elementwise folds, updates by client for `collect`. `aux` is the
    plain mean of the aux arrays (under `collect` they stay with their updates). `metrics` are means over clients by
    weight, without what is not finite. `clients` contributed, in the order of their ids; `failed` says why others did
    not.
    """

    value: Any
    aux: Arrays = field(default_factory=Arrays)
    metrics: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    receipts: tuple[Receipt, ...] = ()
    failed: Mapping[ClientId, str] = field(default_factory=dict)
    asked: int = 0

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """The clients whose updates are in the answer, in the order of their ids."""
        return tuple(r.client for r in self.receipts)

    @property
    def count(self) -> int:
        """How many updates are in the answer."""
        return len(self.receipts)


def mean_metrics(receipts: Iterable[Receipt]) -> dict[str, float]:
    """Mean of each metric over the clients for which it is finite, by weight, or plain where all weights are zero; NaN
    where it is finite for none. The order cannot matter. Of too many metrics the most common are kept.
    """
    terms: dict[str, list[tuple[float, float]]] = {}
    for receipt in receipts:
        for name, value in receipt.metrics.items():
            found = terms.setdefault(name, [])
            if math.isfinite(value):
                found.append((value, receipt.weight))
    names = sorted(terms, key=lambda name: (-len(terms[name]), name))[:MOST_METRICS]
    return {name: _mean(terms[name]) for name in sorted(names)}


def _mean(terms: list[tuple[float, float]]) -> float:
    if not terms:
        return math.nan
    weight = math.fsum(w for _, w in terms)
    if weight == 0.0:
        terms, weight = [(v, 1.0) for v, _ in terms], float(len(terms))
    products = [v * w for v, w in terms if w]
    if not all(math.isfinite(p) for p in products):
        return math.nan
    try:
        return math.fsum(products) / weight
    except OverflowError:
        return math.nan


def _packed(receipts: Sequence[Receipt]) -> list[Any]:
    """Receipts as arrays, which take a tenth of the memory that records do while they are written."""
    names = list(receipts[0].metrics) if receipts else []
    asks: Any = [_ask_of(receipt) for receipt in receipts]
    clients = [receipt.client for receipt in receipts]
    metrics: Any = (
        [dict(receipt.metrics) for receipt in receipts] if any(list(r.metrics) != names for r in receipts) else None
    )
    return [
        [receipt.task for receipt in receipts] if None in asks else np.array(asks, np.int64),
        _packed_ids(clients),
        np.array([receipt.weight for receipt in receipts], np.float64),
        np.array([receipt.seconds for receipt in receipts], np.float64),
        np.array([receipt.staleness for receipt in receipts], np.int64),
        names,
        [np.array([r.metrics[name] for r in receipts], np.float64) for name in names] if metrics is None else metrics,
        metrics is None,
    ]


def _packed_ids(clients: Sequence[ClientId]) -> Any:
    whole = all(type(client) is int and abs(client) < 1 << 62 for client in clients)
    return np.array(clients, np.int64) if whole else list(clients)


def _unpacked_ids(packed: Any) -> list[ClientId]:
    return packed if isinstance(packed, list) else packed.tolist()


def _packed_reasons(failed: Mapping[ClientId, str]) -> list[Any]:
    """Why clients failed: each reason once, for many fail for one reason, and it is long."""
    reasons = {reason: place for place, reason in enumerate(dict.fromkeys(failed.values()))}
    return [_packed_ids(list(failed)), list(reasons), np.array([reasons[r] for r in failed.values()], np.int64)]


def _unpacked_reasons(packed: list[Any]) -> dict[ClientId, str]:
    clients, reasons, places = packed
    return dict(zip(_unpacked_ids(clients), map(reasons.__getitem__, places.tolist()), strict=True))


def _unpacked(packed: list[Any]) -> tuple[Receipt, ...]:
    tasks, clients, weights, seconds, staleness, names, metrics, alike = packed
    clients = _unpacked_ids(clients)
    if not isinstance(tasks, list):
        tasks = [f"{ask}.{client}" for ask, client in zip(tasks.tolist(), clients, strict=True)]
    if alike:
        columns = [column.tolist() for column in metrics]
        metrics = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [{} for _ in clients]
    rest = (weights.tolist(), metrics, seconds.tolist(), staleness.tolist())
    return tuple(map(Receipt, tasks, clients, *rest))


def _ask_of(receipt: Receipt) -> int | None:
    """The ask of a task whose id is made of it and its client; None for any other id."""
    head = receipt.task.partition(".")[0]
    ask = int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else -1
    return ask if receipt.task == f"{ask}.{receipt.client}" else None


encoding.register(
    Answer,
    "answer",
    lambda a: [a.value, a.aux, dict(a.metrics), a.weight, _packed(a.receipts), _packed_reasons(a.failed), a.asked],
    lambda p: Answer(p[0], p[1], p[2], p[3], _unpacked(p[4]), _unpacked_reasons(p[5]), p[6]),
)
