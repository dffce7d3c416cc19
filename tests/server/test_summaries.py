from __future__ import annotations

import json
from typing import Any

from umbel.server.summaries import LONGEST_NAME, MOST_METRICS, Summaries
from umbel.store.records import MemoryStore


def log(store: MemoryStore, *events: dict[str, Any]) -> None:
    for event in events:
        number = store.greatest("events", run="r") + 1
        store.put("events", {"run": "r", "number": number, "at": 0.0, "body": json.dumps(event)})
        store.commit()


def test_a_run_is_summed_up_as_it_goes_on() -> None:
    store = MemoryStore()
    summaries = Summaries(store)
    assert summaries.of("r") == {"rounds": 0, "asked": 0, "metrics": {}}
    log(store, {"event": "run_started", "rounds": 2}, {"event": "ask_closed"})
    log(store, {"event": "round_committed", "round": 1, "train": {"loss": 3.0}, "test": {"loss": float("inf")}})
    assert summaries.of("r") == {"rounds": 1, "asked": 2, "metrics": {"train.loss": 3.0, "test.loss": None}}
    log(store, {"event": "run_resumed", "rounds": 5}, {"event": "round_committed", "round": 2, "train": {"loss": 2.0}})
    found = summaries.of("r")
    assert (found["rounds"], found["asked"], found["metrics"]["train.loss"]) == (2, 5, 2.0)


def test_events_that_make_no_sense_are_passed_over():
    store = MemoryStore()
    bodies = ['{"event": "round_committed"}', '{"event": "run_started", "rounds": "many"}', "[]",
              '{"event": "round_committed", "round": 1, "train": {"x": "y"}}']  # fmt: skip
    for number, body in enumerate(bodies, 1):
        store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    store.commit()
    assert Summaries(store).of("r") == {"rounds": 1, "asked": 1, "metrics": {}}


def test_any_number_of_metrics_takes_little_room():
    store = MemoryStore()
    for r in range(1, 5):
        log(store, {"event": "round_committed", "round": r, "train": {f"{r}.{i}" * 100: 1.0 for i in range(300)}})
    found = Summaries(store).of("r")["metrics"]
    assert len(found) == MOST_METRICS
    assert max(map(len, found)) == LONGEST_NAME
