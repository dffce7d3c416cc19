"""Whatever a record says, it becomes an event that readers get through, or is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.runs.events import EVENTS, RoundCommitted, Waiting
from umbel.runs.receipts import QUANTILES, Clients
from umbel.runs.schema import event_of

COLUMNS = {
    "client": [4, "ward"], "status": ["counted", "failed"], "weight": [1.0, None], "staleness": [0, 0],
    "seconds": [0.5, None], "metrics": {"loss": [0.25, None]}, "why": [None, 0],
}  # fmt: skip
SPREAD = {
    "weight": {"count": 2, "least": 0.0, "greatest": 2, "low": 4, "high": "ward", **dict.fromkeys(QUANTILES, 1.0)}
}
WHOLE: dict[str, dict[str, Any]] = {
    "run_started": {"run": "a", "format": 1, "seed": -(10**30), "rounds": 2, "clients": 5, "strategy": "FedAvg"},
    "run_resumed": {"run": "a", "round": 1, "rounds": 3, "changed": {"numpy": ["1", "2"]}},
    "waiting": {"ready": 1, "wanted": 2, "refused": {"b": "no"}},
    "round_started": {"round": 1, "rounds": 2},
    "ask_opened": {"ask": 0, "round": 1, "kind": "train", "clients": 2},
    "task_ended": {"ask": 0, "task": "0.4", "reason": None},
    "ask_closed": {
        "ask": 0, "round": 1, "kind": "train", "lane": "train", "digest": "d", "asked": 2, "count": 1, "weight": 2,
        "failed": [["gone", 1, [4]]], "clients": COLUMNS, "spread": SPREAD, "answer": {"file": "f", "sha256": "0"},
    },
    "round_committed": {"round": 1, "asks": 1, "train": {"loss": 0.5}, "checkpoint": {"file": "f", "sha256": "0"}},
    "warned": {"round": 1, "text": "slow", "client": "ward"},
    "run_interrupted": {"run": "a", "round": 1},
    "run_finished": {"run": "a", "rounds": 2, "reason": "rounds", "best_round": None, "error": None},
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_what_a_run_says_is_read(name: str) -> None:
    found = event_of({"event": name, **WHOLE[name], "at": 1.0, "of a later release": []})
    assert type(found) is EVENTS[name]
    assert event_of(json.loads(json.dumps(found.record()))) == found


def test_what_another_release_says_is_passed_over() -> None:
    assert event_of({"event": "round_dreamt", "round": "x"}) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("round_committed", {"round": "x"}),
        ("round_committed", {"round": math.inf}),
        ("round_committed", {"round": -1}),
        ("round_committed", {"round": True}),
        ("round_committed", {"round": 2**63}),
        ("round_committed", {"train": {"loss": "low"}}),
        ("round_committed", {"train": {"loss": 10**400}}),
        ("round_committed", {"train": [1.0]}),
        ("round_committed", {"seconds": math.nan}),
        ("round_committed", {"seconds": math.inf}),
        ("round_committed", {"checkpoint": {"file": "f"}}),
        ("run_started", {"rounds": None}),
        ("run_started", {"seed": 1.5}),
        ("run_resumed", {"changed": {"numpy": ["1"]}}),
        ("ask_closed", {"failed": [["gone", 1, []]]}),
        ("ask_closed", {"failed": [["gone", 1]]}),
        ("ask_closed", {"clients": {**COLUMNS, "status": ["counted"]}}),
        ("ask_closed", {"clients": {**COLUMNS, "metrics": {"loss": 1.0}}}),
        ("ask_closed", {"clients": {**COLUMNS, "why": [None, 1]}}),
        ("ask_closed", {"clients": {"client": [1]}}),
        ("ask_closed", {"spread": {"weight": {"count": 1}}}),
        ("ask_closed", {"spread": {"weight": 1}}),
        ("warned", {"client": [1]}),
        ("run_finished", {"best_round": "2"}),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=name):
        event_of({"event": name, **WHOLE[name], **change})


@pytest.mark.parametrize("record", [None, [], "x", {}, {"event": 1}, {"event": ["run_started"]}])
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(TypeError):
        event_of(record)


def test_a_metric_may_be_no_number_and_null_stands_for_that() -> None:
    found = event_of({"event": "round_committed", "round": 1, "asks": 1, "train": {"a": None, "b": math.inf}})
    assert isinstance(found, RoundCommitted)
    assert math.isnan(found.train["a"])
    assert found.train["b"] == math.inf


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(st.data())
def test_whoever_reads_what_was_taken_gets_through(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(EVENTS)))
    part = data.draw(st.sampled_from(list(WHOLE[name])))
    try:
        found = event_of({"event": name, **WHOLE[name], part: data.draw(ANYTHING)})
    except TypeError:
        return
    assert found is not None
    list(Clients([found]))
    list(Clients([found]).spreads)
    if not isinstance(found, Waiting):
        json.dumps(found.record())
