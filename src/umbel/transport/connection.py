"""Connections: messages over a stream, in numbered frames, with limits, signs of life, and an end that says why."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from ..errors import ConnectionLost, PeerError, ProtocolError, Refused
from ..wire import messages as m
from ..wire import roles
from ..wire.limits import QUEUE_BYTES, TURN_WAITING_BYTES
from . import frames
from .budget import Budget
from .stream import Stream

BATCH_BYTES = 64 << 10
BULK = 2
"""Bulk messages that may wait to be sent."""
GRACE = 2.0
"""Seconds for a peer to take the last words."""

LONGEST_PAUSE = 0.25
"""So many seconds a peer is not read before it is looked whether its connection is over."""

_FRAME_HEAD = 32
_PAGE = b""
_TEXT = 1000


@dataclass
class Traffic:
    """What has crossed in one direction."""

    frames: int = 0
    bytes: int = 0


class Connection:
    """One peer, at the other end of a stream. It needs a running event loop, and is to be closed.

    What comes is read only while somebody iterates over `messages` or awaits `receive`, one task at a time; that also
    answers pings and moves blobs. Whoever reads is told by an exception how the connection ended: `Refused` (the peer
    said why), `ProtocolError` (it sent what it may not; it has been told), `ConnectionLost` (anything else).

    - `limits`: what frames from the peer are held to, and its `idle_seconds`; the handshake sets them.
    - `allowed`: the names of bodies that the peer may send now, None for any; `forbidden` is the code for others.
    - `on_blob`: takes the messages about blobs (an `Exchange` sets it), and says whether that was asked for.
    - `read_seconds`: how much work the last frame was to read, where there is a budget.
    - `budget`: what the peer may have this side do unasked, before it is read by turns; `takes`: whether it is then
      read only while little waits for it.
    - `on_close`: called once each when the connection is over, with what `receive` raises.
    - `sent`, `received`: traffic so far; `progressed`: the time of the last frame that came, or, while it is not the
      peer's turn to be read, that it took.
    - `raw`: while `keeps_raw`, the bytes of that frame.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        limits: m.Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        grace: float = GRACE,
    ) -> None:
        self.peer, self.beside = stream.peer, stream.beside
        self.clock = clock
        self.limits = limits if limits is not None else frames.standard_limits()
        self.allowed: frozenset[str] | None = None
        self.forbidden = m.CODE_NOT_ALLOWED
        self.on_blob: Callable[[m.Message], bool] | None = None
        self.budget: Budget | None = None
        self.takes = True
        self.on_close: list[Callable[[PeerError], None]] = []
        self.sent, self.received = Traffic(), Traffic()
        self.progressed = clock()
        self.read_seconds = 0.0
        self.keeps_raw = False
        self.raw = b""
        self.queued = 0
        self._stream = stream
        self._grace = grace
        self._small: deque[bytes] = deque()
        self._bulk: deque[Sequence[bytes]] = deque()
        self._room = asyncio.Semaphore(BULK)
        self._wake = asyncio.Event()
        self._flows = asyncio.Event()
        self._pong: int | None = None
        self._pinged = False
        self._held = False
        self._ending: asyncio.Task[None] | None = None
        self._end: PeerError | None = None
        self._loop = asyncio.get_running_loop()
        self._writer = asyncio.create_task(self._write())
        self._timer: asyncio.TimerHandle | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._arm()

    @property
    def closed(self) -> bool:
        """Whether it is over, or ending: nothing more is sent or received."""
        return self._end is not None

    @property
    def end(self) -> PeerError | None:
        """Why it is over; None while it is not."""
        return self._end

    def post(self, message: m.Message | bytes, *, lazy: float = 0.0) -> None:
        """Have a message sent, soon and before chunks, without waiting; when the connection is over nothing happens.

        A message that goes to many can be given as its bytes. A `lazy` one waits so many seconds for others to go with,
        since each frame has its price. Raises `ProtocolError` for one that no frame can hold.
        """
        if self._end is not None:
            return
        data = message if isinstance(message, bytes) else message.SerializeToString()
        if len(data) + _FRAME_HEAD > self.limits.frame_bytes:
            limit = self.limits.frame_bytes
            raise ProtocolError(
                f"a message of {len(data)} bytes to {self.peer}; the limit is {limit}", m.CODE_TOO_LARGE
            )
        self._small.append(data)
        self.queued += len(data)
        if not lazy:
            self._wake.set()
        elif self._lazy is None or self._lazy.when() > self._loop.time() + lazy:
            if self._lazy is not None:
                self._lazy.cancel()
            self._lazy = self._loop.call_later(lazy, self._hurry)
        if self.queued > QUEUE_BYTES:  # whatever counts is sent again
            self._give_up(ConnectionLost(f"{self.peer} does not read what it is sent", m.CODE_TOO_SLOW))

    def next_frame(self) -> None:
        """Let what is posted from now on go into another frame than what was posted before."""
        if self._end is None:
            self._small.append(_PAGE)

    async def taken(self, below: int) -> None:
        """Wait until less than so many bytes of messages wait to be sent, or the connection is over."""
        while self.queued >= below and self._end is None:
            self._flows.clear()
            await self._flows.wait()

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Have a bulk message sent after all small ones, waiting until its turn is near. Raises `ConnectionLost`.

        Those who wait take turns.
        """
        await self._room.acquire()
        if self._end is not None:
            self._room.release()
            raise ConnectionLost(f"{self.peer}: the connection is over")
        self._bulk.append(pieces)
        self._wake.set()

    async def messages(self) -> AsyncIterator[m.Message]:
        """What the peer sends, but for what the connection deals with itself, until this side closes.

        Raises `Refused`, `ProtocolError` or `ConnectionLost` where it ends otherwise.
        """
        async for batch in self.batches():
            for message in batch:
                yield message

    async def batches(self) -> AsyncIterator[list[m.Message]]:
        """The same, by the frame."""
        while True:
            try:
                yield await self.receive()
            except PeerError as error:
                if isinstance(error, _Closed):
                    return
                raise

    async def receive(self) -> list[m.Message]:
        """The messages of the next frame that holds any for the caller; raises as `messages` does, and a
        `ConnectionLost` also where this side has closed.
        """
        while True:
            self._held = True
            await self.turn()
            self._held = False
            data = await self._stream.receive() if self._end is None else None
            if self._end is None and data is None:
                self._finish(ConnectionLost(f"{self.peer} has ended the connection"))
            if self._end is not None or data is None:
                await self._over()
                raise self._end or ConnectionLost(self.peer)
            try:
                batch = self._taken(data)
            except ProtocolError as error:
                await self.close(error)
                raise
            if batch:
                return batch
            await asyncio.sleep(0)  # whoever sends nothing but these must not keep others waiting

    async def turn(self) -> None:
        """Wait until more may be done for the peer, by its `budget`; who takes turns takes what it is sent, too, where
        it has to (`takes`).
        """
        at = self.budget.turn() if self.budget is not None else -math.inf
        if at > -math.inf and self.takes:
            await self.taken(TURN_WAITING_BYTES)
        while self._end is None and (pause := at - self.clock()) > 0:
            await asyncio.sleep(min(pause, LONGEST_PAUSE))

    async def close(self, problem: m.Problem | PeerError | None = None) -> None:
        """End the connection: what was posted is still sent, and the `problem` last; chunks are not."""
        self._finish(problem if isinstance(problem, PeerError) else _Closed(f"{self.peer}: closed here"), problem)
        await self._over()

    def beat(self) -> None:
        """See to it that a quiet peer is asked for a sign of life, and given up when there is none.

        A timer calls this when it is due; a test that moves the `clock` calls it itself.
        """
        if self._end is not None:
            return
        quiet, idle = self.clock() - self.progressed, self.limits.idle_seconds
        if quiet >= 2 * idle:
            self._give_up(ConnectionLost(f"{self.peer} has shown no sign of life for {quiet:.0f} s", m.CODE_TOO_SLOW))
        elif quiet >= idle and not self._pinged:
            self._pinged = True
            self.post(m.Message(ping=m.Ping(id=self.sent.frames + 1)))

    def _arm(self) -> None:
        idle = self.limits.idle_seconds
        due = self.progressed + (2 if self._pinged else 1) * idle - self.clock()
        self._timer = asyncio.get_running_loop().call_later(min(max(due, 0.05), idle), self._timed)

    def _hurry(self) -> None:
        self._lazy = None
        self._wake.set()

    def _timed(self) -> None:
        self.beat()
        if self._end is None:
            self._arm()

    def _taken(self, data: bytes) -> list[m.Message]:
        """Check a frame, deal with what is the connection's own, and return the rest."""
        began = self.budget.timer() if self.budget is not None else 0.0
        asked = True
        batch = frames.read(data, self.received.frames + 1, self.limits)
        self.received.frames += 1
        self.received.bytes += len(data)
        self._alive()
        if self.keeps_raw:
            self.raw = data
        others: list[m.Message] = []
        for message in batch:
            name = message.WhichOneof("body") or ""
            if name == "problem":
                found = message.problem
                self._finish(Refused(f"{self.peer} says: {found.text}", found.code, retry=found.retry))
                break
            if self.allowed is not None and name not in self.allowed:
                raise ProtocolError(f"{name!r} may not come now, or from this peer", self.forbidden)
            if name == "ping":
                asked, self._pong = False, message.ping.id
                self._wake.set()
            elif name in roles.BLOBS:
                if self.on_blob is None:
                    raise ProtocolError(f"{name!r}, where no blobs are exchanged", m.CODE_NOT_ALLOWED)
                asked = self.on_blob(message) and asked
            elif name != "pong":
                others.append(message)
        if self.budget is not None:
            self.read_seconds = self.budget.timer() - began
            if not asked:
                self.budget.spend(self.read_seconds)
        return others

    async def _write(self) -> None:
        try:
            while True:
                while not (self._small or self._bulk or self._pong is not None):
                    if self._end is not None:
                        await self._stream.finish()
                        return
                    self._wake.clear()
                    await self._wake.wait()
                if not (batch := self._next()):
                    continue
                data = frames.frame(self.sent.frames + 1, batch)
                self.sent.frames += 1
                self.sent.bytes += len(data)
                await self._stream.send(data)
                if self._held:
                    self._alive()
        except ConnectionLost as error:
            self._finish(error)

    def _alive(self) -> None:
        self.progressed, self._pinged = self.clock(), False

    def _next(self) -> list[Sequence[bytes]]:
        """What goes into the next frame: all small messages that fit, and only if there are none, a bulk one."""
        batch: list[Sequence[bytes]] = []
        size = 0
        if self._pong is not None:
            batch.append((m.Message(pong=m.Pong(id=self._pong)).SerializeToString(),))
            self._pong = None
        while self._small and len(batch) < self.limits.messages:
            data = self._small[0]
            if batch and (data is _PAGE or size + len(data) > BATCH_BYTES):
                break
            self._small.popleft()
            if data is not _PAGE:
                batch.append((data,))
                size += len(data)
        self.queued -= size
        self._flows.set()
        if not batch and self._bulk:
            batch.append(self._bulk.popleft())
            self._room.release()
        return batch

    def _give_up(self, error: ConnectionLost) -> None:
        self._small.clear()
        self.queued = 0
        self._finish(error, error)

    def _finish(self, end: PeerError, problem: m.Problem | PeerError | None = None) -> None:
        """Note why it is over, once, and begin to end it."""
        if self._end is not None:
            return
        if isinstance(problem, PeerError):
            problem = problem_of(problem)
        if problem is not None:
            last = m.Message(problem=problem).SerializeToString()
            self._small.append(last)
            self.queued += len(last)
        self._end = end
        self._bulk.clear()
        self._room.release()  # whoever waits to send learns that it is over, and passes it on
        for timer in (self._timer, self._lazy):
            if timer is not None:
                timer.cancel()
        self._wake.set()
        self._flows.set()
        for callback in self.on_close:
            callback(end)
        self._ending = asyncio.create_task(self._wind_up(graceful=problem is not None or isinstance(end, _Closed)))

    async def _wind_up(self, *, graceful: bool) -> None:
        try:
            if graceful:
                await asyncio.wait({self._writer}, timeout=self._grace)
            self._writer.cancel()
            await asyncio.wait({self._writer})
        finally:
            await self._stream.close(self._grace if graceful else 0.0)
            self._let_go()

    def _let_go(self) -> None:
        """Hold nothing any more: who is connected and goes, often, is not to wait for the collector of cycles."""
        self._small.clear()
        self.queued, self.raw = 0, b""
        self.on_blob, self.budget = None, None
        self.on_close.clear()

    async def _over(self) -> None:
        if self._ending is not None:
            await asyncio.shield(self._ending)


def problem_of(error: PeerError) -> m.Problem:
    """What a peer is told of an error."""
    code = cast("m.Code.ValueType", error.code or m.CODE_INTERNAL)
    return m.Problem(code=code, text=error.message[:_TEXT], retry=error.retry)


class _Closed(ConnectionLost):
    """This side has closed the connection."""
