"""How far runs are, by their logs."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
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


class Summaries:
    """For each run how many rounds it has done, how many it is to have, and its metrics; events are read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, _Summary] = {}

    def of(self, run: str) -> dict[str, Any]:
        """A run's ``{"rounds", "asked", "metrics"}``; metrics that are not finite are None."""
        known = self._known.setdefault(run, _Summary())
        for row in self._store.rows("events", above=known.number, run=run):
            known.number = row["number"]
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # whoever drives the run may say anything
                _take(known, json.loads(row["body"]))
        return {"rounds": known.rounds, "asked": max(known.asked, known.rounds), "metrics": dict(known.metrics)}


def _take(known: _Summary, event: dict[str, Any]) -> None:
    kind = event.get("event")
    if kind in ("run_started", "run_resumed"):
        known.asked = max(known.asked, event.get("rounds", 0))
    elif kind == "round_committed":
        known.rounds = event["round"]
        for part in PARTS:
            for name, value in event.get(part, {}).items():
                full = f"{part}.{name}"[:LONGEST_NAME]
                if full in known.metrics or len(known.metrics) < MOST_METRICS:
                    known.metrics[full] = value if math.isfinite(value) else None
