"""Arrays: roles, read-only views, and bytes that are equal when the arrays are."""

import contextlib
import hashlib
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save

from umbel.core import arrays as core_arrays
from umbel.core import encoding
from umbel.core.arrays import Arrays, difference, read_safetensors, safetensors_pieces, wide, write_safetensors
from umbel.errors import CorruptFile, StorageError, StrategyError

EVERY = {
    "float16": np.ones(2, np.float16),
    "float32": np.array(1.5, np.float32),
    "float64": np.array([[np.nan, -0.0]]),
    "bfloat16": np.ones((2, 2), ml_dtypes.bfloat16),
    "bool": np.array([True, False]),
    "uint8": np.arange(3, dtype=np.uint8),
    "int64": np.array(-(2**60)),
    "empty": np.zeros((0, 3)),
    "strided": np.arange(12.0).reshape(3, 4).T[::2],
    "big-endian": np.array([1.0, 2.0], ">f4"),
}


def test_roles_follow_the_dtype_unless_somebody_says_otherwise():
    arrays = Arrays(EVERY, {"float32": "personal", "float64": "buffer"})
    assert arrays.roles["float16"] == arrays.roles["bfloat16"] == "parameter"
    assert arrays.roles["bool"] == arrays.roles["int64"] == "buffer"
    assert arrays.roles["float32"] == "personal"
    assert Arrays(arrays).roles == arrays.roles
    assert list(arrays.of_role("personal")) == ["float32"]
    assert arrays.has_personal
    assert arrays.replace({"float32": np.zeros(3, np.float32), "new": np.ones(1)}).roles["float32"] == "personal"


@pytest.mark.parametrize(
    ("arrays", "roles"),
    [({"x": np.array(["a"])}, None), ({"x": np.array([object()])}, None), ({"": np.ones(1)}, None),
     ({3: np.ones(1)}, None),
     ({"x": np.ones(1)}, {"y": "buffer"}), ({"x": np.ones(1)}, {"x": "weight"})],
)  # fmt: skip
def test_what_cannot_travel_is_an_error(arrays, roles):
    with pytest.raises(StrategyError):
        Arrays(arrays, roles)


def test_arrays_cannot_be_written_and_are_not_copied():
    mine = np.ones(3)
    arrays = Arrays({"x": mine})
    with pytest.raises(ValueError, match="read-only"):
        arrays["x"][0] = 2
    assert np.shares_memory(arrays["x"], mine)
    assert mine.flags.writeable


@pytest.mark.parametrize(
    "odd",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(12.0)[::2],
        np.arange(6.0)[::-1],
        np.broadcast_to(np.float32(2), (2, 3)),
        np.frombuffer(bytes(17), np.uint8)[1:].view(np.float64),
    ],
    ids=["columns first", "permuted", "stepped", "backwards", "broadcast", "not aligned"],
)
def test_memory_is_in_the_order_of_files_whatever_it_was_before(odd):
    mine = Arrays({"x": odd})["x"]
    assert mine.flags.c_contiguous
    assert mine.flags.aligned
    assert not mine.flags.writeable
    np.testing.assert_array_equal(mine, odd)
    assert Arrays({"x": odd}).map(lambda name, array: array.T)["x"].flags.c_contiguous


def test_bytes_bring_everything_back():
    arrays = Arrays(EVERY, {"float32": "personal"})
    back = Arrays.from_bytes(arrays.to_bytes())
    assert back == arrays
    assert back.roles == arrays.roles
    assert pickle.loads(pickle.dumps(arrays)) == arrays


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_keep_roles_and_bits(protocol):
    arrays = Arrays(EVERY, {"float32": "personal", "bfloat16": "buffer"})
    buffers = []
    data = pickle.dumps(arrays, protocol, buffer_callback=buffers.append if protocol >= 5 else None)
    back = pickle.loads(data, buffers=buffers)
    assert back == arrays
    assert back.roles == arrays.roles
    assert back["bfloat16"].dtype == ml_dtypes.bfloat16
    assert back.sha256 == arrays.sha256
    assert not any(array.flags.writeable for array in back.values())
    assert bool(buffers) == (protocol >= 5)


def test_large_pickles_take_no_copy():
    arrays = Arrays({"w": np.ones(1000, ml_dtypes.bfloat16), "v": np.ones((10, 100), order="F")})
    buffers = []
    data = pickle.dumps(arrays, 5, buffer_callback=buffers.append)
    assert len(data) < 600
    back = pickle.loads(data, buffers=buffers)
    assert all(np.shares_memory(back[name], arrays[name]) for name in arrays)


@given(order=st.permutations(sorted(EVERY)))
@settings(max_examples=20)
def test_the_order_of_names_changes_neither_bytes_nor_digest(order):
    a, b = Arrays(EVERY), Arrays({n: EVERY[n] for n in order})
    assert a == b
    assert a.to_bytes() == b.to_bytes()
    assert a.sha256 == b.sha256


def test_the_digest_sees_values_names_shapes_dtypes_and_roles():
    x = np.zeros((2, 3), np.float32)
    variants = [{"x": x}, {"y": x}, {"x": x.reshape(3, 2)}, {"x": x.astype(np.int32)}, {"x": x + 1}, {"x": -x}]
    digests = {Arrays(v).sha256 for v in variants} | {Arrays({"x": x}, {"x": "buffer"}).sha256}
    assert len(digests) == 7
    assert Arrays({"x": x}) != Arrays({"x": -x})


def test_damaged_bytes_are_a_corrupt_file():
    data = Arrays({"x": np.arange(4.0)}).to_bytes()
    for cut in range(len(data)):
        with pytest.raises(CorruptFile):
            Arrays.from_bytes(data[:cut])
    for at in range(8, 20):
        with pytest.raises(CorruptFile):
            Arrays.from_bytes(data[:at] + b"\xff" + data[at + 1 :])


def test_differences_are_wide_for_parameters_and_values_for_the_rest():
    old = Arrays({"h": np.ones(1, np.float16), "d": np.ones(1), "n": np.array([1])})
    new = Arrays({"h": np.array([1.001], np.float16), "d": np.array([3.0]), "n": np.array([7])})
    found = difference(new, old, old.schema)
    assert found["h"].dtype == np.float32
    assert found["h"][0] == np.float32(np.float16(1.001)) - 1
    assert (found["d"][0], found["n"][0]) == (2.0, 7)
    assert wide(np.dtype(ml_dtypes.bfloat16)) == np.float32
    assert wide(np.dtype(np.int8)) == np.int8


def test_a_repr_is_short():
    arrays = Arrays({f"layer.{i}": np.zeros((3, 4), np.float32) for i in range(100)})
    assert "layer.0: float32[3, 4]" in repr(arrays)
    assert "94 more" in repr(arrays)
    assert repr(arrays).count("float32") == 6
    assert arrays.nbytes == arrays.schema.nbytes == 4800


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex64, ml_dtypes.float8_e5m2, "M8[D]"], ids=str)
def test_dtypes_that_the_file_format_or_the_sums_lack_are_errors(dtype):
    with pytest.raises(StrategyError, match="cannot travel"):
        Arrays({"x": np.zeros(2, dtype)})


def test_the_name_that_the_file_format_keeps_for_itself_is_an_error():
    with pytest.raises(StrategyError, match="__metadata__"):
        Arrays({"__metadata__": np.zeros(2)})


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, shape):
    arrays = Arrays({"x": np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)})
    assert Arrays.from_bytes(arrays.to_bytes()) == arrays


def test_a_flipped_bit_in_the_header_is_a_corrupt_file_or_other_arrays_and_nothing_else():
    data = Arrays({"x": np.arange(2.0), "y": np.array(True)}, {"x": "personal"}).to_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(8 * header):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        try:
            found = Arrays.from_bytes(bytes(damaged))
        except CorruptFile:
            continue
        assert found != Arrays.from_bytes(data)
        assert at >= 64  # a wrong length is never read as something else


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"roles": ["x"]}', '{"roles": {"x": "wizard"}}', '{"roles": 3}', "[" * 20_000 + "]" * 20_000],
    ids=lambda text: text[:30],
)
def test_roles_that_cannot_be_read_are_a_corrupt_file(text):
    with pytest.raises(CorruptFile):
        Arrays.from_bytes(write_safetensors({"x": np.ones(1)}, {"umbel": text}))


# The file format

NAMES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda n: n != "__metadata__"
)
MANY = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(EVERY)), st.integers(0, 3)), max_size=6)


def made(chosen):
    return {
        name: np.concatenate([EVERY[key].reshape(-1)] * count) if count else EVERY[key]
        for name, (key, count) in chosen.items()
    }


@given(chosen=MANY, text=st.none() | st.text(max_size=9))
def test_the_bytes_are_those_of_the_safetensors_package(chosen, text):
    arrays, metadata = made(chosen), {} if text is None else {"umbel": text}
    expected = save({n: np.ascontiguousarray(a) if a.ndim else a for n, a in arrays.items()}, metadata or None)
    assert write_safetensors(arrays, metadata) == expected
    assert b"".join(safetensors_pieces(dict(reversed(arrays.items())), metadata)) == expected
    found, told = read_safetensors(expected)
    assert told == metadata
    assert Arrays(found) == Arrays(arrays)
    assert {n: bytes(part["data"]) for n, part in deserialize(expected)} == {n: found[n].tobytes() for n in found}
    assert all(array.flags.writeable for array in found.values())


def test_pieces_are_the_arrays_own_memory():
    arrays = Arrays({"w": np.arange(6.0).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16), "e": np.zeros(0)})
    header, *pieces = arrays.pieces()
    assert len(header) % 8 == 0
    assert [len(piece) for piece in pieces] == [0, 48, 6]  # the widest first, and then by name
    assert np.shares_memory(np.frombuffer(pieces[1], np.uint8), arrays["w"])
    assert arrays.sha256 == hashlib.sha256(arrays.to_bytes()).hexdigest()


def test_files_are_mapped_and_come_back(tmp_path):
    arrays = Arrays({**EVERY, "large": np.arange(200_000.0)}, {"float32": "personal"})
    sha256, size = arrays.to_file(tmp_path / "model", durable=True)
    data = (tmp_path / "model").read_bytes()
    assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert data == arrays.to_bytes()
    back = Arrays.from_file(tmp_path / "model")
    (tmp_path / "model").unlink()
    assert back == arrays
    assert back.roles == arrays.roles
    assert back["bfloat16"].dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="read-only"):
        back["float64"][...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        back["float64"].flags.writeable = True
    with pytest.raises(StorageError, match="model cannot be read: No such file"):
        Arrays.from_file(tmp_path / "model")


def test_arrays_that_are_not_aligned_in_their_bytes_are_copied():
    data = Arrays({"x": np.arange(4.0)}).to_bytes()
    shifted = memoryview(b"?" + data)[1:]
    assert Arrays.from_bytes(shifted)["x"].flags.aligned
    assert np.shares_memory(Arrays.from_bytes(data)["x"], np.frombuffer(data, np.uint8))


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"", b""), (b"[]", b""), (b"{", b""), (b"\xff\xfe", b""), (b"[" * 100_000, b""),
        ({"x": entry()}, bytes(7)), ({"x": entry()}, bytes(9)), ({}, b"?"),
        ({"x": entry("F31")}, bytes(8)), ({"x": entry("F64")}, bytes(8)), ({"x": entry(["F32"])}, bytes(8)),
        ({"x": entry(shape=[3])}, bytes(8)), ({"x": entry(shape=[-2])}, bytes(8)),
        ({"x": entry(shape=[2.0])}, bytes(8)), ({"x": entry(shape=[-1, -2])}, bytes(8)),
        ({"x": entry(shape=[True, 2])}, bytes(8)),
        ({"x": entry(offsets=[8, 0])}, bytes(8)), ({"x": entry(offsets=[0])}, bytes(8)),
        ({"x": entry(offsets=[1, 9])}, bytes(9)), ({"x": entry(offsets=[-8, 0])}, bytes(8)),
        ({"x": entry(offsets=["0", "8"])}, bytes(8)), ({"x": entry(offsets=[0.0, 8.0])}, bytes(8)),
        ({"x": entry(), "y": entry()}, bytes(8)), ({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)),
        ({"x": entry(), "y": entry(offsets=[16, 24])}, bytes(24)),
        ({"x": entry(shape=[0, 2**63], offsets=[0, 0])}, b""),
        ({"x": entry(shape=[2**62], offsets=[0, 2**64])}, bytes(8)),
        ({"x": entry(shape=[1] * 70, offsets=[0, 4])}, bytes(4)),
        ({"x": [1]}, b""), ({"x": None}, b""), ({"__metadata__": 3}, b""), ({"__metadata__": {"a": 1}}, b""),
        ({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit_their_file_are_a_corrupt_file(header, body, tmp_path):
    (tmp_path / "file").write_bytes(with_header(header, body))
    with pytest.raises(CorruptFile, match="not in the safetensors format"):
        Arrays.from_file(tmp_path / "file")
    with pytest.raises(CorruptFile):
        read_safetensors(with_header(header, body))


@given(data=st.binary(max_size=60), size=st.integers(0, 2**64 - 1) | st.integers(0, 60))
def test_random_bytes_are_a_corrupt_file(data, size):
    with contextlib.suppress(CorruptFile):
        assert read_safetensors(size.to_bytes(8, "little") + data) == ({}, {})


def test_no_header_is_written_that_would_not_be_read(monkeypatch, tmp_path):
    long, longer = (Arrays({"x" * size: np.zeros(1)}) for size in (200, 201))
    size = int.from_bytes(long.to_bytes()[:8], "little")
    monkeypatch.setattr(core_arrays, "_LONGEST_HEADER", size)
    assert Arrays.from_bytes(long.to_bytes()) == long
    monkeypatch.setattr(core_arrays, "_LONGEST_HEADER", size - 8)
    for refused in (long, longer):
        with pytest.raises(StrategyError, match=f"header of {size:,} bytes, of at most {size - 8:,}"):
            refused.to_file(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@given(chosen=MANY, stretch=st.sampled_from([1, 2, 1 << 18]))
def test_computed_arrays_are_those_that_they_are_made_of_and_are_not_made_to_be_described(chosen, stretch):
    arrays, looked_at = Arrays(made(chosen)), []

    def make(name, start, stop):
        looked_at.append(name)
        return arrays.stretch(name, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_arrays, "STRETCH", stretch)
        computed = Arrays.computed(arrays.schema, make)
        described = (list(computed), computed.nbytes, computed.schema.items(), "no such" in computed, len(computed))
        assert described == (list(arrays), arrays.nbytes, arrays.schema.items(), False, len(arrays))
        assert computed.select(computed).is_computed
        assert computed.as_given().keys() == arrays.as_given().keys()
        assert looked_at == []
        assert computed.to_bytes() == arrays.to_bytes()
        assert computed.sha256 == arrays.sha256
        assert computed == arrays
        assert encoding.encode({"a": computed}) == encoding.encode({"a": arrays})
        for name in computed:
            assert not computed[name].flags.writeable
            assert sum(each.size for each in computed.stretches(name)) == arrays[name].size
