from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from tests.server.desks import whole

from umbel.server.fields import event_in
from umbel.server.summaries import LONGEST_NAME, MOST_METRICS, Summaries
from umbel.store.records import MemoryStore


def log(store: MemoryStore, summaries: Summaries, *events: dict[str, Any]) -> None:
    for event in map(whole, events):
        number, body = store.greatest("events", run="r") + 1, json.dumps(event)
        store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body, "round": event.get("round")})
        summaries.take("r", event_in(body), len(body))
        store.commit()


def stored() -> MemoryStore:
    store = MemoryStore()
    store.put("runs", {"id": "r", "status": "running"})
    store.commit()
    return store


def test_a_run_is_summed_up_as_it_goes_on() -> None:
    store = stored()
    summaries = Summaries(store)
    assert summaries.of("r") == {"rounds": 0, "asked": 0, "metrics": {}, "best_round": None}
    log(store, summaries, {"event": "run_started", "rounds": 2}, {"event": "another"})
    log(
        store,
        summaries,
        {"event": "round_committed", "round": 1, "train": {"loss": 3.0}, "test": {"loss": float("inf")}},
    )
    assert summaries.of("r")["metrics"] == {"train.loss": 3.0, "test.loss": None}
    assert (summaries.of("r")["rounds"], summaries.of("r")["asked"]) == (1, 2)
    log(
        store,
        summaries,
        {"event": "run_resumed", "rounds": 5},
        {"event": "round_committed", "round": 2, "train": {"loss": 2.0}},
    )
    found = summaries.of("r")
    assert (found["rounds"], found["asked"], found["metrics"]["train.loss"]) == (2, 5, 2.0)


def test_events_that_make_no_sense_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    good = json.dumps(whole({"event": "round_committed", "round": 1}))
    bodies = ['{"event": "round_committed"}', '{"event": "run_started", "rounds": "many"}', "[]", good,
              json.dumps(whole({"event": "round_committed", "round": "x"})), "", "[" * 100_000,
              json.dumps(whole({"event": "round_committed", "round": 10**400})), '{"event": "round_dreamt"}',
              json.dumps(whole({"event": "round_committed", "round": 2, "train": {"x": "y"}}))]  # fmt: skip
    for number, body in enumerate(bodies, 1):
        store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    store.commit()
    store.put("runs", {"id": "r", "status": "running"})
    store.commit()
    for _ in range(2):  # also once it was read and noted
        assert Summaries(store).of("r") == {"rounds": 1, "asked": 1, "metrics": {}, "best_round": None}
        assert Summaries(store).known("r").unread == 8
        store.commit()
    assert "8 events of run r make no sense" in caplog.text


@pytest.mark.parametrize("kept", [None, [], {}, {"rounds": 1}, {"rounds": "x", "asked": None}])
def test_a_summary_in_the_store_that_makes_no_sense_is_made_anew(kept: Any) -> None:
    store = stored()
    log(store, Summaries(store), {"event": "round_committed", "round": 1})
    if kept == {"rounds": "x", "asked": None}:
        kept = {**asdict(Summaries(store).known("r")), **kept}
    store.put("runs", {"id": "r", "summary": kept, "logged": None})
    store.commit()
    assert Summaries(store).of("r")["rounds"] == 1


def test_a_run_that_keeps_its_best_model_has_the_metrics_of_that() -> None:
    store = stored()
    summaries = Summaries(store)
    log(store, summaries, {"event": "run_started", "rounds": 3})
    for r, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        log(
            store,
            summaries,
            {"event": "round_committed", "round": r, "train": {"loss": 1 / r}, "test": {"accuracy": accuracy}},
        )
    assert summaries.of("r")["metrics"]["test.accuracy"] == 0.7
    log(store, summaries, {"event": "run_finished", "best_round": 2})
    for known in (summaries, Summaries(store)):
        found = known.of("r")
        assert (found["metrics"], found["best_round"]) == ({"train.loss": 0.5, "test.accuracy": 0.9}, 2)
    log(
        store,
        summaries,
        {"event": "run_resumed", "rounds": 4},
        {"event": "round_committed", "round": 4, "train": {"loss": 0.1}},
    )
    found = summaries.of("r")
    assert (found["metrics"], found["best_round"]) == ({"train.loss": 0.1, "test.accuracy": 0.7}, None)


def test_any_number_of_metrics_takes_little_room():
    store = stored()
    summaries = Summaries(store)
    for r in range(1, 5):
        log(
            store,
            summaries,
            {"event": "round_committed", "round": r, "train": {f"{r}.{i}" * 100: 1.0 for i in range(300)}},
        )
    found = Summaries(store).of("r")["metrics"]
    assert len(found) == MOST_METRICS
    assert max(map(len, found)) == LONGEST_NAME
