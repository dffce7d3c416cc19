"""lifelines' fitters of what a federation has found: Cox's regression and Kaplan-Meier curves over all holders' rows.

Used as ``umbel.lifelines``; needs lifelines: ``pip install "umbel[lifelines]"``. The fit itself is
`umbel.analytics.Cox` and `umbel.analytics.KaplanMeier`, of sums that holders tell, and that of all rows in one place.
Here their results become the fitters that one knows: ``print_summary()``, ``predict_survival_function(rows)``,
``plot()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.arrays import Array, Arrays
from .core.native import NativeModel, check_same_form, missing_package
from .errors import AppError

if TYPE_CHECKING:
    from lifelines import CoxPHFitter, KaplanMeierFitter

COX = (
    "coefficients", "covariance", "mean", "times", "cumulative_hazard", "log_likelihood", "log_likelihood_null",
    "count", "events",
)  # fmt: skip
CURVE = ("times", "cumulative_hazard")


def model(columns: Sequence[str], time: str, event: str) -> NativeModel:
    """A `CoxPHFitter` of these columns, whose `loaded` takes the result of a run of `umbel.analytics.Cox`; the `model`
    of such an app. Its file is ``.joblib``.

    Ties are Breslow's (lifelines' own are Efron's). Hazards are known at the times of events; between these lifelines
    draws lines. What needs single rows is not there: the concordance, residuals,
    robust errors.
    """

    def write(fitter: CoxPHFitter, path: Path) -> None:
        import joblib

        joblib.dump(fitter, path)

    return NativeModel(partial(_empty, tuple(columns), time, event), arrays, load_, {".joblib": write})


def arrays(fitter: CoxPHFitter) -> Arrays:
    """What a fitted `CoxPHFitter` has found, under the names of the result of `umbel.analytics.Cox`."""
    try:
        found = {
            "coefficients": fitter.params_,
            "covariance": fitter.variance_matrix_,
            "mean": fitter._norm_mean,
            "times": fitter.baseline_cumulative_hazard_.index,
            "cumulative_hazard": fitter.baseline_cumulative_hazard_.iloc[:, 0],
            "log_likelihood": fitter.log_likelihood_,
            "log_likelihood_null": fitter._ll_null_,
            "count": fitter.weights.sum(),
            "events": fitter.weights[np.asarray(fitter.event_observed, bool)].sum(),
        }
    except AttributeError:
        raise AppError("what travels is a CoxPHFitter that is fitted, without strata and splines") from None
    return Arrays({name: np.array(found[name], np.float64) for name in COX})


def load_(fitter: CoxPHFitter, model: Mapping[str, Array]) -> CoxPHFitter:
    """Put what was found into a fitted `CoxPHFitter`, in place, and return it. Raises `AppError` where the number of
    columns is another.
    """
    import pandas as pd

    own = {name: array for name, array in arrays(fitter).items() if name not in CURVE}
    check_same_form(own, {n: np.asarray(a, np.float64) for n, a in model.items() if n in own}, "CoxPHFitter")
    found = {name: np.array(model[name], np.float64) for name in COX}
    inner, columns = fitter._model, fitter.params_.index
    errors = pd.Series(np.sqrt(np.diag(found["covariance"])), columns, name="se")
    inner.params_ = pd.Series(found["coefficients"], columns, name="coef")
    inner.variance_matrix_ = pd.DataFrame(found["covariance"], columns, columns)
    inner.standard_errors_, inner._norm_mean = errors, pd.Series(found["mean"], columns)
    inner.confidence_intervals_ = inner._compute_confidence_intervals()
    inner.log_likelihood_, inner._ll_null_ = float(found["log_likelihood"]), float(found["log_likelihood_null"])
    inner._concordance_index_ = np.nan
    hazard = found["cumulative_hazard"]
    inner.timeline = times = pd.Index(found["times"])
    inner.baseline_cumulative_hazard_ = pd.DataFrame({"baseline cumulative hazard": hazard}, times)
    inner.baseline_hazard_ = pd.DataFrame({"baseline hazard": np.diff(hazard, prepend=0.0)}, times)
    inner.baseline_survival_ = pd.DataFrame({"baseline survival": np.exp(-hazard)}, times)
    inner._n_examples = int(found["count"])  # of two rows, one of which stands for all that have the event
    inner.weights = pd.Series([found["events"], found["count"] - found["events"]])
    inner.event_observed = pd.Series([True, False])
    inner.durations = pd.Series(np.repeat(found["times"].max(initial=0.0), 2))
    return fitter


def kaplan_meier(model: Mapping[str, Array], group: int = 0, label: str | None = None) -> KaplanMeierFitter:
    """The `KaplanMeierFitter` of one group of the result of a run of `umbel.analytics.KaplanMeier`.

    Who leaves without an event between two times counts as leaving at the first of them, as in the result.
    """
    times, at_risk, events = model["times"], model["at_risk"][group], model["events"][group]
    censored = at_risk - events - np.append(at_risk[1:], 0)
    weights, died = np.concatenate([events, censored]), np.repeat([1, 0], len(times))
    fitter: KaplanMeierFitter = _lifelines().KaplanMeierFitter()
    some = weights > 0
    fitter.fit(np.concatenate([times, times])[some], died[some], weights=weights[some], label=label)
    return fitter


def _empty(columns: tuple[str, ...], time: str, event: str) -> CoxPHFitter:
    """A fitter that has its columns, and has found nothing."""
    lifelines = _lifelines()
    import pandas as pd

    rng, rows = np.random.default_rng(0), 20 + 5 * len(columns)
    made = pd.DataFrame(rng.normal(size=(rows, len(columns))), columns=list(columns))
    fitter = lifelines.CoxPHFitter()
    fitter.fit(made.assign(**{time: rng.uniform(1, 2, rows), event: 1}), time, event)
    size = len(columns)
    nothing = {"covariance": np.zeros((size, size)), "coefficients": np.zeros(size), "mean": np.zeros(size)}
    return load_(fitter, {**{name: np.zeros(0 if name in CURVE else ()) for name in COX}, **nothing})


def _lifelines() -> Any:
    try:
        import lifelines
    except ModuleNotFoundError as error:
        raise missing_package(error, "lifelines", "lifelines") from error
    return lifelines
