"""XGBoost: what clients boost together is what XGBoost would have made, and foreign trees are looked at first."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import umbel
from umbel.core.answer import Answer
from umbel.errors import AppError, SettingError, UpdateRejected
from umbel.strategies import XGBoostBagging, XGBoostCyclic

xgb = pytest.importorskip("xgboost")
PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "base_score": 0.4, "nthread": 1}
client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.xgboost.fit(model, data, ctx, ctx.config["params"], trees=ctx.config["trees"])


def rows(count, seed=0, classes=2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + x[:, 2] > 0) if classes == 2 else np.digitize(x[:, 0] + x[:, 3], [-0.5, 0.5])
    return np.where(rng.random(x.shape) < 0.05, np.nan, x), y.astype(np.int64)


PARTS = [rows(count, seed) for seed, count in enumerate((80, 30, 50))]


def run(strategy, parts, rounds=3, params=PARAMS, trees=1, workers=0, app_client=client, **more):
    app = umbel.App(
        app_client,
        model=umbel.xgboost.start(params, 4),
        strategy=strategy,
        rounds=rounds,
        config={"params": params, "trees": trees},
        evaluate_every=0,
        **more,
    )
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=workers), folder=None)


def margins(booster, x):
    return booster.predict(xgb.DMatrix(x), output_margin=True)


def boosted(parts, shares, rounds, trees=1):
    """Margins of all parts' rows, boosted round by round from the margins before, with no ensemble put together."""
    logit = float(np.log(PARAMS["base_score"] / (1 - PARAMS["base_score"])))
    before = [np.full(len(y), logit) for _, y in parts]
    for _ in range(rounds):
        after = [margin.copy() for margin in before]
        for (x, y), margin, share in zip(parts, before, shares, strict=True):
            own = xgb.train(PARAMS, xgb.DMatrix(x, y, base_margin=margin), trees)
            for place, (other, _) in enumerate(parts):
                zero = xgb.DMatrix(other, base_margin=np.zeros(len(other)))
                after[place] = after[place] + share * own.predict(zero, output_margin=True)
        before = after
    return before


@pytest.mark.parametrize("trees", [1, 3])
@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_bagging_adds_what_each_client_boosts_by_its_share_of_rows(scale, trees):
    shares = [len(y) / 160 if scale == "mean" else 1.0 for _, y in PARTS]
    result = run(XGBoostBagging(scale=scale), PARTS, trees=trees)
    booster = umbel.xgboost.booster(result.model)
    for (x, _), wanted in zip(PARTS, boosted(PARTS, shares, 3, trees), strict=True):
        np.testing.assert_allclose(margins(booster, x), wanted, atol=2e-5)
    assert booster.num_boosted_rounds() == 3
    assert len(booster.get_dump()) == 9 * trees


def test_one_client_alone_is_xgboost_itself():
    x, y = PARTS[0]
    alone = margins(xgb.train(PARAMS, xgb.DMatrix(x, y), 5), x)
    for strategy in (XGBoostBagging(), XGBoostCyclic()):
        assert (margins(umbel.xgboost.booster(run(strategy, PARTS[:1], 5).model), x) == alone).all()


def test_by_turns_the_ensemble_passes_from_client_to_client():
    booster = None
    for x, y in [*PARTS, PARTS[0]]:
        booster = xgb.train(PARAMS, xgb.DMatrix(x, y), 2, xgb_model=booster)
    ours = umbel.xgboost.booster(run(XGBoostCyclic(), PARTS, 4, trees=2).model)
    assert ours.get_dump(with_stats=True) == booster.get_dump(with_stats=True)
    x, _ = PARTS[1]
    assert (margins(ours, x) == margins(booster, x)).all()
    other = run(XGBoostCyclic(order=[2, 0, 1]), PARTS[1:] + PARTS[:1], 3).model_sha256
    assert other == run(XGBoostCyclic(), PARTS, 3).model_sha256


def test_together_clients_learn_what_none_has_alone(tmp_path):
    x, y = rows(2000, seed=9)
    params = {**PARAMS, "objective": "binary:logistic", "subsample": 0.8}
    for strategy in (XGBoostBagging(), XGBoostCyclic()):
        result = run(strategy, [(part[0], part[1]) for part in PARTS], 15, params)
        booster = umbel.xgboost.booster(result.model)
        assert ((booster.predict(xgb.DMatrix(x)) > 0.5) == y).mean() > 0.75
        booster.save_model(tmp_path / "model.ubj")
        again = xgb.Booster(model_file=tmp_path / "model.ubj")
        assert (margins(again, x) == margins(booster, x)).all()
        assert margins(booster[:5], x).shape == (2000,)
        errors = [value for _, value in result.history.series("train.logloss")]
        assert errors[-1] < errors[0]


def test_classes_and_parallel_trees_keep_their_outputs():
    params = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "num_parallel_tree": 2, "subsample": 0.9}
    parts = [rows(60, seed, classes=3) for seed in range(3)]
    booster = umbel.xgboost.booster(run(XGBoostBagging(), parts, 8, params).model)
    x, y = rows(500, 9, classes=3)
    assert (booster.predict(xgb.DMatrix(x)).argmax(1) == y).mean() > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [XGBoostBagging(cohort=2), pytest.param(XGBoostCyclic(), marks=pytest.mark.slow)],
    ids=["bagging", "cyclic"],
)
def test_without_workers_and_with_two_a_run_ends_with_the_same_bits(strategy):
    params = {**PARAMS, "subsample": 0.7}
    assert (
        run(strategy, PARTS, params=params).model_sha256 == run(strategy, PARTS, params=params, workers=2).model_sha256
    )


def test_clients_without_rows_add_no_trees():
    empty = (np.zeros((0, 4), np.float32), np.zeros(0))
    with_one, without = (run(XGBoostBagging(), parts).model_sha256 for parts in ([*PARTS, empty], PARTS))
    assert with_one == without
    assert umbel.xgboost.booster(run(XGBoostCyclic(), [PARTS[0], empty], 2).model).num_boosted_rounds() == 2


def test_columns_may_have_names():
    pandas = pytest.importorskip("pandas")
    x, y = PARTS[0]
    frame = pandas.DataFrame(x, columns=list("abcd"))
    app = umbel.App(
        client,
        model=umbel.xgboost.start(PARAMS, list("abcd")),
        strategy=XGBoostBagging(),
        rounds=2,
        config={"params": PARAMS, "trees": 1},
        evaluate_every=0,
    )
    booster = umbel.xgboost.booster(umbel.run(app, on=umbel.Simulation(clients=[(frame, y)]), folder=None).model)
    assert booster.feature_names == list("abcd")
    booster.predict(xgb.DMatrix(frame))


def sent():
    """The trees that a client sends, and how to read and write them."""
    x, y = PARTS[0]
    after = umbel.xgboost.arrays(xgb.train(PARAMS, xgb.DMatrix(x, y), 1))
    inside = json.loads(after["booster"].tobytes())["learner"]["gradient_booster"]["model"]
    return {"trees": inside["trees"], "tree_info": inside["tree_info"]}


def packed(update):
    return umbel.Arrays({"trees": np.frombuffer(json.dumps(update).encode(), np.uint8)})


WRONG = {
    "not JSON": lambda u: umbel.Arrays({"trees": np.frombuffer(b"{", np.uint8)}),
    "deep": lambda u: umbel.Arrays({"trees": np.frombuffer(b"[" * 100_000, np.uint8)}),
    "other name": lambda u: umbel.Arrays({"tree": packed(u)["trees"]}),
    "floats": lambda u: umbel.Arrays({"trees": np.zeros(3)}),
    "a list": lambda u: packed([u]),
    "no tree": lambda u: packed({"trees": [None], "tree_info": [0]}),
    "an output too many": lambda u: packed({**u, "tree_info": [1]}),
    "outputs missing": lambda u: packed({**u, "tree_info": []}),
}


def spoil(name, place, value):
    def spoilt(update):
        update["trees"][0][name][place] = value
        return packed(update)

    return spoilt


for _name, _place, _value in (
    ("left_children", 0, 0), ("left_children", 0, 10**6), ("left_children", 0, -2), ("right_children", 0, 1),
    ("left_children", 0, True), ("split_indices", 0, 4), ("split_indices", 0, -1),
    ("split_conditions", 0, float("nan")),
    ("split_conditions", 0, 1e39), ("split_conditions", 0, "1"), ("base_weights", 0, float("inf")), ("parents", 1, 2),
    ("split_type", 0, 1), ("sum_hessian", 0, None), ("tree_param", "num_nodes", "3"), ("tree_param", "num_nodes", "0"),
    ("tree_param", "size_leaf_vector", "2"), ("tree_param", "num_feature", "5"), ("default_left", 0, 0.5),
):  # fmt: skip
    WRONG[f"{_name} {_place} {_value}"] = spoil(_name, _place, _value)


@pytest.mark.parametrize("case", WRONG)
def test_trees_that_are_not_sound_are_rejected(case):
    umbel.xgboost.check_trees(packed(sent()), 4, 1)
    with pytest.raises(UpdateRejected, match="the trees are not sound"):
        umbel.xgboost.check_trees(WRONG[case](copy.deepcopy(sent())), 4, 1)


values = st.one_of(
    st.integers(-3, 9), st.sampled_from([True, None, "1", -0.5, 1e30, 1e39, 10**30, 2**31 - 1, 2**31, -(2**31), [], {}])
)
changes = st.lists(
    st.tuples(st.sampled_from(sorted(sent()["trees"][0])), st.integers(0, 20), values), min_size=1, max_size=3
)


@settings(max_examples=30)
@given(changes)
def test_what_passes_for_sound_is_loaded_and_predicts(spoiling):
    update, model = sent(), umbel.xgboost.start(PARAMS, 4)
    for name, place, value in spoiling:
        part = update["trees"][0][name]
        if isinstance(part, dict) and part:
            part[sorted(part)[place % len(part)]] = str(value)
        elif isinstance(part, list) and part:
            part[place % len(part)] = value
        else:
            update["trees"][0][name] = value
    try:
        umbel.xgboost.check_trees(packed(update), 4, 1)
    except UpdateRejected:
        return
    booster = umbel.xgboost.booster(umbel.xgboost.grown(model, [(packed(update), 0.5)]))
    booster.predict(xgb.DMatrix(PARTS[0][0]), output_margin=True)


def test_a_client_whose_trees_are_not_sound_costs_its_own_update_alone():
    hostile = umbel.Client()

    @hostile.train
    def train(model, data, ctx):
        update = umbel.xgboost.fit(model, data, ctx, PARAMS)
        if ctx.client == 1:
            return umbel.Update(WRONG["left_children 0 1000000"](sent()), weight=1000.0)
        return update

    seen: list[Answer] = []

    class Watched(XGBoostBagging):
        def round(self, state, r):
            asks = super().round(state, r)
            answer = yield next(asks)
            seen.append(answer)
            try:
                asks.send(answer)
            except StopIteration as end:
                return end.value

    hurt = run(Watched(), PARTS, app_client=hostile)
    assert hurt.model_sha256 != run(XGBoostBagging(), PARTS).model_sha256
    assert all("not sound" in answer.failed[1] for answer in seen)
    assert umbel.xgboost.booster(hurt.model).num_boosted_rounds() == 3


def test_what_is_not_supported_is_refused():
    x, y = PARTS[0]
    with pytest.raises(AppError, match="kind gblinear"):
        umbel.xgboost.arrays(xgb.train({"booster": "gblinear", "nthread": 1}, xgb.DMatrix(np.nan_to_num(x), y), 1))
    with pytest.raises(SettingError, match="'mean' or 'sum'"):
        XGBoostBagging(scale="median")
    with pytest.raises(SettingError):
        XGBoostBagging(cohort=0)
    with pytest.raises(SettingError):
        XGBoostCyclic(order=[1, 1])


def test_without_xgboost_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ImportError, match=r"umbel\[xgboost\]"):
        umbel.xgboost.start(PARAMS, 4)


def test_nodes_below_a_relay_come_to_the_same_bits(tmp_path):
    from umbel.testing.deployment import Deployment, Faults

    made = umbel.Client()
    made.data(lambda source: PARTS[source["index"]])
    made.train(lambda model, data, ctx: umbel.xgboost.fit(model, data, ctx, PARAMS))
    grown = []

    class Watched(XGBoostBagging):
        def round(self, state, r):
            state = yield from super().round(state, r)
            grown.append(state.model.sha256)
            return state

    app = umbel.App(made, model=umbel.xgboost.start(PARAMS, 4), strategy=Watched(), rounds=3, evaluate_every=0)
    nodes = {"a": {"0": {"index": 0}, "1": {"index": 1}}, "b": {"2": {"index": 2}}}
    Deployment(app, nodes, seed=1, relays={"r": ["a", "b"]}, faults=Faults.none(), scratch=tmp_path).run(
        tmp_path, seed=3
    )
    assert grown[-1] == run(XGBoostBagging(), PARTS).model_sha256
