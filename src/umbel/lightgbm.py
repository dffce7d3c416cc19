"""LightGBM's trees as arrays and back, and training on top of an ensemble that grows by the trees of others.

Used as ``umbel.lightgbm``; boosters need LightGBM: ``pip install "umbel[lightgbm]"``. A model is the columns of all
trees, as LightGBM's own text has them, one tree after the other; what a client sends are those of new trees alone,
which `umbel.strategies.LightGBMBagging` checks and adds without LightGBM. Trees that split by categories, and leaves
with linear models, are not supported.
"""

from __future__ import annotations

import itertools
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
    import lightgbm

TREE: Mapping[str, Any] = {"num_leaves": np.int64, "shrinkage": np.float64}
NODE: Mapping[str, Any] = {
    "split_feature": np.int64, "split_gain": np.float64, "threshold": np.float64, "decision_type": np.int64,
    "left_child": np.int64, "right_child": np.int64, "internal_value": np.float64, "internal_weight": np.float64,
    "internal_count": np.int64,
}  # fmt: skip
LEAF: Mapping[str, Any] = {"leaf_value": np.float64, "leaf_weight": np.float64, "leaf_count": np.int64}
COLUMNS = {**TREE, **NODE, **LEAF}
ENDING = "end of trees\n\nfeature_importances:\n\nparameters:\n\nend of parameters\n\npandas_categorical:null\n"
MOST = 1e280
"""Beyond every number of data."""
BY_SIDE = ("regression_l1", "quantile", "huber")
"""Objectives that only see on which side of a prediction labels are, and how far: where all are on one, no split is
better than none, and LightGBM takes their median, if there is no score to begin with. So they learn what is left.
"""
SPLITS = (0, 2, 4, 6, 8, 10)
"""The kinds of a split by a number: where missing values go, and what counts as missing."""


def model(params: Mapping[str, Any], features: int | Sequence[str]) -> NativeModel:
    """The `model` of an `App`: an ensemble that begins without trees, for an objective of `params`, and so many
    features, or these. Its files are ``.txt``, LightGBM's own.
    """

    def write(made: lightgbm.Booster, path: Path) -> None:
        made.save_model(path)

    return NativeModel(partial(_empty, dict(params), features), arrays, load_, {".txt": write})


def arrays(booster: lightgbm.Booster) -> Arrays:
    """A booster as a model. Raises `AppError` for trees that are not supported."""
    header, _, rest = booster.model_to_string().partition("tree_sizes=")
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for section in rest.partition("end of trees")[0].split("Tree=")[1:]:
        tree = dict(line.split("=", 1) for line in section.splitlines()[1:] if "=" in line)
        if tree["num_cat"] != "0" or tree["is_linear"] != "0":
            raise AppError("trees that split by categories, or have linear leaves, are not supported")
        single = tree["num_leaves"] == "1"  # it says no more of its leaf than the value
        for name in COLUMNS:
            columns[name] += (tree[name].split() or ["0"]) if name not in NODE or not single else []
    # Text first becomes floats: all its whole numbers are far below 2**53.
    # A split that only parts missing values from others has an infinite threshold, which does not travel.
    every = np.nan_to_num(np.array([*itertools.chain(*columns.values())], np.float64)).clip(-MOST, MOST)
    ends = itertools.accumulate(map(len, columns.values()))
    parts = zip(COLUMNS.items(), ends, strict=True)
    found = {name: every[end - len(columns[name]) : end].astype(kind) for (name, kind), end in parts}
    found["header"] = np.frombuffer(header.encode(), np.uint8)
    return Arrays(found, dict.fromkeys(found, "buffer"))


def booster(model: Mapping[str, Array]) -> lightgbm.Booster:
    """The model as an ordinary booster."""
    made: lightgbm.Booster = _lightgbm().Booster(model_str=_text(model))
    return made


def load_(made: lightgbm.Booster, model: Mapping[str, Array]) -> lightgbm.Booster:
    """The model as a booster like one that was made. Raises `AppError` where its features or outputs are others, and
    where its trees are not sound.
    """
    own, given = _facts(arrays(made)), _facts(model)
    told = {name: own.get(name) for name in ("feature_names", "num_tree_per_iteration", "objective")}
    check_same_trees(told, given, lambda: check_trees({n: model[n] for n in COLUMNS}, *shape(model)))
    return booster(model)


def fit(
    model: Mapping[str, Array], data: tuple[Any, Any], ctx: Context, params: Mapping[str, Any], *, trees: int = 1,
    sample_weight: Any = None,
) -> Update:  # fmt: skip
    """Boost the ensemble on a client's ``(features, labels)`` by `trees` rounds, and return the new trees.

    Of a frame the model's columns are taken, in its order. `params` are LightGBM's own. The update's weight is the
    number of rows, or the sum of `sample_weight`; its metrics are those of ``metric`` on the client's own rows. One
    thread and a seed of the task's key make it the same bits each time.
    """
    lgb = _lightgbm()
    x, y = data
    rows, facts = len(y), _facts(model)
    if facts["feature_names"] != _numbered(shape(model)[0]) and hasattr(x, "columns"):
        named = {str(name).replace(" ", "_"): name for name in x.columns}  # as LightGBM has names
        x = columns_of(x, (named.get(name, name) for name in facts["feature_names"].split(" ")))
    if not rows:
        return Update({name: np.zeros(0, kind) for name, kind in COLUMNS.items()}, weight=0.0)
    settings = {"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1}
    settings |= {"seed": ctx.key.derive("lightgbm").integer(31), **params, "boost_from_average": False}
    before = booster(model).predict(x, raw_score=True, num_threads=1)
    if facts.get("objective", "").split(" ")[0] in BY_SIDE:
        y, before = np.asarray(y, np.float64) - before, None
    own = lgb.Dataset(x, y, weight=sample_weight, init_score=before, params=settings, free_raw_data=False)
    told: dict[str, dict[str, list[float]]] = {}
    after = lgb.train(
        settings, own, trees, valid_sets=[own], valid_names=["own"], callbacks=[lgb.record_evaluation(told)]
    )
    grown = arrays(after)
    return Update(
        {name: grown[name] for name in COLUMNS},
        weight=rows if sample_weight is None else float(np.sum(sample_weight)),
        metrics={name: values[-1] for name, values in told.get("own", {}).items()},
    )


def grown(model: Mapping[str, Array], parts: Iterable[tuple[Mapping[str, Array], float]]) -> Arrays:
    """The ensemble with the new trees of clients; what a client's trees predict counts by its share."""
    whole = {name: [model[name]] for name in COLUMNS}
    for sent, share in parts:
        for name in COLUMNS:
            scaled = name in ("leaf_value", "internal_value")
            whole[name].append(sent[name] * share if scaled else sent[name])
    found = {name: np.concatenate(pieces) for name, pieces in whole.items()}
    found["header"] = model["header"]
    return Arrays(found, dict.fromkeys(found, "buffer"))


def check_trees(sent: Mapping[str, Array], features: int, outputs: int) -> None:
    """Raise `UpdateRejected` unless these are trees of an ensemble of so many features and outputs, sound in all that
    LightGBM would follow without a look.
    """
    if why := _unsound(sent, features, outputs):
        raise UpdateRejected(f"the trees are not sound: {why}")


def shape(model: Mapping[str, Array]) -> tuple[int, int]:
    """How many features an ensemble is of, and how many outputs it has."""
    facts = _facts(model)
    return int(facts["max_feature_idx"]) + 1, int(facts["num_tree_per_iteration"])


def _unsound(sent: Mapping[str, Array], features: int, outputs: int) -> str | None:
    if sent.keys() != COLUMNS.keys() or any(sent[n].dtype != kind or sent[n].ndim != 1 for n, kind in COLUMNS.items()):
        return f"they have the columns {', '.join(COLUMNS)}"
    leaves = sent["num_leaves"]
    if not ((leaves > 0) & (leaves < 2**20)).all() or len(leaves) % outputs or len(sent["shrinkage"]) != len(leaves):
        return f"each has a leaf, and there is one for each of {outputs} outputs"
    nodes = leaves - 1
    if any(len(sent[n]) != nodes.sum() for n in NODE) or any(len(sent[n]) != leaves.sum() for n in LEAF):
        return "each has a value for every node and leaf"
    if not all(np.isfinite(sent[n]).all() for n in COLUMNS):
        return "their numbers are finite"
    split = sent["split_feature"]
    if ((split < 0) | (split >= features)).any() or not np.isin(sent["decision_type"], SPLITS).all():
        return f"they split by numbers, of {features} features"
    for start, size in zip((np.cumsum(nodes) - nodes).tolist(), nodes.tolist(), strict=True):
        children = np.stack([sent[side][start : start + size] for side in ("left_child", "right_child")])
        wanted = np.concatenate([np.arange(-size - 1, 0), np.arange(1, size)]) if size else np.zeros(0)
        if not np.array_equal(np.sort(children, axis=None), wanted):
            return "a node or leaf has one parent, but for the root"
        if ((children >= 0) & (children <= np.arange(size))).any():
            return "a node stands behind its parent"
    return None


def _text(model: Mapping[str, Array]) -> str:
    """The model as LightGBM reads it."""
    header = model["header"].tobytes().decode()
    nodes = np.cumsum(np.concatenate([[0], model["num_leaves"] - 1])).tolist()
    leaves = np.cumsum(np.concatenate([[0], model["num_leaves"]])).tolist()
    texts = {name: [*map(repr, model[name].tolist())] for name in COLUMNS}
    trees = []
    for number, (count, shrinkage) in enumerate(zip(texts["num_leaves"], texts["shrinkage"], strict=True)):
        lines = [f"Tree={number}", f"num_leaves={count}", "num_cat=0"]
        for columns, at in ((NODE, nodes), (LEAF, leaves)):
            start, end = at[number : number + 2]
            lines += [f"{name}={' '.join(texts[name][start:end])}" for name in columns]
        trees.append("\n".join([*lines, "is_linear=0", f"shrinkage={shrinkage}", "\n\n"]))
    sizes = " ".join(str(len(tree)) for tree in trees)
    return f"{header}tree_sizes={sizes}\n\n{''.join(trees)}{ENDING}"


def _facts(model: Mapping[str, Array]) -> dict[str, str]:
    lines: list[str] = model["header"].tobytes().decode().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _empty(params: dict[str, Any], features: int | Sequence[str]) -> lightgbm.Booster:
    lgb = _lightgbm()
    count = features if isinstance(features, int) else len(features)
    names = "auto" if isinstance(features, int) else list(features)
    classes = int(params.get("num_class", 1))
    rows, labels = np.zeros((max(classes, 2), count)), np.arange(classes) if classes > 1 else np.ones(2)
    quiet = {"verbosity": -1, "num_threads": 1, **params}
    made: lightgbm.Booster = lgb.Booster(quiet, lgb.Dataset(rows, labels, feature_name=names, params=quiet))
    return made


def _numbered(features: int) -> str:
    """The names that LightGBM gives features without a name."""
    return " ".join(f"Column_{number}" for number in range(features))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ModuleNotFoundError as error:
        raise missing_package(error, "lightgbm", "lightgbm") from error
    return lightgbm
