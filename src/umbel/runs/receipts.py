"""What became of each client of an ask: as columns in the log, in quantiles where clients are too many, and as rows for
whoever reads the log.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import numpy as np

from ..core.answer import Receipts
from ..core.update import MOST_METRICS, Receipt
from ..errors import ClientId
from .events import AskClosed, RunEvent
from .reasons import MOST_NAMED, counted, kind, short

MOST_CLIENTS = 1000
"""An ask of more clients than this is told in quantiles."""
MOST_BYTES = 512 << 10
"""So is one whose columns would be longer than this, as JSON."""
MOST_SKIPPED = 20
"""So many metrics are told of that are not finite."""
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One client's share of an ask.

    `status` is `"counted"`, `"late"` (counted in a later ask than the one it was sent), `"failed"` (`reason` says why),
    or `"dropped"`: asked, and not waited for. `seconds` is how long its handler ran, `staleness` how many asks of its
    lane closed since the task was sent.
    """

    round: int
    kind: str
    client: ClientId
    status: str
    weight: float | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ClientQuantiles:
    """How a number differs between the clients of an ask that are too many for rows of their own.

    `name` is `"weight"`, `"seconds"` or, for a metric, `"metrics.loss"`, say; `count` clients have a finite one. `low`
    and `high` are the clients with the least and the greatest; `quantiles` are at 5, 25, 50, 75 and 95 percent.
    """

    round: int
    kind: str
    name: str
    count: int
    least: float
    greatest: float
    quantiles: tuple[float, ...]
    low: ClientId
    high: ClientId


class Clients(Sequence[ClientRow]):
    """The clients of a run's asks, a row each, in the order of the asks; an ask that was done again counts once.

    Asks of more than `MOST_CLIENTS` clients have no rows, but `spreads`.
    """

    def __init__(self, events: Iterable[RunEvent]) -> None:
        asks = {event.ask: event for event in events if isinstance(event, AskClosed)}
        self._asks = [asks[ask] for ask in sorted(asks)]
        self._ends = list(accumulate(len(event.clients.get("client", ())) for event in self._asks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ClientRow:  # type: ignore[override]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        at = bisect_right(self._ends, place)
        return _row(self._asks[at], place - (self._ends[at - 1] if at else 0))

    def __iter__(self) -> Iterator[ClientRow]:
        for event in self._asks:
            for place in range(len(event.clients.get("client", ()))):
                yield _row(event, place)

    def __repr__(self) -> str:
        return f"Clients({len(self)} rows)"

    @property
    def rounds(self) -> list[int]:
        """The rounds that there is anything of."""
        return sorted({event.round for event in self._asks if event.clients or event.spread})

    def of(self, round: int) -> list[ClientRow]:
        """The rows of one round."""
        asks = [event for event in self._asks if event.round == round]
        return [_row(event, place) for event in asks for place in range(len(event.clients.get("client", ())))]

    @property
    def spreads(self) -> list[ClientQuantiles]:
        """The quantiles of the asks whose clients are too many for rows."""
        return [
            ClientQuantiles(
                event.round,
                event.kind,
                name,
                found["count"],
                found["least"],
                found["greatest"],
                tuple(found[each] for each in QUANTILES),
                found["low"],
                found["high"],
            )
            for event in self._asks
            for name, found in event.spread.items()
        ]


def told(
    receipts: Sequence[Receipt], failed: Mapping[ClientId, str], dropped: Sequence[ClientId]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `AskClosed.clients` and `AskClosed.spread` say of an ask, one of which is empty: how it went with those
    whose updates are in the answer, those that failed, and those that were not waited for.
    """
    rows = Receipts.of(receipts)
    if len(rows) + len(failed) + len(dropped) <= MOST_CLIENTS:
        columns = _columns(rows, failed, dropped)
        if len(json.dumps(columns)) <= MOST_BYTES:
            return columns, {}
    return {}, _spread(rows)


def skipped(receipts: Iterable[Receipt]) -> dict[str, list[Any]]:
    """Metrics that are not finite for some clients, ``{name: [how many, [the first clients]]}``."""
    found: dict[str, list[Any]] = {}
    rows = Receipts.of(receipts)
    for metrics, client in zip(rows.metrics, rows.clients, strict=True):
        for name, value in metrics.items():
            if not math.isfinite(value):
                row = found.setdefault(name, [0, []])
                row[0] += 1
                if len(row[1]) < MOST_NAMED:
                    row[1].append(client)
    return dict(islice(sorted(found.items()), MOST_SKIPPED))


def _columns(rows: Receipts, failed: Mapping[ClientId, str], dropped: Sequence[ClientId]) -> dict[str, Any]:
    missing = len(failed) + len(dropped)
    none = [None] * missing
    columns: dict[str, Any] = {
        "client": [*rows.clients, *failed, *dropped],
        "status": [
            *("late" if staleness else "counted" for staleness in rows.staleness),
            *["failed"] * len(failed),
            *["dropped"] * len(dropped),
        ],
        "weight": [*rows.weights, *none],
        "staleness": [*rows.staleness, *[0] * missing],
        "seconds": [*(round(seconds, 6) for seconds in rows.seconds), *none],
        "metrics": {name: [*(each.get(name) for each in rows.metrics), *none] for name in _names(rows)},
    }
    if failed:
        columns["why"] = [*[None] * len(rows), *_places(failed), *[None] * len(dropped)]
    return columns


def _names(rows: Receipts) -> list[str]:
    return sorted({name for metrics in rows.metrics for name in metrics})


def _places(failed: Mapping[ClientId, str]) -> list[int]:
    """For each client that failed the place of its reason among those counted."""
    rows = [row[0] for row in counted(failed)]
    exact = {text: place for place, text in enumerate(rows)}
    alike = {kind(text): place for place, text in enumerate(rows)}
    last = len(rows) - 1
    return [exact.get(text, alike.get(kind(text), last)) for text in map(short, failed.values())]


def _spread(rows: Receipts) -> dict[str, dict[str, Any]]:
    facts: dict[str, Iterable[float]] = {"weight": rows.weights, "seconds": rows.seconds}
    for name in _names(rows)[:MOST_METRICS]:
        facts[f"metrics.{name}"] = [metrics.get(name, math.nan) for metrics in rows.metrics]
    found = {}
    for name, fact in facts.items():
        if row := quantiles_of(np.fromiter(fact, np.float64, len(rows)), rows.clients):
            found[name] = row
    return found


def quantiles_of(values: np.ndarray[Any, np.dtype[np.float64]], clients: Sequence[ClientId]) -> dict[str, Any]:
    """Quantiles of the finite values of these clients, as `AskClosed.spread` has them; nothing where none is finite."""
    places = np.flatnonzero(np.isfinite(values))
    if not len(places):
        return {}
    order = places[np.argsort(values[places], kind="stable")]
    last = len(order) - 1
    return {
        "count": len(order),
        "least": float(values[order[0]]),
        "greatest": float(values[order[-1]]),
        **{name: float(values[order[round(part * last)]]) for name, part in QUANTILES.items()},
        "low": clients[int(order[0])],
        "high": clients[int(order[-1])],
    }


def _row(event: AskClosed, place: int) -> ClientRow:
    columns = event.clients
    why = columns.get("why", {})
    at = why[place] if why else None
    values = ((name, column[place]) for name, column in columns["metrics"].items())
    return ClientRow(
        event.round,
        event.kind,
        columns["client"][place],
        columns["status"][place],
        columns["weight"][place],
        columns["seconds"][place],
        {name: value for name, value in values if value is not None},
        columns["staleness"][place],
        None if at is None else str(event.failed[at][0]),
    )
