"""Analyses give what NumPy gives for all rows in one place, the same bits however these are spread over clients."""

from fractions import Fraction
from operator import mul
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.analytics.asking import COLUMNS, asked, patients, spread, whole
from tests.conftest import some

import umbel
from umbel.analytics import (
    PCA,
    Covariance,
    Cox,
    HeavyHitters,
    Histogram,
    KaplanMeier,
    KMeans,
    LinearRegression,
    LogisticRegression,
    Quantiles,
    Statistics,
    app,
    client,
    pca,
)
from umbel.analytics.order import from_keys, to_keys
from umbel.data import HEART_COLUMNS, HOSPITALS, heart
from umbel.errors import SettingError, StrategyError

HEART = Path(__file__).parents[3] / "shared" / "data" / "heart"
SOME = [patients(rows, seed) for seed, rows in enumerate((50, 7, 31, 80))]
POOLED = {name: np.concatenate([table[name] for table in SOME]) for name in COLUMNS}
ALL = (
    Statistics(["x", "y"], by={"s": (0, 1)}),
    Histogram(["x", "y"], bins=7),
    Quantiles(["x", "t"], by={"s": (0, 1)}),
    HeavyHitters("t", threshold=3),
    KaplanMeier("t", "e"),
    Covariance(["x", "y"]),
    PCA(["x", "y", "t"]),
    LinearRegression("y", ["x", "s"]),
    KMeans(["x", "y"], clusters=3),
)
"""Analyses that are the same bits however rows are spread."""
MODELS = (LogisticRegression("e", ["x", "y", "s"]), Cox("t", "e", ["x", "s"]))
number = st.one_of(
    st.none(), st.floats(10, 40), st.floats(-1e30, 1e30).map(lambda x: round(x, 3)), st.integers(-3, 3).map(float)
)
lines = st.lists(st.tuples(number, st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=25)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {"clients"}:
        assert np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes(), name


@pytest.mark.parametrize("analysis", ALL, ids=lambda each: type(each).__name__)
def test_any_spread_of_the_same_rows_gives_the_same_bits(analysis):
    first = asked(analysis, [POOLED])
    rng = np.random.default_rng(3)
    for clients in (2, 5, 40):  # some of which have no row
        owners = rng.integers(0, clients, len(POOLED["x"]))
        same(first, asked(analysis, spread(POOLED, owners)[::-1]))
        order = rng.permutation(len(owners))
        same(first, asked(analysis, spread({name: column[order] for name, column in POOLED.items()}, owners)))


@pytest.mark.parametrize("analysis", MODELS, ids=lambda each: type(each).__name__)
def test_any_spread_gives_the_same_coefficients(analysis):
    first = asked(analysis, [POOLED])
    again = asked(analysis, SOME)
    for name in ("coefficients", "standard_errors", "p_values", "log_likelihood"):
        np.testing.assert_allclose(first[name], again[name], rtol=1e-9)
    same(again, asked(analysis, SOME[::-1]))


@given(lines)
def test_statistics_are_the_true_values_rounded_once(rows):
    table = {"v": np.array([np.nan if v is None else v for v, _, _ in rows]), "g": np.array([g for _, g, _ in rows])}
    analysis = Statistics(["v"], by={"g": (0, 1)})
    found = asked(analysis, spread(table, [owner for _, _, owner in rows]))
    for group in (0, 1):
        mine = [Fraction(v) for v, g, _ in rows if g == group and v is not None]
        n = len(mine)
        got = {name: found[name][0, group] for name in found if name != "clients"}
        assert (got["count"], got["missing"]) == (n, sum(v is None and g == group for v, g, _ in rows))
        assert got["sum"] == float(sum(mine))
        if n:
            mean = sum(mine) / n
            assert (got["mean"], got["min"], got["max"]) == (float(mean), min(mine), max(mine))
        if n > 1:
            assert got["variance"] == float(sum((v - mean) ** 2 for v in mine) / (n - 1))
        assert np.isnan(got["variance"]) == (n < 2)


@given(
    lines.filter(lambda rows: any(v is not None for v, _, _ in rows)), st.lists(st.floats(0, 1), min_size=1, max_size=3)
)
def test_quantiles_are_numpys(rows, shares):
    values = np.array([np.nan if v is None else v for v, _, _ in rows])
    tables = spread({"v": values}, [owner for _, _, owner in rows])
    found = asked(Quantiles(["v"], at=shares), tables)
    wanted = np.nanquantile(values, shares)
    np.testing.assert_allclose(found["values"][0, 0], wanted, rtol=1e-12, atol=1e-12)
    same({**found, "low": 0, "high": 0}, {**found, "low": 0, "high": 0, "values": (found["low"] + found["high"]) / 2})
    rough = asked(Quantiles(["v"], at=shares, tolerance=0.5), tables)
    assert (np.abs(rough["values"][0, 0] - wanted) <= 0.25 + 1e-12 * np.abs(wanted)).all()
    assert (rough["low"] <= wanted + 1e-12 * np.abs(wanted)).all()


@given(lines.filter(lambda rows: len({v for v, _, _ in rows} - {None}) > 1), st.integers(1, 6))
def test_histograms_are_numpys(rows, bins):
    values = np.array([np.nan if v is None else v for v, _, _ in rows])
    present = values[~np.isnan(values)]
    tables = spread({"v": values}, [owner for _, _, owner in rows])
    found = asked(Histogram(["v"], bins=bins), tables)
    edges = np.histogram_bin_edges(present, bins)
    assert (found["edges"][0] == edges).all()
    given_edges = asked(Histogram(["v"], bins=[-2.0, 0.0, 1.0, 3.0]), tables)
    assert (given_edges["counts"][0, 0] == np.histogram(present, [-2.0, 0.0, 1.0, 3.0])[0]).all()
    assert (given_edges["below"][0, 0], given_edges["above"][0, 0]) == ((present < -2).sum(), (present > 3).sum())
    if (np.diff(edges) > 0).all():
        assert found["counts"].sum() == len(present)


@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_keys_are_in_the_order_of_numbers_and_give_them_back(values):
    numbers = np.array(values, float) + 0.0
    keys = to_keys(numbers)
    assert (from_keys(keys) == np.clip(numbers, -np.finfo(float).max, np.finfo(float).max)).all()
    assert (np.sort(numbers) == numbers[np.argsort(keys)]).all()


def test_covariances_and_principal_components_are_numpys():
    rows = whole(POOLED, "x", "y", "t")
    model = asked(Covariance(["x", "y", "t"]), SOME)
    np.testing.assert_allclose(model["covariance"], np.cov(rows.T), rtol=1e-12)
    np.testing.assert_allclose(model["correlation"], np.corrcoef(rows.T), rtol=1e-12)
    assert (model["count"], model["incomplete"]) == (len(rows), len(POOLED["x"]) - len(rows))
    for standardise in (False, True):
        found = asked(PCA(["x", "y", "t"], keep=2, standardise=standardise), SOME)
        scaled = (rows - rows.mean(0)) / (rows.std(0, ddof=1) if standardise else 1.0)
        _, singular, components = np.linalg.svd(scaled, full_matrices=False)
        variance = singular**2 / (len(rows) - 1)
        np.testing.assert_allclose(found["variance"], variance[:2], rtol=1e-10)
        np.testing.assert_allclose(found["share"], variance[:2] / variance.sum(), rtol=1e-10)
        np.testing.assert_allclose(np.abs((found["components"] * components[:2]).sum(1)), 1.0, rtol=1e-10)
        assert (found["components"].max(1) == np.abs(found["components"]).max(1)).all()
        np.testing.assert_allclose(np.abs(pca.project(found, rows)), np.abs(scaled @ components[:2].T), atol=1e-9)


def test_linear_regression_is_least_squares():
    stats = pytest.importorskip("scipy.stats")
    rows = whole(POOLED, "x", "s", "t", "y")
    x, y = np.column_stack([np.ones(len(rows)), rows[:, :3]]), rows[:, 3]
    beta, (residual,), _, _ = np.linalg.lstsq(x, y, rcond=None)
    df = len(y) - 4
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * residual / df)
    model = asked(LinearRegression("y", ["x", "s", "t"]), SOME)
    np.testing.assert_allclose(model["coefficients"], beta, rtol=1e-9)
    np.testing.assert_allclose(model["standard_errors"], errors, rtol=1e-9)
    np.testing.assert_allclose(model["p_values"], 2 * stats.t.sf(np.abs(beta / errors), df), rtol=1e-7)
    np.testing.assert_allclose(model["high"], beta + stats.t.isf(0.025, df) * errors, rtol=1e-7)
    assert model["r_squared"] == pytest.approx(1 - residual / ((y - y.mean()) ** 2).sum(), rel=1e-10)
    assert model["residual_variance"] == pytest.approx(residual / df, rel=1e-10)


def test_linear_regression_is_right_far_from_zero_too():
    year = 1e7 + np.arange(40.0)
    y = 3.0 * (year - 1e7) + np.sin(year)
    model = asked(LinearRegression("y", ["year"]), spread({"year": year, "y": y}, np.arange(40) % 3))
    slope = np.polyfit(np.arange(40.0), y, 1)[0]
    assert model["coefficients"][1] == pytest.approx(slope, rel=1e-12)
    near = year - 1e7 + 1e-4 * np.cos(year)  # which float64 hardly tells from the year
    model = asked(LinearRegression("y", ["year", "near"]), [{"year": year, "near": near, "y": y}])
    columns = [[Fraction(v) for v in column] for column in (year, near, y)]
    a, b, c = ([v - sum(column) / 40 for v in column] for column in columns)
    (aa, ab, bb), (ac, bc) = (
        (sum(map(mul, *pair)) for pair in pairs) for pairs in (((a, a), (a, b), (b, b)), ((a, c), (b, c)))
    )
    exact = [float((bb * ac - ab * bc) / (aa * bb - ab**2)), float((aa * bc - ab * ac) / (aa * bb - ab**2))]
    np.testing.assert_allclose(model["coefficients"][1:], exact, rtol=1e-12)
    perfect = asked(LinearRegression("y", ["year"]), [{"year": year, "y": 2 * year + 1}])
    assert perfect["residual_variance"] < 1e-20


def irls(x, y, penalty):
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ beta))
        hessian = (x.T * (p * (1 - p))) @ x + np.diag(penalty)
        beta = beta + np.linalg.solve(hessian, x.T @ (y - p) - penalty * beta)
    return beta, np.linalg.inv(hessian), (np.log(p) @ y + np.log(1 - p) @ (1 - y))


@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_logistic_regression_is_the_fit_of_all_rows_in_one_place(ridge):
    rows = whole(POOLED, "x", "y", "s", "e")
    scale = rows[:, :3].std(0, ddof=1)
    x = np.column_stack([np.ones(len(rows)), (rows[:, :3] - rows[:, :3].mean(0)) / scale])
    beta, covariance, value = irls(x, rows[:, 3], np.array([0, ridge, ridge, ridge]))
    model = asked(LogisticRegression("e", ["x", "y", "s"], ridge=ridge), SOME)
    np.testing.assert_allclose(model["coefficients"][1:], beta[1:] / scale, rtol=1e-8)
    np.testing.assert_allclose(model["standard_errors"][1:], np.sqrt(np.diag(covariance))[1:] / scale, rtol=1e-7)
    assert model["log_likelihood"] == pytest.approx(value, abs=1e-9)
    raw = np.column_stack([np.ones(len(rows)), rows[:, :3]])
    if not ridge:
        np.testing.assert_allclose(
            model["standard_errors"], np.sqrt(np.diag(irls(raw, rows[:, 3], 0 * beta)[1])), rtol=1e-6
        )
    assert model["coefficients"][0] == pytest.approx(beta[0] - (beta[1:] / scale) @ rows[:, :3].mean(0), rel=1e-8)


def blobs():
    rng = np.random.default_rng(5)
    centres = np.array([[0.0, 0.0], [8.0, 1.0], [3.0, 9.0], [-6.0, 6.0]])
    rows = centres[rng.integers(0, 4, 300)] + rng.normal(size=(300, 2))
    return {"x": rows[:, 0], "y": rows[:, 1]}, rows


def test_k_means_end_where_no_centre_moves_and_as_well_as_in_one_place():
    table, rows = blobs()
    model = asked(KMeans(["x", "y"], clusters=4, standardise=False), spread(table, np.arange(300) % 7))
    distances = ((rows[:, None] - model["centres"]) ** 2).sum(2)
    nearest = distances.argmin(1)
    assert (np.bincount(nearest) == model["counts"]).all()
    np.testing.assert_allclose([rows[nearest == k].mean(0) for k in range(4)], model["centres"], rtol=1e-9)
    assert model["inertia"] == pytest.approx(distances.min(1).sum(), rel=1e-9)
    sklearn = pytest.importorskip("sklearn.cluster")
    assert model["inertia"] <= sklearn.KMeans(4, n_init=10, random_state=0).fit(rows).inertia_ * (1 + 1e-9)


def test_k_means_takes_three_steps_as_by_hand():
    table, rows = blobs()
    one, three = (
        asked(
            KMeans(["x", "y"], clusters=5, standardise=False, iterations=n, seed=2), spread(table, np.arange(300) % 3)
        )
        for n in (1, 4)
    )
    centres = one["centres"]
    for _ in range(3):
        nearest = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack([rows[nearest == k].mean(0) for k in range(5)])
    np.testing.assert_allclose(three["centres"], centres, rtol=1e-9)


def test_k_means_under_a_minimum_leaves_out_what_is_too_little_of_a_cluster():
    near, far = np.linspace(0.0, 1.0, 20), np.linspace(100.0, 101.0, 20)
    tables = [{"x": np.append(near, far[:2])}, {"x": np.append(near[:3], far)}]
    model = asked(KMeans(["x"], clusters=2, cells=10), tables, minimum=3)
    assert sorted(zip(model["centres"][:, 0].round(6).tolist(), model["counts"].tolist(), strict=True)) == [
        (round(np.append(near, near[:3]).mean(), 6), 23),
        (100.5, 20),
    ]


@pytest.mark.parametrize("clusters", [1, 3])
def test_k_means_of_fewer_different_rows_than_clusters(clusters):
    table = {"x": np.array([1.0, 1.0, 5.0]), "y": np.array([2.0, 2.0, 3.0])}
    model = asked(KMeans(["x", "y"], clusters=clusters), [table])
    assert model["counts"].sum() == 3
    assert model["inertia"] == pytest.approx(0.0 if clusters > 1 else 4.0)


@pytest.mark.skipif(not HEART.is_dir(), reason=f"the hospitals' tables are not in {HEART}")
def test_four_hospitals_are_as_one():
    tables = [
        {**dict(zip(HEART_COLUMNS[:-1], x.T, strict=True)), "target": y}
        for x, y in (heart(HEART)[name] for name in HOSPITALS)
    ]
    pooled = {name: np.concatenate([table[name] for table in tables]) for name in HEART_COLUMNS}
    statistics = Statistics(["age", "chol", "thalach"], by={"target": (0, 1)})
    found = statistics.read(asked(statistics, tables))
    mine = pooled["chol"][(pooled["target"] == 1) & ~np.isnan(pooled["chol"])]
    got = found["chol"][1]
    assert (got["count"], got["min"], got["max"]) == (len(mine), mine.min(), mine.max())
    assert (got["mean"], got["sd"]) == pytest.approx((mine.mean(), mine.std(ddof=1)), rel=1e-12)
    columns = ["age", "sex", "thalach", "oldpeak"]
    model = asked(LogisticRegression("target", columns), tables)
    rows = whole(pooled, *columns, "target")
    beta, covariance, _ = irls(np.column_stack([np.ones(len(rows)), rows[:, :4]]), rows[:, 4], np.zeros(5))
    np.testing.assert_allclose(model["coefficients"], beta, rtol=1e-8)
    np.testing.assert_allclose(model["standard_errors"], np.sqrt(np.diag(covariance)), rtol=1e-7)


@settings(max_examples=25)
@given(st.integers(2, 12), st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_a_minimum_is_behind_whatever_is_told(minimum, owners):
    table = patients(30, seed=minimum)
    tables = spread(table, owners)
    told = asked(Histogram(["y"], bins=[0.0, 5.0, 10.0, 15.0, 20.0]), tables, minimum=minimum)
    by_hand = [np.histogram(each["y"], [0.0, 5.0, 10.0, 15.0, 20.0])[0] for each in tables]
    assert (told["counts"][0, 0] == sum(np.where(counts < minimum, 0, counts) for counts in by_hand)).all()
    assert (told["withheld"][0, 0] == sum((counts > 0) & (counts < minimum) for counts in by_hand)).all()
    statistics = asked(Statistics(["y"]), tables, minimum=minimum)
    missing = [np.isnan(each["x"]).sum() for each in tables]
    assert asked(Statistics(["x"]), tables, minimum=minimum)["missing"] == sum(n for n in missing if n >= minimum)
    enough = [each["y"] for each in tables if len(each["y"]) >= minimum]
    assert statistics["count"] == sum(map(len, enough))
    assert statistics["withheld"] == sum(0 < len(each["y"]) < minimum for each in tables)
    if enough:
        together = np.concatenate(enough)
        assert statistics["mean"] == pytest.approx(together.mean())
        if not np.isnan(statistics["min"]):
            low, high = statistics["min"].item(), statistics["max"].item()
            assert min((together >= low).sum(), (together <= high).sum()) >= minimum
            assert minimum == 1 or not {low, high} & {*together.tolist()}


@example([[16.0] + 5 * [17.0] + 5 * [17.25]], 0.5, 2)  # told alone, 17.25 is in the middle
@given(
    st.lists(st.lists(st.integers(64, 90).map(lambda v: v / 4), min_size=6, max_size=40), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]),
    st.integers(2, 6),
)
def test_under_a_minimum_the_bounds_of_a_quantile_are_right(columns, share, minimum):
    found = asked(Quantiles(["v"], at=[share]), [{"v": np.array(column)} for column in columns], minimum=minimum)
    true = np.quantile(np.concatenate(columns), share)
    low, middle, high = (found[name][0, 0, 0] for name in ("low", "values", "high"))
    assert low <= true * (1 + 1e-12)
    assert true <= high * (1 + 1e-12)
    assert low <= middle <= high


def test_holders_of_too_few_complete_rows_take_no_part_in_fits():
    small = SOME[1]
    for analysis in (LinearRegression("y", ["x"]), LogisticRegression("e", ["x"])):
        np.testing.assert_allclose(
            asked(analysis, SOME, minimum=10)["coefficients"],
            asked(analysis, [table for table in SOME if table is not small])["coefficients"],
            rtol=1e-9,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "analysis", some([*ALL[:2], KMeans(["x", "y"], clusters=3)], 1), ids=lambda each: type(each).__name__
)
def test_without_workers_and_with_two_a_run_ends_with_the_same_bits(analysis):
    runs = [
        umbel.run(app(client(), analysis), on=umbel.Simulation(clients=SOME, workers=workers), folder=None)
        for workers in (0, 2)
    ]
    assert runs[0].model_sha256 == runs[1].model_sha256
    same(dict(runs[0].model), asked(analysis, SOME))


def test_clusters_of_which_no_holder_tells_enough_are_an_error_by_name():
    tables = [patients(rows, seed) for seed, rows in enumerate((50, 7, 31, 80))]
    with pytest.raises(StrategyError, match="no client tells of any cell"):
        asked(KMeans(["x", "y"], clusters=3), tables, minimum=20)


@pytest.mark.slow
@pytest.mark.parametrize("analysis", [*ALL[2:-1], *MODELS], ids=lambda each: type(each).__name__)
def test_all_others_end_with_the_same_bits_too(analysis):
    test_without_workers_and_with_two_a_run_ends_with_the_same_bits(analysis)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Statistics("age"), "takes a list of columns"),
        (lambda: Statistics([]), "takes a list of columns"),
        (lambda: Statistics(["a", "a"]), "names a column twice"),
        (lambda: Statistics(["a"], by={"b": []}), "groups by 'b'"),
        (lambda: Statistics(["a"], by={"b": [1, 1.0]}), "groups by 'b'"),
        (lambda: Statistics(["a"], least=0), "least is a whole number of at least 1"),
        (lambda: Histogram(["a"], bins=0), "bins is a whole number of at least 1"),
        (lambda: Histogram(["a"], bins=[1.0]), "edges ascend"),
        (lambda: Histogram(["a"], bins=[1.0, 1.0]), "edges ascend"),
        (lambda: Histogram(["a"], bins=[1.0, np.inf]), "finite"),
        (lambda: Histogram(["a", "b"], bins={"a": [1.0, 2.0]}), "edges for a, b, not for a"),
        (lambda: Histogram(["a", "b"], bins={"a": [1.0, 2.0], "b": [1.0]}), "as many for each"),
        (lambda: Quantiles(["a"], at=[1.5]), "shares from 0 to 1"),
        (lambda: Quantiles(["a"], tolerance=-1.0), "tolerance of at least 0"),
        (lambda: LinearRegression("a", ["a"]), "names a column twice"),
        (lambda: LogisticRegression("a", ["b"], ridge=-1.0), "ridge of at least 0"),
        (lambda: Cox("t", "e", ["b"], iterations=0), "iterations is a whole number"),
        (lambda: PCA(["a"], keep=2), "keeps 2 of 1"),
        (lambda: KMeans(["a"], clusters=0), "clusters is a whole number"),
        (lambda: KMeans(["a"], clusters=4, cells=3), "cells is a whole number of at least 4"),
    ],
)
def test_wrong_settings_are_refused_when_an_analysis_is_made(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_questions_without_an_answer_say_so():
    x = np.arange(10.0)
    table = {"x": x, "twice": 2 * x, "fixed": 0 * x, "y": np.sin(x), "e": (x > 4) * 1.0, "none": np.nan * x}
    for analysis, message in (
        (LinearRegression("y", ["x", "twice"]), "a column is a sum of others"),
        (LinearRegression("y", ["fixed"]), "fixed: the same in all 10 rows"),
        (LinearRegression("fixed", ["x"]), "fixed: the same in all 10 rows"),
        (LogisticRegression("e", ["x"]), "no maximum|not determined"),
        (Covariance(["x", "none"]), "clients tell of 0 rows that miss none of x, none"),
        (Histogram(["x", "none"]), "no client tells of any value of none"),
    ):
        with pytest.raises(StrategyError, match=message):
            asked(analysis, [table])
    assert asked(PCA(["fixed"]), [table])["share"].tolist() == [0.0]
