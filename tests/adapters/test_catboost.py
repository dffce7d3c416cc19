"""CatBoost: what clients boost together is what CatBoost would have made, and foreign trees are looked at first."""

from __future__ import annotations

import numpy as np
import pytest
from tests.adapters.cases import context
from tests.test_xgboost import rows

import umbel
from umbel.catboost import COLUMNS, arrays, booster, check_trees, fit, model
from umbel.errors import AppError, UpdateRejected
from umbel.strategies import CatBoostBagging

cb = pytest.importorskip("catboost")
pytestmark = pytest.mark.slow
PARAMS = {"loss_function": "Logloss", "depth": 3, "learning_rate": 0.3, "random_strength": 0, "bootstrap_type": "No"}
PLAIN = {**PARAMS, "thread_count": 1, "allow_writing_files": False, "logging_level": "Silent"}
PARTS = [rows(count, seed) for seed, count in enumerate((80, 30, 50))]


def run(parts, rounds=3, trees=1, **settings):
    client = umbel.Client()
    client.train(lambda model, data, ctx: fit(model, data, ctx, PARAMS, trees=trees))
    strategy = CatBoostBagging(**settings)
    app = umbel.App(client, model=model(PARAMS, 4), strategy=strategy, rounds=rounds, evaluate_every=0)
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None)


def test_bagging_adds_what_each_client_boosts_by_its_share_of_rows():
    before = [np.zeros(len(y)) for _, y in PARTS]
    for _ in range(2):
        after = [margin.copy() for margin in before]
        for (x, y), margin in zip(PARTS, before, strict=True):
            own = cb.CatBoost({**PLAIN, "iterations": 2}).fit(cb.Pool(x, y, baseline=margin))
            for place, (other, _) in enumerate(PARTS):
                after[place] += own.predict(other) * len(y) / 160
        before = after
    made = booster(run(PARTS, 2, trees=2).model)
    for (x, _), wanted in zip(PARTS, before, strict=True):
        np.testing.assert_allclose(made.predict(x), wanted, atol=1e-6)


def test_together_clients_learn_what_none_has_alone(tmp_path):
    x, y = rows(2000, seed=9)
    empty = (np.zeros((0, 4)), np.zeros(0))
    result = run([*PARTS, empty], 15)
    made = booster(result.model)
    assert ((made.predict(x) > 0) == y).mean() > 0.75
    assert result.model_sha256 == run(PARTS, 15).model_sha256
    result.export(tmp_path / "model.cbm")
    again = cb.CatBoostClassifier().load_model(str(tmp_path / "model.cbm"))
    np.testing.assert_allclose(again.predict_proba(x)[:, 1], 1 / (1 + np.exp(-made.predict(x))), atol=1e-9)


def test_a_fitted_model_makes_a_round_trip_with_its_bias():
    x, y = rows(300, 3)
    made = cb.CatBoostRegressor(iterations=20, depth=4, logging_level="Silent", allow_writing_files=False).fit(
        x, y + 7.0
    )
    np.testing.assert_allclose(booster(arrays(made)).predict(x), made.predict(x), atol=1e-12)


SPOILT = {
    "a feature too many": ("feature", 4),
    "no feature": ("feature", -1),
    "too deep": ("depth", 40),
    "less deep": ("depth", 1),
    "infinite": ("leaf_value", np.inf),
}


@pytest.mark.parametrize("case", SPOILT)
def test_trees_that_are_not_sound_are_rejected(case):
    x, y = PARTS[0]
    made = cb.CatBoost({**PLAIN, "iterations": 2}).fit(cb.Pool(x, y, baseline=np.zeros(len(y))))
    sent = arrays(made).select(COLUMNS)
    check_trees(sent, 4, 1)
    name, value = SPOILT[case]
    spoilt = sent[name].copy()
    spoilt[0] = value
    with pytest.raises(UpdateRejected, match="not sound"):
        check_trees(sent.replace({name: spoilt}), 4, 1)
    with pytest.raises(AppError, match="not sound"):
        model(PARAMS, 4).loaded(run(PARTS[:1], 1).model.replace({name: spoilt}))


def test_trees_of_other_kinds_are_refused():
    x, y = rows(300, 3)
    odd = cb.CatBoost({**PLAIN, "iterations": 2, "grow_policy": "Lossguide"}).fit(cb.Pool(x, y))
    with pytest.raises(AppError, match="not symmetric"):
        arrays(odd)


def test_clients_that_lack_classes_or_have_nothing_to_split_by_take_part(tmp_path):
    x = np.random.default_rng(0).normal(size=(90, 4))
    names = np.array(["a", "b", "c"])
    y = names[np.arange(90) % 3]
    x[:, 0] += 3 * (np.arange(90) % 3)
    params = {"loss_function": "MultiClass", "depth": 3, "learning_rate": 0.3, "verbose": False, "n_estimators": 9}
    native = model(params, 4, names)
    client, updates = umbel.Client(), []

    @client.train
    def train(model, data, ctx):
        updates.append(fit(model, data, ctx, params))
        return updates[-1]

    parts = [(x[y != name], y[y != name]) for name in names]
    parts += [(x[y == "a"], y[y == "a"]), (x[:1], y[:1]), (np.ones((5, 4)), y[:5])]
    app = umbel.App(client, model=native, strategy=CatBoostBagging(), rounds=8, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None)
    assert [update.weight for update in updates[-6:]] == [60, 60, 60, 30, 1, 5]
    result.export(tmp_path / "model.cbm")
    made = cb.CatBoostClassifier().load_model(str(tmp_path / "model.cbm"))
    assert (made.predict(x)[:, 0] == y).mean() > 0.8
    with pytest.raises(AppError, match=r"the labels \['d'\] are not among"):
        fit(result.model, (x, np.where(y == "a", "d", y)), context(), params)


def test_columns_are_those_of_their_names():
    pandas = pytest.importorskip("pandas")
    x, y = PARTS[0]
    frame, native = pandas.DataFrame(x, columns=list("abcd")), model(PARAMS, list("abcd"))
    one, other = (fit(native(), (frame[list(order)], y), context(), PARAMS) for order in ("abcd", "cadb"))
    assert umbel.Arrays(one.arrays) == umbel.Arrays(other.arrays)
    with pytest.raises(AppError, match=r"the rows have the shape \[80, 3\]"):
        fit(native(), (x[:, :3], y), context(), PARAMS)
