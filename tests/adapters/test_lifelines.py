"""lifelines: the fitters of what a federation found say what lifelines finds on all rows in one place."""

from __future__ import annotations

import numpy as np
import pytest

import umbel
from umbel import analytics
from umbel.errors import AppError

lifelines = pytest.importorskip("lifelines")
pytestmark = pytest.mark.slow
COLUMNS = ["age", "sex", "ph.ecog"]


@pytest.fixture(scope="module")
def lung():
    return lifelines.datasets.load_lung()[["inst", "time", "status", *COLUMNS]].dropna()


def ask(table, analysis, **settings):
    parts = {str(name): part for name, part in table.groupby("inst")}
    app = analytics.app(analytics.client(), analysis, **settings)
    return umbel.run(app, on=umbel.Simulation(clients=parts, workers=0), folder=None)


def test_a_cox_fitter_is_that_of_all_rows(lung, tmp_path, capsys):
    rng = np.random.default_rng(0)
    untied = lung.assign(time=lung.time + rng.permutation(len(lung)) / 1000)  # lifelines' ties are Efron's
    native = umbel.lifelines.model(COLUMNS, "time", "status")
    result = ask(untied, analytics.Cox("time", "status", COLUMNS), model=native)
    found, wanted = (
        native.loaded(result.model),
        lifelines.CoxPHFitter().fit(untied.drop(columns="inst"), "time", "status"),
    )
    columns = ["coef", "se(coef)", "coef lower 95%", "coef upper 95%", "p"]
    np.testing.assert_allclose(found.summary[columns], wanted.summary[columns], rtol=1e-4)
    assert list(found.summary.index) == COLUMNS
    assert found.log_likelihood_ == pytest.approx(wanted.log_likelihood_, rel=1e-6)
    ratio = found.log_likelihood_ratio_test()
    assert ratio.test_statistic == pytest.approx(wanted.log_likelihood_ratio_test().test_statistic, rel=1e-5)
    curves = [fitter.predict_survival_function(untied[:5], found.timeline) for fitter in (found, wanted)]
    np.testing.assert_allclose(*curves, rtol=1e-4)
    result.export(tmp_path / "cox.joblib")
    found.print_summary(style="ascii")
    said = capsys.readouterr().out
    assert f"number of observations = {len(lung)}" in said
    assert f"number of events observed = {int(lung.status.sum())}" in said


def test_a_curve_is_that_of_all_rows(lung):
    result = ask(lung, analytics.KaplanMeier("time", "status", by={"sex": [1, 2]}))
    for group, sex in enumerate((1, 2)):
        mine = lung[lung.sex == sex]
        found = umbel.lifelines.kaplan_meier(result.model, group, label="all")
        wanted = lifelines.KaplanMeierFitter().fit(mine.time, mine.status)
        times = np.unique(mine.time)
        np.testing.assert_allclose(found.survival_function_at_times(times), wanted.survival_function_at_times(times))
        assert found.median_survival_time_ == wanted.median_survival_time_
        bounds = [fitter.confidence_interval_.reindex(times, method="ffill") for fitter in (found, wanted)]
        np.testing.assert_allclose(*bounds, rtol=1e-6)


def test_what_is_not_fitted_does_not_travel():
    with pytest.raises(AppError, match="a CoxPHFitter that is fitted"):
        umbel.lifelines.arrays(lifelines.CoxPHFitter())
