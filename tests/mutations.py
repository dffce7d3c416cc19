"""Messages that are almost right: valid ones, a few fields of which are as a hostile or broken peer would have them."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from umbel.wire import messages as m

DEEP = "[" * 1000 + "]" * 1000
TEXTS = [
    "",
    "0",
    "1",
    "0.0",
    "1.0",
    "0.hostile",
    "a/b",
    "..",
    "9" * 5000,
    "é" * 200,
    "x" * 300,
    "\x1b[2J\n",
    "\0",
    "r",
    "q",
    "{",
    "[]",
    "{}",
    "[[",
    "null",
    "1",
    DEEP,
    '{"a": ' * 500 + "1" + "}" * 500,
    '[{"name": "clip_by_norm", "version": Infinity}]',
    '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": -Infinity}}]',
    '[{"name": "clip_by_norm", "version": 1e999}]',
    '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": NaN}}]',
    '[{"name": 1, "version": true}]',
    '[{"name": "clip_by_norm", "version": 1, "settings": 7}]',
    '["weighted_mean", {"x": 1}]',
    '["mean", []]',
    '{"contract": 1, "kinds": 7, "transforms": {}}',
    '{"kinds": [[]], "transforms": [null]}',
    '{"a": 1, "a": 2}',
    '{"n": 1' + "0" * 5000 + "}",
    "finished",
    "stopped",
    "ended",
]
NUMBERS = [0, 1, 2, 3, 7, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 5e-324]
BYTES = [b"", b"k", b"k" * 31, b"k" * 32, b"k" * 33, b"\xff" * 40, b"\x93NUMPY", b"z" * 5000]


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(BYTES)
    if kind == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return st.sampled_from(FLOATS)
    if kind == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([0, 1, 2, 3, 4, 9, 77, 2**31 - 1, -1])
    most = 2**32 if kind == FieldDescriptor.TYPE_UINT32 else 2**64
    return st.sampled_from([number % most for number in NUMBERS])


def _places(message: Any, depth: int = 0) -> list[tuple[Any, FieldDescriptor]]:
    found = []
    for field in message.DESCRIPTOR.fields:
        found.append((message, field))
        if field.message_type is None or depth > 4 or field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for each in getattr(message, field.name):
                found += _places(each, depth + 1)
        elif message.HasField(field.name):
            found += _places(getattr(message, field.name), depth + 1)
    return found


def _mutate(draw: Any, message: Any) -> None:
    holder, field = draw(st.sampled_from(_places(message)))
    name = field.name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = draw(st.sampled_from(TEXTS)), draw(st.sampled_from(FLOATS))
        getattr(holder, name)[key] = value
    elif field.message_type is not None:
        what = draw(st.sampled_from(["clear", "empty", "twice"]))
        if what == "clear":
            holder.ClearField(name)
        elif field.is_repeated:
            each = getattr(holder, name)
            each.append(each[0]) if each and what == "twice" else each.add()
        else:
            getattr(holder, name).SetInParent()
    elif field.is_repeated:
        getattr(holder, name).extend(draw(st.lists(_value(field), max_size=3)))
    else:
        setattr(holder, name, draw(_value(field)))


@st.composite
def mutated(draw: Any, valid: st.SearchStrategy[m.Message]) -> m.Message:
    """One of these messages, with one to three fields that are not as they were; as it comes over a wire."""
    message = m.Message.FromString(draw(valid).SerializeToString())
    body = getattr(message, message.WhichOneof("body"))
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, body)
    return m.Message.FromString(message.SerializeToString())
