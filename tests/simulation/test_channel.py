"""Messages between processes: what goes in comes out, large arrays in shared memory, and nothing stays behind."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import pickle
import socket
import struct
import tempfile
import threading
from contextlib import closing, contextmanager, suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import open_files, some

from umbel import Arrays
from umbel.errors import StorageError
from umbel.simulation.channel import SHARES, SMALL, Channel, PackedMessage, memory_file

FAMILIES = ["unix", "tcp"] if SHARES else ["tcp"]
DTYPES = [
    *map(np.dtype, ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c16", ">f4", "U3", "S2"]),
    np.dtype(ml_dtypes.bfloat16),
]
SHAPES = [(), (0,), (0, 3), (1,), (7,), (2, 3), (3, 1, 2), (SMALL // 8 + 1,), (SMALL, 2)]

shared = pytest.mark.skipif(not SHARES, reason="descriptors cannot be sent here")
counted = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no list of open descriptors here")


@contextmanager
def connected(family):
    """Two channels that are each other's ends."""
    if family == "unix":
        one, other = Channel.pair()
        ends = one, Channel(other)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ends = Channel(client), Channel(listener.accept()[0])
    with closing(ends[0]), closing(ends[1]):
        yield ends


@pytest.fixture(params=FAMILIES)
def ends(request):
    with connected(request.param) as found:
        yield found


def carried(ends, value):
    """What the other end receives; TCP has nowhere to put a large message but the receiver."""
    sending = threading.Thread(target=ends[0].send, args=(value,))
    sending.start()
    found = ends[1].receive()
    sending.join()
    return found


def array(dtype, shape, order, strided, seed):
    count = int(np.prod(shape, dtype=int))
    if dtype.kind in "US":
        found = np.array([str(seed)] * count, dtype)
    elif dtype.kind == "b":
        found = np.arange(seed, seed + count) % 3 == 0
    else:
        bits = np.arange(seed, seed + count * dtype.itemsize, dtype=np.int64).astype(np.uint8)  # every bit pattern
        found = bits.view(dtype)
    found = np.asarray(found.reshape(shape), order=order)
    return np.stack([found, found], -1)[..., 0] if strided else found


arrays = st.builds(
    array, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from("CF"), st.booleans(), st.integers(0, 200)
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.binary().map(bytearray)
values = st.recursive(
    arrays | plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return type(b) is type(a) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_arrives_as_it_was_sent(family):
    with connected(family) as ends:

        @given(sent=st.lists(values, min_size=1, max_size=3))
        @settings(max_examples=40)
        def check(sent):
            for value in sent:
                assert same(carried(ends, value), value)

        check()


def test_messages_keep_their_order_and_do_not_wait_for_the_receiver(ends):
    sent = [b"x" * size for size in (0, 1, 63, 64, 65, 1000)]
    for value in sent:
        ends[0].send(value)
    assert [ends[1].receive() for _ in sent] == sent
    ends[1].send("and back")
    assert ends[0].receive() == "and back"


@shared
def test_a_large_message_is_sent_before_anybody_receives_it():
    with connected("unix") as ends:
        ends[0].send(np.ones(10_000_000, np.uint8))
        ends[0].send(b"y" * 10_000_000)
        assert ends[1].receive().sum() == 10_000_000
        assert ends[1].receive() == b"y" * 10_000_000


def test_functions_of_this_module_and_of_functions_arrive(ends):
    offset = np.arange(3.0)
    assert carried(ends, lambda x: x + offset)(1).tolist() == [1, 2, 3]


def owner(found):
    """What holds the memory of an array."""
    while isinstance(found, np.ndarray):
        found = found.base
    return found.obj if isinstance(found, memoryview) else found


@pytest.mark.parametrize("size", [1, SMALL])
@pytest.mark.parametrize("order", ["C", "F"])
def test_received_arrays_cannot_be_written(ends, size, order):
    sent = np.ones((2, size), order=order)
    found = carried(ends, {"x": [sent]})["x"][0]
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 2
    assert found.flags.f_contiguous == sent.flags.f_contiguous
    assert sent.flags.writeable


@shared
def test_large_arrays_are_views_of_shared_memory():
    with connected("unix") as ends:
        found = carried(ends, [np.ones(SMALL), np.zeros(3)])
        assert all(isinstance(owner(x), mmap.mmap) for x in found)
        assert owner(found[0]) is owner(found[1])
        small = carried(ends, np.zeros(3))
        assert isinstance(owner(small), bytes)


def test_arrays_of_a_large_message_are_aligned(ends):
    found = carried(ends, [np.ones(n, np.uint8) for n in (1, 65, SMALL, 3)] + [np.ones(SMALL)])
    base = found[0].__array_interface__["data"][0]
    assert all((x.__array_interface__["data"][0] - base) % 64 == 0 for x in found)


@pytest.mark.parametrize("size", [3, SMALL])
def test_one_array_in_two_places_stays_one(ends, size):
    model = Arrays({"w": np.ones(size)})
    whole = carried(ends, {"a": model, "b": model, "w": model["w"]})
    assert whole["a"] is whole["b"]
    assert whole["a"]["w"] is whole["w"]


def test_models_keep_their_roles_and_bits(ends):
    for size in (3, SMALL):
        model = Arrays(
            {"w": np.ones(size, ml_dtypes.bfloat16), "n": np.array(3), "own": np.ones((2, size), order="F")},
            {"own": "personal", "w": "buffer"},
        )
        found = carried(ends, model)
        assert found == model
        assert found.roles == model.roles
        assert not any(x.flags.writeable for x in found.values())


@pytest.mark.parametrize("size", [3, SMALL])
def test_a_parcel_can_be_sent_to_several(size):
    parcel = PackedMessage({"w": np.arange(float(size))})
    with connected("tcp") as far, connected(FAMILIES[0]) as one, connected(FAMILIES[0]) as other:
        for ends in (one, other, one):
            ends[0].send(parcel)
        sending = threading.Thread(target=far[0].send, args=(parcel,))
        sending.start()
        found = [far[1].receive()["w"]]
        sending.join()
        parcel.close()
        parcel.close()
        assert parcel.descriptors == []
        found += [ends[1].receive()["w"] for ends in (one, other, one)]
        assert all(x.tobytes() == np.arange(float(size)).tobytes() for x in found)


def test_threads_that_send_at_once_do_not_mix_their_messages(ends):
    def send(number):
        for turn in range(10):
            ends[0].send((number, turn, bytes([number]) * 600_000))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = [ends[1].receive() for _ in range(40)]
    for thread in threads:
        thread.join()
    assert all(body == bytes([number]) * 600_000 for number, _, body in found)
    assert all([turn for n, turn, _ in found if n == number] == list(range(10)) for number in range(4))


def send_on(channel):
    """TCP learns that there is nobody from the answer to what was sent first."""
    for _ in range(1000):
        channel.send(b"x" * 30_000)


def test_nobody_at_the_other_end(ends):
    ends[1].close()
    with pytest.raises(EOFError):
        ends[0].receive()
    with pytest.raises(EOFError):
        send_on(ends[0])
    with pytest.raises(EOFError):
        ends[0].receive()
    ends[0].close()
    with pytest.raises(EOFError):
        ends[0].send("closed here")
    with pytest.raises(EOFError):
        ends[0].receive()


def test_what_was_sent_before_the_end_arrives(ends):
    ends[0].send([1, 2])
    ends[0].close()
    assert ends[1].receive() == [1, 2]
    with pytest.raises(EOFError):
        ends[1].receive()


@counted
@pytest.mark.parametrize(("size", "share"), some(itertools.product([3, SMALL], [0.0, 0.3, 0.99]), 3))
def test_an_end_in_the_middle_of_a_message(size, share):
    before = open_files()
    raw, other = socket.socketpair()
    receiver = Channel(other)
    parcel = PackedMessage(np.ones(size))
    frame = b"".join(parcel.frame)
    cut = max(1, int(share * len(frame)))
    if parcel.descriptors:
        socket.send_fds(raw, [frame[:cut]], parcel.descriptors)
    else:
        raw.sendall(frame[:cut])
    raw.close()
    with pytest.raises(EOFError):
        receiver.receive()
    receiver.close()
    parcel.close()
    assert not open_files() - before


@shared
def test_a_message_without_its_segment():
    raw, other = socket.socketpair()
    receiver, parcel = Channel(other), PackedMessage(np.ones(SMALL))
    raw.sendall(b"".join(parcel.frame))
    with pytest.raises(EOFError, match="without its segment"):
        receiver.receive()
    raw.close()
    receiver.close()


@counted
@pytest.mark.parametrize("family", FAMILIES)
def test_messages_leave_no_open_descriptors(family):
    with connected(family) as ends:
        before = open_files()
        for size in (3, SMALL) * 10:
            carried(ends, np.ones(size))
        assert not open_files() - before
        kept = [carried(ends, [np.ones(SMALL), np.ones(SMALL)]) for _ in range(3)]
        assert len(open_files() - before) <= len(kept)
        del kept
        assert not open_files() - before


@counted
def test_a_parcel_that_nobody_closes_lets_go_of_its_memory():
    before = open_files()
    parcel = PackedMessage(np.ones(SMALL))
    assert len(open_files() - before) == len(parcel.descriptors)
    del parcel
    assert not open_files() - before


@counted
def test_what_cannot_be_sent_leaves_nothing_behind():
    before = open_files()
    with pytest.raises(TypeError, match="pickle"):
        PackedMessage([np.ones(SMALL), threading.Lock()])
    assert not open_files() - before  # and __del__ said nothing


def test_what_cannot_be_loaded_leaves_the_channel_usable(ends):
    class Odd:
        def __reduce__(self):
            return int, ("no number",)

    ends[0].send(Odd())
    ends[0].send("next")
    with pytest.raises(ValueError, match="invalid literal"):
        ends[1].receive()
    assert ends[1].receive() == "next"


def test_a_memory_file_is_empty_and_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        fd = memory_file(100)
        assert os.fstat(fd).st_size == 100
        assert os.pread(fd, 200, 0) == bytes(100)
        os.close(fd)
        assert not list(tmp_path.iterdir())
        with suppress(AttributeError):
            monkeypatch.delattr(os, "memfd_create")


@counted
@pytest.mark.parametrize("step", ["ftruncate", "pwrite"])
def test_no_room_for_shared_memory(monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = open_files()
    monkeypatch.setattr(os, step, full)
    with pytest.raises(StorageError, match="No space left on device"):
        PackedMessage(np.ones(SMALL), shares=True)
    assert not open_files() - before


def test_a_channel_can_be_waited_for(ends):
    assert ends[0].fileno() >= 0
    assert ends[0].fileno() != ends[1].fileno()


def test_frames_are_what_they_were():
    """Workers of one run all have the same release, but a frame that changed by accident would be a puzzle."""
    head, table, body = PackedMessage([1]).frame
    parts, segmented, inline, size = struct.unpack("<IIQQ", head)
    assert (parts, segmented, inline, size) == (1, 0, len(table) + len(body), 0)
    assert pickle.loads(body[: struct.unpack("<Q", table)[0]]) == [1]
    assert len(body) % 64 == 0


def test_what_is_posted_never_waits_for_its_receiver():
    without = open_files()
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    before = open_files()
    messages = [(number, np.full(size, number % 251, np.uint8)) for number in range(400) for size in (20_000, 70_000)]
    for message in messages:
        ours.post(message)
    assert ours.waiting
    for number, array in messages:
        ours.flush()
        found, values = other.receive()
        assert found == number
        assert np.array_equal(values, array)
    assert not ours.waiting
    del values
    assert not open_files() - before
    for message in messages:
        ours.post(message)
    ours.close()
    other.close()
    assert not open_files() - without


def test_posting_to_nobody_says_so():
    ours, theirs = Channel.pair()
    theirs.close()
    with pytest.raises(EOFError):
        ours.post(b"x" * 20_000)
    ours.close()
