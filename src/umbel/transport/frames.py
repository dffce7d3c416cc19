"""Frames as bytes: how messages are put into one, and all that is checked before anybody looks at what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from ..errors import ProtocolError
from ..wire import messages as m
from ..wire.limits import CHUNK_BYTES, FRAME_BYTES, FRAME_MESSAGES, HANDSHAKE_FRAME_BYTES, INLINE_BYTES, NAME_BYTES

HASH_BYTES = 32

_TEXTS = {
    "text", "reason", "contract", "config", "fold", "transforms", "event", "body", "software", "place", "status",
}  # fmt: skip
"""Fields that are no names: only the frame bounds their length."""
_NUMBER, _MESSAGES = b"\x08", 2
_BODIES = {field.name: field.number for field in m.Message.DESCRIPTOR.fields}

Check = Callable[[Any, m.Limits], None]


def standard_limits() -> m.Limits:
    """The limits that a server sets unless it is told otherwise."""
    return m.Limits(
        frame_bytes=FRAME_BYTES, chunk_bytes=CHUNK_BYTES, inline_bytes=INLINE_BYTES, name_bytes=NAME_BYTES,
        messages=FRAME_MESSAGES,
        idle_seconds=30,
    )  # fmt: skip


def handshake_limits() -> m.Limits:
    """The limits until both sides know who the other is."""
    limits = standard_limits()
    limits.MergeFrom(m.Limits(frame_bytes=HANDSHAKE_FRAME_BYTES, chunk_bytes=1, messages=1))
    return limits


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(name: str, body: bytes) -> bytes:
    """A message with the body called `name`, whose bytes are given and stay as they are."""
    return _tag(_BODIES[name]) + varint(len(body)) + body


def chunk(sha256: bytes, offset: int, data: bytes) -> list[bytes]:
    """A message with a chunk, in pieces, so that its data is copied only once."""
    head = m.Chunk(sha256=sha256, offset=offset).SerializeToString() + _tag(3) + varint(len(data))
    return [_tag(_BODIES["chunk"]) + varint(len(head) + len(data)) + head, data]


def frame(number: int, messages: Iterable[Sequence[bytes]]) -> bytes:
    """A frame of messages, each of which may be in pieces."""
    parts = [_NUMBER, varint(number)]
    for pieces in messages:
        parts += (_tag(_MESSAGES), varint(sum(map(len, pieces))))
        parts += pieces
    return b"".join(parts)


def read(data: bytes, number: int, limits: m.Limits) -> list[m.Message]:
    """The messages of the frame that must have this `number`. Raises `ProtocolError`."""
    if len(data) > limits.frame_bytes:
        raise ProtocolError(f"a frame of {len(data)} bytes; the limit is {limits.frame_bytes}", m.CODE_TOO_LARGE)
    try:
        found = m.Frame.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"these {len(data)} bytes are no frame: {error}", m.CODE_MALFORMED) from None
    if found.number != number:
        raise ProtocolError(f"frame {found.number} came where {number} is due", m.CODE_OUT_OF_ORDER)
    messages = list(found.messages)
    if not messages:
        raise ProtocolError("a frame without messages", m.CODE_MALFORMED)
    if len(messages) > limits.messages:
        raise ProtocolError(f"{len(messages)} messages in a frame; the limit is {limits.messages}", m.CODE_TOO_LARGE)
    least = min(limits.name_bytes, limits.inline_bytes, limits.chunk_bytes)
    for each in messages:
        body = each.WhichOneof("body")
        if body is None:
            raise ProtocolError("a message without a body that is known", m.CODE_MALFORMED)
        # What is no longer as a whole has no part that is longer.
        if (check := (_CHECKS_OF_SMALL if each.ByteSize() <= least else _CHECKS)[body]) is not None:
            check(getattr(each, body), limits)
    return messages


def raw_body(data: bytes) -> bytes:
    """The bytes of the body in a frame of one message, as they were sent. Raises `ProtocolError`."""
    messages = [value for field, value in _fields(data) if field == _MESSAGES]
    bodies = list(_fields(messages[0])) if len(messages) == 1 else []
    if len(bodies) != 1 or bodies[0][1] is None:  # protobuf would merge several; a proof must be about one
        raise ProtocolError("one message with one body was due", m.CODE_MALFORMED)
    return bodies[0][1]


def _tag(field: int) -> bytes:
    return varint(field << 3 | 2)


def _fields(data: bytes | None) -> Iterator[tuple[int, bytes | None]]:
    """The fields of an encoded message that protobuf has accepted: number and, if it has a length, content."""
    place = 0

    def next_varint() -> int:
        nonlocal place
        value = shift = 0
        while data is not None and place < len(data):
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ProtocolError("a field ends too soon", m.CODE_MALFORMED)

    while data is not None and place < len(data):
        tag = next_varint()
        kind = tag & 7
        if kind == 0:
            next_varint()
            yield tag >> 3, None
        elif kind == 2:
            size = next_varint()
            yield tag >> 3, data[place : place + size]
            place += size
        else:
            raise ProtocolError(f"a field of kind {kind}, which no message has", m.CODE_MALFORMED)


def _name_check(name: str, repeated: bool) -> Check:
    def check(found: Any, limits: m.Limits) -> None:
        most = limits.name_bytes
        value = getattr(found, name)
        for text in value if repeated else (value,):
            if len(text) > most or (len(text) * 4 > most and len(text.encode()) > most):
                raise ProtocolError(f"a {name!r} longer than {most} bytes", m.CODE_TOO_LARGE)

    return check


def _inner_check(name: str, repeated: bool, inner: Check) -> Check:
    def check(found: Any, limits: m.Limits) -> None:
        if repeated:
            for each in getattr(found, name):
                inner(each, limits)
        elif found.HasField(name):
            inner(getattr(found, name), limits)

    return check


def _blob_check(blob: m.Blob, limits: m.Limits) -> None:
    if len(blob.sha256) != HASH_BYTES:
        raise ProtocolError(f"a blob with a hash of {len(blob.sha256)} bytes, not {HASH_BYTES}", m.CODE_MALFORMED)
    if blob.size >> 63:
        raise ProtocolError(f"a blob of {blob.size} bytes", m.CODE_MALFORMED)


def _small_payload_check(payload: m.Payload, limits: m.Limits) -> None:
    if payload.HasField("blob"):
        _blob_check(payload.blob, limits)


def _payload_check(payload: m.Payload, limits: m.Limits) -> None:
    if (size := len(payload.inline) or len(payload.message)) > limits.inline_bytes:
        raise ProtocolError(f"{size} bytes inline; from {limits.inline_bytes} on it is a blob", m.CODE_TOO_LARGE)
    _small_payload_check(payload, limits)


def _chunk_check(found: Any, limits: m.Limits) -> None:
    # To look at its data would copy it: its length is what the rest does not take.
    rest = found.ByteSize() - m.Chunk(sha256=found.sha256, offset=found.offset).ByteSize()
    size = next((rest - 1 - k for k in range(1, 6) if rest - 1 - k >= 0 and len(varint(rest - 1 - k)) == k), 0)
    if size > limits.chunk_bytes:
        raise ProtocolError(f"a chunk of {size} bytes; the limit is {limits.chunk_bytes}", m.CODE_TOO_LARGE)


def _check_of(kind: type[Message], small: bool) -> Check | None:
    """All that is checked of one kind of message: its names, and what is inside. Of those that are `small` the names
    are not too long, nor is what is inside.
    """
    special: dict[str, Check | None] = {"Blob": _blob_check, "Payload": _payload_check, "Chunk": _chunk_check}
    if small:
        special |= {"Payload": _small_payload_check, "Chunk": None}
    if kind.DESCRIPTOR.name in special:
        return special[kind.DESCRIPTOR.name]
    checks: list[Check] = []
    for field in kind.DESCRIPTOR.fields:
        repeated = field.is_repeated
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            if (of_inner := _check_of(getattr(m, inner.name), small)) is not None:
                checks.append(_inner_check(field.name, repeated, of_inner))
        elif not small and (inner is not None or (field.type == field.TYPE_STRING and field.name not in _TEXTS)):
            checks.append(_name_check(field.name, repeated))  # of a map its keys
    if not checks:
        return None

    def check(found: Any, limits: m.Limits) -> None:
        for each in checks:
            each(found, limits)

    return check


_CHECKS, _CHECKS_OF_SMALL = (
    {
        field.name: _check_of(getattr(m, field.message_type.name), small)
        for field in m.Message.DESCRIPTOR.fields
        if field.message_type is not None
    }
    for small in (False, True)
)
