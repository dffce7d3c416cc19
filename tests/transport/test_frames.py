"""Frames: what one process writes another reads, and nothing else is let in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import ProtocolError
from umbel.transport import frames
from umbel.wire import messages as m

LIMITS = frames.standard_limits()


def refusal(data: bytes, number: int = 1, limits: m.Limits = LIMITS) -> int:
    with pytest.raises(ProtocolError) as caught:
        frames.read(data, number, limits)
    return caught.value.code


def outcome(data: bytes) -> int | None:
    try:
        frames.read(data, 1, LIMITS)
    except ProtocolError as error:
        return error.code
    return None


def one(message: m.Message, number: int = 1) -> bytes:
    return m.Frame(number=number, messages=[message]).SerializeToString()


@given(
    st.integers(1, (1 << 64) - 1),
    st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    st.integers(0, (1 << 62)),
    st.binary(min_size=32, max_size=32),
)
def test_written_by_hand_as_protobuf_writes_it(number: int, data: list[bytes], offset: int, sha256: bytes) -> None:
    messages = [m.Message(chunk=m.Chunk(sha256=sha256, offset=offset, data=each)) for each in data]
    written = frames.frame(number, [frames.chunk(sha256, offset, each) for each in data])
    assert frames.read(written, number, LIMITS) == messages
    assert frames.message("chunk", messages[0].chunk.SerializeToString()) == messages[0].SerializeToString()


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_are_a_frame(data: bytes) -> None:
    assert outcome(data) in (None, m.CODE_MALFORMED, m.CODE_OUT_OF_ORDER)


@given(st.data())
def test_a_damaged_frame_never_does_anything_else(data: st.DataObject) -> None:
    hello = m.Hello(role=m.ROLE_NODE, name="a", key=bytes(32), nonce=bytes(32), clients=["a", "b"])
    blob = m.Blob(sha256=bytes(32), size=7)
    whole = m.Frame(
        number=1,
        messages=[m.Message(hello=hello), m.Message(want=m.Want(blob=blob, run="r", credit=9))],
    ).SerializeToString()
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    for damaged in (whole[:place], whole[:place] + bytes([byte]) + whole[place + 1 :]):
        assert outcome(damaged) in (None, m.CODE_MALFORMED, m.CODE_OUT_OF_ORDER, m.CODE_TOO_LARGE)


def test_what_is_refused() -> None:
    ping = m.Message(ping=m.Ping(id=1))
    name = "x" * 257
    blob = m.Blob(sha256=bytes(32), size=1)
    assert refusal(one(ping, 2)) == m.CODE_OUT_OF_ORDER
    assert refusal(one(ping, 1), 2) == m.CODE_OUT_OF_ORDER
    assert refusal(m.Frame(number=1).SerializeToString()) == m.CODE_MALFORMED
    assert refusal(one(m.Message())) == m.CODE_MALFORMED
    assert refusal(b"\x12\x01\xff") == m.CODE_MALFORMED
    assert refusal(m.Frame(number=1, messages=[ping] * 4097).SerializeToString()) == m.CODE_TOO_LARGE
    assert refusal(bytes(frames.FRAME_BYTES + 1)) == m.CODE_TOO_LARGE
    assert refusal(one(m.Message(task=m.Task(run=name)))) == m.CODE_TOO_LARGE
    assert refusal(one(m.Message(hosted=m.Hosted(clients=["a", name])))) == m.CODE_TOO_LARGE
    assert refusal(one(m.Message(hosted=m.Hosted(clients=["ü" * 129])))) == m.CODE_TOO_LARGE
    receipt = m.Receipt(metrics={name: 1.0})
    assert refusal(one(m.Message(result=m.Result(done=m.Done(receipt=receipt))))) == m.CODE_TOO_LARGE
    assert refusal(one(m.Message(task=m.Task(own=m.Payload(inline=bytes(20_000)))))) == m.CODE_TOO_LARGE
    assert refusal(one(m.Message(want=m.Want(blob=m.Blob(sha256=b"x"))))) == m.CODE_MALFORMED
    huge = m.Blob(sha256=bytes(32), size=1 << 63)
    assert refusal(one(m.Message(task=m.Task(own=m.Payload(blob=huge))))) == m.CODE_MALFORMED
    assert frames.read(one(m.Message(want=m.Want(blob=blob, run="ü" * 128))), 1, LIMITS)
    text = m.Problem(text="a long explanation " * 100)
    assert frames.read(one(m.Message(problem=text)), 1, LIMITS)


def test_text_that_is_no_utf8_is_refused() -> None:
    bad = frames.message("hosted", b"\x0a\x02\xff\xfe")
    assert refusal(frames.frame(1, [(bad,)])) == m.CODE_MALFORMED


def test_the_body_as_it_was_sent() -> None:
    body = m.Hello(name="n").SerializeToString() + b"\xf8\x3f\x01"  # a field of a later version, kept as it is
    assert frames.raw_body(frames.frame(3, [(frames.message("hello", body),)])) == body
    twice = frames.message("hello", body) * 2
    for bad in (frames.frame(3, [(twice,)]), frames.frame(3, [(frames.message("hello", body),)] * 2)):
        with pytest.raises(ProtocolError):
            frames.raw_body(bad)
