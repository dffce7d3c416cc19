"""scikit-learn's estimators as arrays and back: what they have learned, counts of naive Bayes, trees of forests.

Used as ``umbel.sklearn``; needs scikit-learn: ``pip install "umbel[sklearn]"``. Nothing is pickled: what travels are
arrays of fitted attributes (``coef_``, ``intercepts_.0``), and estimators that are made of other things, such as rows
of their data (support vectors, neighbours), are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .core.arrays import Array, Arrays, Role
from .core.client import Context
from .core.native import NativeModel, check_same_form, columns_of, missing_package
from .core.update import Update
from .errors import AppError

LEARNED = ("coef_", "coefs_", "intercept_", "intercepts_", "offset_", "t_")
"""The fitted attributes of linear models and neural networks that are learned; others follow, or tell of fitting."""
SCALARS = ("intercept_", "t_")
TREES = "forest."


def model(
    make: Callable[[], Any],
    features: int | Sequence[str],
    classes: Sequence[Any] | Array | None = None,
    *,
    outputs: int = 1,
    dtype: Any = np.float64,
) -> NativeModel:
    """The `model` of an `App`: what `make` makes, of so many features, or these, and, for a classifier, these classes.

    A client need not have seen all classes. Linear models begin with zeros, neural networks with their random weights,
    naive Bayes and scalers with counts of nothing, forests without trees (`OneShot` puts them together); other
    estimators as fitted to zeros. Of a pipeline the last step is trained, and the others, such as a scaler of an
    earlier run, are to be fitted. Of frames `fit` takes the columns that `features` names, in that order, whatever
    theirs is. ``.joblib`` and ``.onnx`` (by skl2onnx) are its files; what `OneShot` ends with is an `ensemble`.
    """
    named = None if classes is None else np.unique(np.asarray(classes))
    made = partial(_prepared, make, features, named, outputs, np.dtype(dtype))
    kept: list[Any] = []

    def blank() -> Any:
        if not kept:
            kept.append(made())
        return deepcopy(kept[0])

    def load(estimator: Any, model: Mapping[str, Array]) -> Any:
        return ensemble(native, model) if "weights" in model else load_(estimator, model)

    native = NativeModel(made, arrays, load, {".joblib": _to_joblib, ".onnx": _to_onnx}, blank)
    return native


def arrays(estimator: Any) -> Arrays:
    """What a fitted estimator has learned, copied: parameters, but for the count of steps (``t_``), a buffer; of a
    pipeline its last step.

    Of naive Bayes and of `StandardScaler` sums over rows, which add up to those of all rows in one place (of a column
    whose mean is 10**6 times its deviation squares keep but a few digits: subtract something first); of forests and
    decision trees the nodes of all trees, one after the other. Raises `AppError` for what cannot travel.
    """
    found = {name: np.array(array) for name, array in _learned(_last(estimator)).items()}
    buffers = {name for name in found if name == "t_" or name.startswith(TREES)}
    roles: dict[str, Role] = {name: "buffer" if name in buffers else "parameter" for name in found}
    return Arrays.trusted(found, roles)


def load_(estimator: Any, model: Mapping[str, Array]) -> Any:
    """Put a model into a fitted estimator, in place where it has arrays of its own, and return it.

    Raises `AppError`, naming the array, where names or shapes are others, and leaves the estimator as it was.
    """
    if (last := _last(estimator)) is not estimator:
        load_(last, model)
        return estimator
    kind = type(estimator).__name__
    if _is_forest(estimator):
        return _grow(estimator, model)
    own = _learned(estimator)
    check_same_form(own, model, kind)
    if _of_sums(estimator):
        _set_sums(estimator, model)
        return estimator
    for name, array in own.items():
        attribute, _, place = name.partition(".")
        held = getattr(estimator, attribute)
        if place:
            held = held[int(place)]
        if isinstance(held, np.ndarray) and held.flags.writeable:
            held[...] = model[name]
        elif attribute in SCALARS and array.ndim == 0:
            setattr(estimator, attribute, type(held)(model[name]))
        else:
            setattr(estimator, attribute, np.array(model[name], array.dtype))
    return estimator


def fit(estimator: Any, x: Any, y: Any, ctx: Context, *, epochs: int = 1, sample_weight: Any = None) -> Update:
    """Train a loaded estimator on a client's rows, and return what it has learned.

    One with ``partial_fit`` passes over them `epochs` times; another is fitted, from where it is if it has a
    ``warm_start``, with rows of weight 0 for classes that the client has none of. The weight of the update is the
    number of rows, or the sum of `sample_weight`; its metrics are ``accuracy`` or ``mse`` on these rows. What the
    estimator draws comes from the task's key.
    """
    if hasattr(estimator, "steps"):
        x = columns_of(x, getattr(estimator, "feature_names_in_", None))
        some = x.shape[0] if hasattr(x, "shape") else len(x)
        given = estimator[:-1].transform(x) if some and len(estimator.steps) > 1 else x
        return fit(estimator[-1], given, y, ctx, epochs=epochs, sample_weight=sample_weight)
    classes = getattr(estimator, "classes_", None)
    x, dtype = columns_of(x, getattr(estimator, "feature_names_in_", None)), _dtype(estimator)
    x = x.tocsr().astype(dtype, copy=False) if hasattr(x, "tocsr") else np.asarray(x, dtype)
    rows, y = int(x.shape[0]), None if y is None else np.asarray(y)
    if y is not None and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    weights = None if sample_weight is None else np.asarray(sample_weight)
    if not rows or (weights is not None and not weights.any()):
        return Update(arrays(estimator), weight=0.0)
    if classes is not None and y is not None and (odd := np.setdiff1d(y, classes)).size:
        raise AppError(
            f"the labels {odd[:4].tolist()} are not among the model's classes {classes[:8].tolist()}",
            hint="Name all of them: umbel.sklearn.model(make, features, classes).",
        )
    if hasattr(estimator, "random_state"):  # get_params would take as long as a small client's training
        estimator.random_state = ctx.key.derive("sklearn").integer(31)
    names = vars(estimator).pop("feature_names_in_", None)  # the rows have none, which scikit-learn warns of
    try:
        with warnings.catch_warnings():
            from sklearn.exceptions import ConvergenceWarning

            warnings.simplefilter("ignore", ConvergenceWarning)  # training that is cut short is what was asked for
            if _of_sums(estimator):
                return _added_up(estimator, x, y, weights, classes)
            _train(estimator, x, y, weights, classes, ctx, epochs)
        return Update(arrays(estimator), rows if weights is None else float(weights.sum()), _scores(estimator, x, y))
    finally:
        if names is not None:
            estimator.feature_names_in_ = names


def _train(estimator: Any, x: Any, y: Any, weights: Any, classes: Any, ctx: Context, epochs: int) -> None:
    if hasattr(estimator, "partial_fit"):
        named = {} if classes is None or not hasattr(estimator, "predict") else {"classes": classes}
        weighed = {} if weights is None else {"sample_weight": weights}
        for _ in range(epochs):
            estimator.partial_fit(x, y, **named, **weighed)
            ctx.step()
        return
    if hasattr(estimator, "warm_start") and not _is_forest(estimator):
        estimator.warm_start = True
    balanced = getattr(estimator, "class_weight", None) == "balanced" and not _is_forest(estimator)
    if balanced:  # of the classes that there are: scikit-learn would have those of weight 0 count without end
        known, counts = np.unique(y, return_counts=True)
        estimator.class_weight = dict(zip(known.tolist(), len(y) / len(known) / counts, strict=True))
    estimator.fit(*_with_all_classes(estimator, x, y, weights, classes))
    if balanced:
        estimator.class_weight = "balanced"


def ensemble(native: NativeModel, model: Mapping[str, Array]) -> Any:
    """Estimators of clients that vote, of what `umbel.strategies.OneShot` ends with: classifiers by their mean
    probabilities, or, where they have none, by majority; regressors by their mean. Each counts by its weight.
    """
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder

    weights = np.asarray(model["weights"])
    each = [native.make() for _ in weights]
    for place, estimator in enumerate(each):
        load_(estimator, {name: array[place] for name, array in model.items() if name != "weights"})
    named = [(str(place), estimator) for place, estimator in enumerate(each)]
    if (classes := getattr(each[0], "classes_", None)) is None:
        voting = VotingRegressor(named, weights=weights)
    else:
        soft = hasattr(each[0], "predict_proba")
        how = "soft" if soft else "hard"
        voting = VotingClassifier(named, voting=how, weights=weights, flatten_transform=False)  # as skl2onnx needs
        voting.le_, voting.classes_ = LabelEncoder().fit(classes), classes
        for last in map(_last, each):  # as whoever fits a voting ensemble encodes labels
            holder = last if "classes_" in vars(last) else last._label_binarizer
            holder.classes_ = np.arange(len(classes))
    voting.estimators_ = each
    return voting


# --- What an estimator has learned


def _last(estimator: Any) -> Any:
    """What of an estimator learns: the last step of a pipeline."""
    return estimator[-1] if hasattr(estimator, "steps") else estimator


def _learned(estimator: Any) -> dict[str, Array]:
    """The arrays of an estimator, by name; its own where it has such."""
    kind = type(estimator).__name__
    if _is_forest(estimator):
        return _nodes(estimator)
    if getattr(estimator, "average", False):
        raise AppError(f"a {kind} that averages its steps is not supported", hint="The server averages: average=False.")
    if sums := _of_sums(estimator):
        return sums
    found: dict[str, Array] = {}
    for name in LEARNED:
        value = vars(estimator).get(name)
        if isinstance(value, list):
            found.update({f"{name}.{place}": part for place, part in enumerate(value)})
        elif value is not None and not hasattr(value, "tocsr"):
            found[name] = value if isinstance(value, np.ndarray) else np.asarray(value, np.float64)
    if not any(name.startswith("coef") for name in found):
        raise AppError(
            f"a fitted {kind} cannot travel as plain arrays, and nothing is pickled",
            hint="Linear models can, neural networks, naive Bayes, StandardScaler, decision trees and forests.",
        )
    return found


def _dtype(estimator: Any) -> Any:
    if _is_forest(estimator):
        return np.dtype(np.float32)
    return next((a.dtype for n, a in _learned(estimator).items() if a.ndim), np.dtype(np.float64))


def _of_sums(estimator: Any) -> dict[str, Array]:
    """Sums over rows, of an estimator that is made of such; else nothing."""
    own = vars(estimator)
    if "theta_" in own and "class_count_" in own:
        count = own["class_count_"][:, None]
        squares = (own["var_"] - own["epsilon_"] + own["theta_"] ** 2) * count
        return {"count": own["class_count_"], "sum": own["theta_"] * count, "squares": squares}
    if "feature_count_" in own:
        return {"count": own["class_count_"], "sum": own["feature_count_"]}
    if "category_count_" in own:
        sums = {f"category_count_.{place}": part for place, part in enumerate(own["category_count_"])}
        return {"count": own["class_count_"], **sums}
    if type(estimator).__name__ == "StandardScaler":
        count = np.broadcast_to(np.float64(own["n_samples_seen_"]), estimator.n_features_in_)
        # where nothing was seen of a column, or its means are not wanted, scikit-learn has NaN, or None
        mean, var = (np.zeros(len(count)) if own[n] is None else np.nan_to_num(own[n]) for n in ("mean_", "var_"))
        return {"count": count, "sum": mean * count, "squares": (var + mean**2) * count}
    return {}


def _added_up(estimator: Any, x: Any, y: Any, weights: Any, classes: Any) -> Update:
    """Add the sums over a client's rows to those of an estimator."""
    from sklearn.base import clone

    own, weighed = _of_sums(estimator), {} if weights is None else {"sample_weight": weights}
    alone = clone(estimator).partial_fit(x, y, **({} if classes is None else {"classes": classes}), **weighed)
    sums = _of_sums(alone)
    check_same_form(own, sums, type(estimator).__name__)
    total = Arrays({name: own[name] + sums[name] for name in own})
    _set_sums(estimator, total)
    return Update(total, x.shape[0] if weights is None else float(weights.sum()))


def _set_sums(estimator: Any, model: Mapping[str, Array]) -> None:
    count = np.array(model["count"], np.float64)
    some = np.where(count > 0, count, 1.0)
    if "squares" in model:
        per = some if count.shape == np.shape(model["sum"]) else some[:, None]
        mean = model["sum"] / per
        var = model["squares"] / per - mean**2
        var = np.where(var > 1e-15 * mean**2, var, 0.0)  # what is left of a constant's is of rounding
    if type(estimator).__name__ == "StandardScaler":
        estimator.n_samples_seen_ = count.max(initial=0.0) if (count == count[:1]).all() else count
        estimator.mean_ = mean if estimator.with_mean or estimator.with_std else None
        estimator.var_ = var if estimator.with_std else None
        if estimator.with_std:
            estimator.scale_ = np.where(var > 10 * np.finfo(np.float64).eps, np.sqrt(var), 1.0)
        return
    estimator.class_count_ = count
    if "squares" in model:
        rows = count.sum() or 1.0
        overall = model["squares"].sum(0) / rows - (model["sum"].sum(0) / rows) ** 2
        estimator.epsilon_ = estimator.var_smoothing * max(float(overall.max()), 0.0)
        estimator.theta_ = mean
        estimator.var_ = np.where(count[:, None] > 0, var + estimator.epsilon_, 1.0)  # of a class without rows: any
        if estimator.priors is None:
            estimator.class_prior_ = np.maximum(count, 1e-300) / rows
        return
    if "sum" in model:
        estimator.feature_count_ = np.array(model["sum"])
        if hasattr(estimator, "feature_all_"):
            estimator.feature_all_ = estimator.feature_count_.sum(axis=0)
    else:
        sums = [np.array(array) for name, array in model.items() if name != "count"]
        estimator.category_count_ = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        estimator._update_feature_log_prob(estimator.alpha)
        estimator._update_class_log_prior(class_prior=estimator.class_prior)


# --- The first model


def _prepared(
    make: Callable[[], Any], features: int | Sequence[str], classes: Array | None, outputs: int, dtype: Any
) -> Any:
    """An estimator that has its shapes, and has learned nothing."""
    _sklearn()
    estimator = make()
    if not hasattr(estimator, "get_params") or not hasattr(estimator, "fit"):
        raise AppError(f"umbel.sklearn.model makes a {type(estimator).__name__}, which is no estimator")
    if hasattr(estimator, "steps"):
        return _pipeline(estimator, features, classes, outputs, dtype)
    from sklearn.base import is_classifier

    if is_classifier(estimator):
        if classes is None:
            raise AppError("a classifier needs its classes: umbel.sklearn.model(make, features, classes)")
        y: Any = np.repeat(classes, 5)  # as cross-validation within an estimator needs
    else:
        y = None if not hasattr(estimator, "predict") else np.ones((10, outputs) if outputs > 1 else 10, dtype)
    x = np.zeros((2 if y is None else len(y), features if isinstance(features, int) else len(features)), dtype)
    steps = estimator.get_params(deep=False).get("learning_rate_init")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is learned from zeros, as they warn
        if _is_forest(estimator):
            trees = estimator.get_params(deep=False).get("n_estimators")
            if trees is not None:
                estimator.set_params(n_estimators=1)
            estimator.fit(x, y)
            if trees is not None:
                estimator.set_params(n_estimators=trees)
                estimator.estimators_ = []
            else:
                del estimator.tree_
        elif hasattr(estimator, "partial_fit"):
            if steps is not None:
                estimator.set_params(learning_rate_init=1e-300)  # one step that goes nowhere
            estimator.partial_fit(x, y, **({} if classes is None else {"classes": classes}))
            if steps is not None:
                estimator.set_params(learning_rate_init=steps)
                del estimator._optimizer
        else:
            estimator.fit(x, y)
    if hasattr(estimator, "x_weights_"):
        raise AppError(f"a {type(estimator).__name__} predicts by more than its coefficients, which alone would travel")
    if not isinstance(features, int):
        estimator.feature_names_in_ = np.array(features, object)
    return estimator if _is_forest(estimator) else _emptied(estimator, dtype)


def _pipeline(pipeline: Any, features: int | Sequence[str], classes: Array | None, outputs: int, dtype: Any) -> Any:
    """A pipeline whose last step has learned nothing, and whose others are fitted."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    rows = np.zeros((2, features if isinstance(features, int) else len(features)), dtype)
    for name, step in pipeline.steps[:-1]:
        if hasattr(step, "transform"):
            try:
                check_is_fitted(step)
            except NotFittedError:
                raise AppError(
                    f"the step {name!r} of the pipeline is not fitted, and clients train the last step alone",
                    hint="Learn it in a run of its own, umbel.sklearn.model(StandardScaler, features), and make the "
                    "pipeline of the fitted step.",
                ) from None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the names that zeros lack
                rows = np.asarray(step.transform(rows))
    name, last = pipeline.steps[-1]
    pipeline.steps[-1] = name, _prepared(lambda: last, rows.shape[1], classes, outputs, dtype)
    if not isinstance(features, int):
        pipeline.steps[0][1].feature_names_in_ = np.array(features, object)
    return pipeline


def _emptied(estimator: Any, dtype: Any) -> Any:
    own = _learned(estimator)
    sums = bool(_of_sums(estimator))
    zeros = {n: np.zeros_like(a) for n, a in own.items() if sums or n in ("coef_", "intercept_", "t_", "offset_")}
    if "t_" in zeros and isinstance(estimator.t_, float):
        zeros["t_"] = np.ones(())  # the steps of SGD are counted from 1
    return load_(estimator, {**own, **zeros})


def _with_all_classes(estimator: Any, x: Any, y: Any, weights: Any, classes: Any) -> tuple[Any, ...]:
    """Rows, labels and weights, with a row of weight 0 for each class that has none."""
    missing = np.setdiff1d(classes, y) if classes is not None else np.zeros(0)
    if not missing.size:
        return (x, y) if weights is None else (x, y, weights)
    some = np.zeros(len(missing), np.int64)
    if hasattr(x, "tocsr"):
        from scipy.sparse import vstack

        more = vstack([x, x[some]])
    else:
        more = np.concatenate([x, x[some]])
    whole = np.ones(len(y)) if weights is None else weights
    # LIBLINEAR leaves out rows of weight 0, and then gives the coefficients of fewer classes than there is room for
    liblinear = type(estimator).__name__ == "LinearSVC" or getattr(estimator, "solver", None) == "liblinear"
    none = np.full(len(missing), 1e-9 if liblinear else 0.0)
    return more, np.concatenate([y, missing]), np.concatenate([whole, none])


def _scores(estimator: Any, x: Any, y: Any) -> dict[str, float]:
    if y is None or not hasattr(estimator, "predict"):
        return {}
    found = estimator.predict(x)
    if hasattr(estimator, "classes_"):
        return {"accuracy": float((found == y).mean())}
    return {"mse": float(((found - y) ** 2).mean())} if found.shape == y.shape else {}


# --- Trees


def _is_forest(estimator: Any) -> bool:
    return (
        hasattr(estimator, "predict")
        and hasattr(estimator, "max_leaf_nodes")
        and hasattr(estimator, "min_impurity_decrease")
        and not hasattr(estimator, "learning_rate")
    )


def _nodes(forest: Any) -> dict[str, Array]:
    """The nodes of all trees, one after the other, and how many each tree has."""
    from sklearn.tree._tree import NODE_DTYPE

    if forest.n_outputs_ > 1:
        raise AppError(f"a {type(forest).__name__} of several outputs is not supported")
    grown = getattr(forest, "estimators_", [forest] if hasattr(forest, "tree_") else [])
    trees = [tree.tree_.__getstate__() for tree in grown]
    nodes = np.concatenate([np.zeros(0, NODE_DTYPE), *(tree["nodes"] for tree in trees)])
    values = np.zeros((0, 1, int(np.max(getattr(forest, "n_classes_", 1)))))
    return {
        **{f"{TREES}{name}": np.ascontiguousarray(nodes[name]) for name in NODE_DTYPE.names},
        f"{TREES}values": np.concatenate([values, *(tree["values"] for tree in trees)]),
        f"{TREES}sizes": np.array([tree["node_count"] for tree in trees], np.int64),
    }


def _grow(forest: Any, model: Mapping[str, Array]) -> Any:
    """Give a forest these trees. Raises `AppError` unless they are sound in all that scikit-learn would follow without
    a look, and leaves the forest as it was.
    """
    from sklearn.base import clone
    from sklearn.tree._tree import NODE_DTYPE, Tree

    kind, features = type(forest).__name__, forest.n_features_in_
    cut = {name: array[:0] for name, array in _nodes(forest).items()}
    check_same_form(cut, {name: np.asarray(array)[:0] for name, array in model.items()}, kind)
    sizes, classes = model[f"{TREES}sizes"], np.atleast_1d(getattr(forest, "n_classes_", 1)).astype(np.intp)
    if (sizes < 1).any() or any(len(model[n]) != sizes.sum() for n in cut if n != f"{TREES}sizes"):
        raise AppError(f"the trees for a {kind} do not have as many nodes as they say")
    grown = []
    for tree, (end, size) in enumerate(zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True)):
        nodes = np.zeros(size, NODE_DTYPE)
        for name in NODE_DTYPE.names:
            nodes[name] = model[f"{TREES}{name}"][end - size : end]
        depth = _depth(nodes, features)
        if depth is None:
            raise AppError(f"tree {tree} for a {kind} of {features} features is not sound")
        values = np.array(model[f"{TREES}values"][end - size : end])
        made = Tree(features, classes, 1)
        made.__setstate__({"max_depth": depth, "node_count": size, "nodes": nodes, "values": values})
        grown.append(made)
    if not hasattr(forest, "estimator_"):
        if len(grown) > 1:
            raise AppError(f"the model has {len(grown)} trees, a {kind} is one", hint="Make a forest.")
        vars(forest).pop("tree_", None)
        for tree in grown:
            forest.tree_ = tree
        return forest
    shared = {n: v for n, v in vars(forest).items() if n in ("n_features_in_", "n_outputs_", "classes_", "n_classes_")}
    forest.estimators_ = [clone(forest.estimator_) for _ in grown]
    for one, made in zip(forest.estimators_, grown, strict=True):
        vars(one).update(shared, tree_=made, max_features_=features)
    return forest


def _depth(nodes: Any, features: int) -> int | None:
    """How deep a tree is, of which each node but the root has one parent, that stands before it; None for another."""
    inner = np.flatnonzero(nodes["left_child"] != -1)
    children = np.stack([nodes["left_child"][inner], nodes["right_child"][inner]])
    feature = nodes["feature"][inner]
    if (children <= inner).any() or ((feature < 0) | (feature >= features)).any():
        return None
    if not np.array_equal(np.sort(children, axis=None), np.arange(1, len(nodes))):
        return None
    depths = np.zeros(len(nodes), np.int64)
    for node, pair in zip(inner, children.T, strict=True):
        depths[pair] = depths[node] + 1
    return int(depths.max())


# --- Files


def _to_joblib(estimator: Any, path: Path) -> None:
    import joblib

    joblib.dump(estimator, path)


def _to_onnx(estimator: Any, path: Path) -> None:
    try:
        from skl2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise AppError("writing .onnx needs skl2onnx", hint="pip install skl2onnx") from error
    if hasattr(estimator, "steps"):  # skl2onnx knows no words for steps
        estimator = type(estimator)([(name, step) for name, step in estimator.steps if hasattr(step, "fit")])
    rows = np.zeros((1, estimator.n_features_in_), np.float32)
    options = {"zipmap": False} if hasattr(estimator, "predict_proba") else None
    path.write_bytes(to_onnx(estimator, rows, options=options).SerializeToString())


def _sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error, "sklearn", "sklearn") from error
