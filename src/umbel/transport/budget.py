"""What peers have their server do that nobody has asked them for: who causes much of it takes turns with the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar, cast

from ..wire.limits import PEER_MICROSECONDS, TURNS_PERCENT

T = TypeVar("T")
FREE = PEER_MICROSECONDS / 1e6
"""So many seconds of work are free, and as many again each second."""


class Turns:
    """The turns of one server, whose share of its time is bounded however many peers take them. `clock` counts seconds;
    `timer` those that work takes, which others of this process have to wait.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, timer: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock, self.timer = clock, timer
        self._next = clock()
        self._used: dict[str, _Used] = {}

    def budget(self, peer: str) -> Budget:
        """A budget for one connection of a peer: what it has used up, it has for all of its connections."""
        if len(self._used) % 1000 == 999:
            self._used = {id: used for id, used in self._used.items() if used.add(0.0) > 0}
        return Budget(self, self._used.setdefault(peer, _Used(self.clock)))

    def take(self, work: float) -> float:
        """When the next turn is, for something that takes so many seconds of work."""
        at = max(self.clock(), self._next)
        self._next = at + work * 100 / TURNS_PERCENT
        return at


class _Used:
    """The seconds of work that a peer has used up, and that time has not made up for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._at, self._seconds = clock, clock(), 0.0

    def add(self, seconds: float) -> float:
        now = self._clock()
        passed, self._at = max(0.0, now - self._at), now
        self._seconds = max(0.0, self._seconds - passed * FREE) + seconds
        return self._seconds


class Budget:
    """What a peer has its server do over one connection, over which so many answers are due as were `asked`."""

    def __init__(self, turns: Turns, used: _Used) -> None:
        self.asked = 0
        self.timer = turns.timer
        self._turns, self._used = turns, used
        self._since = 0.0

    def was_asked(self, answers: int) -> bool:
        """Whether so many answers were asked for, which are no longer due then."""
        if not 0 < answers <= self.asked:
            return False
        self.asked -= answers
        return True

    def spend(self, seconds: float) -> None:
        """So many seconds of work were done for the peer unasked."""
        self._used.add(seconds)
        self._since += seconds

    async def spent(self, work: Callable[..., Coroutine[Any, Any, T]], *given: object) -> T:
        """What `work` returns, done for the peer: each of its steps is spent, not what others do while it waits."""
        return await self._steps(work(*given))

    @coroutine
    def _steps(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            began = self.timer()
            try:
                awaited = step()
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                self.spend(self.timer() - began)
            try:
                step = partial(work.send, (yield awaited))
            except BaseException as error:
                step = partial(work.throw, error)

    def turn(self) -> float:
        """When the peer is to be read again after what was done since the turn before; in the past where that may be
        now.
        """
        since, self._since = self._since, 0.0
        return self._turns.take(since) if since and self._used.add(0.0) > FREE else -math.inf
