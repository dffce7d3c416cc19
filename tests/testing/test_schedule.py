"""Random schedules: what they are made of, and that their seed gives them back."""

from __future__ import annotations

import pytest

from umbel.core.task import Failed, Finished, Send, Ticked
from umbel.runs.coordinator import Opened
from umbel.testing import Entry, Schedule, replay


def test_the_seed_gives_back_the_schedule_and_another_seed_another_one():
    log = Schedule(7).run()
    assert Schedule(7).run() == log
    assert Schedule(8).run() != log


def test_a_log_replays_to_the_same_commands():
    log = Schedule(3, asks=12, lanes=3, attempts=2).run()
    assert replay(log, attempts=2) == [entry.commands for entry in log]
    assert replay(log[:10]) != [entry.commands for entry in log]


def test_everything_that_can_happen_happens():
    told = [entry.event for seed in range(20) for entry in Schedule(seed).run()]
    assert {type(event) for event in told} == {Opened, Finished, Failed, Ticked}
    assert {event.window.late for event in told if isinstance(event, Opened)} == {"keep", "drop"}
    assert {event.retry for event in told if isinstance(event, Failed)} == {True, False}


@pytest.mark.parametrize("late", ["keep", "drop"])
def test_it_has_as_many_asks_clients_and_lanes_as_one_says(late):
    log = Schedule(2, asks=9, clients=3, lanes=2, late=late).run()
    opened = [entry.event for entry in log if isinstance(entry.event, Opened)]
    assert [event.ask for event in opened] == list(range(9))
    assert {event.lane for event in opened} == {"lane 0", "lane 1"}
    assert {client for event in opened for client in event.clients} == {0, 1, 2}
    assert {event.window.late for event in opened} == {late}


def test_time_only_goes_on_and_answers_come_twice():
    log: list[Entry] = Schedule(5, asks=10).run()
    times = [entry.now for entry in log]
    assert times == sorted(times)
    sent = sum(isinstance(command, Send) for entry in log for command in entry.commands)
    assert sum(isinstance(entry.event, Finished | Failed) for entry in log) > sent
