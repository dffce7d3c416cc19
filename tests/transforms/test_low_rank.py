"""Matrices as factors: exact where the rank is low, PowerSGD as written down with QR, and the warm start."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.core.transform import chain
from umbel.core.update import Update
from umbel.errors import SettingError
from umbel.transforms import low_rank, power_sgd
from umbel.transforms.subspace import orthonormal

KEY = Key.from_seed(17)


def matrix(seed, rank, shape=(20, 30)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, int(np.prod(shape[1:])))) / 3


@given(seed=st.integers(0, 1000), rank=st.integers(0, 4), shape=st.sampled_from([(20, 30), (30, 20), (12, 5, 4)]))
def test_a_matrix_of_that_rank_is_received_as_it_was(seed, rank, shape):
    values = matrix(seed, rank, shape).reshape(shape)
    whole, item = chain(low_rank(4)), Update(Arrays({"w": values}), delta=True)
    sent, _ = whole.encode(item, whole.send(whole.init(None)), None, KEY)
    got = whole.decode(sent, (None,), item.arrays.schema).arrays["w"]
    np.testing.assert_allclose(got, values, atol=1e-12 + 1e-9 * np.abs(values).max())
    rows = shape[0]
    assert sent.arrays.nbytes == 8 * 4 * (rows + values.size // rows)


@pytest.mark.parametrize("iterations", [1, 2, 12])
def test_of_others_it_is_the_projection_that_subspace_iteration_finds(iterations):
    values = matrix(1, 20) + np.random.default_rng(2).normal(size=(20, 30))
    whole, item = chain(low_rank(3, iterations=iterations)), Update(Arrays({"w": values}), delta=True)
    sent, _ = whole.encode(item, (None,), None, KEY)
    got = whole.decode(sent, (None,), item.arrays.schema).arrays["w"]
    right = KEY.derive("part", 0).derive("w").draws().normal(90).reshape(3, 30).T
    for _ in range(iterations):
        left, _ = np.linalg.qr(values @ right)
        right = values.T @ left
    np.testing.assert_allclose(got, left @ right.T, atol=1e-9)
    assert np.linalg.norm(got) <= np.linalg.norm(values)
    if iterations == 12:
        u, s, v = np.linalg.svd(values)
        best = np.linalg.norm(values - (u[:, :3] * s[:3]) @ v[:3])
        assert np.linalg.norm(values - got) < 1.01 * best


def test_what_two_factors_do_not_make_smaller_travels_whole():
    arrays = {"bias": np.ones(50), "small": np.ones((4, 4)), "wide": np.ones((2, 100)), "count": np.array(3)}
    schema = Arrays(arrays).schema
    sent, _ = low_rank(2).encode(Update(Arrays(arrays), delta=True), None, None, KEY)
    assert set(sent.arrays) == {"bias", "small", "wide", "count"}
    assert low_rank(1).encoded(schema).keys() == {
        "bias",
        "small:left",
        "small:right",
        "wide:left",
        "wide:right",
        "count",
    }


def test_power_sgd_is_what_its_paper_says_for_three_rounds():
    whole, clients = power_sgd(2), 3
    state = whole.init(Arrays({"w": np.zeros((20, 30))}).schema)
    local, rest, right = [None] * clients, [np.zeros((20, 30))] * clients, None
    for turn in range(3):
        params, received, expected = whole.send(state), [], []
        for c in range(clients):
            values = matrix(10 * turn + c, 20)
            item, key = Update(Arrays({"w": values}), delta=True), KEY.derive(turn, c)
            made, local[c] = whole.encode(item, params, local[c], key)
            received.append(whole.decode(made, params, item.arrays.schema).arrays["w"])
            # the reference
            owed = values + rest[c]
            start = right
            if start is None:
                start = key.derive("part", 1).derive("w").draws().normal(60).reshape(2, 30).T
            left, _ = np.linalg.qr(owed @ start)
            expected.append(left @ (owed.T @ left).T)
            rest[c] = owed - expected[-1]
            np.testing.assert_allclose(received[-1], expected[-1], atol=1e-6)
        finish = KEY.derive("finish", turn)
        answer = Answer(Arrays({"w": np.mean(received, 0)}))
        after, state = whole.finish(answer, state, finish)
        assert after.value == answer.value
        mean = np.mean(expected, 0)
        if right is None:
            right = finish.derive("part", 1).derive("w").draws().normal(60).reshape(2, 30).T
        left, _ = np.linalg.qr(mean @ right)
        right = (mean.T @ left).astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(np.abs(state[1]["w"].T), np.abs(right), rtol=1e-4, atol=1e-6)


def test_a_warm_start_finds_a_subspace_that_stays_and_a_cold_one_does_not():
    rng = np.random.default_rng(4)
    values = matrix(5, 2) * 3 + rng.normal(size=(20, 30)) * 0.3
    errors = {}
    for warm in (True, False):
        whole = chain(low_rank(2, warm_start=warm))
        state = whole.init(Arrays({"w": values}).schema)
        for turn in range(6):
            params, item = whole.send(state), Update(Arrays({"w": values}), delta=True)
            made, _ = whole.encode(item, params, None, KEY.derive(turn))
            got = whole.decode(made, params, item.arrays.schema)
            errors.setdefault(warm, []).append(np.linalg.norm(got.arrays["w"] - values))
            _, state = whole.finish(Answer(got.arrays), state, KEY.derive("finish", turn))
    u, s, v = np.linalg.svd(values)
    best = np.linalg.norm(values - (u[:, :2] * s[:2]) @ v[:2])
    assert errors[True][-1] < 1.001 * best < errors[False][-1]


def test_a_direction_that_was_lost_comes_back():
    whole = chain(low_rank(2, warm_start=True))
    item = Update(Arrays({"w": matrix(6, 2)}), delta=True)
    _, state = whole.finish(Answer(Arrays({"w": matrix(6, 1)})), whole.init(None), KEY)  # of rank 1 only
    made, _ = whole.encode(item, whole.send(state), None, KEY)
    got = whole.decode(made, whole.send(state), item.arrays.schema).arrays["w"]
    np.testing.assert_allclose(got, item.arrays["w"], atol=1e-6)


def test_dependent_rows_are_zero():
    made = orthonormal(np.eye(4), np.array([[1.0, 1, 0, 0], [2, 2, 0, 0], [0, 1, 1, 0]]))
    assert not made[1].any()
    np.testing.assert_allclose(made @ made.T, np.diag([1, 0, 1]), atol=1e-15)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"iterations": 0}, {"rank": True}])
def test_settings_are_checked_when_it_is_made(settings):
    with pytest.raises(SettingError, match="takes"):
        low_rank(**settings)
