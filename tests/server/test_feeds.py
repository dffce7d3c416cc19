from __future__ import annotations

import asyncio

import pytest

from umbel.errors import Refused
from umbel.server import feeds
from umbel.server.feeds import Event, Feeds
from umbel.wire.limits import FOLLOWER_BYTES, RESPONSE_BYTES


class Log:
    """What is stored of a run, and whether it was over."""

    def __init__(self, count: int = 0, over: bool = False) -> None:
        self.events: list[Event] = [(n, f"e{n}") for n in range(1, count + 1)]
        self.over = over
        self.feeds = Feeds(self.stored, lambda run: self.over)
        self.read = 0

    def stored(self, run: str, after: int, most: int) -> list[Event]:
        found = [event for event in self.events if event[0] > after][:most]
        self.read += sum(len(text) for _, text in found)
        return found


async def numbers(log: Log, after: int = 0, live: bool = True) -> list[int]:
    return [number async for batch in log.feeds.follow("r", after, live) for number, _ in batch]


async def following(log: Log, after: int = 0) -> asyncio.Task[list[int]]:
    """A follower that has read what there was."""
    before = log.feeds.count
    task = asyncio.ensure_future(numbers(log, after))
    while log.feeds.count == before:
        await asyncio.sleep(0)
    return task


def test_what_was_is_read_from_a_number_on() -> None:
    assert asyncio.run(numbers(Log(5, over=True))) == [1, 2, 3, 4, 5]
    assert asyncio.run(numbers(Log(5, over=True), after=3)) == [4, 5]
    assert asyncio.run(numbers(Log(5), after=1, live=False)) == [2, 3, 4, 5]


def test_what_comes_follows_what_was_until_the_run_is_over() -> None:
    async def play() -> list[int]:
        log = Log(2)
        task = await following(log)
        for number in (3, 0, 4):
            log.feeds.tell("r", number, "x")
            await asyncio.sleep(0)
        log.feeds.tell("other", 9, "x")
        log.feeds.tell("r", 5, "x")
        log.feeds.ended("r")
        found = await task
        assert log.feeds.count == 0
        return found

    assert asyncio.run(play()) == [1, 2, 3, 0, 4, 5]


def test_who_follows_a_run_that_waits_learns_what_it_waits_for() -> None:
    async def play() -> list[list[int]]:
        log = Log()
        log.feeds.tell("r", 0, "nobody is ready")
        log.feeds.tell("r", 0, "ward refuses")
        late = await following(log)
        assert [each async for batch in log.feeds.follow("r", live=False) for each in batch] == []
        log.feeds.tell("r", 1, "e1")
        later = await following(log)
        log.feeds.ended("r")
        return [await late, await later]

    assert asyncio.run(play()) == [[0, 1], [1]]


def test_events_that_are_not_on_disk_yet_are_not_missed_and_none_comes_twice() -> None:
    async def play() -> list[int]:
        log = Log(2)
        for number in (2, 3, 4):  # 2 is on disk already, the others are not
            log.feeds.tell("r", number, "x")
        task = await following(log)
        log.feeds.tell("r", 5, "x")
        log.feeds.ended("r")
        return await task

    assert asyncio.run(play()) == [1, 2, 3, 4, 5]


def test_a_run_that_goes_on_is_followed_again() -> None:
    async def play() -> list[int]:
        log = Log(1, over=True)
        log.feeds.begun("r")
        task = await following(log)
        log.feeds.tell("r", 2, "x")
        log.feeds.ended("r")
        return await task

    assert asyncio.run(play()) == [1, 2]


def test_a_slow_follower_misses_what_is_only_to_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MOST_WATCHED", 3)

    async def play() -> list[int]:
        log = Log()
        task = await following(log)
        for number in (0, 0, 0, 0, 0, 1, 0, 2):
            log.feeds.tell("r", number, "x")
        log.feeds.ended("r")
        return await task

    assert asyncio.run(play()) == [0, 0, 0, 1, 2]


def test_too_many_followers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "FOLLOWERS", 1)

    async def play() -> None:
        log = Log()
        task = await following(log)
        with pytest.raises(Refused, match="try again later"):
            await numbers(log)
        log.feeds.ended("r")
        await task

    asyncio.run(play())


def test_many_events_come_in_batches() -> None:
    async def play() -> list[int]:
        log = Log(450, over=True)
        return [len(batch) async for batch in log.feeds.follow("r")]

    sizes = asyncio.run(play())
    assert sum(sizes) == 450
    assert max(sizes) <= feeds.BATCH
    assert len(sizes) < 20


def test_long_events_come_in_small_batches() -> None:
    async def play() -> list[list[int]]:
        log = Log(over=True)
        log.events = [(number, "x" * (RESPONSE_BYTES // 3)) for number in range(1, 6)]
        return [[number for number, _ in batch] async for batch in log.feeds.follow("r")]

    assert asyncio.run(play()) == [[1, 2], [3, 4], [5]]


def test_nothing_is_read_further_than_it_is_taken() -> None:
    async def play() -> None:
        log = Log(over=True)
        log.events = [(number, "x" * 100_000) for number in range(1, 1001)]  # 100 MB
        batches = log.feeds.follow("r")
        taken = 0
        async for batch in batches:
            taken += sum(len(text) for _, text in batch)
            if taken > 5_000_000:
                break
        assert log.read < 3 * taken
        await batches.aclose()

    asyncio.run(play())


def test_little_waits_for_who_does_not_take_what_comes() -> None:
    async def play() -> list[int]:
        log = Log(1)
        batches = log.feeds.follow("r")
        found = [number for number, _ in await anext(batches)]
        (follower,) = log.feeds._followers["r"]
        for number in range(2, 300):
            log.events.append((number, "x" * 100_000))
            log.feeds.tell("r", number, "x" * 100_000)
            assert follower.bytes <= FOLLOWER_BYTES
        log.feeds.ended("r")
        return found + [number async for batch in batches for number, _ in batch]

    assert asyncio.run(play()) == list(range(1, 300))


def test_what_is_neither_on_disk_yet_nor_in_memory_any_more_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "UNWRITTEN", 0.0)

    async def play() -> list[int]:
        log = Log()
        for number in range(1, feeds.RECENT + 10):
            log.feeds.tell("r", number, "x")
        log.feeds.ended("r")
        task = await following(log)
        for _ in range(10):
            await asyncio.sleep(0)
        log.events = [(number, "x") for number in range(1, feeds.RECENT + 10)]
        return await task

    assert asyncio.run(play()) == list(range(1, feeds.RECENT + 10))
