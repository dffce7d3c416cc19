"""What peers have their server do that nobody has asked them for: who causes much of it takes turns with the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar, cast

from ..wire.limits import ADMISSIONS, PEER_MICROSECONDS, PUT_OUT_SECONDS, TURNS_PERCENT

T = TypeVar("T")
FREE = PEER_MICROSECONDS / 1e6
"""So many seconds of work a node or operator has free, and as many again each second."""
ADMISSION = 0.005
"""So many seconds of work it is to let somebody in."""


class Turns:
    """The turns of one server, whose share of its time is bounded (`percent`) however many peers take them. `free`: how
    many seconds of work a peer has each second before it takes turns. `clock` counts seconds; `timer` those that this
    thread has worked: what other processes take of a busy machine is nobody's.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        timer: Callable[[], float] = time.thread_time,
        *,
        free: float = FREE,
        percent: int = TURNS_PERCENT,
    ) -> None:
        self.clock, self.timer, self.free, self._percent = clock, timer, free, percent
        self._next = clock()
        self._used: dict[str, _Used] = {}

    def budget(self, peer: str) -> Budget:
        """A budget for one connection of a peer: what it has used up, it has for all of its connections."""
        return Budget(self, self._of(peer))

    def put_out(self, peer: str) -> None:
        """A peer has done what it may not."""
        self._of(peer).out_until = self.clock() + PUT_OUT_SECONDS

    def admission(self, peer: str) -> float:
        """How many seconds a peer that may come in has to wait: it was put out, or comes again and again."""
        now, used = self.clock(), self._of(peer)
        due = used.out_until
        if used.add(ADMISSION) > (ADMISSIONS + 0.5) * ADMISSION:
            due = max(due, self.take(ADMISSION))
            self._next = min(self._next, now + PUT_OUT_SECONDS)  # nobody waits longer, nor for those who have given up
        return min(max(0.0, due - now), PUT_OUT_SECONDS)

    def take(self, work: float) -> float:
        """When the next turn is, for something that takes so many seconds of work."""
        at = max(self.clock(), self._next)
        self._next = at + work * 100 / self._percent
        return at

    def _of(self, peer: str) -> _Used:
        if len(self._used) % 1000 == 999:
            now = self.clock()
            self._used = {id: used for id, used in self._used.items() if used.add(0.0) > 0 or used.out_until > now}
        return self._used.setdefault(peer, _Used(self.clock, self.free))


class _Used:
    """The seconds of work that a peer has used up, and that time has not made up for; who was put out is out until
    then.
    """

    def __init__(self, clock: Callable[[], float], free: float) -> None:
        self._clock, self._free, self._at, self._seconds = clock, free, clock(), 0.0
        self.out_until = -math.inf

    def add(self, seconds: float) -> float:
        now = self._clock()
        passed, self._at = max(0.0, now - self._at), now
        self._seconds = max(0.0, self._seconds - passed * self._free) + seconds
        return self._seconds


class Budget:
    """What a peer has its server do over one connection, over which so many answers are due as were `asked`."""

    def __init__(self, turns: Turns, used: _Used) -> None:
        self.asked = 0
        self.timer = turns.timer
        self._turns, self._used = turns, used
        self._since = 0.0
        self._at = -math.inf

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
        """When more may be done for the peer after what was done since the turn before; in the past where that may be
        now. Whoever else does something for it over this connection waits for the same turn.
        """
        since, self._since = self._since, 0.0
        if (over := self._used.add(0.0) - self._turns.free) <= 0:
            return -math.inf
        if since:  # who has used little too much does not wait behind all who have used far too much
            self._at = min(self._turns.take(since), self._turns.clock() + over / self._turns.free)
        return self._at
