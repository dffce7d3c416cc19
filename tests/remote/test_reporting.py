"""What a server is told of a run: every event until it has stored it, by number, and which asks are over."""

from __future__ import annotations

import json
import math

import pytest

from umbel.remote.reporting import ServerReporting
from umbel.runs.events import RoundCommitted, RoundStarted, RunFinished, RunInterruption, RunResumed
from umbel.runs.schema import event_of

STOPPED = RunInterruption(run="r", round=1)


@pytest.fixture
def told():
    """The reporting, and what it has said."""
    said = []
    made = ServerReporting("r", lambda **body: said.append(body))
    made.said = said
    return made


def numbers(told):
    """What was said since, in little: the numbers of events, and asks that are over."""
    said = [body["log_event"].number if "log_event" in body else f"ask {body['close_ask'].ask}" for body in told.said]
    told.said.clear()
    return said


def test_events_are_told_by_number_and_again_until_they_are_stored(told):
    for _ in range(3):
        told.observe(STOPPED)
    assert json.loads(told.said[0]["log_event"].event) == STOPPED.record()
    assert numbers(told) == [1, 2, 3]
    told.stored(2)
    assert not told.all_stored
    told.tell_again()
    assert numbers(told) == [3]
    told.observe(STOPPED)
    told.stored(9)
    assert told.all_stored
    told.tell_again()
    told.observe(STOPPED)
    assert numbers(told) == [4, 5]


def test_what_is_not_logged_is_told_once(told):
    told.observe(RoundStarted(round=1, rounds=2))
    told.tell_again()
    assert numbers(told) == [0]
    assert told.all_stored


def test_the_end_of_an_ask_is_told_again_until_the_server_has_the_event_after_it(told):
    told.observe(STOPPED)
    told.close_ask(7)
    told.stored(1)
    told.close_asks_again()
    assert numbers(told) == [1, "ask 7", "ask 7"]
    told.observe(STOPPED)
    told.close_asks_again()
    assert numbers(told) == [2, "ask 7"]
    told.stored(2)
    told.close_asks_again()
    assert numbers(told) == []


@pytest.mark.parametrize(("error", "status"), [(None, "finished"), ("no updates", "failed")])
def test_how_a_run_ended_is_known_until_it_goes_on(told, error, status):
    assert told.status is None
    told.observe(RunFinished(run="r", rounds=1, reason="rounds", error=error))
    assert told.status == status
    told.observe(RunResumed(run="r", round=1))
    assert told.status is None


def test_warnings_are_handed_over_once(told):
    told.warn(3, "it is slow")
    told.warn(None, "no room")
    assert told.has_warnings
    assert told.warnings() == [(3, "it is slow"), (None, "no room")]
    assert not told.has_warnings
    assert told.warnings() == []


def test_what_is_not_finite_is_said_as_null_and_comes_back_as_no_number(told):
    told.observe(RoundCommitted(round=1, asks=1, train={"loss": math.nan, "norm": math.inf, "steps": 3.0}))
    text = told.said[-1]["log_event"].event
    assert json.loads(text, parse_constant=pytest.fail)["train"] == {"loss": None, "norm": None, "steps": 3.0}
    assert math.isnan(event_of(json.loads(text)).train["loss"])
