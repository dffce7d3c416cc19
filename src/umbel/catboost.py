"""CatBoost's symmetric trees as arrays and back, and training on top of an ensemble that grows by the trees of others.

Used as ``umbel.catboost``; models need CatBoost: ``pip install "umbel[catboost]"``. A client sends new trees alone,
which `umbel.strategies.CatBoostBagging` checks and adds without CatBoost. Categorical and text columns, other growing
policies than symmetric trees, and missing values that count as the largest are not supported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.arrays import Array, Arrays
from .core.client import Context
from .core.native import NativeModel, check_same_trees, columns_of, missing_package
from .core.update import Update
from .errors import AppError, UpdateRejected

if TYPE_CHECKING:
    import catboost

COLUMNS: Mapping[str, Any] = {
    "depth": np.int64, "feature": np.int64, "border": np.float64, "leaf_value": np.float64, "leaf_weight": np.float64,
}  # fmt: skip
DEEPEST = 16
CLASSIFIERS = ("Logloss", "MultiClass", "MultiClassOneVsAll", "Focal")
ROUNDS = ("iterations", "n_estimators", "num_boost_round", "num_trees")


def model(params: Mapping[str, Any], features: int | Sequence[str], classes: int | Sequence[Any] = 2) -> NativeModel:
    """The `model` of an `App`: an ensemble that begins with a tree of one leaf, 0, for the ``loss_function`` of
    `params`, so many features, or these, and, where that tells classes apart, these classes, or 0, 1 and so on.

    Its files are ``.cbm`` and ``.json``, CatBoost's own.
    """

    def write(made: catboost.CatBoost, path: Path) -> None:
        made.save_model(str(path), format=path.suffix[1:])

    named = list(range(classes)) if isinstance(classes, int) else np.unique(np.asarray(classes)).tolist()
    made = partial(_empty, dict(params), features, named)
    return NativeModel(made, arrays, load_, {".cbm": write, ".json": write})


def arrays(made: catboost.CatBoost) -> Arrays:
    """A fitted model as arrays. Raises `AppError` for trees that are not supported."""
    with tempfile.TemporaryDirectory() as folder:
        made.save_model(str(file := Path(folder, "model.json")), format="json")
        whole = json.loads(file.read_text())
    info, (scale, bias) = whole["features_info"], whole["scale_and_bias"]
    columns = info.get("float_features", [])
    odd = info.keys() - {"float_features"} or any(c["nan_value_treatment"] == "AsTrue" for c in columns)
    if odd or scale != 1 or "oblivious_trees" not in whole:
        raise AppError("trees that are not symmetric, or split by other columns than numbers, are not supported")
    trees = whole["oblivious_trees"]
    if any(bias) or not trees:
        trees = [{"splits": None, "leaf_values": bias, "leaf_weights": [0]}, *trees]
    splits = [split for tree in trees for split in tree["splits"] or ()]
    facts = {
        "features": [column["feature_id"] for column in columns],
        "outputs": len(bias),
        "params": whole["model_info"]["params"],
        "classes": whole["model_info"].get("class_params"),
    }
    found = {
        "depth": [len(tree["splits"] or ()) for tree in trees],
        "feature": [split["float_feature_index"] for split in splits],
        "border": [split["border"] for split in splits],
        "leaf_value": [value for tree in trees for value in tree["leaf_values"]],
        "leaf_weight": [weight for tree in trees for weight in tree["leaf_weights"]],
    }
    made_of = {name: np.array(found[name], kind) for name, kind in COLUMNS.items()}
    made_of["header"] = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    return Arrays(made_of, dict.fromkeys(made_of, "buffer"))


def booster(model: Mapping[str, Array]) -> catboost.CatBoost:
    """The model as an ordinary one of CatBoost."""
    made: catboost.CatBoost = _catboost().CatBoost()
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "model.json")).write_text(json.dumps(_whole(model)))
        made.load_model(str(file), format="json")
    return made


def load_(made: catboost.CatBoost, model: Mapping[str, Array]) -> catboost.CatBoost:
    """The model as one like one that was made. Raises `AppError` where its features or outputs are others, and where
    its trees are not sound.
    """
    own, given = _facts(arrays(made)), _facts(model)
    told = {name: own[name] for name in ("features", "outputs")}
    check_same_trees(told, given, lambda: check_trees({n: model[n] for n in COLUMNS}, *shape(model)))
    return booster(model)


def fit(
    model: Mapping[str, Array], data: tuple[Any, Any], ctx: Context, params: Mapping[str, Any], *, trees: int = 1,
    sample_weight: Any = None,
) -> Update:  # fmt: skip
    """Boost the ensemble on a client's ``(features, labels)`` by `trees` rounds, and return the new trees.

    Of a frame the model's columns are taken, in its order; a client need not have seen all classes. `params` are
    CatBoost's own. The update's weight is the number of rows, or the sum of `sample_weight`; its metrics
    are those of ``loss_function`` on the client's own rows. One thread and a seed of the task's key make it the same
    bits each time.
    """
    catboost = _catboost()
    x, y = data
    facts = _facts(model)
    x = columns_of(x, facts["features"] if all(facts["features"]) else None)
    x = x.tocsr() if hasattr(x, "tocsr") else np.asarray(x)
    if x.ndim != 2 or x.shape[1] != len(facts["features"]):
        raise AppError(f"the rows have the shape {list(x.shape)}, and the model {len(facts['features'])} features")
    nothing = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
    if not len(y):
        return Update(nothing, weight=0.0)
    weight = len(y) if sample_weight is None else float(np.sum(sample_weight))
    if classes := (facts.get("classes") or {}).get("class_names"):
        x, y, sample_weight = _with_all_classes(x, np.asarray(y), sample_weight, classes)
    before = booster(model).predict(x, prediction_type="RawFormulaVal")
    own = catboost.Pool(x, y, weight=sample_weight, baseline=before)
    try:
        after = catboost.CatBoost(_settings(params, ctx.key.derive("catboost").integer(31), trees)).fit(own)
    except catboost.CatBoostError as error:
        if "features are either constant or ignored" not in str(error):
            raise
        return Update(nothing, weight=weight)  # there is nothing to split by: a tree that says nothing
    grown = arrays(after)
    if (outputs := _facts(grown)["outputs"]) != facts["outputs"]:
        raise AppError(
            f"a tree has {outputs} values a leaf, the model {facts['outputs']}: such losses are not supported"
        )
    told = after.evals_result_["learn"].items()
    return Update({n: grown[n] for n in COLUMNS}, weight=weight, metrics={name: values[-1] for name, values in told})


def grown(model: Mapping[str, Array], parts: Iterable[tuple[Mapping[str, Array], float]]) -> Arrays:
    """The ensemble with the new trees of clients; what a client's trees predict counts by its share."""
    whole = {name: [model[name]] for name in COLUMNS}
    for sent, share in parts:
        for name in COLUMNS:
            whole[name].append(sent[name] * share if name == "leaf_value" else sent[name])
    found = {name: np.concatenate(pieces) for name, pieces in whole.items()}
    found["header"] = model["header"]
    return Arrays(found, dict.fromkeys(found, "buffer"))


def check_trees(sent: Mapping[str, Array], features: int, outputs: int) -> None:
    """Raise `UpdateRejected` unless these are symmetric trees of an ensemble of so many features and outputs."""
    if sent.keys() != COLUMNS.keys() or any(sent[n].dtype != kind or sent[n].ndim != 1 for n, kind in COLUMNS.items()):
        raise UpdateRejected(f"the trees are not sound: they have the columns {', '.join(COLUMNS)}")
    depth, feature = sent["depth"], sent["feature"]
    sound = bool(((depth >= 0) & (depth <= DEEPEST)).all() and ((feature >= 0) & (feature < features)).all())
    leaves = int((2**depth).sum()) if sound else 0
    sizes = {"feature": depth.sum(), "border": depth.sum(), "leaf_value": leaves * outputs, "leaf_weight": leaves}
    if not sound or any(len(sent[name]) != size for name, size in sizes.items()):
        raise UpdateRejected(f"the trees are not sound: their sizes, or features beyond {features}")
    if not all(np.isfinite(sent[name]).all() for name in COLUMNS):
        raise UpdateRejected("the trees are not sound: their numbers are finite")


def shape(model: Mapping[str, Array]) -> tuple[int, int]:
    """How many features an ensemble is of, and how many outputs it has."""
    facts = _facts(model)
    return len(facts["features"]), facts["outputs"]


def _whole(model: Mapping[str, Array]) -> dict[str, Any]:
    """The model as CatBoost reads it: a split is the place of its border among those of all features."""
    facts, feature, border = _facts(model), model["feature"], model["border"]
    borders = [np.unique(border[feature == number]) for number in range(len(facts["features"]))]
    first = np.cumsum([0, *map(len, borders)])
    splits = [
        {"border": value, "float_feature_index": f, "split_index": int(first[f] + np.searchsorted(borders[f], value)),
         "split_type": "FloatFeature"}
        for f, value in zip(feature.tolist(), border.tolist(), strict=True)
    ]  # fmt: skip
    trees, split, leaf = [], 0, 0
    for depth in model["depth"].tolist():
        values = model["leaf_value"][leaf * facts["outputs"] : (leaf + 2**depth) * facts["outputs"]].tolist()
        weights = model["leaf_weight"][leaf : leaf + 2**depth].tolist()
        trees.append({"leaf_values": values, "leaf_weights": weights, "splits": splits[split : split + depth]})
        split, leaf = split + depth, leaf + 2**depth
    columns = [
        {"borders": known.tolist(), "feature_id": facts["features"][number], "feature_index": number,
         "flat_feature_index": number, "has_nans": True, "nan_value_treatment": "AsFalse"}
        for number, known in enumerate(borders)
    ]  # fmt: skip
    return {
        "features_info": {"float_features": columns},
        "model_info": {
            "params": facts["params"],
            **({"class_params": known} if (known := facts.get("classes")) else {}),
        },
        "oblivious_trees": trees,
        "scale_and_bias": [1, [0] * facts["outputs"]],
    }


def _facts(model: Mapping[str, Array]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model["header"].tobytes())
    return found


def _with_all_classes(x: Any, y: Any, weights: Any, classes: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Rows, labels and weights, with a row of weight 0 for each class that has none."""
    if (odd := np.setdiff1d(y, classes)).size:
        raise AppError(
            f"the labels {odd[:4].tolist()} are not among the model's classes {classes[:8]}",
            hint="Name all of them: umbel.catboost.model(params, features, classes).",
        )
    if not (missing := np.setdiff1d(classes, y)).size:
        return x, y, weights
    x = x.toarray() if hasattr(x, "toarray") else x
    weights = np.concatenate([np.ones(len(y)) if weights is None else weights, np.zeros(len(missing))])
    return np.concatenate([x, x[np.zeros(len(missing), int)]]), np.concatenate([y, missing]), weights


def _settings(params: Mapping[str, Any], seed: int, trees: int) -> dict[str, Any]:
    """What to train by: `params`, whatever their other names are, and what makes a small client's training go."""
    own: dict[str, Any] = {
        "thread_count": 1,
        "allow_writing_files": False,
        "boost_from_average": False,
        "allow_const_label": True,
    }
    if not params.keys() & {"random_seed", "random_state"}:
        own["random_seed"] = seed
    if not params.keys() & {"logging_level", "verbose", "verbose_eval", "silent"}:
        own["logging_level"] = "Silent"
    given = {name: value for name, value in params.items() if name not in ROUNDS}
    return {**own, **given, "iterations": trees}


def _empty(params: dict[str, Any], features: int | Sequence[str], classes: list[Any]) -> catboost.CatBoost:
    catboost = _catboost()
    names = None if isinstance(features, int) else list(features)
    count = features if isinstance(features, int) else len(features)
    rows = np.random.default_rng(0).normal(size=(4 * len(classes), count))
    told = str(params.get("loss_function")).partition(":")[0] in CLASSIFIERS
    labels = np.arange(len(rows)) % len(classes)
    pool = catboost.Pool(rows, np.array(classes)[labels] if told else labels, feature_names=names)
    found = dict(arrays(catboost.CatBoost(_settings(params, 0, 1)).fit(pool)))
    nothing = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
    outputs = _facts(found)["outputs"]
    zero = {"depth": np.zeros(1, np.int64), "leaf_value": np.zeros(outputs), "leaf_weight": np.zeros(1)}
    return booster({**nothing, **zero, "header": found["header"]})


def _catboost() -> Any:
    try:
        import catboost
    except ModuleNotFoundError as error:
        raise missing_package(error, "catboost", "catboost") from error
    return catboost
