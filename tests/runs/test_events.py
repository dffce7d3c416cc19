"""Events are plain records: each can be written, read back, and told by its name."""

import json

import pytest

from umbel.runs.events import EVENTS, AskClosed, RoundCommitted, RunStarted

EXAMPLES = [
    RunStarted(run="a", format=1, seed=3, rounds=2, clients=5, strategy="FedAvg", settings={"config": {"lr": 0.1}}),
    AskClosed(ask=0, round=1, kind="train", lane="train", digest="d", asked=3, count=2, failed=[["gone", 1, [4]]]),
    RoundCommitted(round=1, asks=1, train={"loss": 0.5}, checkpoint={"file": "f", "sha256": "0"}),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.name)
def test_a_record_becomes_the_event_again(event):
    record = json.loads(json.dumps(event.record()))
    assert EVENTS[record.pop("event")](**record) == event


def test_every_event_has_a_name_of_its_own():
    assert len(EVENTS) == len(set(EVENTS.values()))
    assert {name for name, kind in EVENTS.items() if not kind.logged} == {
        "waiting",
        "round_started",
        "ask_opened",
        "task_ended",
    }
