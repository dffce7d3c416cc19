"""Writes stay in the event loop while they are quick."""

from __future__ import annotations

import asyncio
import threading

from umbel.store.pace import SLOW_FOR, Pace
from umbel.testing import VirtualClock


def test_writes_are_done_here_while_they_are_quick():
    clock = VirtualClock()
    where = []

    def write(seconds):
        where.append(threading.current_thread() is threading.main_thread())
        clock.advance(seconds)

    async def main():
        pace = Pace(clock)
        assert [await pace.write(write, seconds) for seconds in (0.0, 0.001, 0.005)] == [0.0, 0.001, 0.005]
        for _ in range(SLOW_FOR + 1):
            await pace.write(write, 0.0)

    asyncio.run(main())
    assert where == [False, True, True] + [False] * SLOW_FOR + [True]


def test_a_write_that_fails_says_so_wherever_it_is_done():
    def write(batch):
        raise OSError(batch)

    async def main():
        pace = Pace(VirtualClock())
        found = []
        for name in ("in a thread", "here"):
            try:
                await pace.write(write, name)
            except OSError as error:
                found.append(str(error))
        return found

    assert asyncio.run(main()) == ["in a thread", "here"]
