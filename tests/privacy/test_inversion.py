"""What an update gives away of inputs, and what noise leaves of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.privacy.inversion import invert, likeness


def trained(inputs, labels, steps=3, rate=0.1, hidden=6, seed=0):
    """The difference that gradient descent on a small perceptron makes: a hidden layer of tanh, and softmax of 3."""
    rng = np.random.default_rng(seed)
    sizes = {"0.weight": (hidden, inputs.shape[1]), "0.bias": (hidden,), "2.weight": (3, hidden), "2.bias": (3,)}
    first = {name: rng.normal(size=size) / 3 for name, size in sizes.items()}
    net = {name: array.copy() for name, array in first.items()}
    for _ in range(steps):
        active = np.tanh(inputs @ net["0.weight"].T + net["0.bias"])
        odds = np.exp(active @ net["2.weight"].T + net["2.bias"])
        error = odds / odds.sum(1, keepdims=True) - np.eye(3)[labels]
        back = error @ net["2.weight"] * (1 - active**2)
        gradients = {"0.weight": back.T @ inputs, "0.bias": back.sum(0)}
        for name, gradient in {**gradients, "2.weight": error.T @ active, "2.bias": error.sum(0)}.items():
            net[name] -= rate * gradient
    return {name: net[name] - first[name] for name in net}


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(1e-3, 1.0))
def test_of_one_example_the_whole_input_is_given_away_however_it_was_scaled(seed, steps, scale):
    example = np.random.default_rng(seed).normal(size=(1, 8))
    difference = {name: scale * array for name, array in trained(example, [seed % 3], steps, seed=seed).items()}
    found = invert(difference)["0.weight"]
    np.testing.assert_allclose(found, np.repeat(example, len(found), axis=0), rtol=1e-4, atol=1e-6)
    assert likeness(found, example) == pytest.approx(1.0)


def test_layers_may_be_turned_round_and_a_linear_model_has_one_unit():
    example = np.array([[3.0, -1.0, 0.5, 2.0]])
    plain = trained(example, [1])
    turned = {"kernel": plain["0.weight"].T, "bias": plain["0.bias"]}
    np.testing.assert_allclose(invert(turned)["kernel"][0], example[0], rtol=1e-6)
    logistic = {"weights": 0.2 * example[0], "bias": np.array([0.2]), "mean": np.zeros((2, 2, 2))}
    np.testing.assert_allclose(invert(logistic)["weights"], example)
    assert invert({"a.weight": np.ones((3, 2)), "b.bias": np.ones(3)}) == {}
    assert invert({"weights": np.ones(3), "bias": np.zeros(1)}) == {}


def test_several_examples_give_a_mean_of_them_away_and_noise_leaves_nothing():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(40, 200))
    difference = trained(inputs, rng.integers(0, 3, 40), hidden=4)
    assert likeness(invert(difference)["0.weight"], inputs).max() < 0.8
    alone = trained(inputs[:1], [0], hidden=4)
    noised = {name: array + rng.normal(size=array.shape) for name, array in alone.items()}
    assert likeness(invert(noised)["0.weight"], inputs[:1])[0] < 0.35  # of 200 elements: 5 standard deviations
