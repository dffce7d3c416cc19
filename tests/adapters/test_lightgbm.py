"""LightGBM: what clients boost together is what LightGBM would have made, and foreign trees are looked at first."""

from __future__ import annotations

import numpy as np
import pytest
from tests.adapters.cases import context
from tests.test_xgboost import rows

import umbel
from umbel.errors import AppError, UpdateRejected
from umbel.lightgbm import COLUMNS, arrays, booster, check_trees, fit, grown, model
from umbel.strategies import LightGBMBagging

lgb = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.slow
PARAMS = {"objective": "binary", "num_leaves": 6, "min_data_in_leaf": 5, "learning_rate": 0.3, "verbosity": -1}
PARTS = [rows(count, seed) for seed, count in enumerate((80, 30, 50))]


def run(parts, rounds=3, params=PARAMS, trees=1, **settings):
    client = umbel.Client()
    client.train(lambda model, data, ctx: fit(model, data, ctx, params, trees=trees))
    strategy = LightGBMBagging(**settings)
    app = umbel.App(client, model=model(params, 4), strategy=strategy, rounds=rounds, evaluate_every=0)
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None)


def raw(made, x):
    return made.predict(x, raw_score=True)


def test_one_client_alone_is_lightgbm_itself():
    x, y = PARTS[0]
    plain = lgb.train({**PARAMS, "boost_from_average": False, "num_threads": 1}, lgb.Dataset(x, y), 5)
    np.testing.assert_allclose(raw(booster(run(PARTS[:1], 5).model), x), raw(plain, x), atol=1e-12)


@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_bagging_adds_what_each_client_boosts_by_its_share_of_rows(scale):
    before = [np.zeros(len(y)) for _, y in PARTS]
    for _ in range(3):
        after = [margin.copy() for margin in before]
        for (x, y), margin in zip(PARTS, before, strict=True):
            own = lgb.train({**PARAMS, "num_threads": 1}, lgb.Dataset(x, y, init_score=margin), 2)
            for place, (other, _) in enumerate(PARTS):
                after[place] += raw(own, other) * (len(y) / 160 if scale == "mean" else 1.0)
        before = after
    made = booster(run(PARTS, trees=2, scale=scale).model)
    assert made.num_trees() <= 18  # where nothing is left to split it stops
    for (x, _), wanted in zip(PARTS, before, strict=True):
        np.testing.assert_allclose(raw(made, x), wanted, atol=1e-9)


def test_together_clients_learn_what_none_has_alone(tmp_path):
    x, y = rows(2000, seed=9)
    result = run(PARTS, 15)
    made = booster(result.model)
    assert ((made.predict(x) > 0.5) == y).mean() > 0.75
    result.export(tmp_path / "model.txt")
    assert (lgb.Booster(model_file=tmp_path / "model.txt").predict(x) == made.predict(x)).all()
    again = run(PARTS, 15)
    assert again.model_sha256 == result.model_sha256


def test_classes_keep_their_outputs_and_empty_clients_add_nothing():
    params = {**PARAMS, "objective": "multiclass", "num_class": 3}
    parts = [rows(60, seed, classes=3) for seed in range(3)]
    empty = (np.zeros((0, 4)), np.zeros(0))
    result = run([*parts, empty], 8, params)
    assert result.model_sha256 == run(parts, 8, params).model_sha256
    x, y = rows(500, 9, classes=3)
    assert (booster(result.model).predict(x).argmax(1) == y).mean() > 0.75


def test_a_fitted_booster_makes_a_round_trip():
    x, y = rows(300, 3)
    made = lgb.train({**PARAMS, "num_leaves": 31}, lgb.Dataset(x, y), 20)
    again = booster(arrays(made))
    assert (raw(again, x) == raw(made, x)).all()
    assert (again.predict(x, pred_contrib=True) == made.predict(x, pred_contrib=True)).all()


SPOILT = {
    "a cycle": ("left_child", 0, 0),
    "no such node": ("left_child", 0, 10**6),
    "no such leaf": ("right_child", 0, -100),
    "a feature too many": ("split_feature", 0, 4),
    "no feature": ("split_feature", 0, -1),
    "a category": ("decision_type", 0, 1),
    "no leaf": ("num_leaves", 0, 0),
    "too many leaves": ("num_leaves", 0, 2**40),
    "infinite": ("leaf_value", 0, np.inf),
}


@pytest.mark.parametrize("case", SPOILT)
def test_trees_that_are_not_sound_cost_the_client_its_update(case):
    x, y = PARTS[0]
    sent = arrays(lgb.train(PARAMS, lgb.Dataset(x, y), 2)).select(COLUMNS)
    check_trees(sent, 4, 1)
    name, place, value = SPOILT[case]
    spoilt = sent[name].copy()
    spoilt[place] = value
    with pytest.raises(UpdateRejected, match="not sound"):
        check_trees(sent.replace({name: spoilt}), 4, 1)
    client = umbel.Client()

    @client.train
    def train(given, data, ctx):
        good = fit(given, data, ctx, PARAMS)
        return umbel.Update({**good.arrays, name: spoilt}) if ctx.client == 1 else good

    app = umbel.App(client, model=model(PARAMS, 4), strategy=LightGBMBagging(), rounds=2, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(clients=PARTS, workers=0), folder=None)
    assert booster(result.model).num_trees() == 4


def test_what_is_not_sound_or_not_supported_is_not_loaded():
    native = model(PARAMS, 4)
    whole = run(PARTS[:1], 1).model
    with pytest.raises(AppError, match="not sound"):
        native.loaded(whole.replace({"left_child": whole["left_child"] * 0}))
    x, y = rows(300, 3)
    odd = lgb.train(
        {**PARAMS, "max_cat_to_onehot": 1},
        lgb.Dataset(np.digitize(x, [-1, 0, 1]), y, categorical_feature=[0, 1, 2, 3]),
        3,
    )
    with pytest.raises(AppError, match="split by categories"):
        arrays(odd)
    assert grown(whole, []) == whole


@pytest.mark.parametrize("objective", ["regression_l1", "quantile", "huber", "gamma"])
def test_objectives_that_only_see_sides_learn_of_labels_far_from_the_start(objective):
    x, _ = PARTS[0]
    y = 1.0 + np.digitize(x[:, 0], [-0.5, 0.5])
    params = {**PARAMS, "objective": objective}
    made = booster(run([(x, y)], 5, params).model)
    plain = lgb.train({**params, "boost_from_average": False, "num_threads": 1}, lgb.Dataset(x, y), 5)
    np.testing.assert_allclose(made.predict(x), plain.predict(x), rtol=1e-6)


def test_columns_are_those_of_their_names():
    pandas = pytest.importorskip("pandas")
    x, y = PARTS[0]
    names = ["a b", "c", "d", "e"]  # LightGBM has a_b
    frame, native = pandas.DataFrame(x, columns=names), model(PARAMS, names)
    one, other = (fit(native(), (frame[order], y), context(), PARAMS) for order in (names, names[::-1]))
    assert umbel.Arrays(one.arrays) == umbel.Arrays(other.arrays)
    with pytest.raises(AppError, match="the rows lack the columns 'c'"):
        fit(native(), (frame.drop(columns="c"), y), context(), PARAMS)
