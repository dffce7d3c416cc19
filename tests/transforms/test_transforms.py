"""Transforms: chaining, specs, clipping, and sparse updates with error feedback."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.arrays import Arrays
from umbel.core.elementwise import mean, weighted_mean
from umbel.core.randomness import Key
from umbel.core.transform import Chain, chain, chain_from_spec, register_transform, transform_from_spec
from umbel.core.update import Free, Like, Update, check
from umbel.errors import SettingError, StrategyError, UpdateRejected
from umbel.transforms.clip_by_norm import clip_by_norm, parameter_norm
from umbel.transforms.top_k import top_k

KEY = Key.from_seed(0)
TRANSFORMS = [chain(), clip_by_norm(0.5), clip_by_norm(2.0), top_k(0.3), top_k(0.5, error_feedback=False)]


def update(seed, size=10, scale=1.0):
    rng = np.random.default_rng(seed)
    arrays = {"w": (rng.normal(size=(size, 2)) * scale).astype(np.float32), "n": np.array(seed % 100)}
    return Update(Arrays(arrays), delta=True)


def through(transform, item, local=None):
    params = transform.send(transform.init(None))
    sent, local = transform.encode(item, params, local, KEY)
    return transform.decode(sent, params, item.arrays.schema), local


def same(a, b):
    return a.arrays.to_bytes() == b.arrays.to_bytes()


@given(parts=st.lists(st.sampled_from(TRANSFORMS), min_size=3, max_size=3), seed=st.integers(0, 1000))
def test_chaining_is_associative(parts, seed):
    a, b, c = parts
    left, right, flat = chain(chain(a, b), c), chain(a, chain(b, c)), chain(a, b, c)
    assert left == right == flat
    assert same(through(left, update(seed))[0], through(right, update(seed))[0])


@given(parts=st.lists(st.sampled_from(TRANSFORMS), max_size=3), seed=st.integers(0, 1000))
def test_a_chain_does_what_its_parts_do_one_inside_the_other(parts, seed):
    expected = update(seed)
    params, schemas, sent = [], [], expected
    for part in parts:
        params.append(part.send(part.init(None)))
        schemas.append(sent.arrays.schema)
        sent, _ = part.encode(sent, params[-1], None, KEY)
    for part, param, schema in zip(reversed(parts), reversed(params), reversed(schemas), strict=True):
        sent = part.decode(sent, param, schema)
    assert same(through(chain(*parts), expected)[0], sent)


def test_chains_are_flat_whatever_they_are_made_of():
    sparse, clipped = top_k(0.1), clip_by_norm(1.0)
    assert chain() == chain([]) == chain(chain(), ()) == Chain(())
    assert chain(sparse) == chain([sparse]) == chain(chain(sparse)) == Chain((sparse,))
    assert chain(sparse, [chain(clipped), ()]) == Chain((sparse, clipped))


@pytest.mark.parametrize("wrong", [3, "top_k", {"top_k": 0.1}, [top_k(0.1), None]], ids=repr)
def test_what_is_no_transform_is_not_chained(wrong):
    with pytest.raises(StrategyError, match="is not a transform"):
        chain(wrong)


@given(parts=st.lists(st.sampled_from(TRANSFORMS), max_size=3))
def test_a_spec_rebuilds_the_chain(parts):
    assert chain_from_spec(json.loads(json.dumps(chain(*parts).spec()))) == chain(*parts)


def test_an_unknown_or_double_name_is_an_error():
    with pytest.raises(StrategyError, match="not known here"):
        transform_from_spec({"name": "nobody", "version": 1, "settings": {}})
    with pytest.raises(StrategyError, match="another transform"):
        register_transform(type("other", (top_k,), {}))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e6]), norm=st.sampled_from([0.1, 1.0, 50.0]))
def test_clipping_bounds_the_norm_and_leaves_small_updates_and_buffers_alone(seed, scale, norm):
    item = update(seed, scale=scale)
    clipped, _ = through(clip_by_norm(norm), item)
    before, after = parameter_norm(item.arrays), parameter_norm(clipped.arrays)
    assert after <= norm * (1 + 1e-5)
    assert clipped.arrays["n"] == item.arrays["n"]
    if before <= norm:
        assert same(clipped, item)
    else:
        assert math.isclose(after, norm, rel_tol=1e-5)


def test_the_bound_is_checked_again_where_the_update_is_folded():
    with pytest.raises(UpdateRejected, match=r"clipped to 0\.1"):
        clip_by_norm(0.1).decode(update(0), None)


def test_clipping_disagrees_with_claimed_weights_and_with_values():
    with pytest.raises(StrategyError, match="bounds nothing"):
        clip_by_norm(1.0).check(weighted_mean(), Like())
    with pytest.raises(StrategyError, match="expects values"):
        clip_by_norm(1.0).check(mean(), Like(delta=False))
    with pytest.raises(StrategyError, match="differences only"):
        top_k(0.1).check(mean(), Like(delta=False))


@pytest.mark.parametrize("norm", [0, -1, math.nan, math.inf, "1"])
def test_a_norm_has_to_be_positive_and_finite(norm):
    with pytest.raises(SettingError, match="finite norm above 0"):
        clip_by_norm(norm)


@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=6), fraction=st.sampled_from([0.05, 0.3, 1.0]))
def test_error_feedback_loses_nothing(seeds, fraction):
    transform, local, kept = top_k(fraction), None, np.zeros((10, 2), np.float32)
    for seed in seeds:
        item = update(seed)
        owed = item.arrays["w"] + kept
        received, local = through(transform, item, local)
        kept = local["w"] if local is not None else np.zeros_like(kept)
        assert (received.arrays["w"] + kept == owed).all()
        assert (received.arrays["w"] * kept == 0).all()
        assert np.count_nonzero(received.arrays["w"]) <= max(1, round(fraction * owed.size))
        assert np.abs(kept).max() <= np.abs(received.arrays["w"][received.arrays["w"] != 0]).min()
        assert (local is None) == (fraction == 1)


def test_without_feedback_nothing_is_kept_and_buffers_travel_whole():
    received, local = through(top_k(0.1, error_feedback=False), update(3))
    assert local is None
    assert received.arrays["n"] == 3


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, math.nan, "all"])
def test_a_fraction_lies_between_nothing_and_all(fraction):
    with pytest.raises(SettingError, match="fraction above 0"):
        top_k(fraction)


def test_roles_are_those_of_the_ask_not_those_that_the_holder_claims():
    statistics = Update(
        Arrays({"w": np.ones(2, np.float32), "mean": np.full(3, 100.0)}, {"mean": "buffer"}), delta=True
    )
    schema = statistics.arrays.schema
    both = chain(clip_by_norm(5.0), top_k(1.0))
    params = both.send(both.init(schema))
    sent, _ = both.encode(statistics, params, None, KEY)
    wire = Update(Arrays(dict(sent.arrays)), delta=True)  # roles do not survive the wire
    assert (both.decode(wire, params, schema).arrays["mean"] == 100.0).all()
    liar = Update(Arrays({"w": np.full(2, 99.0), "mean": np.ones(3)}, {"w": "buffer"}), delta=True)
    with pytest.raises(UpdateRejected, match="clipped"):
        clip_by_norm(5.0).decode(liar, None, schema)


@pytest.mark.parametrize("value", [1e200, 3e307])
def test_values_whose_squares_overflow_do_not_slip_through_a_clip(value):
    arrays = Arrays({"w": np.full(4, value)})
    assert math.isclose(parameter_norm(arrays), 2 * value)
    with pytest.raises(UpdateRejected, match="clipped to 1"):
        clip_by_norm(1.0).decode(Update(arrays), None)
    clipped, _ = through(clip_by_norm(1.0), Update(arrays))
    assert math.isclose(parameter_norm(clipped.arrays), 1.0)


@given(exponent=st.floats(-20, 38), norm=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_what_clipping_makes_passes_its_own_check(exponent, norm, seed):
    rng = np.random.default_rng(seed)
    arrays = Arrays({"w": (rng.uniform(-1, 1, 9) * 10**exponent).astype(np.float32)})
    clipped, _ = through(clip_by_norm(norm), Update(arrays))
    assert parameter_norm(clipped.arrays) <= norm * (1 + 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transform", [clip_by_norm(1.0), top_k(0.25), chain(clip_by_norm(1.0), top_k(0.25))], ids=repr)
def test_what_is_not_finite_is_rejected_by_name(transform, bad):
    item = Update(Arrays({"w": np.array([5.0, bad, 7.0, 8.0], np.float32)}), delta=True)
    with pytest.raises(UpdateRejected, match="array 'w' holds"):
        check(through(transform, item)[0], Free(), None, 0)


def test_ties_go_to_the_lower_index():
    received, _ = through(top_k(0.5), Update(Arrays({"w": np.array([1, -1, 1, -1], np.float32)}), delta=True))
    assert received.arrays["w"].tolist() == [1, -1, 0, 0]


def test_a_name_that_looks_like_a_part_of_a_sparse_array_is_left_alone():
    arrays = Arrays({"x:shape": np.arange(3), "y:indices": np.arange(2), "w": np.ones((2, 2), np.float32)})
    received, _ = through(top_k(1.0), Update(arrays, delta=True))
    assert received.arrays == arrays


def test_a_step_that_enlarges_updates_cannot_follow_one_that_bounds_them():
    with pytest.raises(StrategyError, match="Put top_k first"):
        chain(clip_by_norm(1.0), top_k(0.1)).check(mean(), Like())
    chain(top_k(0.1), clip_by_norm(1.0)).check(mean(), Like())
    chain(clip_by_norm(1.0), top_k(0.1, error_feedback=False)).check(mean(), Like())
