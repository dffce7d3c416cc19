"""What all compressing transforms have in common: what is sent is as large as they say, what comes back is checked
before anything is made room for, and they go together.
"""

import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import umbel
from umbel import FedAvg, Update
from umbel.core.arrays import Arrays, Schema, Spec, wide
from umbel.core.elementwise import mean, weighted_mean
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.core.update import Free, Like
from umbel.errors import StrategyError, UpdateRejected
from umbel.runs.journal import read_log
from umbel.testing.deployment import Deployment, Faults
from umbel.transforms import (
    clip_by_norm,
    count_sketch,
    delta_mask,
    drive,
    eden,
    error_feedback,
    lloyd_max,
    low_rank,
    power_sgd,
    quantise,
    random_k,
    rotate,
    top_k,
)
from umbel.transforms.bits import code_bytes, in_blocks, looked_up, packed, place_bytes, places, places_read

KEY = Key.from_seed(7)
STEPS = [
    *(quantise(bits, stochastic=s, block=16) for bits in (1, 2, 4, 8) for s in (False, True)),
    quantise(4, kind="e3m0"),
    quantise(4, kind="e3m0", stochastic=False),
    quantise(4, bounded=True),
    *(lloyd_max(bits, block=32) for bits in (1, 2, 4)),
    rotate(block=16),
    drive(),
    drive(unbiased=False),
    eden(2, block=16),
    top_k(0.2),
    top_k(0.2, error_feedback=False),
    random_k(0.3),
    random_k(0.6, unbiased=False),
    delta_mask(),
    delta_mask(0.5),
    low_rank(2),
    low_rank(1, iterations=3, warm_start=True),
    power_sgd(2),
    count_sketch(0.4),
    chain(top_k(0.2), quantise(8, block=8)),
    chain(error_feedback(), delta_mask(0.5), quantise(4)),
    chain(random_k(0.3), rotate(block=8), lloyd_max(4)),
    chain(low_rank(2), quantise(8)),
    chain(error_feedback(), count_sketch(0.4), quantise(8)),
    chain(top_k(0.5), random_k(0.5, unbiased=False), quantise(1)),
]
SHAPES = [(), (1,), (0,), (5, 0), (7,), (300,), (9, 20), (3, 4, 5)]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def update(seed=0, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = {f"a{i}": rng.normal(size=shape).astype(wide(np.dtype(dtype))) for i, shape in enumerate(shapes)}
    arrays |= {"count": np.array(seed), "mean": rng.normal(size=300)}
    return Update(Arrays(arrays, {"mean": "buffer"}), delta=True)


def schema_of(item, dtype):
    return Schema(
        {
            n: s._replace(dtype=np.dtype(dtype) if s.role == "parameter" else s.dtype)
            for n, s in item.arrays.schema.items()
        }
    )


def encoded(steps, item, dtype=np.float32, local=None):
    whole, schema = chain(steps), schema_of(item, dtype)
    whole.check(weighted_mean(), Like())
    params = whole.send(whole.init(schema))
    sent, left = whole.encode(item, params, local, KEY)
    wire = Update(Arrays(dict(sent.arrays)), delta=True)  # roles do not survive the wire
    return whole, schema, params, wire, left


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_any_arrays_come_back_in_their_form_and_what_travels_is_as_large_as_said(steps, dtype):
    item = update(3, dtype=dtype)
    whole, schema, params, wire, _ = encoded(steps, item, dtype)
    got = whole.decode(wire, params, schema)
    assert got.arrays.schema == item.arrays.schema
    assert {n: got.arrays[n].tobytes() for n in ("count", "mean")} == {
        n: item.arrays[n].tobytes() for n in ("count", "mean")
    }
    assert whole.encoded(schema, wire.arrays).keys() == wire.arrays.keys()
    assert whole.encoded(schema, wire.arrays).nbytes == wire.arrays.nbytes <= whole.encoded(schema).nbytes
    assert all(a.tobytes() == whole.decode(wire, params, schema).arrays[n].tobytes() for n, a in got.arrays.items())


@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_the_same_key_gives_the_same_bytes_and_zeros_stay_zeros(steps):
    item = update(5)
    assert encoded(steps, item)[3].arrays.to_bytes() == encoded(steps, item)[3].arrays.to_bytes()
    none = Update(item.arrays.map(lambda name, a: np.zeros_like(a)), delta=True)
    whole, schema, params, wire, _ = encoded(steps, none)
    assert all(not a.any() for a in whole.decode(wire, params, schema).arrays.values())


@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_a_spec_rebuilds_it(steps):
    assert chain_from_spec(json.loads(json.dumps(chain(steps).spec()))) == chain(steps)


@pytest.mark.parametrize("steps", [*STEPS, error_feedback()], ids=repr)
def test_values_are_not_differences(steps):
    for expects in (Like(delta=False), Free()):
        with pytest.raises(StrategyError, match="difference"):
            chain(steps).check(mean(), expects)


def broken(arrays):
    """Updates that differ from a right one in one part: missing, of another shape or dtype, or one too many."""
    for name in arrays:
        rest = {n: a for n, a in arrays.items() if n != name}
        yield f"without {name}", rest
        if ":" not in name:
            continue
        array = arrays[name]
        yield f"longer {name}", {**rest, name: np.concatenate((array.reshape(-1), array.reshape(-1)[:1]))}
        yield f"shorter {name}", {**rest, name: array.reshape(-1)[1:]}
        yield f"deeper {name}", {**rest, name: array[None]}
        for dtype in (np.int32, np.float64, np.float16, np.int64):
            if array.dtype != dtype:
                yield f"{name} as {dtype.__name__}", {**rest, name: np.zeros(array.shape, dtype)}
    yield "one more", {**arrays, "more": np.zeros(2)}
    yield "a part more", {**arrays, "a6:more": np.zeros(2)}
    yield "the array beside its parts", {**arrays, "a6": np.zeros((9, 20), np.float32)}


@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_an_update_that_does_not_look_as_it_has_to_is_rejected(steps):
    whole, schema, params, wire, _ = encoded(steps, update(1))
    for what, arrays in broken(dict(wire.arrays)):
        with pytest.raises(UpdateRejected, match=r"lacks|unexpected|has shape|has dtype|not a number"):
            pytest.fail(f"{what}: {whole.decode(Update(Arrays(arrays), delta=True), params, schema)}")
    with pytest.raises(UpdateRejected, match="any arrays"):
        whole.decode(wire, params, None)


@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_whatever_bytes_stand_in_the_parts_the_form_is_right_or_it_is_rejected(steps):
    whole, schema, params, wire, _ = encoded(steps, update(2))
    rng = np.random.default_rng(0)
    for _ in range(20):
        arrays = {n: a.copy() for n, a in wire.arrays.items()}
        for name, array in arrays.items():
            if ":" in name and array.size and rng.random() < 0.5:
                data = np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape)
                arrays[name] = data.copy()
        with np.errstate(all="ignore"):
            try:
                got = whole.decode(Update(Arrays(arrays), delta=True), params, schema)
            except UpdateRejected:
                continue
        assert got.arrays.schema.keys() == schema.keys()
        assert all(got.arrays[n].shape == spec.shape for n, spec in schema.items())


def test_few_bytes_cannot_make_the_receiver_allocate_much():
    small = Schema({"w": Spec((300,), np.dtype(np.float32), "parameter")})
    bombs = {
        delta_mask(): {
            "w:count": np.array(2**40),
            "w:places": np.zeros(5, np.uint8),
            "w:values": np.zeros(1, np.float32),
        },
        random_k(0.1): {"random_k:seed": np.array(1, np.uint64), "w:values": np.zeros(1 << 20, np.float32)},
        top_k(0.1): {"w:places": np.zeros(1 << 20, np.uint8), "w:values": np.zeros(30, np.float32)},
        low_rank(1): {"w:left": np.zeros((1, 1 << 20), np.float32), "w:right": np.zeros((1, 1 << 20), np.float32)},
        chain(delta_mask(), quantise(8)): {
            "w:count": np.array(-1),
            "w:places": np.zeros(0, np.uint8),
            "w:values:codes": np.zeros(1, np.uint8),
            "w:values:scales": np.zeros(1, np.float32),
        },
    }
    for steps, arrays in bombs.items():
        item, whole = Update(Arrays(arrays), delta=True), chain(steps)
        params = whole.send(whole.init(small))
        tracemalloc.start()
        try:
            with pytest.raises(UpdateRejected):
                whole.decode(item, params, small)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 18


@pytest.mark.parametrize("count", [-1, 301, 2**40, -(2**62)])
def test_no_more_entries_are_counted_than_there_are(count):
    schema = Schema({"w": Spec((300,), np.dtype(np.float32), "parameter")})
    arrays = {"w:count": np.array(count), "w:places": np.zeros(0, np.uint8), "w:values": np.zeros(0, np.float32)}
    for steps in (delta_mask(), chain(delta_mask(), quantise(1))):
        with pytest.raises(UpdateRejected, match="not a number up to 300"):
            chain(steps).decode(Update(Arrays(arrays), delta=True), (None, None)[: len(chain(steps).parts)], schema)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", STEPS, ids=repr)
def test_what_is_not_finite_is_rejected_by_name_where_it_is_made(steps, bad):
    values = np.ones((9, 20), np.float32)
    values[3, 7] = bad
    with pytest.raises(UpdateRejected, match=f"'w' holds {'NaN' if math.isnan(bad) else 'infinity'}"):
        encoded(steps, Update(Arrays({"w": values}), delta=True))


def test_names_that_clash_are_refused():
    clash = Schema(
        {
            "w": Spec((300,), np.dtype(np.float32), "parameter"),
            "w:codes": Spec((3,), np.dtype(np.int64), "buffer"),
        }
    )
    with pytest.raises(StrategyError, match="'w:codes'"):
        chain(quantise(8)).init(clash)
    twice = chain(random_k(0.5), random_k(0.5))
    with pytest.raises(StrategyError, match="'random_k:seed' already"):
        twice.init(Schema({"w": clash["w"]}))


def test_bounds_hold_or_are_refused():
    rng = np.random.default_rng(0)
    heavy = Update(Arrays({"w": rng.standard_t(2, size=2000).astype(np.float32)}), delta=True)
    for steps in (
        quantise(4, bounded=True, block=64),
        quantise(1, bounded=True),
        quantise(1, stochastic=False),
        quantise(4, kind="e3m0", bounded=True),
        drive(unbiased=False),
        top_k(0.1, error_feedback=False),
        random_k(0.1, unbiased=False),
        delta_mask(0.1),
        low_rank(2),
        chain(top_k(0.1, error_feedback=False), quantise(8, bounded=True)),
    ):
        bound = chain(clip_by_norm(1.0), steps)
        bound.check(mean(), Like())
        schema = heavy.arrays.schema
        params = bound.send(bound.init(schema))
        got = bound.decode(bound.encode(heavy, params, None, KEY)[0], params, schema)
        assert 0 < np.linalg.norm(got.arrays["w"].astype(np.float64)) <= 1 + 1e-5
    for steps in (quantise(8), lloyd_max(4), random_k(0.1), count_sketch(), drive(), error_feedback(), top_k(0.1)):
        with pytest.raises(StrategyError, match="can break the bound"):
            chain(clip_by_norm(1.0), steps).check(mean(), Like())
    for steps in (quantise(8), eden(), low_rank(), count_sketch()):
        with pytest.raises(StrategyError, match="bounds nothing: what"):
            chain(steps, clip_by_norm(1.0)).check(mean(), Like())
    chain(rotate(), clip_by_norm(1.0), quantise(4, bounded=True)).check(mean(), Like())


def test_what_is_left_out_is_added_once():
    for twice in (chain(error_feedback(), top_k(0.1)), chain(power_sgd(), error_feedback())):
        with pytest.raises(StrategyError, match="count twice"):
            twice.check(mean(), Like())
    chain(error_feedback(), top_k(0.1, error_feedback=False), quantise(4)).check(mean(), Like())


@given(data=st.data(), bits=st.sampled_from([1, 2, 4, 8]), count=st.integers(0, 50))
def test_codes_are_packed_and_read(data, bits, count):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)), np.uint8)
    made = packed(codes, bits)
    assert made.dtype == np.uint8
    assert made.size == code_bytes(count, bits)
    whole = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert int.from_bytes(made.tobytes(), "little") == whole
    assert looked_up(made, np.arange(2**bits), count).tolist() == codes.tolist()


@given(size=st.integers(1, 400), data=st.data())
def test_places_are_written_and_read_in_few_bits(size, data):
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), np.int64)
    made = places(indices, size)
    assert made.size == place_bytes(indices.size, size)
    assert places_read(made, indices.size, size, "w").tolist() == indices.tolist()
    if indices.size:
        assert 8 * made.size <= indices.size * (2 + math.log2(size / indices.size)) + 16


@given(data=st.binary(min_size=4, max_size=4), count=st.integers(1, 9))
def test_any_bytes_are_rising_places_or_rejected(data, count):
    size = next(n for n in range(1000, 0, -1) if n < count or place_bytes(count, n) <= 4)
    raw = np.frombuffer(data, np.uint8)[: place_bytes(count, size)]
    try:
        found = places_read(raw, count, size, "w")
    except UpdateRejected:
        return
    assert found.size == count
    assert (np.diff(found) > 0).all()
    assert 0 <= found[0] <= found[-1] < size


@given(size=st.integers(1, 100), block=st.sampled_from([8, 16, 64]))
def test_blocks_hold_all_elements(size, block):
    rows, sizes = in_blocks(np.arange(1, size + 1), block)
    assert sizes.sum() == size
    assert rows.reshape(-1)[:size].tolist() == list(range(1, size + 1))
    assert not rows.reshape(-1)[size:].any()


@settings(max_examples=20)
@given(
    parts=st.lists(
        st.sampled_from([quantise(8), quantise(1), rotate(block=16), random_k(0.5), delta_mask(), low_rank(2)]),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    seed=st.integers(0, 100),
)
def test_they_go_together_in_any_order(parts, seed):
    item = update(seed, shapes=[(40,), (12, 9)])
    whole, schema, params, wire, _ = encoded(parts, item)
    assert whole.decode(wire, params, schema).arrays.schema == item.arrays.schema


client = umbel.Client()


@client.data
def data(source):
    return np.random.default_rng(source["index"]).normal(size=(8, 40))


@client.train
def train(model, data, ctx):
    return Update(
        model.map(lambda name, array: array - np.float32(0.3) * (array - data[0, : array.shape[-1]].astype("f4")))
    )


TOGETHER = chain(error_feedback(), rotate(block=32), delta_mask(0.01), quantise(4, block=16))
SETS = [power_sgd(2), chain(count_sketch(0.5, momentum=0.5)), chain(top_k(0.1), quantise(8)), TOGETHER, eden(2)]


class InLanes(umbel.Strategy):
    """Asks for an update through each of the chains, each in a lane of its own, and adds up what comes."""

    def round(self, state, r):
        asks = [
            umbel.Ask(clients="all", model=state.model, transforms=steps, lane=str(at)) for at, steps in enumerate(SETS)
        ]
        replies = yield asks
        model = state.model
        for reply in replies:
            model = model.map(lambda name, array, reply=reply: array + reply.value[name])
        return umbel.State(model)


def in_lanes():
    model = {"w": np.zeros((8, 40), np.float32), "b": np.zeros(3, np.float32)}
    return umbel.App(client, model=model, strategy=InLanes(), rounds=3)


def simulated(workers):
    events = []
    on = umbel.Simulation(clients=4, workers=workers)
    result = umbel.run(in_lanes(), on=on, seed=5, folder=None, observers=[events.append])
    return result.model_sha256, [event for event in events if event.name == "ask_closed"]


@pytest.mark.slow
def test_workers_and_nodes_change_no_bit_and_the_log_has_measured_bytes(tmp_path):
    """The nodes are real ones in one process, and some of them below a relay."""
    here, told = simulated(0)
    for event, steps in zip(told, SETS * 3, strict=True):
        said = chain(steps).encoded(Arrays({"w": np.zeros((8, 40), np.float32), "b": np.zeros(3, np.float32)}).schema)
        assert event.account["plain_bytes"] > 4 * 4 * 323
        assert 0 < event.account["update_bytes"] <= 4 * (said.nbytes + 30 * len(said) + 20)
        assert event.account["update_bytes"] < event.account["plain_bytes"]
    assert simulated(2)[0] == here
    sources = {str(i): {"index": i, "count": 4} for i in range(4)}
    nodes = {"a": {"0": sources["0"]}, "b": {"1": sources["1"], "2": sources["2"]}, "c": {"3": sources["3"]}}
    for relays in (None, {"r": ["a", "b"]}):
        world = Deployment(in_lanes(), nodes, seed=9, relays=relays, faults=Faults.none(), scratch=tmp_path)
        there = world.run(tmp_path / f"run-{bool(relays)}", seed=5)
        assert there.model_sha256 == here
        events = [event for event in read_log(there.folder).events if event.name == "ask_closed"]
        if relays is None:
            sizes = [[(e.account["update_bytes"], e.account["plain_bytes"]) for e in each] for each in (events, told)]
            assert sizes[0] == sizes[1]


def test_a_run_that_goes_on_has_what_server_and_clients_have_kept(tmp_path):
    on = umbel.Simulation(clients=4)
    whole = umbel.run(in_lanes(), on=on, seed=5, folder=None)
    begun = umbel.run(in_lanes(), on=on, seed=5, folder=tmp_path, rounds=1)
    assert umbel.resume(in_lanes(), begun.folder, on=on, rounds=3).model_sha256 == whole.model_sha256


def test_without_transforms_no_bytes_are_measured():
    events = []
    app = umbel.App(client, model={"w": np.zeros((8, 40), np.float32)}, strategy=FedAvg(cohort=2), rounds=1)
    umbel.run(app, on=umbel.Simulation(clients=2), folder=None, observers=[events.append])
    (event,) = (event for event in events if event.name == "ask_closed")
    assert (event.account["update_bytes"], event.account["plain_bytes"]) == (0, 0)
