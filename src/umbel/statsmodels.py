"""statsmodels' generalized linear models over the rows of all holders, with the standard errors of a pooled fit.

Used as ``umbel.statsmodels``; needs statsmodels: ``pip install "umbel[statsmodels]"``. Each round holders tell the sums
of score and information at the model's coefficients, and `umbel.strategies.Newton` takes the step: the coefficients,
standard errors and log-likelihood are those of all rows in one place. ``model(...).loaded(result.model)`` has
``summary()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.arrays import Array, Arrays
from .core.client import Context
from .core.native import NativeModel, check_same_form, columns_of, missing_package
from .core.update import Update

if TYPE_CHECKING:
    from statsmodels.genmod.generalized_linear_model import GLMResults

SUMS = ("deviance", "pearson", "log_likelihood", "count")
UNSCALED = ("Binomial", "Poisson", "NegativeBinomial")
"""The families whose scale is 1; that of others is estimated."""


def model(
    columns: Sequence[str], family: Callable[[], Any], *, target: str = "y", intercept: bool = True
) -> NativeModel:
    """The `model` of an `App`: a generalized linear model of `target` by these columns and, before them, a constant.

    `family` makes one of statsmodels' families, with its link: ``sm.families.Poisson``. Its file is ``.joblib``.
    """
    names = (*(["const"] if intercept else []), *columns)
    return NativeModel(partial(_empty, names, family, target), arrays, load_, {".joblib": _to_joblib})


def arrays(results: GLMResults) -> Arrays:
    """What a fit has found: `coefficients` [k], their `information` [k, k] at scale 1, `deviance`, `pearson` (chi
    squared), `log_likelihood` (at scale 1), and `count`, the number of rows.
    """
    found = getattr(results, "pooled", None) or {
        "coefficients": results.params,
        "information": np.linalg.inv(results.normalized_cov_params),
        "deviance": results.deviance,
        "pearson": results.pearson_chi2,
        "log_likelihood": results.llf_scaled(1.0),
        "count": results.nobs,
    }
    return Arrays({name: np.array(value, np.float64) for name, value in found.items()})


def load_(results: GLMResults, model: Mapping[str, Array]) -> GLMResults:
    """Put what was found into results, in place, and return them. Raises `AppError` where the number of columns is
    another.

    What needs single rows is not there: residuals, and the likelihood of a model without columns.
    """
    check_same_form(arrays(results), model, "GLM")
    found = {name: np.array(array, np.float64) for name, array in model.items()}
    glm, count, pearson = results.model, float(found["count"]), float(found["pearson"])
    family, size = type(glm.family).__name__, len(found["coefficients"])
    results.pooled = found
    results.params = found["coefficients"]
    results.normalized_cov_params = np.linalg.pinv(found["information"], hermitian=True)
    results.nobs = count
    results.df_resid = glm.df_resid = count - size
    results.scale = 1.0 if family in UNSCALED or count <= size else pearson / (count - size)
    likelihood = float(found["log_likelihood"]) if family in UNSCALED else np.nan
    if family == "Gaussian" and count and pearson:
        likelihood = -count / 2 * (np.log(2 * np.pi * pearson / count) + 1)
    told = {"deviance": float(found["deviance"]), "pearson_chi2": pearson, "llf": likelihood}
    results._cache = {**told, "llnull": np.nan, "null_deviance": np.nan, "aic": 2 * (size - likelihood)}
    return results


def fit(
    results: GLMResults, x: Any, y: Any, ctx: Context, *, offset: Any = None, sample_weight: Any = None
) -> Update:  # fmt: skip
    """What a holder's rows say at the coefficients of loaded results: sums, for `umbel.strategies.Newton`.

    `x` has a column for each of the model's, without the constant; of a frame those of these names are taken. `offset`
    is added to the linear predictor, as the logarithm of an exposure is; a row counts `sample_weight` times, as
    statsmodels' ``freq_weights`` have it. The weight is the number of rows. At coefficients of which nobody has told
    anything yet the sums are those of statsmodels' own first step, which begins with the rows' own means.
    """
    columns = results.model.exog_names
    constant = columns[:1] == ["const"]
    rows = np.asarray(columns_of(x, columns[constant:]), np.float64)
    design = np.column_stack([np.ones(len(rows)), rows]) if constant else rows
    if not len(rows):
        nothing = {name: np.zeros(()) for name in SUMS}
        size = len(columns)
        return Update({**nothing, "gradient": np.zeros(size), "information": np.zeros((size, size))}, weight=0.0)
    glm = type(results.model)(
        np.asarray(y, np.float64), design, family=results.model.family, offset=offset, freq_weights=sample_weight
    )
    at = np.asarray(results.params)
    if results.pooled["count"]:
        mean = glm.predict(at)
        gradient, information = glm.score(at, scale=1.0), -glm.hessian(at, scale=1.0, observed=False)
        likelihood = glm.loglike(at, scale=1.0)
    else:
        mean = glm.family.starting_mu(glm.endog)
        weights = glm.iweights * glm.n_trials * glm.family.weights(mean)
        response = (glm.endog - mean) * glm.family.link.deriv(mean) + glm.family.predict(mean) - glm._offset_exposure
        information = design.T @ (weights[:, None] * design)
        gradient, likelihood = design.T @ (weights * response) - information @ at, 0.0
    squares = (glm.endog - mean) ** 2 / glm.family.variance(mean)
    return Update(
        {
            "gradient": gradient,
            "information": information,
            "deviance": np.asarray(glm.family.deviance(glm.endog, mean, glm.var_weights, glm.freq_weights)),
            "pearson": np.asarray((squares * glm.iweights * glm.n_trials).sum()),
            "log_likelihood": np.asarray(likelihood),
            "count": np.asarray(float(glm.freq_weights.sum())),
        },
        weight=len(rows),
    )


def _empty(names: tuple[str, ...], family: Callable[[], Any], target: str) -> GLMResults:
    """Results that have their columns, and have found nothing."""
    _statsmodels()
    import pandas as pd
    from statsmodels.genmod.generalized_linear_model import GLM, GLMResults

    size = len(names)
    rows = pd.DataFrame(np.eye(size), columns=list(names))
    glm = GLM(pd.Series(np.full(size, 0.5), name=target), rows, family=family())  # of a target that all families allow
    results = GLMResults(glm, np.zeros(size), np.eye(size), 1.0)
    results.method, results.fit_history, results.converged = "Newton", {"iteration": 0}, True
    results.pooled = {"coefficients": np.zeros(size), "information": np.zeros((size, size)), **dict.fromkeys(SUMS, 0.0)}
    return load_(results, arrays(results))


def _to_joblib(results: GLMResults, path: Path) -> None:
    import joblib

    joblib.dump(results, path)


def _statsmodels() -> None:
    try:
        import statsmodels  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error, "statsmodels", "statsmodels") from error
