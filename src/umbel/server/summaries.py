"""How far runs are, by their logs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..store.records import Store

PARTS = ("test", "evaluate", "train")
MOST_METRICS = 600
LONGEST_NAME = 300


@dataclass
class _Summary:
    number: int = 0
    rounds: int = 0
    asked: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    best_round: int | None = None
    best: dict[str, float | None] = field(default_factory=dict)


class Summaries:
    """For each run how many rounds it has done, how many it is to have, and its metrics: the newest, or those of the
    round that it ended with as the best. Events are read once; those of a run that has a best round, once more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, _Summary] = {}

    def of(self, run: str) -> dict[str, Any]:
        """A run's ``{"rounds", "asked", "metrics", "best_round"}``; metrics that are not finite are None."""
        known = self._known.setdefault(run, _Summary())
        for event in self._events(run, known):
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # whoever drives the run may say anything
                _take(known, event)
                if event["event"] == "run_finished" and event["best_round"] is not None:
                    self._take_best(run, known, event["best_round"])
        metrics = known.metrics if known.best_round is None else known.best
        return {
            "rounds": known.rounds,
            "asked": max(known.asked, known.rounds),
            "metrics": dict(metrics),
            "best_round": known.best_round,
        }

    def _events(self, run: str, known: _Summary) -> Iterator[Any]:
        for row in self._store.rows("events", above=known.number, run=run):
            known.number = row["number"]
            with suppress(ValueError):
                yield json.loads(row["body"])

    def _take_best(self, run: str, known: _Summary, best: int) -> None:
        for event in self._events(run, _Summary()):
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                if event["event"] == "round_committed" and event["round"] == best:
                    known.best_round, known.best = best, _metrics(event)


def _take(known: _Summary, event: dict[str, Any]) -> None:
    kind = event.get("event")
    if kind in ("run_started", "run_resumed"):
        known.asked = max(known.asked, event.get("rounds", 0))
        known.best_round = None
    elif kind == "round_committed":
        known.rounds = event["round"]
        known.metrics.update(_metrics(event))
        known.metrics = dict(islice(known.metrics.items(), MOST_METRICS))


def _metrics(event: dict[str, Any]) -> dict[str, float | None]:
    return {
        f"{part}.{name}"[:LONGEST_NAME]: value if math.isfinite(value) else None
        for part in PARTS
        for name, value in event.get(part, {}).items()
    }
