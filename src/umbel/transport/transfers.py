"""Transfers: how far one blob is on its way over a connection, out or in, and how much more of it may come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..errors import PeerError, ProtocolError
from ..wire import messages as m
from .side import Claim

FIRST_WINDOW = 1 << 20
SMALLEST_CHUNK = 64 << 10


class OutgoingTransfer:
    """What is sent of one blob: how much the peer lets us send, and how fast it takes it."""

    def __init__(self, want: m.Want, clock: Callable[[], float]) -> None:
        self.want = want
        self.credit = want.credit
        self._most = want.credit
        self._clock = clock
        self._since = clock()
        self._taken = 0
        self._changed = asyncio.Event()

    def granted(self, size: int) -> None:
        """So much more may be sent."""
        self.credit += size
        self._taken += size
        self._most = max(self._most, self.credit)
        self._changed.set()

    async def take(self, most: int) -> int:
        """How much to send now, as soon as it is worth a chunk: about a quarter of a second's worth, at `most` so many
        bytes. The receiver hears from us with every chunk, also on a slow line.
        """
        rate = self._taken / max(self._clock() - self._since, 1e-3)
        size = min(most, max(SMALLEST_CHUNK, int(rate / 4)))
        while self.credit < max(1, min(size, self._most // 4)):
            self._changed.clear()
            await self._changed.wait()
        size = min(size, self.credit)
        self.credit -= size
        return size


class IncomingTransfer:
    """What has come of one blob and is not written yet, and how much more may come."""

    def __init__(self, blob: m.Blob, window: int, clock: Callable[[], float]) -> None:
        self.blob = blob
        self.window = min(window, FIRST_WINDOW)
        self.watchers: list[Callable[[int], None]] = []
        self.fetchers = 0
        self.asked = False
        self.want = m.Want()
        self.is_linked = False
        self.ticket = b""
        self.claim: Claim | None = None
        self._widest = window
        self._clock = clock
        self._since = 0.0
        self._from = 0
        self._due = 0
        self._credit = 0
        self._chunks: deque[bytes] = deque()
        self.error: PeerError | None = None
        self._changed = asyncio.Event()

    def ask(self, want: m.Want, claim: Claim | None = None) -> None:
        """From now on it comes as this says, or by a side stream for the `claim`."""
        self.asked, self.want, self.is_linked, self.ticket = True, want, False, b""
        self.claim = claim
        if claim is not None:
            claim.came.add_done_callback(lambda came: self._changed.set())
        self._due = self._from = want.offset
        self._credit = self.window
        self._since = self._clock()
        self._chunks.clear()

    def take(self, offset: int, data: bytes) -> None:
        """Some of it has come. Raises `ProtocolError` where that was not due."""
        size = len(data)
        if offset != self._due:
            raise ProtocolError(f"a chunk from {offset} where {self._due} is due", m.CODE_OUT_OF_ORDER)
        if not 0 < size <= min(self._credit, self.blob.size - self._due):
            raise ProtocolError(f"a chunk of {size} bytes; {self._credit} may be sent", m.CODE_TOO_LARGE)
        self._due += size
        self._credit -= size
        self._chunks.append(data)
        self._changed.set()

    def link(self, ticket: bytes = b"") -> bool:
        """The peer has linked the file, or has given a ticket for it; False where that was not asked for."""
        if not self.asked or not (self.want.dials if ticket else self.want.place):
            return False
        self.is_linked, self.ticket = not ticket, ticket
        self._changed.set()
        return True

    @property
    def streams(self) -> bool:
        """Whether there is a ticket for a side stream, or one has come."""
        return bool(self.ticket) or (self.claim is not None and self.claim.stream is not None)

    def fail(self, error: PeerError) -> None:
        """No more of it will come."""
        self.error = self.error or error
        self._changed.set()

    def check(self) -> None:
        """Raise why no more of it will come, if that is so."""
        if self.error is not None:
            raise self.error

    def consumed(self, size: int, offset: int) -> int:
        """How much more may be sent after `size` bytes are written: more than that, where it comes so quickly that two
        seconds' worth is more than the window.
        """
        rate = (offset - self._from) / max(self._clock() - self._since, 1e-3)
        more = max(0, min(int(2 * rate), self._widest) - self.window)
        self.window += more
        self._credit += size + more
        return size + more

    async def next(self) -> list[bytes]:
        """What has come since, at least something; none if the file is linked, or comes by a side stream."""
        while not (self._chunks or self.is_linked or self.streams):
            self.check()
            self._changed.clear()
            await self._changed.wait()
        self.check()
        chunks = list(self._chunks)
        self._chunks.clear()
        return chunks
