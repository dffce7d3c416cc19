"""Some entries alone: drawn, largest or changed, and what is left out sent later."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.transform import chain
from umbel.core.update import Update
from umbel.errors import SettingError
from umbel.transforms import delta_mask, error_feedback, low_rank, quantise, random_k, top_k

KEY = Key.from_seed(13)
rows = st.lists(st.integers(-8, 8).map(float), min_size=40, max_size=90).map(lambda v: np.array(v, np.float32))


def sent(steps, values, key=KEY, local=None):
    whole, item = chain(steps), Update(Arrays({"w": values}), delta=True)
    params = whole.send(whole.init(item.arrays.schema))
    made, left = whole.encode(item, params, local, key)
    return made.arrays, whole.decode(made, params, item.arrays.schema).arrays["w"], left


@given(values=rows, fraction=st.sampled_from([0.02, 0.1, 0.5]))
def test_the_largest_are_sent_and_of_equals_the_first(values, fraction):
    count = max(1, round(fraction * values.size))
    chosen = sorted(range(values.size), key=lambda i: (-abs(values[i]), i))[:count]
    expected = [v if i in chosen else 0.0 for i, v in enumerate(values)]
    _, got, _ = sent(top_k(fraction, error_feedback=False), values)
    assert got.tolist() == expected
    # a contraction: at most 1 - k / n of the squared norm is left
    assert np.square(values - got).sum() <= (1 - count / values.size) * np.square(values).sum() * (1 + 1e-6)


@pytest.mark.parametrize("size", [300, 1000])
@pytest.mark.parametrize("fraction", [0.01, 0.4])
def test_random_entries_are_those_of_the_seed(size, fraction):
    values = np.random.default_rng(0).normal(size=size)
    parts, got, _ = sent(random_k(fraction), values)
    count = round(fraction * size)
    chosen = Key.from_seed(int(parts["random_k:seed"])).derive("w").draws().sample(size, count)
    expected = np.zeros(size)
    for i in chosen:
        expected[i] = values[i] * (size / count)
    np.testing.assert_array_equal(got, expected)
    assert parts.nbytes == 8 * count + 8
    assert int(parts["random_k:seed"]) == KEY.derive("part", 0).integer(64)


def test_random_entries_have_the_mean_and_the_error_that_is_said():
    values, times = np.random.default_rng(1).normal(size=200), 600
    got = np.array([sent(random_k(0.1), values, KEY.derive(i))[1] for i in range(times)])
    deviation = np.abs(values) * math.sqrt(9 / times)
    assert (np.abs(got.mean(0) - values) < 5 * deviation).all()
    errors = np.square(got - values).sum(1) / np.square(values).sum()
    assert abs(errors.mean() - 9) < 5 * errors.std() / math.sqrt(times)
    biased = np.array([sent(random_k(0.1, unbiased=False), values, KEY.derive(i))[1] for i in range(200)])
    assert abs(np.mean([np.square(row - values).sum() for row in biased]) / np.square(values).sum() - 0.9) < 0.01


@given(values=rows, threshold=st.sampled_from([0.0, 1.0, 3.5, 100.0]))
def test_what_has_changed_is_sent(values, threshold):
    parts, got, _ = sent(delta_mask(threshold), values)
    assert got.tolist() == [v if abs(v) > threshold else 0.0 for v in values.tolist()]
    assert int(parts["w:count"]) == parts["w:values"].size == np.count_nonzero(got)


def test_an_unchanged_layer_costs_next_to_nothing():
    parts, got, _ = sent(delta_mask(), np.zeros(10**6, np.float32))
    assert parts.nbytes == 8
    assert not got.any()


BIASED = [
    quantise(1, stochastic=False),
    quantise(4, block=8),
    delta_mask(2.0),
    low_rank(1),
    random_k(0.2, unbiased=False),
    chain(top_k(0.1, error_feedback=False), quantise(1, stochastic=False)),
]


@pytest.mark.parametrize("steps", BIASED, ids=repr)
def test_feedback_owes_what_was_not_received(steps):
    rng, local, kept = np.random.default_rng(3), None, np.zeros((9, 20))
    whole, total, got = chain(error_feedback(), steps), 0.0, 0.0
    for turn in range(3):
        values = rng.normal(size=(9, 20))
        _, plain, _ = sent_at(chain(steps), values + kept, turn, 1)
        _, received, local = sent_at(whole, values, turn, 0, local)
        np.testing.assert_array_equal(received, plain)  # the steps behind see the difference and what is owed
        kept = values + kept - plain
        np.testing.assert_array_equal(local[0]["w"], kept)
        total, got = total + values, got + received
    np.testing.assert_allclose(got + kept, total, atol=1e-12)


def sent_at(whole, values, turn, first, local=None):
    """What a chain makes in a turn, the keys of its steps being those from `first` on."""
    item, key = Update(Arrays({"w": values}), delta=True), KEY.derive(turn)
    params = whole.send(whole.init(item.arrays.schema))
    if not first:
        made, left = whole.encode(item, params, local, key)
    else:
        made, left = item, None
        for i, step in enumerate(whole.parts):
            made, _ = step.encode(made, params[i], None, key.derive("part", i + first))
    return made.arrays, whole.decode(made, params, item.arrays.schema).arrays["w"], left


def test_nothing_is_kept_where_nothing_is_left_out():
    assert sent(chain(error_feedback(), delta_mask()), np.arange(50.0))[2] is None
    assert sent(chain(error_feedback(), top_k(1.0, error_feedback=False)), np.arange(3.0))[2] is None


@pytest.mark.parametrize(
    "made",
    [
        *(lambda value=value: random_k(value) for value in (0, -1, 1.5, True, math.nan)),
        *(lambda value=value: top_k(value) for value in (0, 2, True)),
        *(lambda value=value: delta_mask(value) for value in (-1, math.inf, math.nan, "1", True)),
    ],
)
def test_settings_are_checked_when_it_is_made(made):
    with pytest.raises(SettingError, match="takes"):
        made()
