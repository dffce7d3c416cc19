"""Streams over gRPC: one bidirectional call of a method that carries bytes as they are.

There is no generated code and no deadline. Trust comes from the certificate that a client pins: the name in it is
always the same, wherever the server is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library writes to stderr what errors say here

import grpc
import grpc.aio

from ..errors import ConnectionLost, SettingError
from ..wire.limits import MESSAGE_BYTES, WINDOW_BYTES
from .stream import Beside, Listener, OnStream, Stream, served

METHOD = "/umbel.v1alpha.Umbel/Connect"
PIECE_BYTES = MESSAGE_BYTES - 1
"""A frame is cut into pieces of so many bytes, each behind a byte that says whether more of it follow: gRPC holds a
message that is still coming, whoever sends it.
"""
FIRST_FRAMES, FIRST_BYTES = 2, 256 << 10
"""So many frames of a stream may have no more bytes than that: by then its other end has proved who it is."""
FRAME_BYTES = 8 << 20
"""The largest frame that is put together at all; those who have come to know each other have a limit of their own."""
SERVER_NAME = "umbel-server"

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # A fixed window: probing lets it, and the memory for it, grow without need.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.max_frame_size", 1 << 20),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
    ("grpc.max_concurrent_streams", 100),  # of one connection
)
SECONDS = 20.0
"""A connection over which no stream was opened by then is ended."""
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    ("grpc.http2.lookahead_bytes", 8 << 20),  # to whom one has connected one trusts
    ("grpc.use_local_subchannel_pool", 1),  # connections of their own, which end with the channel
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)
# Its library prints a traceback when a peer is gone before its call's end could be told; that is nobody's fault.
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: "raised in core by" not in record.getMessage())
_LAST, _MORE = b"\0", b"\1"
_REFUSALS = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED}


class _Pieces:
    """Puts frames together again, and says no more of one that is too large than that it is."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._frames = 0

    def add(self, data: bytes) -> bytes | None:
        """The frame, if this was its last piece."""
        self._parts.append(data[1:])
        self._size += len(data) - 1
        most = FIRST_BYTES if self._frames < FIRST_FRAMES else FRAME_BYTES
        if data[:1] == _MORE and self._size <= most:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        self._frames += 1
        return whole


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, max(len(data), 1), PIECE_BYTES):
        yield (_LAST if at + PIECE_BYTES >= len(data) else _MORE) + data[at : at + PIECE_BYTES]


class _Call:
    """The client's end."""

    def __init__(self, channel: Any, call: Any, peer: str, roots: bytes | None) -> None:
        self.peer = peer
        self.beside: Beside | None = Beside(peer.rpartition(":")[0].strip("[]"), SERVER_NAME, roots)
        self._channel = channel
        self._call = call
        self._pieces = _Pieces()
        self._finished = False
        self._closed = False

    async def send(self, data: bytes) -> None:
        if self._closed or self._finished:
            raise ConnectionLost("the stream is closed")
        try:
            for piece in _pieces(data):
                await self._call.write(piece)
        except asyncio.CancelledError:
            if _cancelling():  # else it is the call that was cancelled, here or by the peer
                raise
            raise ConnectionLost("the stream is closed") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise ConnectionLost(f"{self.peer}: {self._why(error)}") from None

    async def receive(self) -> bytes | None:
        if self._closed:
            return None
        frame = None
        try:
            while frame is None and isinstance(data := await self._call.read(), bytes):
                frame = self._pieces.add(data)
        except asyncio.CancelledError:
            if _cancelling():
                raise
            return None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSALS:
                raise ConnectionLost(f"{self.peer}: {error.details()}") from None
            return None
        return frame

    async def finish(self) -> None:
        if self._finished or self._closed:
            return
        self._finished = True
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):  # the peer has ended it
            await self._call.done_writing()

    async def close(self, grace: float = 0.0) -> None:
        if self._closed:
            return
        if self._finished and grace > 0:
            ended = asyncio.ensure_future(self._call.code())
            await asyncio.wait({ended}, timeout=grace)
            ended.cancel()
        self._closed = True
        self._call.cancel()
        await self._channel.close()

    @staticmethod
    def _why(error: Exception) -> str:
        return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else "the stream has ended"


class _ServerStream:
    """The server's end: the call is over when its handler returns, which is when the stream is closed."""

    beside: Beside | None = None

    def __init__(self, context: Any) -> None:
        self.peer = str(context.peer())
        self.over = asyncio.Event()
        self._context = context
        self._pieces = _Pieces()
        self._receiver: asyncio.Task[Any] | None = None

    async def send(self, data: bytes) -> None:
        if self.over.is_set():
            raise ConnectionLost("the stream is closed")
        try:
            for piece in _pieces(data):
                await self._context.write(piece)
        except Exception:  # grpc has several, some of them private, for a call that is over
            raise ConnectionLost(f"{self.peer}: the stream has ended") from None

    async def receive(self) -> bytes | None:
        if self.over.is_set():
            return None
        self._receiver = asyncio.current_task()
        frame = None
        try:
            while frame is None and isinstance(data := await self._context.read(), bytes):
                frame = self._pieces.add(data)
        except asyncio.CancelledError:
            if self._receiver is not None or self._uncancelled() > 0:
                raise
            return None
        except Exception:
            return None
        finally:
            self._receiver = None
        return frame

    async def finish(self) -> None:
        self._end()

    async def close(self, grace: float = 0.0) -> None:
        self._end()

    def _end(self) -> None:
        self.over.set()
        # The handler's return ends a pending read only once the peer has taken all that was sent, which may be never.
        if self._receiver is not None and self._receiver is not asyncio.current_task():
            receiver, self._receiver = self._receiver, None
            receiver.cancel()

    @staticmethod
    def _uncancelled() -> int:
        task = asyncio.current_task()
        return task.uncancel() if task is not None else 0


class _Listener:
    def __init__(self, server: Any, address: str, on_stream: OnStream, most: int) -> None:
        self._most = most
        self.address = address
        self._server = server
        self._on_stream = on_stream
        self._tasks: dict[asyncio.Task[None], _ServerStream] = {}
        self._closing = False

    async def handle(self, _: Any, context: Any) -> None:
        """Serve a call until its stream is closed. The serving is a task of its own: grpc cancels this one as soon as
        the peer is gone, perhaps in the middle of what came before.
        """
        if self._closing or len(self._tasks) >= self._most:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{len(self._tasks)} others are connected")
        await context.send_initial_metadata(())
        stream = _ServerStream(context)
        task = asyncio.create_task(served(self._on_stream, stream))
        self._tasks[task] = stream
        task.add_done_callback(self._tasks.pop)
        await stream.over.wait()

    async def close(self, grace: float = 0.0) -> None:
        self._closing = True
        tasks = dict(self._tasks)
        if tasks and grace > 0:
            await asyncio.wait(tasks, timeout=grace)
        for stream in tasks.values():
            await stream.close()
        await self._server.stop(0)
        await asyncio.gather(*tasks, return_exceptions=True)


class _Method:
    def __init__(self) -> None:
        self.listener: _Listener | None = None

    def service(self, handler_call_details: Any) -> Any:
        """How a call of the one method is served, None for any other."""
        if self.listener is None or handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self.listener.handle)


async def connect(address: str, ca_pem: bytes | None) -> Stream:
    """Open a stream to the server at `address`, which is ``host:port``.

    Only a server with a certificate for `SERVER_NAME` from the authority `ca_pem` is accepted; None means plaintext.
    Raises `ConnectionLost` where nobody can be reached, or where it is somebody else.
    """
    if ca_pem is None:
        channel = grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS)
    else:
        options = (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME))
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca_pem), options)
    call = channel.stream_stream(METHOD)()
    try:
        await call.wait_for_connection()
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise ConnectionLost(f"no connection to {address}: {error.details()}", hint=_hint(error)) from None
    except BaseException:
        call.cancel()
        await channel.close()
        raise
    return _Call(channel, call, address, ca_pem)


async def serve(
    address: str,
    certificate: bytes | None,
    key: bytes | None,
    on_stream: OnStream,
    *,
    most: int = 10_000,
    seconds: float = SECONDS,
    renewed: Callable[[], tuple[bytes, bytes]] | None = None,
    window: int = WINDOW_BYTES,
) -> Listener:
    """Listen at `address`, ``host:port`` with port 0 for any that is free, and call `on_stream` for each stream.

    `certificate` and `key` are PEM, and mean TLS; None for both means plaintext. At most `most` streams at a time.
    Who has not opened one after `seconds`, in TLS or before it, is put out. `renewed` gives the certificate and key for
    whoever connects from now on; it is called in other threads. So much as `window` of a stream lies in memory unread.
    Raises `SettingError` where the address cannot be had or the certificate is none.
    """
    method = _Method()
    patience = round(1000 * seconds)
    slow = (("grpc.server_handshake_timeout_ms", patience), ("grpc.max_connection_idle_ms", patience))
    server = grpc.aio.server(options=(*_SERVER_OPTIONS, ("grpc.http2.lookahead_bytes", window), *slow))
    server.add_generic_rpc_handlers((method,))
    try:
        if certificate is None or key is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(certificate, key, renewed))
    except RuntimeError as error:
        await server.stop(0)
        raise SettingError(f"cannot listen at {address}: {error}", hint="Is another server running there?") from None
    method.listener = _Listener(server, f"{address.rpartition(':')[0]}:{port}", on_stream, most)
    await server.start()
    return method.listener


def _credentials(certificate: bytes, key: bytes, renewed: Callable[[], tuple[bytes, bytes]] | None) -> Any:
    if renewed is None:
        return grpc.ssl_server_credentials([(key, certificate)])
    held = (certificate, key)

    def newest() -> Any:
        """What has changed since it was asked for last; None for nothing."""
        nonlocal held
        now = renewed()
        if now == held:
            return None
        held = now
        return grpc.ssl_server_certificate_configuration([(now[1], now[0])])

    first = grpc.ssl_server_certificate_configuration([(key, certificate)])
    return grpc.dynamic_ssl_server_credentials(first, newest)


def _hint(error: Any) -> str | None:
    if "CERTIFICATE_VERIFY_FAILED" in (error.details() or ""):
        return "The server has another certificate than expected: check the line that it printed, and the address."
    return None


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
