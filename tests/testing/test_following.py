"""When a run counts as one that nothing has disturbed."""

from __future__ import annotations

import pytest

from umbel.testing.following import Differs, Watchdog, judge, left_out

FINISHED = {"event": "run_finished", "error": None, "rounds": 4, "model_sha256": "a" * 64}


def test_the_same_bits():
    judge("finished", FINISHED, 4, "a" * 64)


def test_other_bits():
    with pytest.raises(Differs, match="aaaa instead of bbbb"):
        judge("finished", FINISHED, 4, "b" * 64)


@pytest.mark.parametrize(
    ("status", "finished"),
    [
        ("failed", FINISHED),
        ("", {}),
        ("finished", {}),
        ("finished", {**FINISHED, "rounds": 3}),
        ("finished", {**FINISHED, "error": "no update"}),
    ],
)
def test_a_run_that_did_not_finish(status, finished):
    with pytest.raises(RuntimeError, match="the run is"):
        judge(status, finished, 4, "a" * 64)


def test_a_run_that_goes_on_without_a_client():
    assert left_out({"event": "ask_closed", "failed": {"2": "it is gone"}})
    assert not left_out({"event": "ask_closed", "failed": {}})


def test_no_news_for_too_long():
    dog = Watchdog(0.0)
    with pytest.raises(TimeoutError, match="no news"):
        dog.look(0)  # it takes a while itself
