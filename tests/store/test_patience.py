"""A full disk is waited for, and said once; all else is raised at once."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3

import pytest

from umbel.errors import StorageError
from umbel.store.patience import GIVEN_UP, LONGEST_PAUSE, Patience, is_full


class World:
    """A disk that is full for so many attempts, and a clock that goes as somebody sleeps."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.now = 0.0
        self.told = []
        self.pauses = []

    def patience(self, seconds):
        return Patience(seconds, self.told.append, clock=lambda: self.now, sleep=self.sleep, rest=self.rest)

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)

    async def rest(self, seconds):
        self.sleep(seconds)

    def write(self, value):
        if self.errors:
            raise self.errors.pop(0)
        return value


def full(number=errno.ENOSPC):
    return OSError(number, os.strerror(number))


def caused(cause):
    error = StorageError("it cannot be written")
    error.__cause__ = cause
    return error


def of_sqlite():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    return caught.value


def test_it_waits_for_as_long_as_it_takes_and_says_so_once():
    world = World(full(), caused(full(errno.EDQUOT)), caused(of_sqlite()), *[full()] * 6)
    patience = world.patience(None)
    assert patience(world.write, 7) == 7
    assert world.pauses == [1, 2, 4, 8, *[LONGEST_PAUSE] * 5]
    assert len(world.told) == 2
    assert "there is room" in world.told[-1]
    assert patience.problem == ""


def test_what_is_awaited_waits_as_well():
    world = World(full(), full())

    async def work():
        return world.write(7)

    assert asyncio.run(world.patience(None).later(work)) == 7
    assert world.pauses == [1, 2]


def test_who_gives_up_waiting_has_no_problem_any_more():
    world = World(full())

    async def rest(seconds):
        raise asyncio.CancelledError

    async def work():
        return world.write(7)

    patience = world.patience(None)
    patience._rest = rest
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(patience.later(work))
    assert patience.problem == ""
    assert world.told[1:] == [GIVEN_UP]


@pytest.mark.parametrize(("seconds", "pauses"), [(0.0, 0), (1.0, 1), (3.0, 2)])
def test_it_waits_no_longer_than_it_is_to(seconds, pauses):
    world = World(*[full()] * 9)
    with pytest.raises(OSError, match="No space"):
        world.patience(seconds)(world.write, 7)
    assert len(world.pauses) == pauses


def test_other_errors_are_raised_at_once():
    for error in (full(errno.EACCES), caused(full(errno.EIO)), StorageError("it is locked"), caused(None)):
        assert not is_full(error)
        world = World(error)
        with pytest.raises(type(error)):
            world.patience(None)(world.write, 7)
        assert (world.pauses, world.told) == ([], [])
