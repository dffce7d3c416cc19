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
from .core.native import NativeModel, check_same_form, missing_package
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


def fit(results: GLMResults, x: Any, y: Any, ctx: Context) -> Update:
    """What a holder's rows say at the coefficients of loaded results: sums, for `umbel.strategies.Newton`.

    `x` has a column for each of the model's, without the constant. The weight is the number of rows.
    """
    columns = results.model.exog_names
    rows = np.asarray(x, np.float64)
    design = np.column_stack([np.ones(len(rows)), rows]) if columns[0] == "const" else rows
    glm = type(results.model)(np.asarray(y, np.float64), design, family=results.model.family)
    at = np.asarray(results.params)
    mean = glm.predict(at)
    return Update(
        {
            "gradient": glm.score(at, scale=1.0),
            "information": -glm.hessian(at, scale=1.0, observed=False),
            "deviance": np.asarray(glm.family.deviance(glm.endog, mean)),
            "pearson": np.asarray(((glm.endog - mean) ** 2 / glm.family.variance(mean)).sum()),
            "log_likelihood": np.asarray(glm.loglike(at, scale=1.0)),
            "count": np.asarray(float(len(rows))),
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
