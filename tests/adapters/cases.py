"""The adapters' models as the contract suite sees them. A case more is a framework more: see `Case`.

Frameworks are imported where they are used, so that a case whose framework is not there is skipped; within a `make`
only in the function that the adapter is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import umbel
from umbel.core.client import Context
from umbel.core.native import NativeModel
from umbel.core.randomness import Key

ROWS = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
LABELS = ((ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0.5)).astype(np.int64)  # three classes

# What a kind of file takes beyond a case's `needs`, to be written and read.
FILES_NEED = {".onnx": ("skl2onnx", "onnxruntime")}


@dataclass(frozen=True)
class Case:
    """A model of an adapter.

    - `name`: the adapter's, and after a hyphen, which of its models. `needs`: the package without which it is skipped.
    - `make(dtype)`: the `NativeModel` with weights of one of `dtypes`, of which the first is the usual one.
    - `train(native)`: changes what a framework's model has learned, and returns it. `predict(native)`: what it says of
      some fixed rows.
    - `later`: what a later version of the app makes, by a part of the error that names what differs.
    - `read`: for each ending that the model is written in, a function of the path that reads it with the framework
      itself and predicts as `predict` does; None where another test does. That of ``""`` reads a folder.
    - `fit(native, ctx, epochs, keep)`: what the adapter does for a client, by two epochs the same as `train`; with
      `keep` it goes on with its optimizer. `mixed(native, ctx, epochs)`: the same in fewer bits. `rows`: what an update
      weighs.
    - `tied`: names of a single weight. `also`: packages without which the case is skipped, too.
    - `buffers`: the arrays whose role is `buffer`. `tolerance`: how far arrays may be off after a round trip, and
      predictions. `in_place`: whether `load` gives back the model that it was given. `averaged`: whether `FedAvg` is
      what its clients learn by.
    - `fast`: whether it is in `make test`, too.
    - `large()`: a `NativeModel` of 20 MB and more, to see what memory it takes; None where a model is text.
    """

    name: str
    needs: str
    make: Callable[[str], NativeModel]
    train: Callable[[Any], Any]
    predict: Callable[[Any], Any]
    later: Mapping[str, Callable[[], NativeModel]] = field(default_factory=dict)
    read: Mapping[str, Callable[[Path], Any] | None] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32",)
    buffers: tuple[str, ...] = ()
    tolerance: float = 0.0
    in_place: bool = True
    averaged: bool = True
    fast: bool = False
    large: Callable[[], NativeModel] | None = None
    fit: Callable[..., umbel.Update] | None = None
    mixed: Callable[..., umbel.Update] | None = None
    rows: int = len(ROWS)
    tied: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def adapter(self) -> str:
        """The name of the adapter's module."""
        return self.name.partition("-")[0]


def context(state: Any = None, **settings: Any) -> Context:
    """What a handler gets, of a task that nobody asked for."""
    kept = {} if state is None else state
    return Context(
        client=0, round=1, kind="train", config=settings, key=Key.from_seed(1), inbox=umbel.Arrays(), state=kept
    )


# --- scikit-learn


def sklearn(where: str, classes: Any = (0, 1, 2), **settings: Any) -> Callable[..., NativeModel]:
    """What makes the model of an estimator, such as ``linear_model.SGDClassifier``."""

    def made(dtype: str = "float64", features: int = 4, classes: Any = classes, **changed: Any) -> NativeModel:
        def estimator() -> Any:
            module, kind = where.split(".")
            return getattr(import_module(f"sklearn.{module}"), kind)(**{**settings, **changed})

        return umbel.sklearn.model(estimator, features, classes, dtype=dtype)

    return made


def fit_sklearn(estimator: Any) -> Any:
    umbel.sklearn.fit(estimator, np.abs(ROWS), LABELS, context())
    return estimator


def predict_sklearn(estimator: Any) -> Any:
    from sklearn.base import is_classifier

    rows = np.abs(ROWS)
    return estimator.predict_proba(rows) if is_classifier(estimator) else estimator.predict(rows)


def read_joblib(path: Path) -> Any:
    import joblib

    return predict_sklearn(joblib.load(path))


def read_onnx(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": np.abs(ROWS)})[-1].squeeze()


def sklearn_case(
    name: str, make: Callable[..., NativeModel], later: Mapping[str, Mapping[str, Any]], **more: Any
) -> Case:
    """A case of an estimator; `later` has the settings that are others."""
    read = {".joblib": read_joblib, ".onnx": read_onnx}
    changed = {error: partial(make, **settings) for error, settings in later.items()}
    settings = {"dtypes": ("float64",), "read": read, **more}
    return Case(f"sklearn-{name}", "sklearn", make, fit_sklearn, predict_sklearn, changed, **settings)


def pipeline(dtype: str = "float64", features: int = 4) -> NativeModel:
    def make() -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(np.abs(np.resize(ROWS, (40, features))))
        return make_pipeline(scaler, "passthrough", LogisticRegression())

    return umbel.sklearn.model(make, features, range(3))


MLP = sklearn("neural_network.MLPClassifier", hidden_layer_sizes=(5,), random_state=3)
LARGE = sklearn("neural_network.MLPRegressor", None, hidden_layer_sizes=(2000,), random_state=3)
SHAPES: dict[str, dict[str, Any]] = {r"'coef_' has shape \[3, 4\]": {"features": 5}, r"shape \[3": {"classes": (0, 1)}}
COUNTS: dict[str, dict[str, Any]] = {
    "'sum' has shape": {"features": 5},
    r"'count' has shape \[3\]": {"classes": range(5)},
}
TREES = ["feature", "impurity", "left_child", "missing_go_to_left", "n_node_samples", "right_child", "sizes"]
SKLEARN = [
    sklearn_case(
        "sgd",
        sklearn("linear_model.SGDClassifier", loss="log_loss"),
        SHAPES,
        buffers=("t_",),
        tolerance=1e-5,
        fast=True,
    ),
    sklearn_case(
        "logistic", sklearn("linear_model.LogisticRegression"), SHAPES, dtypes=("float64", "float32"), tolerance=1e-5
    ),
    sklearn_case("pipeline", pipeline, {r"'coef_' has shape \[3, 4\]": {"features": 5}}, tolerance=1e-5),
    sklearn_case("ridge", sklearn("linear_model.Ridge", None), {"'coef_' has": {"features": 5}}, tolerance=1e-5),
    sklearn_case(
        "mlp",
        MLP,
        {
            r"'coefs_.0' has shape \[4, 5\]": {"hidden_layer_sizes": (6,)},
            "lacks 'coefs_.2'": {"hidden_layer_sizes": (5, 5)},
            "holds 'coefs_.1'": {"hidden_layer_sizes": ()},
        },
        dtypes=("float32", "float64"),
        buffers=("t_",),
        tolerance=1e-5,
        large=partial(LARGE, features=2000),
    ),
    sklearn_case("bayes", sklearn("naive_bayes.GaussianNB"), COUNTS, tolerance=1e-5),
    sklearn_case("counts", sklearn("naive_bayes.MultinomialNB"), COUNTS, tolerance=1e-5),
    sklearn_case(
        "forest",
        sklearn("ensemble.RandomForestClassifier", n_estimators=3),
        {"'forest.values' has shape": {"classes": range(5)}, "of 2 features is not sound": {"features": 2}},
        dtypes=("float64",),
        buffers=tuple(f"forest.{name}" for name in (*TREES, "threshold", "values", "weighted_n_node_samples")),
        averaged=False,
        tolerance=1e-5,
    ),
]

# --- XGBoost and LightGBM


def boosted(adapter: str, binary: str, several: str) -> Callable[..., NativeModel]:
    """What makes an ensemble of three classes, or of two."""

    def made(dtype: str = "", features: Any = 4, classes: int = 3) -> NativeModel:
        more = {"objective": several, "num_class": 3} if classes == 3 else {"objective": binary}
        return getattr(umbel, adapter).model({"max_depth": 3, **more}, features)

    return made


XGBOOST = boosted("xgboost", "binary:logistic", "multi:softprob")
LIGHTGBM = boosted("lightgbm", "binary", "multiclass")


def train_xgboost(booster: Any) -> Any:
    import xgboost

    settings = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "nthread": 1}
    return xgboost.train(settings, xgboost.DMatrix(ROWS, LABELS), 2, xgb_model=booster)


def predict_xgboost(booster: Any) -> Any:
    import xgboost

    return booster.predict(xgboost.DMatrix(ROWS))


def read_xgboost(path: Path) -> Any:
    import xgboost

    return predict_xgboost(xgboost.Booster(model_file=path))


def train_lightgbm(booster: Any) -> Any:
    model = umbel.lightgbm.arrays(booster)
    params = {"objective": "multiclass", "num_class": 3, "min_data_in_leaf": 3}
    sent = umbel.lightgbm.fit(model, (ROWS, LABELS), context(), params, trees=2).arrays
    return umbel.lightgbm.booster(umbel.lightgbm.grown(model, [(sent, 1.0)]))


def read_lightgbm(path: Path) -> Any:
    import lightgbm

    return lightgbm.Booster(model_file=path).predict(ROWS)


def catboost(dtype: str = "", features: Any = 4, classes: int = 3) -> NativeModel:
    return umbel.catboost.model({"loss_function": "MultiClass", "depth": 3}, features, classes)


def train_catboost(made: Any) -> Any:
    model = umbel.catboost.arrays(made)
    params = {"loss_function": "MultiClass", "classes_count": 3, "depth": 3}
    sent = umbel.catboost.fit(model, (ROWS, LABELS), context(), params, trees=2).arrays
    return umbel.catboost.booster(umbel.catboost.grown(model, [(sent, 1.0)]))


def read_catboost(path: Path) -> Any:
    import catboost

    return catboost.CatBoost().load_model(str(path), format=path.suffix[1:]).predict(ROWS)


BOOSTED = [
    Case(
        "catboost",
        "catboost",
        catboost,
        train_catboost,
        lambda made: made.predict(ROWS),
        {"outputs are 3": partial(catboost, classes=4), "features are": partial(catboost, features=list("abcd"))},
        {".cbm": read_catboost, ".json": read_catboost},
        dtypes=("float64", "int64"),
        buffers=("header", *umbel.catboost.COLUMNS),
        tolerance=1e-12,
        in_place=False,
        averaged=False,
    ),
    Case(
        "xgboost",
        "xgboost",
        XGBOOST,
        train_xgboost,
        predict_xgboost,
        {
            "features are '4', those of the booster '5'": partial(XGBOOST, features=5),
            r"features are '4', those of the booster \['a', 'b', 'c', 'd'\]": partial(XGBOOST, features=list("abcd")),
            "outputs are": partial(XGBOOST, classes=2),
        },
        {".ubj": read_xgboost, ".json": read_xgboost},
        dtypes=("uint8",),
        buffers=("booster",),
        in_place=False,
        averaged=False,
        fast=True,
    ),
    Case(
        "lightgbm",
        "lightgbm",
        LIGHTGBM,
        train_lightgbm,
        lambda booster: booster.predict(ROWS),
        {
            "feature_names are": partial(LIGHTGBM, features=list("abcd")),
            "num_tree_per_iteration are '3'": partial(LIGHTGBM, classes=2),
        },
        {".txt": read_lightgbm},
        dtypes=("float64", "int64"),
        buffers=("header", *umbel.lightgbm.COLUMNS),
        in_place=False,
        averaged=False,
    ),
]

# --- lifelines and statsmodels

SURVIVAL = {"a": ROWS[:, 0], "b": ROWS[:, 1], "time": 1 + np.abs(ROWS[:, 2]), "event": LABELS > 0}


def cox(dtype: str = "", columns: Any = ("a", "b")) -> NativeModel:
    return umbel.lifelines.model(columns, "time", "event")


def train_cox(fitter: Any) -> Any:
    import pandas

    return fitter.fit(pandas.DataFrame(SURVIVAL), "time", "event")


def predict_cox(fitter: Any) -> Any:
    import pandas

    return fitter.predict_survival_function(pandas.DataFrame(SURVIVAL), [1.1, 1.5])


def poisson(dtype: str = "", columns: Any = tuple("abcd")) -> NativeModel:
    def family() -> Any:
        from statsmodels.genmod.families import Poisson

        return Poisson()

    return umbel.statsmodels.model(columns, family)


def train_poisson(results: Any) -> Any:
    sums = dict(umbel.statsmodels.fit(results, ROWS, LABELS, context()).arrays)
    step = np.linalg.solve(sums["information"], sums.pop("gradient"))
    return umbel.statsmodels.load_(results, {**sums, "coefficients": np.asarray(results.params) + step})


def predict_poisson(results: Any) -> Any:
    return results.predict(np.column_stack([np.ones(len(ROWS)), ROWS]))


FITS = [
    Case(
        "lifelines",
        "lifelines",
        cox,
        train_cox,
        predict_cox,
        {r"'coefficients' has shape \[2\]": partial(cox, columns=list("abc"))},
        {".joblib": lambda path: predict_cox(import_module("joblib").load(path))},
        dtypes=("float64",),
        averaged=False,
        tolerance=1e-9,
    ),
    Case(
        "statsmodels",
        "statsmodels",
        poisson,
        train_poisson,
        predict_poisson,
        {r"'coefficients' has shape \[5\]": partial(poisson, columns=list("abc"))},
        {".joblib": lambda path: predict_poisson(import_module("joblib").load(path))},
        dtypes=("float64",),
        averaged=False,
    ),
]

CASES = [*SKLEARN, *BOOSTED, *FITS]
