"""Server optimisers, against Algorithm 2 of Reddi et al. 2021 written out in float64."""

import numpy as np
import pytest

from umbel.core.optimizers import adagrad, adam, sgd, yogi
from umbel.errors import SettingError

RNG = np.random.default_rng(0)
START = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "b": RNG.normal(size=2)}
DIFFERENCES = [{n: RNG.normal(size=p.shape).astype(p.dtype) * 0.1 for n, p in START.items()} for _ in range(8)]


def steps(optimizer):
    parameters, slots = START, optimizer.init(START)
    for difference in DIFFERENCES:
        parameters, slots = optimizer.step(parameters, difference, slots)
    return parameters


def textbook(second, lr, beta1, tau):
    found = {}
    for name, x in START.items():
        x, m, v = x.astype(np.float64), 0.0, tau**2
        for difference in DIFFERENCES:
            d = difference[name].astype(np.float64)
            m = beta1 * m + (1 - beta1) * d
            v = second(v, d**2)
            x = x + lr * m / (np.sqrt(v) + tau)
        found[name] = x
    return found


CASES = [
    (adam(lr=0.3, beta1=0.8, beta2=0.9, tau=0.01), textbook(lambda v, s: 0.9 * v + 0.1 * s, 0.3, 0.8, 0.01)),
    (yogi(lr=0.3, beta1=0.8, beta2=0.9, tau=0.01), textbook(lambda v, s: v - 0.1 * s * np.sign(v - s), 0.3, 0.8, 0.01)),
    (adagrad(lr=0.3, tau=0.01), textbook(lambda v, s: v + s, 0.3, 0.0, 0.01)),
]


@pytest.mark.parametrize(("optimizer", "expected"), CASES, ids=["adam", "yogi", "adagrad"])
def test_adaptive_steps_are_those_of_the_paper(optimizer, expected):
    found = steps(optimizer)
    for name, values in expected.items():
        assert found[name].dtype == START[name].dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-4 if name == "w" else 1e-12)


def test_plain_sgd_adds_and_momentum_adds_a_running_sum():
    one, two = DIFFERENCES[0]["b"], DIFFERENCES[1]["b"]
    parameters, slots = sgd().step(START, DIFFERENCES[0], {})
    assert (parameters["b"] == START["b"] + one).all()
    assert slots == {}
    heavy = sgd(lr=0.5, momentum=0.9)
    parameters, slots = heavy.step(START, DIFFERENCES[0], heavy.init(START))
    parameters, slots = heavy.step(parameters, DIFFERENCES[1], slots)
    np.testing.assert_allclose(parameters["b"], START["b"] + 0.5 * one + 0.5 * (0.9 * one + two))
    ahead = sgd(lr=1.0, momentum=0.9, nesterov=True)
    parameters, _ = ahead.step(START, DIFFERENCES[0], ahead.init(START))
    np.testing.assert_allclose(parameters["b"], START["b"] + 1.9 * one)


def test_steps_change_neither_parameters_nor_slots_in_place():
    optimizer = adam()
    slots = optimizer.init(START)
    before = {n: p.copy() for n, p in START.items()}
    optimizer.step(START, DIFFERENCES[0], slots)
    assert all((START[n] == before[n]).all() for n in START)
    assert not slots["first"]["w"].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: sgd(lr=-1),
        lambda: sgd(momentum=1.5),
        lambda: adam(tau=0),
        lambda: adam(beta2="x"),
        lambda: adam(beta1=1.0),
    ],
)
def test_rates_out_of_range_are_an_error(make):
    with pytest.raises(SettingError, match="takes a"):
        make()


@pytest.mark.parametrize("optimizer", [sgd(momentum=0.5), adam(), yogi(), adagrad()], ids=lambda o: type(o).__name__)
def test_parameters_that_sit_a_step_out_keep_their_slots(optimizer):
    def only(name, parts):
        return {name: parts[name]}

    slots = optimizer.init(START)
    stepped, slots = optimizer.step(only("w", START), only("w", DIFFERENCES[0]), slots)
    assert list(stepped) == ["w"]
    alone, slots = optimizer.step(only("b", START), only("b", DIFFERENCES[0]), slots)
    together, expected = optimizer.step(START, DIFFERENCES[0], optimizer.init(START))
    assert (alone["b"] == together["b"]).all()
    assert all((slots[s][n] == expected[s][n]).all() for s in expected for n in START)
