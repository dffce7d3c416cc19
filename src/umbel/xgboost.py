"""XGBoost's trees as arrays and back, training on top of an ensemble, and ensembles that grow by the trees of others.

Used as ``umbel.xgboost``; boosters need XGBoost: ``pip install "umbel[xgboost]"``. A model is an ensemble in XGBoost's
own JSON; what a client sends are new trees alone, which a strategy checks and adds without XGBoost. Trees that split by
categories, vector leaves, and boosters other than gbtree are not supported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.arrays import Array, Arrays
from .core.client import Context
from .core.native import NativeModel, check_same_trees, columns_of, missing_package
from .core.update import Update
from .errors import AppError, UpdateRejected

if TYPE_CHECKING:
    import xgboost

PER_NODE = (
    "base_weights", "default_left", "left_children", "loss_changes", "parents", "right_children", "split_conditions",
    "split_indices", "split_type", "sum_hessian",
)  # fmt: skip
REAL = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")
NOBODY = 2**31 - 1
"""The parent of a root, and the feature of a node that was taken out again."""
LARGEST = float(np.finfo(np.float32).max)
CATEGORIES = ("categories", "categories_nodes", "categories_segments", "categories_sizes")


def model(params: Mapping[str, Any], features: int | Sequence[str]) -> NativeModel:
    """The `model` of an `App`: what `start` begins with, and how it is written, as ``.ubj`` or ``.json``."""

    def make() -> xgboost.Booster:
        return booster(start(params, features))

    def write(made: xgboost.Booster, path: Path) -> None:
        made.save_model(path)

    return NativeModel(make, arrays, load_, {".ubj": write, ".json": write})


def start(params: Mapping[str, Any], features: int | Sequence[str]) -> Arrays:
    """An ensemble without trees, to begin with: for an objective of `params`, and so many features, or these.

    ``base_score`` is 0.5 unless `params` says otherwise: XGBoost would else estimate it, on each client anew.
    """
    xgb = _xgboost()
    names = None if isinstance(features, int) else list(features)
    rows = np.zeros((1, features if isinstance(features, int) else len(features)), np.float32)
    nothing = xgb.DMatrix(rows, np.zeros(1, np.float32), feature_names=names)
    return arrays(xgb.train({"base_score": 0.5, **params}, nothing, 0))


def arrays(booster: xgboost.Booster) -> Arrays:
    """A booster as a model. Raises `AppError` for one of another kind than gbtree."""
    raw = bytes(booster.save_raw("json"))
    ensemble = json.loads(raw)
    if (kind := ensemble["learner"]["gradient_booster"]["name"]) != "gbtree":
        raise AppError(f"a booster of kind {kind} does not grow by the trees of others; use gbtree")
    return Arrays({"booster": np.frombuffer(raw, np.uint8)})


def booster(model: Mapping[str, Array]) -> xgboost.Booster:
    """The model as an ordinary booster."""
    made: xgboost.Booster = _xgboost().Booster()
    made.load_model(bytearray(model["booster"].tobytes()))
    return made


def load_(made: xgboost.Booster, model: Mapping[str, Array]) -> xgboost.Booster:
    """The model as a booster like one that was made. Raises `AppError` where features or outputs are others."""
    found = booster(model)
    check_same_trees(_facts(made), _facts(found))
    return found


def fit(
    model: Mapping[str, Array],
    data: Any,
    ctx: Context,
    params: Mapping[str, Any],
    *,
    trees: int = 1,
    weight: Any = None,
) -> Update:
    """Boost the ensemble on a client's data by `trees` rounds, and return the new trees.

    `data` is an ``xgboost.DMatrix`` or ``(features, labels)``, of a frame the model's columns; `params` are XGBoost's
    own. The update's weight is the number of rows, its metrics those of ``eval_metric`` on the client's own data. One
    thread and a seed of the task's key make it the same bits each time.
    """
    xgb, before = _xgboost(), booster(model)
    if not isinstance(data, xgb.DMatrix):
        x, y = data
        x = columns_of(x, before.feature_names)
        data = xgb.DMatrix(x, y, feature_names=None if hasattr(x, "columns") else before.feature_names)
    matrix = data
    if not matrix.num_row():
        return Update({"trees": _packed([], [])}, weight=0.0)
    told: dict[str, dict[str, list[float]]] = {}
    settings = {"nthread": 1, "seed": ctx.key.derive("xgboost").integer(31), **params}
    after = xgb.train(
        settings, matrix, trees, xgb_model=before, evals=[(matrix, "own")], evals_result=told, verbose_eval=False
    )
    grown = _trees(json.loads(bytes(after[before.num_boosted_rounds() :].save_raw("json"))))
    if any(tree[name] for tree in grown["trees"] for name in CATEGORIES):
        raise AppError("trees that split by categories are not supported", hint="Make columns of 0 and 1.")
    return Update(
        {"trees": _packed(grown["trees"], grown["tree_info"])},
        weight=matrix.num_row() if weight is None else weight,
        metrics={name: values[-1] for name, values in told["own"].items()},
    )


def grown(model: Mapping[str, Array], parts: Iterable[tuple[Mapping[str, Array], float]]) -> Arrays:
    """The ensemble with the new trees of clients, one boosting round more; what a client's trees predict counts by its
    share.
    """
    ensemble = _ensemble(model)
    inside = _trees(ensemble)
    for arrays, share in parts:
        sent = json.loads(arrays["trees"].tobytes())
        for given, output in zip(sent["trees"], sent["tree_info"], strict=True):
            tree = {name: given[name] for name in (*PER_NODE, *CATEGORIES, "tree_param")}
            nodes = zip(tree["split_conditions"], tree["left_children"], strict=True)
            tree["split_conditions"] = [value * share if left == -1 else value for value, left in nodes]
            tree["base_weights"] = [value * share for value in tree["base_weights"]]
            tree["id"] = len(inside["trees"])
            inside["trees"].append(tree)
            inside["tree_info"].append(output)
    inside["iteration_indptr"].append(len(inside["trees"]))
    inside["gbtree_model_param"]["num_trees"] = str(len(inside["trees"]))
    return Arrays({"booster": np.frombuffer(json.dumps(ensemble).encode(), np.uint8)})


def check_trees(sent: Mapping[str, Array], features: int, outputs: int) -> None:
    """Raise `UpdateRejected` unless these are trees of an ensemble of so many features and outputs, sound in all that
    XGBoost would follow without a look.
    """
    try:
        packed = sent.get("trees")
        if packed is None or len(sent) != 1 or packed.dtype != np.uint8 or packed.ndim != 1:
            raise ValueError("they are one array of bytes named 'trees'")
        update = json.loads(packed.tobytes())
        trees, info = update["trees"], update["tree_info"]
        if len(trees) != len(info) or not all(type(output) is int and 0 <= output < outputs for output in info):
            raise ValueError(f"each tree is of one of {outputs} outputs")
        for tree in trees:
            _check_tree(tree, features)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UpdateRejected(f"the trees are not sound: {error}") from None


def shape(model: Mapping[str, Array]) -> tuple[int, int]:
    """How many features an ensemble is of, and how many outputs it has."""
    found = _ensemble(model)["learner"]["learner_model_param"]
    return int(found["num_feature"]), max(int(found["num_class"]), int(found["num_target"]), 1)


def _check_tree(tree: Any, features: int) -> None:
    param, left, right = tree["tree_param"], tree["left_children"], tree["right_children"]
    size = int(param["num_nodes"])
    if any(param[name] != str(int(param[name])) for name in param):
        raise ValueError("a tree's sizes are numbers")
    if int(param["size_leaf_vector"]) > 1 or int(param["num_feature"]) != features:
        raise ValueError(f"a tree has one value a leaf, and {features} features")
    if any(tree[name] != [] for name in CATEGORIES) or any(tree["split_type"]):
        raise ValueError("a tree splits by numbers")
    if size < 1 or any(type(tree[name]) is not list or len(tree[name]) != size for name in PER_NODE):
        raise ValueError("a tree has a value for each node")
    for name in PER_NODE:
        kind, most = (float, LARGEST) if name in REAL else (int, NOBODY)
        if not all(type(value) is kind and abs(value) <= most for value in tree[name]):  # NaN is not
            raise ValueError(f"a tree's {name} are numbers that XGBoost holds")
    gone = sum(feature == NOBODY for feature in tree["split_indices"])
    if param["num_deleted"] != str(gone) or tree["parents"][0] != NOBODY or not {*tree["default_left"]} <= {0, 1}:
        raise ValueError("a tree says how many of its nodes are gone, and has a root")
    seen, waiting = {0}, [0]
    while waiting:
        node = waiting.pop()
        if left[node] == -1:
            continue
        if not 0 <= tree["split_indices"][node] < features:
            raise ValueError("a split is by a feature")
        for child in (left[node], right[node]):
            if not 0 < child < size or child in seen or tree["parents"][child] != node:
                raise ValueError("a node has one parent, but for the root")
            seen.add(child)
            waiting.append(child)


def _facts(booster: xgboost.Booster) -> dict[str, Any]:
    learner = json.loads(booster.save_config())["learner"]
    sizes = learner["learner_model_param"]
    outputs = sizes["num_class"], sizes["num_target"]
    objective = learner["objective"]["name"]
    return {"features": booster.feature_names or sizes["num_feature"], "outputs": outputs, "objective": objective}


def _ensemble(model: Mapping[str, Array]) -> Any:
    return json.loads(model["booster"].tobytes())


def _trees(ensemble: Any) -> Any:
    return ensemble["learner"]["gradient_booster"]["model"]


def _packed(trees: list[Any], info: list[int]) -> Array:
    return np.frombuffer(json.dumps({"trees": trees, "tree_info": info}).encode(), np.uint8)


def _xgboost() -> Any:
    try:
        import xgboost
    except ModuleNotFoundError as error:
        raise missing_package(error, "xgboost", "xgboost") from error
    return xgboost
