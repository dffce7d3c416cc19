"""Settings that change from round to round: their laws, and that strategies have those of the round."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core.optimizers import ServerOptimizer, adam, sgd
from umbel.core.schedules import cosine, fields_in_round, in_round, steps
from umbel.errors import SettingError, StrategyError

shapes = st.tuples(st.integers(2, 50), st.integers(0, 49)).filter(lambda two: two[1] < two[0])


@given(shapes, st.floats(0.01, 10), st.floats(0, 1))
def test_a_cosine_rises_to_its_first_value_and_falls_to_its_last(shape, first, share):
    rounds, warm_up = shape
    lr = cosine(first, rounds, last=share * first, warm_up=warm_up)
    values = [lr(r) for r in range(1, rounds + 20)]
    assert values[:warm_up] == sorted(values[:warm_up])
    assert values[warm_up] == pytest.approx(first)
    assert values[warm_up:] == sorted(values[warm_up:], reverse=True)
    if warm_up < rounds - 1:
        assert values[rounds - 1 :] == pytest.approx([share * first] * 20)
        middle = (warm_up + rounds - 1) // 2
        done = (middle - warm_up) / (rounds - 1 - warm_up)
        assert values[middle] == pytest.approx(first * (share + (1 - share) * (0.5 + 0.5 * math.cos(math.pi * done))))
    assert max(values) == pytest.approx(first)


@given(st.integers(1, 9), st.floats(0.01, 10), st.floats(0, 1), st.integers(0, 5))
def test_steps_are_taken_after_so_many_rounds(every, first, times, warm_up):
    lr = steps(first, every, times, warm_up)
    for r in range(1, 40):
        assert lr(r) == pytest.approx(first * min(1, r / (warm_up + 1)) * times ** ((r - 1) // every))


def test_without_steps_there_is_the_warm_up_alone():
    lr = steps(0.4, warm_up=3)
    assert [lr(r) for r in (1, 2, 3, 4, 5, 1000)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize(
    "make",
    [
        lambda: cosine(-1, 10), lambda: cosine(math.nan, 10), lambda: cosine(0.1, 0), lambda: cosine(0.1, 10.5),
        lambda: cosine(0.1, 10, warm_up=10), lambda: cosine(True, 10), lambda: steps(0.1, 0), lambda: steps("a", 2),
        lambda: steps(0.1, 2, math.inf), lambda: steps(0.1, warm_up=-1),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(SettingError):
        make()


def test_only_functions_change():
    fixed = {"lr": 0.1, "name": "x"}
    assert in_round(fixed, 3) is fixed
    assert in_round({**fixed, "lr": lambda r: 1 / r}, 4) == {"lr": 0.25, "name": "x"}
    assert fields_in_round(sgd(0.5), 2) == sgd(0.5)
    assert fields_in_round(adam(lr=steps(0.1, 1, 0.5)), 3).lr == pytest.approx(0.025)
    assert pickle.loads(pickle.dumps(cosine(0.1, 10)))(5) == cosine(0.1, 10)(5)


client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update({"w": model["w"] + ctx.config["lr"]}, metrics={"lr": ctx.config["lr"]})


def run(folder=None, rounds=5, **settings):
    strategy = umbel.FedAvg(cohort="all", **settings)
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=strategy, rounds=rounds, config={"lr": 1.0})
    return umbel.run(app, on=umbel.Simulation(2), folder=folder)


def test_clients_and_the_server_have_the_settings_of_the_round():
    found = run(config={"lr": steps(1.0, 2, 0.5)}, server=sgd(lr=lambda r: 1 / r))
    assert [value for _, value in found.history.series("train.lr")] == [1, 1, 0.5, 0.5, 0.25]
    assert found.model["w"] == pytest.approx(1 + 1 / 2 + 0.5 / 3 + 0.5 / 4 + 0.25 / 5)


def test_a_function_of_an_optimiser_of_ones_own_is_left_alone():
    @dataclass(frozen=True)
    class Shaped(ServerOptimizer):
        shape: Callable[[np.ndarray], np.ndarray] = np.tanh

        def step(self, parameters, difference, slots):
            return {n: p + self.shape(difference[n]) for n, p in parameters.items()}, slots

    assert run(rounds=1, server=Shaped()).model["w"] == pytest.approx(np.tanh(1.0))


def test_a_run_that_goes_on_goes_on_with_them(tmp_path):
    changing = {"config": {"lr": cosine(1.0, 5, warm_up=1)}, "server": sgd(lr=cosine(1.0, 5), momentum=0.5)}
    whole = run(rounds=5, **changing)
    strategy = umbel.FedAvg(cohort="all", **changing)
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=strategy, rounds=2, config={"lr": 1.0})
    first = umbel.run(app, on=umbel.Simulation(2), folder=tmp_path)
    assert umbel.resume(app, first.folder, on=umbel.Simulation(2), rounds=5).model_sha256 == whole.model_sha256


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"config": {"lr": lambda r: 1 / (r - 3)}}, "lr, a function of the round, raised ZeroDivisionError"),
        ({"server": sgd(lr=lambda r: 2.0 - r)}, "sgd takes a lr from 0"),
    ],
)
def test_what_a_function_of_the_round_does_wrong_is_named(settings, what):
    with pytest.raises((StrategyError, SettingError), match=what):
        run(**settings)
