"""A proxy on loopback that lets through what a test allows, and cuts when told."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 64 << 10


class Proxy:
    """Passes TCP connections on to `target`, ``host:port``, under the control of a test; use it with ``async with``. It
    listens `at` another address of loopback.

    - `address`: where to connect to instead.
    - `passed`: bytes let through so far, both directions together. `held`: how often some had to wait to be allowed.
    - `connected`: how many ends of connections are open.
    - `allow(n)`: from now on only so many bytes more get through, until `allow` is called again; None for all.
    - `cut_after(n)`: when so many bytes more have got through, all connections are reset, once.
    - `cut()`: they are reset now. `refuse(True)`: new ones are reset as well.
    - `reached(n)`: waits until so many bytes have got through in all.
    """

    def __init__(self, target: str, at: str = "127.0.0.1:0") -> None:
        self.address = at
        self.passed = 0
        self.cuts = 0
        self.held = 0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._allowed: int | None = None
        self._cut_at: int | None = None
        self._refusing = False
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._accepted, host, int(port))
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._refusing = True
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._server is not None:
            await self._server.wait_closed()

    @property
    def connected(self) -> int:
        """How many ends of connections are open: two for each that was passed on."""
        return sum(not writer.is_closing() for writer in self._writers)

    def allow(self, size: int | None) -> None:
        """Let only so many bytes more through; None for all."""
        self._allowed = size
        self._tell()

    def cut_after(self, size: int) -> None:
        """Reset all connections when so many bytes more have got through."""
        self._cut_at = self.passed + size

    def cut(self) -> None:
        """Reset all connections."""
        self.cuts += 1
        self._cut_at = None
        for writer in self._writers:
            _reset(writer)
        self._writers.clear()
        self._tell()

    def refuse(self, refusing: bool) -> None:
        """Whether new connections are reset."""
        self._refusing = refusing

    async def reached(self, size: int) -> None:
        """Wait until so many bytes have got through in all."""
        while self.passed < size:
            await self._changed.wait()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        self._writers.add(writer)
        try:
            onward, there = await asyncio.open_connection(self._host, self._port)
        except OSError:
            _reset(writer)
            return
        if writer not in self._writers:  # cut meanwhile
            there.transport.abort()
            return
        self._writers.add(there)
        for source, sink in ((reader, there), (onward, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(PIECE):
                while data and sink in self._writers:
                    size = await self._room(len(data), sink)
                    sink.write(data[:size])
                    data = data[size:]
                    await sink.drain()
                    self.passed += size
                    self._tell()
                    if self._cut_at is not None and self.passed >= self._cut_at:
                        self.cut()
            sink.close()
        except OSError:
            _reset(sink)  # as who sent it was: what nobody passes on is not to look like silence

    async def _room(self, wanted: int, sink: asyncio.StreamWriter) -> int:
        """How many bytes may pass now; they are counted as passed."""
        self.held += self._allowed == 0
        while self._allowed == 0 and sink in self._writers:
            await self._changed.wait()
        size = wanted if self._allowed is None else min(wanted, self._allowed)
        if self._cut_at is not None:
            size = min(size, max(self._cut_at - self.passed, 1))
        if self._allowed is not None:
            self._allowed -= size
        return size

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as if its line were cut: what is under way is lost, and the other end gets an error."""
    linger = struct.pack("ii", 1, 0)
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
