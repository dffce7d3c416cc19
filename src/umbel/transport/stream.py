"""Streams: what carries frames, whatever is underneath; and the kind that stays within one process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConnectionLost, PeerError

OnStream = Callable[["Stream"], Awaitable[None]]
"""What serves a stream that somebody has opened; the stream is closed when it returns."""


@dataclass(frozen=True)
class Beside:
    """What it takes to connect once more to where a stream leads, at another port: the `host`, and the certificates
    `roots` (PEM) of who may say that it is `name`; without them there is no TLS.
    """

    host: str
    name: str
    roots: bytes | None


class Stream(Protocol):
    """One end of a duplex stream of byte strings, which arrive whole, once, and in order, or not at all.

    - `peer`: where the other end is, in words; `beside`: how to connect there once more, if that can be.
    - `send` waits while the peer does not read, and raises `ConnectionLost` once it cannot receive any more.
    - `receive` gives what comes next, None at the end: the peer has finished or is gone, or this side has closed.
    - `finish`: no more is sent; what was sent still arrives, then the peer's `receive` gives None.
    - `close` ends both directions; after `finish` it leaves the peer up to `grace` seconds to take what was sent.

    One task at a time may send and one may receive. Cancelling either ends the stream.
    """

    peer: str
    beside: Beside | None

    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes | None: ...
    async def finish(self) -> None: ...
    async def close(self, grace: float = 0.0) -> None: ...


class Listener(Protocol):
    """What accepts streams at an address; `close` ends them after up to `grace` seconds, and waits for those served."""

    address: str

    async def close(self, grace: float = 0.0) -> None: ...


class _Way:
    """One direction of a pair: so many items at a time, an end, or a cut that loses what is under way."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: deque[bytes] = deque()
        self._ended = False
        self._cut = False
        self._moved = asyncio.Event()

    async def put(self, data: bytes) -> None:
        while len(self._items) >= self._room and not self._cut:
            await self._wait()
        if self._cut or self._ended:
            raise ConnectionLost("the stream is closed")
        self._items.append(data)
        self._moved.set()

    async def take(self) -> bytes | None:
        while not self._items and not self._ended and not self._cut:
            await self._wait()
        if self._cut or not self._items:
            return None
        self._moved.set()
        return self._items.popleft()

    def end(self, *, cut: bool = False) -> None:
        self._ended = True
        self._cut |= cut
        self._moved.set()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()


class _MemoryStream:
    beside: Beside | None = None

    def __init__(self, peer: str, outgoing: _Way, incoming: _Way) -> None:
        self.peer = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self._finished = False

    async def send(self, data: bytes) -> None:
        await self._outgoing.put(data)

    async def receive(self) -> bytes | None:
        return await self._incoming.take()

    async def finish(self) -> None:
        self._finished = True
        self._outgoing.end()

    async def close(self, grace: float = 0.0) -> None:
        self._incoming.end(cut=True)
        self._outgoing.end(cut=not self._finished)


def pair(room: int = 8) -> tuple[Stream, Stream]:
    """Two ends of a stream within this process; each direction holds up to `room` items that nobody has received."""
    there, back = _Way(room), _Way(room)
    return _MemoryStream("memory:1", there, back), _MemoryStream("memory:0", back, there)


class MemoryListener:
    """A listener for streams within this process: `connect` opens one."""

    def __init__(self, on_stream: OnStream, room: int = 8) -> None:
        self.address = "memory"
        self._on_stream = on_stream
        self._room = room
        self._served: dict[asyncio.Task[None], Stream] = {}

    async def connect(self) -> Stream:
        """Open a stream to whoever listens."""
        ours, theirs = pair(self._room)
        task = asyncio.create_task(served(self._on_stream, theirs))
        self._served[task] = theirs
        task.add_done_callback(self._served.pop)
        return ours

    async def close(self, grace: float = 0.0) -> None:
        """End what is being served and wait for it."""
        tasks = list(self._served)
        if tasks and grace > 0:
            await asyncio.wait(tasks, timeout=grace)
        for stream in list(self._served.values()):
            await stream.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def served(on_stream: OnStream, stream: Stream) -> None:
    """Serve one stream, then close it. What goes wrong with one peer is nobody else's trouble: an error that is not the
    peer's is told to the event loop's exception handler.
    """
    try:
        await on_stream(stream)
    except PeerError as error:
        error.__traceback__ = None  # whose frames hold the connection, which holds how it ended
    except Exception as error:
        told = {"message": f"serving {stream.peer} has failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)
    finally:
        await stream.close()
