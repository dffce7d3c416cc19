"""A kill counts where it is what a process died of, and nowhere else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from umbel.testing import deaths


@pytest.fixture
def two() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that wait to be told to end."""
    made = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
    yield made
    for process in made:
        process.kill()
        process.communicate()


def alive(process):
    found = deaths.living(process.pid)
    assert found is not None
    return found


def never() -> None:
    pass


def test_two_at_once(two):
    assert deaths.kill([alive(process) for process in two], lambda: True, never) == [True, True]
    assert [process.wait() for process in two] == [-9, -9]


def test_who_ended_before_was_not_killed(two):
    first, second = (alive(process) for process in two)
    two[0].communicate()
    assert deaths.kill([first, second], lambda: True, never) == [False, True]
    assert two[0].returncode == 0


def test_who_has_ended_and_is_only_waited_for_neither(two):
    first = alive(two[0])
    two[0].stdin.close()
    while first.state:
        pass
    assert deaths.living(first.pid) is None
    assert deaths.kill([first], lambda: True, never) == [False]


def test_another_process_of_the_same_id_is_left_alone(two):
    one = alive(two[0])
    assert deaths.kill([deaths.Living(one.pid, one.began - 1)], lambda: True, never) == [False]
    assert one.state


def test_nothing_counts_once_the_run_is_over(two):
    assert deaths.kill([alive(two[0])], lambda: False, never) == [False]
    assert two[0].wait() == -9
