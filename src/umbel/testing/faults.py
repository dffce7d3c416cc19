"""A transport that misbehaves as told, and in the same way each time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from ..core.randomness import Key
from ..errors import ConnectionLost
from ..transport.stream import Stream, pair


@dataclass(frozen=True)
class FaultPlan:
    """What goes wrong on a stream, drawn from `seed`: equal plans do the same to the same frames.

    The probabilities are for each frame sent. Time has no part in it: a delay is a number of turns of the event loop.

    - `delay`: it goes out up to `longest_delay` turns later, and all that follows it too.
    - `duplicate`: it goes out twice.
    - `reorder`: it goes out after the next one, or alone when none follows within `longest_delay` turns.
    - `drop`: it is lost.
    - `cut_after`: bytes after which the stream is cut, in both directions; the frame with that byte is lost with all
      that is under way. None for never.
    """

    seed: int
    delay: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    drop: float = 0.0
    cut_after: int | None = None
    longest_delay: int = 8

    def wrap(self, stream: Stream, name: str = "") -> FaultyStream:
        """A stream whose sending has these faults; `name` tells apart streams under one plan."""
        return FaultyStream(stream, self, name)

    def pair(self, room: int = 8) -> tuple[FaultyStream, FaultyStream]:
        """Both ends of a stream within this process; what either sends has faults."""
        one, other = pair(room)
        return self.wrap(one, "0"), self.wrap(other, "1")


class FaultyStream:
    """A `Stream` with the faults of a `FaultPlan`; `log` says what was done to each frame that was sent."""

    def __init__(self, stream: Stream, plan: FaultPlan, name: str = "") -> None:
        self.peer, self.beside = stream.peer, stream.beside
        self.log: list[str] = []
        self._stream = stream
        self._plan = plan
        self._draws = Key.from_seed(plan.seed).derive("faults", name).draws()
        self._held: bytes | None = None
        self._release: asyncio.Task[None] | None = None
        self._left = plan.cut_after
        self._sending = asyncio.Lock()

    async def send(self, data: bytes) -> None:
        """Send as the plan says. Raises `ConnectionLost` where the stream is cut."""
        drop, duplicate, reorder, delay, turns = self._draws.uniform(5)
        plan = self._plan
        if drop < plan.drop:
            self.log.append("drop")
            return
        if delay < plan.delay:
            self.log.append("delay")
            await self._turns(1 + int(turns * plan.longest_delay))
        copies = 2 if duplicate < plan.duplicate else 1
        if reorder < plan.reorder and self._held is None:
            self.log.append("reorder")
            self._held = data
            self._release = asyncio.create_task(self._released_later())
            return
        self.log.append("duplicate" if copies == 2 else "send")
        for _ in range(copies):
            await self._send(data)
        await self._released()

    async def receive(self) -> bytes | None:
        """What comes next, as the stream gives it."""
        return await self._stream.receive()

    async def finish(self) -> None:
        """Send what was held back, and no more."""
        await self._released()
        await self._stream.finish()

    async def close(self, grace: float = 0.0) -> None:
        """End both directions."""
        if self._release is not None:
            self._release.cancel()
            await asyncio.wait({self._release})
        await self._stream.close(grace)

    async def cut(self) -> None:
        """Cut the stream now."""
        self.log.append("cut")
        await self._stream.close()

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    await self.cut()
                    raise ConnectionLost("the stream was cut, as planned")
            await self._stream.send(data)

    async def _released(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await self._send(held)

    async def _released_later(self) -> None:
        await self._turns(self._plan.longest_delay)
        with suppress(ConnectionLost):  # whoever sends next is told
            await self._released()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
