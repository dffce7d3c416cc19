"""Observers cannot end a run."""

import logging

import pytest

from umbel.runs.events import RoundStarted
from umbel.runs.observers import Observers

EVENT = RoundStarted(round=1, rounds=2)


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


class Tracker:
    def __call__(self, event):
        raise Unprintable


def test_all_are_told_in_their_order():
    seen = []
    watching = Observers([lambda event: seen.append((1, event)), lambda event: seen.append((2, event))])
    assert len(watching) == 2
    assert not Observers()
    assert watching.tell(EVENT) == []
    assert seen == [(1, EVENT), (2, EVENT)]


def test_one_that_raises_is_reported_once_and_told_on(caplog):
    seen = []

    def tracker(event):
        seen.append(event)
        raise OSError("no route to host")

    watching = Observers([tracker, seen.append, Tracker()])
    with caplog.at_level(logging.DEBUG, "umbel"):
        first, second = watching.tell(EVENT)
        assert watching.tell(EVENT) == []
    assert first.startswith("the observer test_one_that_raises_is_reported_once_and_told_on.<locals>.tracker raised")
    assert first.endswith("OSError: no route to host; the run goes on")
    assert "observer Tracker raised Unprintable: (it cannot be printed)" in second
    assert seen == [EVENT] * 4
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [first, second]
    traces = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(traces) == 2
    assert "in tracker" in caplog.text
    assert traces[0].exc_info is not None
    assert isinstance(traces[0].exc_info[1], OSError)


def test_what_is_no_error_passes():
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([interrupt]).tell(EVENT)
