"""Changes bytes as one who knows what they are: frames, messages, trees, archives and logs stay nearly what they were,
so that what reads them gets far.
"""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

LONGEST = 1 << 16
NUMBERS = (0, 1, 2, 31, 32, 33, 127, 128, 255, 256, 4095, 4096, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1)
TEXTS = ("", "a", "0", "r", "0.0", "1.a", "../x", "\n", "\x1b[2J", "\x00", "é", "\u202e", "x" * 257, "~", "[]", "{}")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), -float("inf"), "", "x", "\x1b[2J\n", "é" * 300, [], {}, [[]], [None], {"": None}, {"~": "x"},
)  # fmt: skip


def mutate(data: bytes, draw: random.Random, shape: str, pool: Sequence[bytes] = ()) -> bytes:
    """A change of `data`, or several: `shape` says what it is, `pool` has others of the kind."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        change = _raw if draw.random() < 0.15 else SHAPES[shape]
        with suppress(Exception):  # bytes that are no longer what they are to be stay as they are
            data = change(data, draw, pool)[:LONGEST]
    return data


def _raw(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """Bits, runs of bytes, and joints with another of the pool."""
    place = draw.randrange(len(data) + 1)
    end = min(len(data), place + draw.choice((1, 1, 2, 4, 8, 64)))
    kind = draw.randrange(7)
    if kind == 0 and place < len(data):
        return data[:place] + bytes((data[place] ^ 1 << draw.randrange(8),)) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[end:]
    if kind == 2:
        return data[:place] + draw.randbytes(end - place) + data[end:]
    if kind == 3:
        return data[:place] + data[place:end] * draw.choice((2, 3, 100)) + data[end:]
    if kind == 4 and pool:
        other = draw.choice(pool)
        return data[:place] + other[draw.randrange(len(other) + 1) :]
    if kind == 5:
        number = draw.choice(NUMBERS)
        size = draw.choice((1, 2, 4, 8))
        return data[:place] + (number % (1 << 8 * size)).to_bytes(size, "little") + data[place + size :]
    return data[:place]


# Protocol buffers


def _varint(value: int) -> bytes:
    out = bytearray()
    value %= 1 << 64
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes) -> list[tuple[int, int, int | bytes]]:
    """The fields of an encoded message: number, wire type, and value. ValueError for what is none."""
    found: list[tuple[int, int, int | bytes]] = []
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while shift < 70:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError("a number without an end")

    while place < len(data):
        tag = varint()
        kind = tag & 7
        if not tag >> 3:
            raise ValueError("a field of no number")
        if kind == 0:
            found.append((tag >> 3, kind, varint()))
            continue
        size = {1: 8, 5: 4}.get(kind) if kind != 2 else varint()
        if size is None or place + size > len(data):
            raise ValueError("a field of no known kind")
        found.append((tag >> 3, kind, data[place : place + size]))
        place += size
    return found


def joined(parts: Sequence[tuple[int, int, int | bytes]]) -> bytes:
    """The message with these fields."""
    out = []
    for number, kind, value in parts:
        out.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            out.append(_varint(value))
        else:
            out.append((_varint(len(value)) if kind == 2 else b"") + value)
    return b"".join(out)


def _message(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    parts = fields(data)
    if not parts:
        return joined([(draw.randrange(1, 30), 2, draw.choice(TEXTS).encode())])
    place = draw.randrange(len(parts))
    number, kind, value = parts[place]
    what = draw.randrange(10)
    if what == 0:
        del parts[place]
    elif what == 1:
        parts += [parts[place]] * draw.choice((1, 2, 50))
    elif what == 2:
        parts[place] = (draw.randrange(1, 40), kind, value)
    elif what == 3 and pool:
        parts.insert(place, draw.choice(fields(draw.choice(pool)) or parts))
    elif isinstance(value, int):
        parts[place] = (number, kind, draw.choice((*NUMBERS, value + 1, value - 1)))
    elif kind == 2:
        parts[place] = (number, kind, _inside(value, draw, pool))
    else:
        odd = struct.pack("<d", draw.choice((0.0, -1.0, 1e308, float("nan"), float("inf"), 5e-324)))
        parts[place] = (number, kind, odd[: len(value)])
    return joined(parts)


def _inside(value: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """Change what has a length in a message: a message, text, JSON or a tree."""
    if draw.random() < 0.1:
        return draw.choice(TEXTS).encode()
    if value[:1] in (b"{", b"[") and draw.random() < 0.8:
        with suppress(ValueError, RecursionError):
            return _json(value, draw, pool)
    if value[8:9] == b"{" and draw.random() < 0.8:
        with suppress(ValueError, KeyError, struct.error):
            return _tree(value, draw, pool)
    with suppress(ValueError, IndexError):
        if fields(value) and draw.random() < 0.8:
            return _message(value, draw, pool)
    return _raw(value, draw, pool)


# JSON


def _json(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    if draw.random() < 0.05:
        depth = draw.choice((20, 31, 32, 33, 63, 64, 65, 66, 500, 1000, 3000, 20_000))
        opened, closed = draw.choice((("[", "]"), ('{"a":', "}")))
        return (opened * depth + "1" + closed * depth).encode()[:LONGEST]
    return json.dumps(changed(json.loads(data), draw)).encode()


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree of JSON with something in it changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            for key in each if isinstance(each, dict) else range(len(each)):
                places.append((each, key))
                waiting.append(each[key])
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    what = draw.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        other, other_key = draw.choice(places)
        with suppress(KeyError, IndexError):
            holder[key] = json.loads(json.dumps(other[other_key]))
    elif what == 2 and isinstance(holder, dict):
        holder[draw.choice(TEXTS)] = holder[key]
    elif what == 3 and isinstance(holder, list):
        holder += [holder[key]] * draw.choice((1, 2, 40))
    elif what == 4 and isinstance(holder[key], str):
        text = holder[key]
        place = draw.randrange(len(text) + 1)
        holder[key] = text[:place] + draw.choice(TEXTS) + text[place + draw.randrange(3) :]
    else:
        holder[key] = draw.choice(VALUES)
    return tree


# Trees, logs, archives, sequences


def _tree(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """A safetensors file, whose structure is JSON within JSON; the length in front is right most of the time."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if draw.random() < 0.7 and "umbel" in header.get("__metadata__", {}):
        inner = header["__metadata__"]["umbel"].encode()
        header["__metadata__"]["umbel"] = _json(inner, draw, pool).decode()
    elif draw.random() < 0.7:
        header = changed(header, draw)
    else:
        rest = _raw(rest, draw, pool)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def _log(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """Lines of a run's log, whose checksums are right."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    what = draw.randrange(8)
    if what == 0:
        del lines[place]
    elif what == 1:
        lines.insert(draw.randrange(len(lines)), lines[place])
    else:
        record = json.loads(lines[place])
        record.pop("crc", None)
        record = changed(record, draw)
        text = json.dumps(record, separators=(",", ":"), allow_nan=True)
        lines[place] = f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}'.encode()
    return b"\n".join(lines)


def _archive(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """A zip file, which is written anew."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = draw.randrange(len(files))
    name, content = files[place]
    what = draw.randrange(6)
    if what == 0:
        files.append((draw.choice((name, name.upper(), "../x", "a/b", ".x", "x" * 201, "manifest.json")), content))
    elif what == 1:
        del files[place]
    elif what == 2 and place:
        files[place] = (name, _raw(content, draw, pool))
    else:
        files[0] = (files[0][0], json.dumps(changed(json.loads(files[0][1]), draw), indent=1, sort_keys=True).encode())
    buffer = io.BytesIO()
    warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
    with zipfile.ZipFile(buffer, "w", draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def steps(data: bytes) -> list[tuple[int, bytes]]:
    """What a sequence is made of: a letter each, and bytes. Any bytes are some sequence."""
    found, place = [], 0
    while place + 3 <= len(data):
        size = int.from_bytes(data[place + 1 : place + 3], "little")
        found.append((data[place], data[place + 3 : place + 3 + size]))
        place += 3 + size
    return found


def sequence(parts: Sequence[tuple[int, bytes]]) -> bytes:
    """The bytes of a sequence."""
    return b"".join(bytes((letter % 256,)) + struct.pack("<H", len(body)) + body for letter, body in parts)


def _sequence(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    parts = steps(data)
    if not parts:
        return data
    place, what = draw.randrange(len(parts)), draw.randrange(9)
    letter, body = parts[place]
    if what == 0:
        del parts[place]
    elif what == 1:
        parts.insert(draw.randrange(len(parts) + 1), parts[place])
    elif what == 2:
        other = draw.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
    elif what == 3 and pool:
        parts[place:place] = draw.sample(found := steps(draw.choice(pool)), min(3, len(found)))
    elif what == 4:
        parts[place] = (draw.randrange(256), body)
    else:
        parts[place] = (letter, _inside(body, draw, [piece for _, piece in parts]))
    return sequence(parts)


SHAPES: dict[str, Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = {
    "raw": _raw,
    "message": _message,
    "json": _json,
    "tree": _tree,
    "log": _log,
    "archive": _archive,
    "sequence": _sequence,
}
"""How what is of a shape is changed."""
