"""Apps: what they refuse, the initial model, and the operator's own test."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest

from umbel.core.app import App, EarlyStop, KeepBest
from umbel.core.arrays import Arrays
from umbel.core.client import Client
from umbel.core.update import Metrics, Update
from umbel.errors import AppError, SettingError
from umbel.strategies import FedAvg

MODEL = {"w": np.zeros(3), "steps": np.array(0)}


def app(**changes):
    parts = {"client": Client(), "model": MODEL, "strategy": FedAvg(), **changes}
    return App(parts.pop("client"), **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client": None}, "the app's client is None"),
        ({"client": Client}, "the app's client is <class"),
        ({"strategy": None}, "the app's strategy is None"),
        ({"strategy": FedAvg}, "the app's strategy is <class"),
        ({"model": None}, "the app has no model"),
    ],
)
def test_a_missing_or_wrong_part_is_an_error_that_says_what_to_pass(changes, message):
    with pytest.raises(AppError, match=message) as caught:
        app(**changes)
    assert "Pass" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "setting",
    [
        {"rounds": 0},
        {"rounds": True},
        {"rounds": 2.0},
        {"rounds": "5"},
        {"evaluate_every": -1},
        {"evaluate_every": "never"},
        {"max_failed_rounds": 0},
    ],
    ids=str,
)
def test_a_setting_that_is_no_count_is_an_error_that_names_it(setting):
    with pytest.raises(SettingError, match=f"an app's {next(iter(setting))} is a whole number"):
        app(**setting)


def test_the_least_counts_are_taken():
    least = app(rounds=1, evaluate_every=0, max_failed_rounds=1, early_stop=EarlyStop("test.loss", patience=1))
    assert (least.rounds, least.evaluate_every, least.max_failed_rounds, least.early_stop.patience) == (1, 0, 1, 1)
    with pytest.raises(SettingError, match="an app's patience is a whole number of at least 1"):
        EarlyStop("test.loss", patience=0)
    with pytest.raises(SettingError, match="a patience, a target, or both"):
        EarlyStop("test.loss", patience=None)
    with pytest.raises(SettingError, match=r"a value of test\.loss, not 'low'"):
        EarlyStop("test.loss", target="low")


def test_the_config_is_a_copy():
    config = {"lr": 0.1}
    made = app(config=config)
    config["lr"] = 9.0
    assert made.config == {"lr": 0.1}
    assert app().config == {}


def test_keep_best_may_be_just_the_metric():
    assert app(keep_best="test.accuracy").keep_best == KeepBest("test.accuracy", "max")
    assert app(keep_best=KeepBest("test.loss", "min")).keep_best == KeepBest("test.loss", "min")
    assert app(early_stop=EarlyStop("test.loss", mode="min")).early_stop.patience == 5


@pytest.mark.parametrize("model", [MODEL, Arrays(MODEL), lambda: MODEL, lambda: Arrays(MODEL)])
def test_the_initial_model_is_arrays_or_a_mapping_or_a_function_that_makes_one(model):
    made = app(model=model).initial_model()
    assert made == Arrays(MODEL)
    assert made.roles == {"w": "parameter", "steps": "buffer"}


def test_roles_that_the_model_comes_with_stay():
    model = Arrays(MODEL, {"w": "personal"})
    assert app(model=lambda: model).initial_model() is model


@pytest.mark.parametrize("model", [{}, 3, [], lambda: None, dict, Arrays()])
def test_a_model_that_is_no_mapping_or_empty_is_an_error(model):
    with pytest.raises(AppError, match="not a mapping of names to arrays") as caught:
        app(model=model).initial_model()
    assert "umbel.torch.arrays" in (caught.value.hint or "")


@pytest.mark.parametrize("model", [{"w": "text"}, {"": np.zeros(1)}, {3: np.zeros(1)}, {"w": np.zeros(1, complex)}])
def test_arrays_that_cannot_travel_are_errors_of_the_model(model):
    with pytest.raises(AppError, match="the initial model: "):
        app(model=model).initial_model()


def test_a_model_that_raises_is_named_with_its_cause():
    def broken():
        raise RuntimeError("no such layer")

    with pytest.raises(AppError, match="making the initial model raised RuntimeError: no such layer") as caught:
        app(model=broken).initial_model()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_test_may_return_metrics_or_numbers():
    made = app()
    assert made.run_test(Arrays(MODEL)) is None
    for result in (
        Metrics({"accuracy": np.float32(0.5), "errors": 2}),
        {"accuracy": 0.5, "errors": np.array(2)},
    ):
        made = app()

        @made.test
        def test(model, result=result):
            assert model == Arrays(MODEL)
            return result

        assert made.run_test(Arrays(MODEL)) == {"accuracy": 0.5, "errors": 2.0}


@pytest.mark.parametrize("result", [None, 0.5, [1.0], {"accuracy": "high"}, {"accuracy": None}], ids=repr)
def test_a_test_that_returns_no_numbers_is_an_error(result):
    made = app()
    made.test(lambda model: result)
    with pytest.raises(AppError, match="the app's test returned"):
        made.run_test(Arrays(MODEL))


def test_a_test_that_raises_is_named_with_its_cause():
    made = app()
    made.test(lambda model: model["missing"])
    with pytest.raises(AppError, match="the app's test raised KeyError: 'missing'") as caught:
        made.run_test(Arrays(MODEL))
    assert isinstance(caught.value.__cause__, KeyError)


async def unfinished(model):
    return {}


@pytest.mark.parametrize(
    "handler",
    [3, lambda: None, lambda model, data: {}, functools.partial(lambda a, b, c: {}), unfinished],
)
def test_a_test_that_cannot_be_called_with_the_model_is_an_error_at_once(handler):
    made = app()
    with pytest.raises(AppError, match="test handler"):
        made.test(handler)
    assert made.run_test(Arrays(MODEL)) is None


def test_a_contract_takes_the_model_that_was_just_made_and_makes_none_beside_it():
    made = []

    def model():
        made.append(1)
        return {"w": np.zeros(3)}

    client = Client()
    client.train(lambda model, data, ctx: Update(model))
    app = App(client, model=model, strategy=FedAvg())
    held = app.initial_model()
    first = app.contract()
    assert len(made) == 1
    del held
    assert app.contract() == first
    assert len(made) == 2


def alike(model, data, ctx):
    return Update(model)


def test_an_app_can_be_pickled_before_and_after_it_made_a_model():
    client = Client()
    client.train(alike)
    app = App(client, model={"w": np.zeros(3)}, strategy=FedAvg())
    for _ in range(2):
        again = pickle.loads(pickle.dumps(app))
        assert again.contract() == app.contract()
        held = app.initial_model()
    assert held == again.initial_model()
