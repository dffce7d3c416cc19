"""Trees of arrays and plain values come back bit for bit, and what cannot be saved is named by its path."""

import functools
import hashlib
import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core import encoding
from umbel.core.answer import Answer
from umbel.core.arrays import Arrays, safetensors_pieces, write_safetensors
from umbel.core.strategy import State
from umbel.core.update import Receipt, Update
from umbel.errors import CorruptFile, StorageError, StrategyError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(width=32).map(np.float32),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(st.integers(0, 255), max_size=3).map(lambda v: np.array(v, np.uint8)),
    st.lists(st.floats(width=32), max_size=2).map(
        lambda v: Arrays({"a/b": np.array(v, np.float32), "a": np.ones(1)}, {"a": "personal"})
    ),
)
KEYS = st.one_of(st.sampled_from(["a", "a/b", "b", "~", ""]), st.integers(-5, 5), st.text(max_size=3))
TREES = st.recursive(
    SCALARS,
    lambda part: st.one_of(
        st.lists(part, max_size=3), st.lists(part, max_size=3).map(tuple), st.dictionaries(KEYS, part, max_size=4)
    ),
    max_leaves=12,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        if math.isnan(a):  # which NaN a number beside the arrays is, is not kept
            return math.isnan(b)
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return bool(a == b)


@given(TREES)
def test_a_tree_comes_back_bit_for_bit(tree):
    data = encoding.encode(tree)
    back = encoding.decode(data)
    assert same(back, tree)
    assert encoding.encode(back) == data


def test_why_clients_failed_takes_a_number_a_client():
    failed = dict.fromkeys(range(1000), "no such table: " + "x" * 400)
    written = encoding.encode(Answer(Arrays(), failed={**failed, 1000: "gone"}))
    assert len(written) < 20_000
    assert list(encoding.decode(written).failed.items()) == [*failed.items(), (1000, "gone")]


COLUMNS = np.asfortranarray(np.arange(6.0).reshape(2, 3))


def test_a_settled_tree_has_its_arrays_in_the_order_in_which_they_are_read():
    tree = {"a": [COLUMNS, "b"], "t": (1, {"c": COLUMNS.T}), "n": None, "d": {1: COLUMNS}}
    after = encoding.settled(tree)
    assert same(after, tree)
    found = [after["a"][0], after["t"][1]["c"], after["d"][1]]
    assert [array.flags.c_contiguous for array in found] == [True] * 3
    assert after["t"][1]["c"] is tree["t"][1]["c"]
    assert encoding.settled(after) is after


def test_states_updates_and_answers_are_trees_too():
    state = State(Arrays({"w": np.ones(2)}), slots={"first": {"w": np.zeros(2)}}, count=3)
    update = Update(Arrays({"w": np.ones(1)}), 2.0, {"loss": 0.5})
    answer = Answer({3: update, "x": update}, receipts=(Receipt("0.3", 3, 1.0, {"a": 1.0}),), failed={4: "gone"})
    for tree in (state, [update], {"answer": answer}):
        back = encoding.decode(encoding.encode(tree))
        assert encoding.encode(back) == encoding.encode(tree)
    assert encoding.decode(encoding.encode(answer)).value[3].metrics == {"loss": 0.5}
    assert encoding.decode(encoding.encode(state)).slots["first"]["w"].tolist() == [0, 0]


def test_what_cannot_be_saved_is_named_by_its_path():
    with pytest.raises(StrategyError, match=r"slots/0/net is a object"):
        encoding.encode({"slots": [{"net": object()}]})


def test_arrays_are_stored_under_their_path():
    from safetensors.numpy import load

    stored = load(encoding.encode({"state": {"model": Arrays({"conv.weight": np.ones(2)})}}))
    assert list(stored) == ["state/model/conv.weight"]


@pytest.mark.parametrize("data", [b"", b"nonsense", Arrays({"x": np.ones(1)}).to_bytes()])
def test_other_bytes_are_a_corrupt_file(data):
    with pytest.raises(CorruptFile):
        encoding.decode(data)


def test_a_newer_version_or_an_unknown_part_is_an_error():
    data = encoding.encode({"a": (1,)})
    with pytest.raises(CorruptFile, match="format version 9"):
        encoding.decode(data.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(CorruptFile, match="'tuplo'"):
        encoding.decode(data.replace(b"tuple", b"tuplo"))


@pytest.mark.parametrize(
    "scalar", [np.bool_(True), np.int8(-3), np.uint64(2**64 - 1), np.float16(0.1), np.float64("nan"), np.float32(-0.0)]
)
def test_numpy_scalars_stay_numpy_scalars(scalar):
    assert same(encoding.decode(encoding.encode({"x": [scalar]})), {"x": [scalar]})


def test_names_that_collide_in_the_file_stay_apart_in_the_tree():
    tree = {
        "a": {"b": np.array([1.0]), "": np.array([2.0])},
        "a/b": np.array([3.0]),
        "a/b'": np.array([4.0]),
        "a/": np.array([5.0]),
        "__metadata__": np.array([6.0]),
        1: np.array([7.0]),
        "1": np.array([8.0]),
    }
    assert same(encoding.decode(encoding.encode(tree)), tree)


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([None]), np.zeros(1, complex), np.longdouble(1), np.str_("a"), {1, 2}, len, 1j]
)
def test_every_kind_of_value_that_cannot_be_saved_is_named(value):
    with pytest.raises(StrategyError, match=r"^state/3/x is an? .*, which cannot be saved"):
        encoding.encode({"state": {3: {"x": value}}})
    with pytest.raises(StrategyError, match=r"^this value is"):
        encoding.encode(value)


def deep():
    tree = []
    for _ in range(100_000):
        tree = [tree]
    return tree


@pytest.mark.parametrize("value", [10**5000, {"\ud800": np.ones(1)}, deep()], ids=["digits", "surrogate", "depth"])
def test_what_json_cannot_hold_is_an_error_that_says_so(value):
    with pytest.raises(StrategyError, match="cannot be saved"):
        encoding.encode({"a": value})


def test_damage_to_a_header_is_a_corrupt_file_or_another_tree_and_nothing_else():
    data = encoding.encode({"m": Arrays({"w": np.ones(1)}, {"w": "buffer"}), "t": (1, b"x", np.float32(2)), 3: None})
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(8, header):
        for damaged in (data[:at], *(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for bit in range(8))):
            try:
                encoding.decode(damaged)
            except CorruptFile:
                continue
            assert len(damaged) == len(data)


@given(TREES)
def test_a_file_holds_the_bytes_of_the_tree_and_comes_back_mapped(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree"
    sha256, size = encoding.save_file(path, tree)
    data = encoding.encode(tree)
    assert path.read_bytes() == data
    assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert same(encoding.load_file(path), tree)


def test_mapped_arrays_are_read_only_and_decoded_ones_are_not(tmp_path):
    tree = {"a": np.arange(3.0), "m": Arrays({"h": np.ones(4, ml_dtypes.bfloat16)})}
    encoding.save_file(tmp_path / "tree", tree)
    found = encoding.load_file(tmp_path / "tree")
    (tmp_path / "tree").unlink()
    assert not found["a"].flags.writeable
    assert same(found["a"], tree["a"])
    assert found["m"] == tree["m"]
    encoding.decode(encoding.encode(tree))["a"][0] = 7  # what a client keeps may be changed in place
    with pytest.raises(StorageError, match="tree cannot be read: No such file"):
        encoding.load_file(tmp_path / "tree")


def test_what_cannot_be_saved_leaves_the_older_file(tmp_path):
    encoding.save_file(tmp_path / "tree", 1)
    with pytest.raises(StrategyError):
        encoding.save_file(tmp_path / "tree", {"x": object()})
    assert encoding.load_file(tmp_path / "tree") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def forged(tree, *, arrays=None):
    """Bytes as a peer may write them."""
    text = tree if isinstance(tree, str) else json.dumps(tree)
    return write_safetensors(arrays or {}, {"umbel": '{"version": 1, "tree": ' + text + "}"})


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"~": "tuple", "items": [', "]}"), ('{"a": ', "}")])
def test_what_is_nested_too_deep_is_a_corrupt_file(begin, end, depth):
    with pytest.raises(CorruptFile):
        encoding.decode(forged(begin * depth + "1" + end * depth))


@pytest.mark.parametrize("kind", ["bytes", "array", "scalar"])
def test_a_tensor_has_one_place_in_the_tree(kind):
    """Or a few bytes could ask for any amount of memory."""
    large = {"x": np.zeros(1 << 20, np.uint8)}
    once = {"~": kind, "at": "x"}
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile, match="'x'"):
            encoding.decode(forged([once] * 1000, arrays=large), views=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "parts",
    [
        {"~": "update", "parts": None},
        {"~": "like", "parts": [3, None, True, None]},
        {"~": "correction", "parts": [1.0, "linear"]},
        {"~": "answer", "parts": [1]},
        {"~": "receipt", "parts": []},
        {"~": "arrays", "names": {"w": "x"}, "roles": {"w": "parameter"}},
        {"~": "arrays", "names": {"w": "x"}, "roles": {"v": "buffer"}},
        {"~": "arrays", "names": {"w": "x"}, "roles": {"w": "owner"}},
        {"~": "arrays", "names": ["x"], "roles": {}},
        {"~": "map", "pairs": [[[], 1]]},
        {"~": ["tuple"], "items": []},
    ],
    ids=str,
)
def test_objects_that_are_none_are_a_corrupt_file(parts):
    with pytest.raises(CorruptFile):
        encoding.decode(forged(parts, arrays={"x": np.zeros(2, np.int64)}))


@pytest.mark.parametrize(
    "wrap",
    [lambda t: [t, "x"], lambda t: (t,), lambda t: {"a": t}, lambda t: {1: t}],
    ids=["list", "tuple", "dictionary", "pairs"],
)
def test_a_tree_that_is_nested_too_deep_is_neither_written_nor_read(wrap):
    tree = leaf = np.arange(3)
    for _ in range(encoding.DEPTH):
        tree = wrap(tree)
    found = encoding.decode(encoding.encode(tree))
    for _ in range(encoding.DEPTH):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    assert found.tolist() == leaf.tolist()
    for deeper in (wrap(tree), functools.reduce(lambda t, _: wrap(t), range(100_000), tree)):
        with pytest.raises(StrategyError, match="nested deeper than"):
            encoding.encode(deeper)


@pytest.mark.parametrize("depth", [100, 990, 100_000])
def test_a_tree_of_another_peer_that_is_nested_too_deep_is_refused(depth):
    tree = "[" * depth + "1" + "]" * depth
    data = b"".join(safetensors_pieces({}, {"umbel": f'{{"version": 1, "tree": {tree}}}'}))
    with pytest.raises(CorruptFile):
        encoding.decode(data)
