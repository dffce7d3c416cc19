"""Messages between a simulation's processes: small frames on a socket, with large arrays beside them in shared memory.

A message is any object that cloudpickle takes. Arrays in it are not copied into the frame: where they are large they
are written once into a segment of memory that has no name, whose descriptor travels with the frame, and which every
receiver maps read-only. A segment is gone with the last process that has it open, however that process ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from ..errors import StorageError

SMALL = 1 << 15
"""From so many bytes on, what is in a frame goes into a segment, so that frames pass through a socket at once."""
ALIGNMENT = 64
SHARES = hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")

_HEAD = struct.Struct("<IIQQ")  # parts, whether a segment comes along, bytes in the frame, bytes in the segment


class PackedMessage:
    """A message made ready to be sent, as often as needed: a frame, and the segment that goes with it if any.

    `close` when it will not be sent again.
    """

    __slots__ = ("_fd", "frame")

    def __init__(self, value: Any, *, shares: bool = SHARES) -> None:
        self._fd = -1
        head, buffers = _pickled(value)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        sizes = [part.nbytes for part in parts]
        table = struct.pack(f"<{len(parts)}Q", *sizes)
        padded = [_padded(size) for size in sizes]
        if shares and sum(padded) > SMALL:
            self._fd = _segment(parts, padded)
            self.frame = [_HEAD.pack(len(parts), 1, len(table), sum(padded)), table]
            return
        body = b"".join(bytes(part).ljust(size, b"\0") for part, size in zip(parts, padded, strict=True))
        self.frame = [_HEAD.pack(len(parts), 0, len(table) + len(body), 0), table, body]

    @property
    def descriptors(self) -> list[int]:
        """The segment's descriptor, in a list."""
        return [] if self._fd < 0 else [self._fd]

    @property
    def whole(self) -> list[bytes]:
        """The frame with all that is in the segment, for those who cannot be handed a descriptor."""
        if self._fd < 0:
            return self.frame
        parts, _, inline, size = _HEAD.unpack(self.frame[0])
        with mmap.mmap(self._fd, size, access=mmap.ACCESS_READ) as segment:
            return [_HEAD.pack(parts, 0, inline + size, 0), *self.frame[1:], segment[:]]

    def close(self) -> None:
        """Let go of the segment; those who received it keep it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class Channel:
    """One end of a connected stream socket. `send` and `receive` raise EOFError once the other end is gone."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._shares = SHARES and connected.family == socket.AF_UNIX
        self._sending = threading.Lock()  # a client's threads print while its results are sent
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connected.setsockopt(socket.SOL_SOCKET, option, 1 << 20)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """A channel, and the socket for its other end."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, value: Any) -> None:
        """Send a message, which may be one that was made ready before."""
        with self._ready(value) as (data, descriptors):
            try:
                with self._sending:
                    sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else 0
                    self._socket.sendall(memoryview(data)[sent:])
            except OSError as error:
                raise EOFError("the other process is gone") from error

    def post(self, value: Any) -> None:
        """Send a message as far as there is room; `flush` sends the rest. It never waits for the other end."""
        with self._ready(value) as (data, descriptors):
            self._outgoing.append((memoryview(data), [os.dup(descriptor) for descriptor in descriptors]))
        self.flush()

    @contextmanager
    def _ready(self, value: Any) -> Iterator[tuple[bytes, list[int]]]:
        parcel = value if isinstance(value, PackedMessage) else PackedMessage(value, shares=self._shares)
        try:
            yield b"".join(parcel.frame if self._shares else parcel.whole), parcel.descriptors if self._shares else []
        finally:
            if parcel is not value:
                parcel.close()

    @property
    def waiting(self) -> bool:
        """Whether something that was posted is still to be sent."""
        return bool(self._outgoing)

    def flush(self) -> None:
        """Send what was posted, as far as there is room."""
        try:
            self._socket.setblocking(False)
            try:
                while self._outgoing:
                    data, descriptors = self._outgoing[0]
                    if descriptors:
                        sent = socket.send_fds(self._socket, [data], descriptors)
                        os.close(descriptors.pop())
                    else:
                        sent = self._socket.send(data)
                    if sent == len(data):
                        self._outgoing.popleft()
                    else:
                        self._outgoing[0] = data[sent:], []
            finally:
                self._socket.setblocking(True)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError("the other process is gone") from error

    def receive(self) -> Any:
        """Wait for the next message."""
        descriptors: list[int] = []
        try:
            head = self._head(descriptors)
            parts, segmented, inline, size = _HEAD.unpack(head)
            body = self._exactly(inline)
            sizes = struct.unpack_from(f"<{parts}Q", body)
            if not segmented:
                data = memoryview(body)[8 * parts :]
            elif descriptors:
                data = memoryview(mmap.mmap(descriptors[0], size, access=mmap.ACCESS_READ))
            else:
                raise EOFError("a message came without its segment")
        except OSError as error:
            raise EOFError("the other process is gone") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return _loaded(data, sizes)

    def close(self) -> None:
        """Close this end; what was posted and is not sent yet is lost."""
        while self._outgoing:
            for descriptor in self._outgoing.popleft()[1]:
                os.close(descriptor)
        self._socket.close()

    def _head(self, descriptors: list[int]) -> bytes:
        if not self._shares:
            return self._exactly(_HEAD.size)
        data, received, _, _ = socket.recv_fds(self._socket, _HEAD.size, 1)
        descriptors += received
        if not data:
            raise EOFError("the other process is gone")
        return data + self._exactly(_HEAD.size - len(data))

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._socket.recv(min(size, 1 << 20))
            if not piece:
                raise EOFError("the other process is gone")
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def memory_file(size: int) -> int:
    """A descriptor of so many zero bytes of memory without a name. Raises `StorageError` where there is no room."""
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("umbel")
        else:
            import tempfile

            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
    except OSError as error:
        raise StorageError(f"there is no shared memory: {error.strerror}") from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise StorageError(f"there is no shared memory for {size:,} bytes: {error.strerror}") from error
    return fd


def _segment(parts: Sequence[memoryview], padded: Sequence[int]) -> int:
    fd = memory_file(sum(padded))
    try:
        at = 0
        for part, size in zip(parts, padded, strict=True):
            view, start = part.cast("B"), 0
            while start < view.nbytes:
                start += os.pwrite(fd, view[start : start + (1 << 30)], at + start)
            at += size
    except OSError as error:
        os.close(fd)
        raise StorageError(f"shared memory cannot be written: {error.strerror}") from error
    return fd


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pickled(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """What pickle makes of a value, with its arrays apart; cloudpickle where only that can."""
    buffers: list[pickle.PickleBuffer] = []
    from cloudpickle import Pickler

    file = BytesIO()
    Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    return file.getvalue(), buffers


def _loaded(data: memoryview, sizes: Sequence[int]) -> Any:
    views, at = [], 0
    for size in sizes:
        views.append(data[at : at + size])
        at += _padded(size)
    return pickle.loads(views[0], buffers=views[1:])
