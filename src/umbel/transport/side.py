"""Side streams: TCP connections with TLS that carry one large blob each, beside the connection of a peer.

Whoever connects says a ticket, which a server has given it over its connection and which is good once, and is answered
one byte; then come the pieces of the blob, and nothing else: what is zero, or as in a blob that the receiver has, need
not be sent. Threads serve them, in which reading, encrypting, writing and hashing wait for nobody's Python. Nothing
depends on them: where none comes about, or one breaks, the rest of the blob goes over the connection.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar

from ..errors import ConnectionLost, SettingError
from ..wire.limits import PEER_SIDE_STREAMS, SIDE_PENDING, SIDE_SECONDS, SIDE_STREAMS
from .stream import Beside

T = TypeVar("T")

TICKET_BYTES = 32
CONNECT_SECONDS = 5.0
"""So long it takes at the most to connect, to prove who one is, and to be taken at one's ticket, each."""
CLAIM_SECONDS = 20.0
"""For so many seconds a ticket is good."""
_ACCEPTED = b"\1"
PIECE = 256 << 10
"""The bytes of each piece but the last; so much has to move in `SIDE_SECONDS`."""
_DATA, _ZEROS, _SAME = b"\0", b"\1", b"\2"
_NOTHING = bytes(PIECE)

Pair = Callable[[], tuple[bytes, bytes]]
Moved = Callable[[int], None]


class Sink(Protocol):
    """What takes the bytes of a blob, as an `IncomingBlob` of an exchange does; `skip` takes so many zeros."""

    offset: int

    def write(self, data: bytes | memoryview, /) -> None: ...
    def skip(self, count: int, /) -> None: ...


class SideStream:
    """A connection that carries the bytes of one blob, one way; it is to be closed."""

    def __init__(self, connection: socket.socket, threads: Executor) -> None:
        self._socket = connection
        self._threads = threads

    async def offered(self, ticket: bytes) -> bool:
        """Say a ticket; whether the other end has taken it. Raises `OSError` where there is no server that says so."""
        return await self._aside(_offered, self._socket, ticket)

    async def send(self, file: int, offset: int, size: int, moved: Moved, base: int | None = None) -> None:
        """Send the bytes of an open file from `offset` to `size`. `moved` is called with how far it is. The receiver
        has the open file `base`, of the same size.

        Raises `ConnectionLost` where the other end does not take them all, `OSError` where the file has them no more.
        """
        await self._aside(_sent, self._socket, file, offset, size, base, _from_thread(moved))

    async def receive(self, part: Sink, size: int, moved: Moved, base: int | None = None) -> None:
        """Write what comes to `part` until that has `size` bytes. `moved` is called with how far it is. `base` is the
        open file that the sender was told of.

        Raises `ConnectionLost` where the other end stops before, and what `part` raises; what has come is written then.
        """
        await self._aside(_received, self._socket, part, size, base, _from_thread(moved))

    def close(self) -> None:
        """End it."""
        _cut(self._socket)
        self._socket.close()

    async def _aside(self, work: Callable[..., T], *args: object) -> T:
        done = asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            _cut(self._socket)
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({done})
            done.cancelled() or done.exception()  # looked at, so that nobody complains that it was not
            raise


class SideDialer:
    """Opens side streams to a server at a `port` of its own, as long as that `works`; it is to be closed."""

    def __init__(self, beside: Beside | None, port: int) -> None:
        self.works = beside is not None and port > 0
        self._beside, self._port = beside, port
        self._threads = ThreadPoolExecutor(PEER_SIDE_STREAMS, "umbel-side")

    async def dial(self, ticket: bytes) -> SideStream | None:
        """A side stream that the server has taken at this ticket; None where none is to be had."""
        try:
            stream = SideStream(await self._connected(), self._threads)
        except OSError:
            self.works = False
            return None
        try:
            if await stream.offered(ticket):
                return stream
        except OSError:
            self.works = False
        except BaseException:
            stream.close()
            raise
        stream.close()
        return None

    def close(self) -> None:
        """Open no more."""
        self.works = False
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _connected(self) -> socket.socket:
        """A connection on which nothing was said yet."""
        if self._beside is None:
            raise ConnectionRefusedError
        loop = asyncio.get_running_loop()
        failed: OSError = ConnectionRefusedError()
        for family, kind, protocol, _, address in await loop.getaddrinfo(
            self._beside.host, self._port, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.sock_connect(connection, address)
                connection.settimeout(CONNECT_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._secured(connection, self._beside)
            except OSError as error:
                connection.close()
                failed = error
            except BaseException:
                connection.close()
                raise
        raise failed

    def _secured(self, connection: socket.socket, beside: Beside) -> socket.socket:
        if beside.roots is None:
            return connection
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=beside.roots.decode())
        return context.wrap_socket(connection, server_hostname=beside.name, do_handshake_on_connect=False)


class Claim:
    """A ticket that a server has given, good for `CLAIM_SECONDS`: `came` is done once a `stream` has come for it, or
    never will. It is to be closed.
    """

    def __init__(self, streams: SideStreams) -> None:
        loop = asyncio.get_running_loop()
        self.ticket = secrets.token_bytes(TICKET_BYTES)
        self.came: asyncio.Future[None] = loop.create_future()
        self.stream: SideStream | None = None
        self._streams = streams
        self._timer = loop.call_later(CLAIM_SECONDS, self.close)

    def close(self) -> None:
        """No stream is wanted any more; one that has come ends."""
        self._timer.cancel()
        self._streams.forget(self)
        if not self.came.done():
            self.came.set_result(None)
        if self.stream is not None:
            self.stream.close()

    def arrived(self, stream: SideStream) -> None:
        """Somebody has come for it."""
        if self.came.done():
            stream.close()
        else:
            self._timer.cancel()
            self.stream = stream
            self.came.set_result(None)


class SideStreams:
    """The side streams of a server, which are dialled at its `port`; that is 0 while there are none.
    `SIDE_STREAMS` have a ticket or go on at a time, at the most.
    """

    def __init__(self) -> None:
        self.port = 0
        self._pair: Pair | None = None
        self._tls: tuple[tuple[bytes, bytes], ssl.SSLContext] | None = None
        self._waiting: dict[bytes, Claim] = {}
        self._claims: set[Claim] = set()
        self._doors = ThreadPoolExecutor(SIDE_PENDING, "umbel-side-door")
        self._threads = ThreadPoolExecutor(SIDE_STREAMS, "umbel-side")
        self._pending: dict[asyncio.Future[None], socket.socket] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def open(self, host: str, ports: Sequence[int], pair: Pair | None) -> None:
        """Listen at the first of these ports that can be had, 0 being any that is free; without ports nowhere.

        `pair` gives the certificate and key, as PEM, for whoever connects now; without it there is no TLS. Raises
        `SettingError`.
        """
        self._pair = pair
        for port in ports:
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
                self._listener = socket.create_server((host, port), family=family, backlog=SIDE_PENDING)
                break
            except OSError as error:
                if port == ports[-1]:
                    text = f"cannot listen at {host}:{port} for blobs: {error.strerror or error}"
                    raise SettingError(text, hint="Choose another --blobs-port, or 0 for none.") from None
        if self._listener is not None:
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._accepting = asyncio.create_task(self._accept(self._listener))

    def claim(self) -> Claim | None:
        """A ticket for one side stream; None where none is to be had just now."""
        if not self.port or len(self._claims) >= SIDE_STREAMS:
            return None
        claim = Claim(self)
        self._claims.add(claim)
        self._waiting[claim.ticket] = claim
        return claim

    def forget(self, claim: Claim) -> None:
        """A ticket is good no more, and its stream, if it had one, is over."""
        self._waiting.pop(claim.ticket, None)
        self._claims.discard(claim)

    async def close(self) -> None:
        """Listen no more; those that go on are ended by whoever has claimed them."""
        self.port = 0
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
            self._listener.close()
        self._waiting.clear()
        while self._pending:
            for door in self._pending.values():
                _cut(door)
            await asyncio.wait(self._pending)
        self._doors.shutdown(wait=False)
        self._threads.shutdown(wait=False)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
                if len(self._pending) >= SIDE_PENDING:
                    connection.close()
                else:
                    self._let_in(connection, loop)
            except OSError:  # for example as many files are open as may be
                await asyncio.sleep(1.0)

    def _let_in(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        try:
            door = connection.dup()  # by which it is ended, whatever a thread does with the other
        except OSError:
            connection.close()
            raise
        task = loop.run_in_executor(self._doors, self._heard, connection, loop)
        self._pending[task] = door
        late = loop.call_later(2 * CONNECT_SECONDS, _cut, door)

        def gone(task: asyncio.Future[None]) -> None:
            late.cancel()
            self._pending.pop(task).close()

        task.add_done_callback(gone)

    # In a thread

    def _heard(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Hear the ticket of whoever has come, and give the stream to whom the ticket is from."""
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._pair is not None:
                connection = self._context(self._pair()).wrap_socket(connection, server_side=True)
            ticket = bytearray(TICKET_BYTES)
            if _filled(connection, memoryview(ticket)) and (claim := self._waiting.pop(bytes(ticket), None)):
                connection.sendall(_ACCEPTED)
                connection.settimeout(SIDE_SECONDS)
                loop.call_soon_threadsafe(claim.arrived, SideStream(connection, self._threads))
                return
        except (OSError, RuntimeError):  # it is gone, is somebody else, or the loop has ended
            pass
        connection.close()

    def _context(self, pair: tuple[bytes, bytes]) -> ssl.SSLContext:
        held = self._tls
        if held is None or held[0] != pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0  # nobody reads them, and what is unread as a connection ends takes the rest along
            with tempfile.NamedTemporaryFile() as file:  # its library reads keys from files alone
                file.write(pair[0] + b"\n" + pair[1])
                file.flush()
                context.load_cert_chain(file.name)
            held = self._tls = (pair, context)
        return held[1]


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # an SSLSocket's own method would go on without TLS
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _from_thread(moved: Moved) -> Moved:
    loop = asyncio.get_running_loop()

    def tell(offset: int) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(moved, offset)

    return tell


def _offered(connection: socket.socket, ticket: bytes) -> bool:
    if isinstance(connection, ssl.SSLSocket):
        connection.do_handshake()
    connection.sendall(ticket)
    taken = connection.recv(1) == _ACCEPTED
    connection.settimeout(SIDE_SECONDS)
    return taken


def _sent(connection: socket.socket, file: int, offset: int, size: int, base: int | None, moved: Moved) -> None:
    while offset < size:
        data = os.pread(file, min(PIECE, size - offset), offset)
        if len(data) < min(PIECE, size - offset):
            raise OSError("the file has become shorter")
        if base is not None and data == os.pread(base, len(data), offset):
            said = _SAME
        else:
            said = _ZEROS if data == _NOTHING[: len(data)] else _DATA + data
        try:
            connection.sendall(said)
        except OSError as error:
            raise ConnectionLost(f"a side stream broke: {error}") from None
        offset += len(data)
        moved(offset)
    with suppress(OSError):
        connection.recv(1)  # until the other end has it all, and ends


def _received(connection: socket.socket, part: Sink, size: int, base: int | None, moved: Moved) -> None:
    """Read one piece while the one before is written and hashed."""
    buffers, kind, offset = (bytearray(PIECE), bytearray(PIECE)), memoryview(bytearray(1)), part.offset
    written: Future[None] | None = None
    with ThreadPoolExecutor(1, "umbel-side-disk") as disk:
        while offset < size:
            due = min(PIECE, size - offset)
            view: bytes | memoryview = memoryview(buffers[0])[:due]
            count = due
            if not _filled(connection, kind):
                count = 0
            elif kind == _DATA:
                count = _filled(connection, memoryview(buffers[0])[:due])
            elif kind == _SAME and base is not None:
                view = os.pread(base, due, offset)
                count = len(view)
            elif kind != _ZEROS:
                count = 0
            if written is not None:
                written.result()
                moved(offset)
            if count:
                written = disk.submit(part.skip, due) if kind == _ZEROS else disk.submit(part.write, view[:count])
                offset += count
                buffers = buffers[::-1]
            if count < due:
                break
        if written is not None:
            written.result()
            moved(offset)
    if offset < size:
        raise ConnectionLost(f"a side stream ended after {offset} of {size} bytes")


def _filled(connection: socket.socket, view: memoryview) -> int:
    """Fill a buffer, as far as bytes come; how many that were."""
    count = 0
    with suppress(OSError):
        while count < len(view) and (more := connection.recv_into(view[count:])):
            count += more
    return count
