"""scikit-learn: clients that miss classes, naive Bayes that adds up, forests and votes of clients, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.adapters.cases import LABELS, ROWS, context

import umbel
from umbel.errors import AppError
from umbel.sklearn import arrays, ensemble, fit, load_, model
from umbel.strategies import OneShot

pytest.importorskip("sklearn")
from sklearn import datasets, linear_model, naive_bayes, neural_network, preprocessing, svm, tree
from sklearn import ensemble as forests
from sklearn.pipeline import make_pipeline

pytestmark = pytest.mark.slow
IRIS = datasets.load_iris(return_X_y=True)


def run(native, parts, strategy, rounds=1, **options):
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        return fit(native.loaded(model), *data, ctx, **options)

    app = umbel.App(client, model=native, strategy=strategy, rounds=rounds, evaluate_every=0)
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None).model


def by_class(x, y, holders=((0, 1), (1, 2), (2, 0))):
    """Holders of whom none has all classes."""
    return [(x[rows], y[rows]) for classes in holders for rows in [np.isin(y, classes)]]


@pytest.mark.parametrize(
    ("make", "rounds", "least"),
    [
        (lambda: linear_model.LogisticRegression(max_iter=2), 10, 0.8),
        (lambda: linear_model.SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01), 10, 0.8),
        (
            lambda: neural_network.MLPClassifier((16,), learning_rate_init=0.01, random_state=1),
            20,
            0.8,
        ),
    ],
    ids=["logistic", "sgd", "mlp"],
)
def test_clients_that_miss_classes_learn_all_of_them_together(make, rounds, least):
    x, y = IRIS[0] - IRIS[0].mean(0), IRIS[1]
    native = model(make, 4, np.unique(y))
    learned = run(native, by_class(x, y), umbel.FedAvg(cohort="all"), rounds, epochs=2)
    assert (native.loaded(learned).predict(x) == y).mean() >= least


SUMS = ("MultinomialNB", "BernoulliNB", "ComplementNB", "CategoricalNB")


@pytest.mark.parametrize("kind", ["GaussianNB", *SUMS])
@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=3), seed=st.integers(0, 9))
def test_naive_bayes_of_one_round_is_that_of_all_rows(kind, cuts, seed):
    order = np.random.default_rng(seed).permutation(150)
    x, y = IRIS[0][order], np.array(["a", "b", "c"])[IRIS[1][order]]
    x = np.round(x) if kind == "CategoricalNB" else x
    make = (
        (lambda: naive_bayes.CategoricalNB(min_categories=9)) if kind == "CategoricalNB" else getattr(naive_bayes, kind)
    )
    parts = list(zip(np.split(x, sorted(cuts)), np.split(y, sorted(cuts)), strict=True))
    native = model(make, 4, ["a", "b", "c"])
    learned = native.loaded(run(native, parts, umbel.FedAvg(cohort="all", fold=umbel.total())))
    wanted = make().fit(x, y)
    np.testing.assert_allclose(learned.predict_proba(x), wanted.predict_proba(x), rtol=1e-7, atol=1e-9)
    assert (learned.predict(x) == wanted.predict(x)).all()


def test_a_scaler_of_one_round_is_that_of_all_rows():
    native = model(preprocessing.StandardScaler, 4)
    parts = [(part, None) for part in np.split(IRIS[0], [20, 90])]
    learned = native.loaded(run(native, parts, umbel.FedAvg(cohort="all", fold=umbel.total())))
    wanted = preprocessing.StandardScaler().fit(IRIS[0])
    np.testing.assert_allclose(learned.transform(IRIS[0]), wanted.transform(IRIS[0]), atol=1e-9)
    assert learned.n_samples_seen_ == 150


@pytest.mark.parametrize("kind", ["RandomForestClassifier", "ExtraTreesRegressor"])
def test_forests_of_clients_become_one_forest(kind):
    x, y = IRIS[0], IRIS[1]
    native = model(lambda: getattr(forests, kind)(5), 4, range(3) if "Class" in kind else None)
    forest = native.loaded(run(native, by_class(x, y), OneShot()))
    alone = [native.loaded(run(native, [part], OneShot())) for part in by_class(x, y)]
    assert [len(each.estimators_) for each in (forest, *alone)] == [15, 5, 5, 5]
    if "Class" in kind:
        assert (forest.predict(x) == y).mean() > 0.95
        assert max((each.predict(x) == y).mean() for each in alone) < 0.7
        np.testing.assert_allclose(forest.predict_proba(x).sum(1), 1)


@pytest.mark.parametrize(
    "make", [lambda: linear_model.LogisticRegression(), lambda: linear_model.Perceptron(), naive_bayes.GaussianNB]
)
def test_clients_vote_by_the_weight_of_their_rows(make):
    names = np.array(["a", "b", "c"])
    x, y = IRIS[0], names[IRIS[1]]
    native = model(make, 4, names)
    learned = run(native, [(x[::2], y[::2]), (x[1::2], y[1::2]), (x[:0], y[:0])], OneShot(), epochs=20)
    voting = ensemble(native, learned)
    assert (learned["weights"] == [75, 75]).all()
    assert (voting.predict(x) == y).mean() > 0.6
    parts = [native.loaded({n: a[k] for n, a in learned.items() if n != "weights"}) for k in range(2)]
    if hasattr(voting, "predict_proba"):
        mean = sum(part.predict_proba(x) for part in parts) / 2
        np.testing.assert_allclose(voting.predict_proba(x), mean)


def test_regressors_vote_by_their_mean():
    x, y = datasets.load_diabetes(return_X_y=True)
    native = model(linear_model.Ridge, 10)
    learned = run(native, [(x[:100], y[:100]), (x[100:], y[100:])], OneShot())
    parts = [linear_model.Ridge().fit(x[:100], y[:100]), linear_model.Ridge().fit(x[100:], y[100:])]
    wanted = np.average([part.predict(x) for part in parts], axis=0, weights=[100, len(x) - 100])
    np.testing.assert_allclose(ensemble(native, learned).predict(x), wanted)


def test_a_client_weighs_as_much_as_its_rows():
    native = model(lambda: linear_model.SGDClassifier(loss="log_loss"), 4, range(3))
    update = fit(native.make(), ROWS, LABELS, context(), epochs=3)
    assert (update.weight, update.arrays["t_"]) == (40.0, 121.0)
    assert 0.0 < update.metrics["accuracy"] <= 1.0
    weights = np.linspace(0, 2, 40)
    assert fit(native.make(), ROWS, LABELS, context(), sample_weight=weights).weight == pytest.approx(weights.sum())
    assert fit(native.make(), ROWS[:0], LABELS[:0], context()).weight == 0.0
    again = fit(native.make(), ROWS, LABELS, context(), epochs=3)
    assert umbel.Arrays(update.arrays) == umbel.Arrays(again.arrays)  # what it draws is of the task's key


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (svm.SVC, "a fitted SVC cannot travel"),
        (forests.GradientBoostingClassifier, "a fitted GradientBoostingClassifier cannot travel"),
        (
            lambda: make_pipeline(preprocessing.StandardScaler(), svm.LinearSVC()),
            "the step 'standardscaler' of the pipeline is not fitted",
        ),
        (lambda: linear_model.SGDClassifier(average=True), "that averages its steps"),
        (dict, "a dict, which is no estimator"),
    ],
)
def test_what_cannot_travel_is_refused(make, what):
    with pytest.raises(AppError, match=what):
        model(make, 4, range(3))()


def test_labels_and_classes_are_checked():
    with pytest.raises(AppError, match="needs its classes"):
        model(linear_model.LogisticRegression, 4)()
    native = model(linear_model.LogisticRegression, 4, range(2))
    with pytest.raises(AppError, match=r"the labels \[2\] are not among"):
        fit(native.make(), ROWS, LABELS, context())


SPOILT = {
    "a child before its parent": ("left_child", 0),
    "a child beyond the end": ("right_child", 10**6),
    "a feature that is none": ("feature", 4),
    "no feature": ("feature", -1),
    "two parents": ("left_child", 2),
}


@pytest.mark.parametrize("case", SPOILT)
def test_trees_that_are_not_sound_are_refused(case):
    native = model(lambda: tree.DecisionTreeClassifier(random_state=0), 4, range(3))
    sent = dict(fit(native.make(), ROWS, LABELS, context()).arrays)
    assert (native.loaded(sent).predict(ROWS) == LABELS).all()
    name, value = SPOILT[case]
    column = sent[f"forest.{name}"].copy()
    column[0] = value
    with pytest.raises(AppError, match="not sound"):
        native.loaded({**sent, f"forest.{name}": column})
    with pytest.raises(AppError, match="as many nodes as they say"):
        native.loaded({**sent, "forest.sizes": sent["forest.sizes"] + 1})


def test_a_fitted_estimator_is_loaded_as_well_as_one_that_was_made():
    one, other = (linear_model.Ridge().fit(ROWS[part], ROWS[part, 0]) for part in (slice(20), slice(20, 40)))
    assert load_(other, arrays(one)) is other
    assert (other.predict(ROWS) == one.predict(ROWS)).all()


def test_a_vote_is_loaded_and_exported(tmp_path):
    x, y = IRIS[0], np.array(["a", "b", "c"])[IRIS[1]]
    native = model(linear_model.RidgeClassifier, 4, ["a", "b", "c"])
    learned = run(native, [(x[::2], y[::2]), (x[1::2], y[1::2])], OneShot())
    native.save(learned, tmp_path / "vote.joblib")
    import joblib

    voting = joblib.load(tmp_path / "vote.joblib")
    assert (voting.predict(x) == native.loaded(learned).predict(x)).all()
    assert (voting.predict(x) == y).mean() > 0.7
    pytest.importorskip("skl2onnx")
    native.save(learned, tmp_path / "vote.onnx")


def test_columns_are_those_of_their_names_and_labels_may_be_a_column():
    pandas = pytest.importorskip("pandas")
    names = ["a", "b", "c", "d"]
    frame = pandas.DataFrame(ROWS, columns=names)
    native = model(linear_model.LogisticRegression, names, range(3))
    wanted = fit(native.make(), frame, LABELS, context())
    for other in (fit(native.make(), frame[["c", "a", "d", "b"]], LABELS, context()),
                  fit(native.make(), frame, LABELS[:, None], context())):  # fmt: skip
        assert umbel.Arrays(other.arrays) == umbel.Arrays(wanted.arrays)
        assert other.metrics == wanted.metrics
    assert list(native.loaded(wanted.arrays).feature_names_in_) == names
    with pytest.raises(AppError, match="the rows lack the columns 'b'"):
        fit(native.make(), frame.drop(columns="b"), LABELS, context())


def test_sums_of_small_weights_and_of_missing_values_are_those_of_all_rows():
    x, y = IRIS
    weights = np.random.default_rng(0).random(150) / 1000
    native = model(naive_bayes.GaussianNB, 4, range(3))
    learned = native.loaded(fit(native.make(), x, y, context(), sample_weight=weights).arrays)
    wanted = naive_bayes.GaussianNB().fit(x, y, weights)
    np.testing.assert_allclose(learned.theta_, wanted.theta_)
    np.testing.assert_allclose(learned.class_prior_, wanted.class_prior_)
    x = np.where(np.arange(150)[:, None] < [50, 20, 0, 0], np.nan, x)  # a holder has nothing of a column
    for options in ({}, {"with_std": False}):
        native = model(lambda options=options: preprocessing.StandardScaler(**options), 4)
        with np.errstate(invalid="ignore"):
            parts = [(part, None) for part in np.split(x, [50, 90])]
            learned = native.loaded(run(native, parts, umbel.FedAvg(cohort="all", fold=umbel.total())))
            wanted = preprocessing.StandardScaler(**options).fit(x)
        np.testing.assert_allclose(learned.transform(x), wanted.transform(x), atol=1e-9)
        assert np.array_equal(learned.n_samples_seen_, wanted.n_samples_seen_)


@pytest.mark.parametrize("make", [svm.LinearSVC, lambda: linear_model.LogisticRegression(class_weight="balanced")])
@pytest.mark.parametrize("classes", [(0,), (0, 1)])
def test_classes_that_a_client_lacks_do_not_spoil_the_others(make, classes):
    rows = np.isin(LABELS, classes)
    update = fit(model(make, 4, range(3)).make(), ROWS[rows], LABELS[rows], context())
    assert update.arrays["coef_"].shape == (3, 4)
    assert np.isfinite(update.arrays["coef_"]).all()
    assert update.metrics["accuracy"] > 0.8


def test_sparse_rows_and_rows_of_no_weight():
    sparse = pytest.importorskip("scipy.sparse")
    native = model(lambda: linear_model.LogisticRegression(), 4, range(3), dtype=np.float32)
    rows = LABELS == 0
    update = fit(native.make(), sparse.coo_matrix(ROWS[rows].astype(float)), LABELS[rows], context())
    assert update.arrays["coef_"].dtype == np.float32
    assert fit(native.make(), ROWS, LABELS, context(), sample_weight=np.zeros(40)).weight == 0.0


def test_estimators_of_positive_targets_begin_and_what_predicts_by_more_is_refused():
    from sklearn.cross_decomposition import PLSRegression

    assert not model(linear_model.GammaRegressor, 4)()["coef_"].any()
    with pytest.raises(AppError, match=r"^a PLSRegression predicts by more"):
        umbel.App(umbel.Client(), model=model(PLSRegression, 4), strategy=OneShot()).initial_model()
