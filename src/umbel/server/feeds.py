"""Followers of runs' logs: what happens in a run reaches everyone who follows it, in order, and without gaps.

A follower that cannot keep up is not waited for: it does without events that are only to be watched, and reads those
that are kept from the store when it comes to them, so that little waits for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field

from ..errors import Refused
from ..wire import messages as m
from ..wire.limits import FOLLOWER_BYTES, FOLLOWERS, RESPONSE_BYTES
from ..wire.portions import portions

MOST_WATCHED = 1000
"""So many events that are only to be watched wait for one follower."""
BATCH = 200
"""So many events are handed on at once, unless they are long."""
FIRST, READ = 4, 32
"""So many are read from the store at once, first and later; fewer where they are long."""
RECENT = 64
"""So many events of a run are kept in memory: those that may not be on disk yet."""
RUNS = 200
UNWRITTEN = 0.05
"""Seconds after which a follower looks again for an event that is not on disk yet."""

Event = tuple[int, str]
"""The number of an event, 0 if it is not kept, and the event as JSON."""


class Feeds:
    """All followers, by run.

    `stored(run, after, most)` reads a run's first kept events with higher numbers, so many at most; `over(run)` says
    whether a run was over when it was last written to disk. Of a run that has not begun, those who come get what was
    last to be watched: why it waits. To be used in one event loop.
    """

    def __init__(self, stored: Callable[[str, int, int], list[Event]], over: Callable[[str], bool]) -> None:
        self._stored = stored
        self._was_over = over
        self._followers: dict[str, set[_Follower]] = {}
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._before: OrderedDict[str, str] = OrderedDict()
        self._over: dict[str, bool] = {}

    def tell(self, run: str, number: int, event: str) -> None:
        """Something has happened in a run."""
        if number:
            recent = self._recent.setdefault(run, _Recent())
            recent.events.append((number, event))
            if len(recent.events) > RECENT:
                recent.gone, _ = recent.events.popleft()
            self._recent.move_to_end(run)
            if len(self._recent) > RUNS:
                self._recent.popitem(last=False)
            self._before.pop(run, None)
        elif run not in self._recent:
            self._before[run] = event
            self._before.move_to_end(run)
            if len(self._before) > RUNS:
                self._before.popitem(last=False)
        for follower in self._followers.get(run, ()):
            follower.take(number, event)

    def begun(self, run: str) -> None:
        """A run begins, or goes on after it was over."""
        self._over[run] = False

    def ended(self, run: str) -> None:
        """A run is over: whoever follows it gets what is left, and is done."""
        self._over[run] = True
        self._before.pop(run, None)
        for follower in self._followers.get(run, ()):
            follower.news.set()

    @property
    def count(self) -> int:
        """How many follow some run."""
        return sum(map(len, self._followers.values()))

    async def follow(self, run: str, after: int = 0, live: bool = True) -> AsyncGenerator[list[Event]]:
        """A run's events after a number, in batches: those that were, and, where `live`, those that come, until the run
        is over. Nothing is read further than what is taken. Raises `Refused` where too many follow already.
        """
        if self.count >= FOLLOWERS:
            raise Refused(f"{FOLLOWERS} follow runs already; try again later", m.CODE_BUSY, retry=True)
        follower = _Follower(after)
        self._followers.setdefault(run, set()).add(follower)
        try:
            fresh = live
            while True:
                over = self._is_over(run)
                follower.news.clear()
                async for batch in self._caught_up(run, follower):
                    fresh = False
                    yield batch
                if fresh and run in self._before and not follower.waiting:
                    follower.take(0, self._before[run])
                fresh = False
                while batch := follower.batch():
                    yield batch
                if follower.behind:
                    continue
                if over or not live:
                    return
                await follower.news.wait()
        finally:
            self._followers[run].discard(follower)
            if not self._followers[run]:
                del self._followers[run]

    async def _caught_up(self, run: str, follower: _Follower) -> AsyncIterator[list[Event]]:
        """What is stored and was not taken yet, portion by portion; then what may not be on disk waits for it."""
        most = FIRST
        while follower.behind:
            found = self._stored(run, follower.last, most)
            # What is read beyond a portion is read again, and not held.
            batch = next(portions(found, _size, most_bytes=RESPONSE_BYTES), [])
            follower.last = batch[-1][0] if batch else follower.last
            recent = self._recent.get(run) or _Recent()
            at_end = len(batch) == len(found) < most
            if at_end and recent.gone <= follower.last:  # else what is not in memory any more is not on disk yet
                follower.behind = False
                for number, event in recent.events:
                    if number > follower.last:
                        follower.take(number, event)
            del found
            if batch:
                most = max(1, min(READ, 4 * most, RESPONSE_BYTES // max(map(_size, batch))))
                yield batch
            elif follower.behind:
                await asyncio.sleep(UNWRITTEN)

    def _is_over(self, run: str) -> bool:
        return self._over[run] if run in self._over else self._was_over(run)


@dataclass
class _Recent:
    """The last events of a run, and the number of the last before them."""

    events: deque[Event] = field(default_factory=deque)
    gone: int = 0


class _Follower:
    """One who follows: the last number that it has, and what waits for it; `behind` where it has to read the store."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.behind = True
        self.waiting: deque[Event] = deque()
        self.bytes = 0
        self.news = asyncio.Event()

    def take(self, number: int, event: str) -> None:
        """Put an event into the queue; where too much waits, leave it out if it is only to be watched, and read it from
        the store later if it is kept.
        """
        self.news.set()
        size = _size((number, event))
        full = self.bytes + size > FOLLOWER_BYTES or (not number and len(self.waiting) >= MOST_WATCHED)
        if number and self.behind:
            return
        if number and full:
            self.behind = True
            self.waiting.clear()
            self.bytes = 0
        elif not full:
            self.waiting.append((number, event))
            self.bytes += size

    def batch(self) -> list[Event]:
        """Some of what waits, each kept event once."""
        found: list[Event] = []
        size = 0
        while self.waiting and len(found) < BATCH and (not found or size + _size(self.waiting[0]) <= RESPONSE_BYTES):
            number, event = self.waiting.popleft()
            self.bytes -= _size((number, event))
            if number == 0 or number > self.last:
                self.last = max(self.last, number)
                found.append((number, event))
                size += _size((number, event))
        return found


def _size(event: Event) -> int:
    """The bytes that an event takes in an answer, in JSON and in UTF-8; an upper bound that is found at once."""
    return (len(event[1]) if event[1].isascii() else 4 * len(event[1])) + 32
