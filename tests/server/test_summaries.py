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
    assert summaries.of("r") == {"rounds": 0, "asked": 0, "metrics": {}, "best_round": None}
    log(store, {"event": "run_started", "rounds": 2}, {"event": "ask_closed"})
    log(store, {"event": "round_committed", "round": 1, "train": {"loss": 3.0}, "test": {"loss": float("inf")}})
    assert summaries.of("r")["metrics"] == {"train.loss": 3.0, "test.loss": None}
    assert (summaries.of("r")["rounds"], summaries.of("r")["asked"]) == (1, 2)
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
    assert Summaries(store).of("r") == {"rounds": 1, "asked": 1, "metrics": {}, "best_round": None}


def test_a_run_that_keeps_its_best_model_has_the_metrics_of_that() -> None:
    store = MemoryStore()
    log(store, {"event": "run_started", "rounds": 3})
    for r, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        log(store, {"event": "round_committed", "round": r, "train": {"loss": 1 / r}, "test": {"accuracy": accuracy}})
    summaries = Summaries(store)
    assert summaries.of("r")["metrics"]["test.accuracy"] == 0.7
    log(store, {"event": "run_finished", "best_round": 2})
    for known in (summaries, Summaries(store)):
        found = known.of("r")
        assert (found["metrics"], found["best_round"]) == ({"train.loss": 0.5, "test.accuracy": 0.9}, 2)
    log(store, {"event": "run_resumed", "rounds": 4}, {"event": "round_committed", "round": 4, "train": {"loss": 0.1}})
    found = summaries.of("r")
    assert (found["metrics"], found["best_round"]) == ({"train.loss": 0.1, "test.accuracy": 0.7}, None)


def test_any_number_of_metrics_takes_little_room():
    store = MemoryStore()
    for r in range(1, 5):
        log(store, {"event": "round_committed", "round": r, "train": {f"{r}.{i}" * 100: 1.0 for i in range(300)}})
    found = Summaries(store).of("r")["metrics"]
    assert len(found) == MOST_METRICS
    assert max(map(len, found)) == LONGEST_NAME
