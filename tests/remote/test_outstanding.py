"""Tasks that nodes have: who is silent, since when, and when to look again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from umbel.core.task import Task
from umbel.remote.outstanding import Outstanding
from umbel.testing import VirtualClock

TASKS = [Task(f"0.{client}", 0, client) for client in range(3)]


def out(clock: VirtualClock, *tasks: Task) -> Outstanding:
    made = Outstanding(10.0, clock)
    for task in tasks:
        made.add(task)
    return made


def test_tasks_are_there_until_they_are_over():
    tasks = out(VirtualClock(), *TASKS)
    assert list(tasks) == TASKS
    assert "0.1" in tasks
    assert tasks["0.1"] is TASKS[1]
    assert tasks.remove("0.1") is TASKS[1]
    assert tasks.remove("0.1") is None
    assert "0.1" not in tasks
    assert len(tasks) == 2


def test_a_client_is_warned_of_once_and_then_given_up():
    clock = VirtualClock()
    tasks = out(clock, TASKS[0])
    assert tasks.until() == [10.0, 5.0]
    assert list(tasks.silent()) == []
    clock.advance(5.0)
    assert list(tasks.silent()) == [(TASKS[0], 5.0, False)]
    assert list(tasks.silent()) == []
    assert tasks.until() == [10.0]
    clock.advance(5.0)
    assert list(tasks.silent()) == [(TASKS[0], 10.0, True)]
    assert list(tasks) == tasks.until() == []


def test_a_sign_of_life_counts_anew_and_may_be_followed_by_another_warning():
    clock = VirtualClock()
    tasks = out(clock, *TASKS[:2])
    clock.advance(6.0)
    assert len(list(tasks.silent())) == 2
    tasks.seen(["0.0", "7.7"])
    clock.advance(5.0)
    assert list(tasks.silent()) == [(TASKS[0], 5.0, False), (TASKS[1], 11.0, True)]
    tasks.count_anew()
    clock.advance(9.0)
    assert list(tasks.silent()) == []


@given(st.lists(st.tuples(st.sampled_from(["add", "seen", "remove", "look"]), st.integers(0, 2), st.floats(0, 4))))
def test_until_the_time_that_is_told_nobody_comes_to_be_silent_for_too_long(steps):
    clock = VirtualClock()
    tasks = out(clock)
    for what, client, seconds in steps:
        if what == "add":
            tasks.add(TASKS[client])
        elif what == "seen":
            tasks.seen([TASKS[client].id])
        elif what == "remove":
            tasks.remove(TASKS[client].id)
        list(tasks.silent())
        soonest = min(tasks.until(), default=None)
        assert (soonest is None) == (len(tasks) == 0)
        if soonest is not None and soonest - clock() > seconds + 1e-9:
            clock.advance(seconds)
            assert list(tasks.silent()) == []
        elif soonest is not None:
            clock.advance(soonest - clock() + 1e-9)
            assert list(tasks.silent())
