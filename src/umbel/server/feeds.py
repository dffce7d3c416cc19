"""Followers of runs' logs: what happens in a run reaches everyone who follows it, in order, and without gaps.

A follower that cannot keep up is not waited for: it does without events that are only to be watched.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from ..errors import Refused
from ..wire import messages as m
from ..wire.portions import portions

MOST_WATCHED = 1000
"""So many events that are only to be watched wait for one follower."""
MOST_FOLLOWERS = 1000
BATCH = 200
"""So many events are handed on at once, unless they are long."""
RECENT = 64
"""So many events of a run are kept in memory: those that may not be on disk yet."""
RUNS = 200

Event = tuple[int, str]
"""The number of an event, 0 if it is not kept, and the event as JSON."""


class Feeds:
    """All followers, by run.

    `stored(run, after)` reads a run's kept events with higher numbers; `over(run)` says whether a run was over when it
    was last written to disk. Of a run that has not begun, those who come get what was last to be watched: why it waits.
    To be used in one event loop.
    """

    def __init__(self, stored: Callable[[str, int], list[Event]], over: Callable[[str], bool]) -> None:
        self._stored = stored
        self._was_over = over
        self._followers: dict[str, set[_Follower]] = {}
        self._recent: OrderedDict[str, deque[Event]] = OrderedDict()
        self._before: OrderedDict[str, str] = OrderedDict()
        self._over: dict[str, bool] = {}

    def tell(self, run: str, number: int, event: str) -> None:
        """Something has happened in a run."""
        if number:
            self._recent.setdefault(run, deque(maxlen=RECENT)).append((number, event))
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

    async def follow(self, run: str, after: int = 0, live: bool = True) -> AsyncIterator[list[Event]]:
        """A run's events after a number, in batches: those that were, and, where `live`, those that come, until the run
        is over. Raises `Refused` where too many follow already.
        """
        if self.count >= MOST_FOLLOWERS:
            raise Refused(f"{MOST_FOLLOWERS} follow runs already; try again later", m.CODE_BUSY, retry=True)
        follower = _Follower(after)
        self._followers.setdefault(run, set()).add(follower)
        try:
            follower.waiting.extend(self._stored(run, after))
            follower.waiting.extend(self._recent.get(run, ()))
            if live and run in self._before and not follower.waiting:
                follower.waiting.append((0, self._before[run]))
            while True:
                over = self._is_over(run)
                follower.news.clear()
                for batch in follower.batches():
                    yield batch
                if over or not live:
                    return
                await follower.news.wait()
        finally:
            self._followers[run].discard(follower)
            if not self._followers[run]:
                del self._followers[run]

    def _is_over(self, run: str) -> bool:
        return self._over[run] if run in self._over else self._was_over(run)


class _Follower:
    """One who follows: the last number that it has, and what waits for it."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.waiting: deque[Event] = deque()
        self.news = asyncio.Event()

    def take(self, number: int, event: str) -> None:
        """Put an event into the queue, or leave it out if it is only to be watched and too much waits."""
        if number or len(self.waiting) < MOST_WATCHED:
            self.waiting.append((number, event))
            self.news.set()

    def batches(self) -> list[list[Event]]:
        """What waits, each kept event once."""
        found: list[Event] = []
        while self.waiting:
            number, event = self.waiting.popleft()
            if number == 0 or number > self.last:
                self.last = max(self.last, number)
                found.append((number, event))
        return list(portions(found, lambda event: len(event[1]), most=BATCH))
