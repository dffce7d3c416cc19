"""statsmodels: generalized linear models by Newton's steps are those of all rows in one place."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
from umbel.errors import StrategyError
from umbel.strategies import Newton

sm = pytest.importorskip("statsmodels.api")
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
MEAN = np.exp(0.5 + X @ [0.3, -0.4])
DRAWN = {
    "Poisson": RNG.poisson(MEAN), "Binomial": (RNG.random(200) < 1 / (1 + 1 / MEAN)).astype(int),
    "Gaussian": MEAN + RNG.normal(size=200), "Gamma": MEAN * RNG.gamma(2, 0.5, 200),
    "NegativeBinomial": RNG.negative_binomial(1, 1 / (1 + MEAN)),
}  # fmt: skip


def family(name):
    links = {"Gamma": [sm.families.links.Log()]}
    settings = {"alpha": 1.0} if name == "NegativeBinomial" else {}
    return getattr(sm.families, name)(*links.get(name, []), **settings)


def run(native, parts, rounds=10, **settings):
    client = umbel.Client()
    client.train(lambda model, data, ctx: umbel.statsmodels.fit(native.loaded(model), *data, ctx))
    app = umbel.App(client, model=native, strategy=Newton(**settings), rounds=rounds, evaluate_every=0)
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None)


@pytest.mark.parametrize("name", DRAWN)
def test_a_generalized_linear_model_is_that_of_all_rows(name):
    y = DRAWN[name]
    native = umbel.statsmodels.model(["a", "b"], lambda: family(name), target="out")
    found = native.loaded(run(native, [(X[:50], y[:50]), (X[50:60], y[50:60]), (X[60:], y[60:])]).model)
    wanted = sm.GLM(y, sm.add_constant(X), family=family(name)).fit(tol=1e-12)
    for what in ("params", "bse", "pvalues", "deviance", "pearson_chi2", "scale", "df_resid", "nobs", "llf", "aic"):
        if (name, what) not in {("Gamma", "llf"), ("Gamma", "aic")}:  # they are not sums over rows
            np.testing.assert_allclose(getattr(found, what), getattr(wanted, what), rtol=1e-6, err_msg=what)
    said = str(found.summary())
    assert "const" in said
    assert f"{wanted.params[1]:.4f}" in said
    np.testing.assert_allclose(found.conf_int(), wanted.conf_int(), rtol=1e-6)


def test_a_ridge_holds_columns_that_add_up():
    rows = np.column_stack([X, X.sum(1)])
    native = umbel.statsmodels.model(["a", "b", "c"], sm.families.Gaussian)
    parts = [(rows[:100], DRAWN["Gaussian"][:100]), (rows[100:], DRAWN["Gaussian"][100:])]
    found = run(native, parts, 2, ridge=1.0).model["coefficients"]
    design = sm.add_constant(rows)
    np.testing.assert_allclose(found, np.linalg.solve(design.T @ design + np.eye(4), design.T @ DRAWN["Gaussian"]))
    zero = [(np.zeros((3, 3)), np.ones(3))]
    with pytest.raises(StrategyError, match="the sums of round 1 give no step"):
        run(native, zero, 1)


def test_a_fit_of_ones_own_travels():
    fitted = sm.GLM(DRAWN["Poisson"], sm.add_constant(X), family=sm.families.Poisson()).fit()
    native = umbel.statsmodels.model(["a", "b"], sm.families.Poisson)
    again = native.loaded(native.arrays(fitted))
    np.testing.assert_allclose([again.bse, again.params], [fitted.bse, fitted.params], rtol=1e-9)
    assert again.llf == pytest.approx(fitted.llf)


@pytest.mark.filterwarnings("ignore:.*does not respect the domain")
@pytest.mark.parametrize(
    ("make", "y"),
    [
        (sm.families.Poisson, RNG.poisson(1e4 * MEAN)),
        (sm.families.Gamma, RNG.gamma(5, 0.2, 200) / (3 + 0.3 * X[:, 0])),
        (lambda: sm.families.Poisson(sm.families.links.Identity()), RNG.poisson(20 + X[:, 0])),
    ],
    ids=["large counts", "inverse", "identity"],
)
def test_a_link_of_any_range_begins_as_statsmodels_does(make, y):
    native = umbel.statsmodels.model(["a", "b"], make)
    found = native.loaded(run(native, [(X[:90], y[:90]), (X[90:], y[90:]), (X[:0], y[:0])], 8).model)
    wanted = sm.GLM(y, sm.add_constant(X), family=make()).fit(tol=1e-12)
    np.testing.assert_allclose(found.params, wanted.params, rtol=1e-7)
    np.testing.assert_allclose(found.bse, wanted.bse, rtol=1e-5)


def test_offsets_and_weights_are_those_of_statsmodels():
    rng, y = np.random.default_rng(1), DRAWN["Poisson"]
    offset, weights = np.log(rng.uniform(1, 50, 200)), rng.integers(0, 4, 200).astype(float)
    native = umbel.statsmodels.model(["a", "b"], sm.families.Poisson)
    client = umbel.Client()

    @client.train
    def train(model, part, ctx):
        own = {"offset": offset[part], "sample_weight": weights[part]}
        frame = pandas.DataFrame(X[part][:, ::-1], columns=["b", "a"])
        return umbel.statsmodels.fit(native.loaded(model), frame, y[part], ctx, **own)

    app = umbel.App(client, model=native, strategy=Newton(), rounds=12, evaluate_every=0)
    parts = [slice(0, 70), slice(70, 200)]
    found = native.loaded(umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None).model)
    wanted = sm.GLM(y, sm.add_constant(X), family=sm.families.Poisson(), offset=offset, freq_weights=weights)
    wanted = wanted.fit(tol=1e-12)
    for what in ("params", "bse", "deviance", "pearson_chi2", "df_resid", "llf"):
        np.testing.assert_allclose(getattr(found, what), getattr(wanted, what), rtol=1e-5, err_msg=what)


def test_successes_and_failures_are_two_columns():
    rng = np.random.default_rng(1)
    trials = rng.integers(1, 9, 200)
    won = rng.binomial(trials, 1 / (1 + 1 / MEAN))
    y = np.column_stack([won, trials - won])
    native = umbel.statsmodels.model(["a", "b"], sm.families.Binomial)
    found = native.loaded(run(native, [(X[:90], y[:90]), (X[90:], y[90:])], 8).model)
    wanted = sm.GLM(y, sm.add_constant(X), family=sm.families.Binomial()).fit(tol=1e-12)
    for what in ("params", "bse", "deviance", "pearson_chi2", "llf"):
        np.testing.assert_allclose(getattr(found, what), getattr(wanted, what), rtol=1e-5, err_msg=what)
