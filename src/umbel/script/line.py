"""What a script and its host say to each other: trees of arrays and plain values, one after the other over a socket,
each with its length before it.

From the host: ``begin`` (`client`, `source`), then ``model`` or ``task``. From the script: ``model`` (`arrays`), its
initial model, and ``answer`` (`arrays`, `examples`, `metrics`, `state`). What a message is stands under `says`.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np

from ..core import encoding
from ..files import Bytes

VARIABLE = "UMBEL_SCRIPT"
"""The environment variable that names a script's end of the socket, by its descriptor."""
Message = dict[str, Any]
_LENGTH = struct.Struct("<Q")


def packed(message: Message) -> list[Bytes]:
    """The bytes of a message, in pieces that are not copied. Raises `StrategyError` for what is no such tree."""
    pieces = list(encoding.pieces(message))
    return [_LENGTH.pack(sum(map(len, pieces))), *pieces]


class Inbox:
    """Puts messages together as they come."""

    def __init__(self) -> None:
        self._room = memoryview(bytearray(_LENGTH.size))
        self._filled, self._is_length = 0, True

    def take(self, connection: socket.socket) -> Message | None:
        """Receive once; a message if that was its end. Raises EOFError where there will be no more, `CorruptFile` and
        MemoryError for what is no message.
        """
        count = connection.recv_into(self._room[self._filled :])
        if not count:
            raise EOFError
        self._filled += count
        if self._filled < len(self._room):
            return None
        room, self._filled, self._is_length = self._room, 0, not self._is_length
        if not self._is_length:
            self._room = memoryview(np.empty(*_LENGTH.unpack(room), np.uint8))  # type: ignore[call-overload]
            return None
        self._room = memoryview(bytearray(_LENGTH.size))
        return dict(encoding.decode(room, views=True))
