"""Keras 3 on any of its backends: a model's weights as arrays and back, and local training by ``model.fit``.

Used as ``umbel.keras``; needs Keras and a backend: ``pip install "umbel[keras]"``. Names are Keras's paths, without the
model's own name and with layers counted from the first of this model: ``dense_1/kernel`` in each model that is made.
The generators of Keras, TensorFlow and PyTorch are seeded for each task anyway; `seed` is for other places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from .core.arrays import Array, Arrays, Role, is_floating
from .core.native import NativeModel, check_fit, check_names, mark_personal, missing_package
from .core.trees import as_array
from .core.update import Update
from .errors import AppError

try:
    import keras
except ModuleNotFoundError as error:
    raise missing_package(error, "keras", "keras") from error

if TYPE_CHECKING:
    from .core.client import Context

Network = TypeVar("Network")

__all__ = ["arrays", "fit", "load_", "load_optimizer_", "model", "optimizer_arrays", "seed"]


def arrays(net: Any, *, personal: Sequence[str] = (), trainable_only: bool = False) -> Arrays:
    """The weights of a model or a layer as arrays, copies, by their paths.

    What is trained has the role `parameter`, all else, such as running means and frozen layers, `buffer`;
    `trainable_only` leaves the latter out. Names that match a glob pattern in `personal` are personal; a pattern that
    matches none is an `AppError`. So is a model whose layers have no weights yet.
    """
    values: dict[str, Array] = {}
    roles: dict[str, Role] = {}
    for name, weight in _named(net).items():
        if weight.trainable or not trainable_only:
            values[name] = np.array(as_array(weight.value), order="C")
            roles[name] = "parameter" if weight.trainable and is_floating(values[name].dtype) else "buffer"
    mark_personal(roles, personal, _kind(net))
    return Arrays.trusted(values, roles)


def load_(net: Network, model: Mapping[str, Array], *, strict: bool = True) -> Network:
    """Put a model's arrays into the weights of a Keras model or layer, in place, and return it.

    Floating-point values take the dtype of the weight. With `strict=False` names may be missing, whose weights stay.
    Other names, shapes or dtypes are an `AppError`, and leave the weights as they were.
    """
    weights = _named(net)
    check_names(_kind(net), weights, model, strict)
    for name, array in model.items():
        check_fit(name, array, weights[name].shape, keras.backend.standardize_dtype(weights[name].dtype))
    for name, array in model.items():
        weights[name].assign(array)
    return net


def model(make: Callable[[], Any], *, personal: Sequence[str] = (), trainable_only: bool = False) -> NativeModel:
    """What `make` makes and perhaps compiles, as an app's model; it is written as ``.keras`` and ``.safetensors``."""
    return NativeModel(
        make,
        partial(arrays, personal=personal, trainable_only=trainable_only),
        partial(load_, strict=not trainable_only),
        {".keras": _write_keras, ".safetensors": _write_safetensors},
    )


def seed(value: int) -> None:
    """Seed Python's, numpy's and the backend's global generators; `value` counts modulo 2**32."""
    keras.utils.set_random_seed(value % (1 << 32))


def optimizer_arrays(optimizer: Any) -> dict[str, Array]:
    """What an optimizer has come to, for ``ctx.state``; see `load_optimizer_`."""
    kept: dict[str, Any] = {}
    optimizer.save_own_variables(kept)
    return {name: np.array(value) for name, value in kept.items()}


def load_optimizer_(optimizer: Any, kept: Mapping[str, Array] | None) -> Any:
    """Put what `optimizer_arrays` gave back into an optimizer that was built for the same weights, and return it; the
    learning rate stays the optimizer's. Nothing is done for None. Raises `AppError` where it is of other weights.
    """
    if kept:
        shapes = [tuple(variable.shape) for variable in optimizer.variables]
        if shapes != [np.shape(kept[name]) for name in sorted(kept, key=int)]:
            raise AppError("the optimizer's state is of other weights than this one's", hint="Has the model changed?")
        before = None if _scheduled(optimizer) else float(optimizer.learning_rate)
        optimizer.load_own_variables(dict(kept))
        if before is not None:
            optimizer.learning_rate = before
    return optimizer


def fit(
    net: Any,
    data: Any,
    ctx: Context,
    *,
    lr: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    examples: int | None = None,
    keep_optimizer: bool = False,
    **options: Any,
) -> Update:
    """Train a compiled model on a client's data by ``model.fit``, and give the update to return.

    `data` is ``(x, y)`` or ``(x, y, sample weights)``; for whatever else ``model.fit`` takes say how many `examples` it
    has. `epochs` (1), `batch` (32; 0 for all data at once) and `lr`, by default the optimizer's, come from `ctx.config`
    where they are not given; `options` go to ``model.fit``. Make the model once for all tasks of a process, for it is
    compiled by its first: its optimizer begins each as it was made, or, with `keep_optimizer`, as the client left it.

    Corrections that add to the gradient are applied, others are an `UnusedCorrection`. The update has the weight of as
    many examples, the metrics of the last epoch, and `steps` and `lr`.
    """
    config, optimizer = ctx.config, getattr(net, "optimizer", None)
    if optimizer is None:
        raise AppError(f"{_kind(net)} is not compiled", hint="Have what makes it call compile(optimizer, loss).")
    pair = isinstance(data, tuple | list) and 1 < len(data) < 4
    if examples is None and not pair:
        raise AppError(
            f"fit cannot tell how many examples a {type(data).__name__} has", hint="Give (x, y), or examples=N."
        )
    rows = _rows(data[1]) if examples is None else examples
    if not rows:
        return Update(arrays(net), weight=0.0)
    _begin(net, optimizer, ctx)
    load_optimizer_(optimizer, ctx.state.get("optimizer") if keep_optimizer else None)
    if (lr := config.get("lr") if lr is None else lr) is not None:
        if _scheduled(optimizer):
            raise AppError("the optimizer's learning rate is a schedule of its own", hint="Leave lr out of the config.")
        optimizer.learning_rate = lr
    size = int(config.get("batch", 32) if batch is None else batch) or max(1, rows)
    given = {"x": data[0], "y": data[1], "batch_size": size} if pair else {"x": data}
    if pair and len(data) == 3:
        given["sample_weight"] = data[2]
    steps = _Steps(ctx.step)
    with _corrected(net, optimizer, ctx):
        told = net.fit(
            **given,
            epochs=int(config.get("epochs", 1) if epochs is None else epochs),
            verbose=0,
            **{**options, "callbacks": [*options.get("callbacks", ()), steps]},
        )
    if keep_optimizer:
        ctx.state["optimizer"] = optimizer_arrays(optimizer)
    metrics = {name: float(values[-1]) for name, values in told.history.items() if values}
    metrics |= {"steps": float(steps.taken), "lr": float(optimizer.learning_rate)}
    return Update(arrays(net), weight=rows, metrics=metrics)


def _rows(labels: Any) -> int:
    """How many examples there are, by their labels, or by those of the first output of several."""
    while isinstance(labels, dict | list | tuple):
        labels = next(iter(labels.values() if isinstance(labels, dict) else labels), ())
    return len(labels)


def _scheduled(optimizer: Any) -> bool:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return isinstance(getattr(inner, "_learning_rate", None), keras.optimizers.schedules.LearningRateSchedule)


class _Steps(keras.callbacks.Callback):  # type: ignore[misc]
    """Counts steps, and shows them."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self._step, self.taken = step, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.taken += 1
        self._step()


_fresh: WeakKeyDictionary[Any, dict[str, Array]] = WeakKeyDictionary()
"""Optimizers as they were made."""


def _begin(net: Any, optimizer: Any, ctx: Context) -> None:
    """Have the optimizer as it was made, the generators of layers such as Dropout seeded for the task, and recurrent
    layers forget: a task must not depend on those that its process has done before.
    """
    for place, state in enumerate(v for v in net.variables if v.path.endswith("seed_generator_state")):
        drawn = ctx.key.derive("keras", place)
        state.assign([drawn.derive(at).integer(31) for at in range(state.shape[0])])
    for layer in net._flatten_layers():
        if getattr(layer, "stateful", False):
            layer.reset_state()
    if not optimizer.built:
        optimizer.build(net.trainable_variables)
    if optimizer in _fresh:
        optimizer.load_own_variables(dict(_fresh[optimizer]))
    else:
        _fresh[optimizer] = optimizer_arrays(optimizer)


@contextmanager
def _corrected(net: Any, optimizer: Any, ctx: Context) -> Iterator[None]:
    """Have the optimizer add to its gradients, meanwhile, what the strategy wants."""
    if ctx.correction is None:
        yield
        return
    correction, anchor = ctx.correction.added(), ctx.correction.anchor
    names = {id(weight): name for name, weight in _named(net).items()}
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # behind one that scales losses gradients are as they are
    apply = inner.apply

    def added(grads: Any, trainable_variables: Any = None) -> Any:
        weights = inner._trainable_variables if trainable_variables is None else trainable_variables
        return apply([_added(g, w, names.get(id(w), "")) for g, w in zip(grads, weights, strict=True)], weights)

    def _added(slope: Any, weight: Any, name: str) -> Any:
        if slope is None or name not in anchor:
            return slope
        if correction.proximal:
            slope = slope + correction.proximal * (weight - keras.ops.convert_to_tensor(anchor[name], weight.dtype))
        if correction.linear is not None and name in correction.linear:
            slope = slope + keras.ops.convert_to_tensor(correction.linear[name], weight.dtype)
        return slope

    inner.apply, net.train_function = added, None  # it is traced anew, with these terms
    try:
        yield
    finally:
        inner.apply, net.train_function = apply, None


# --- Names


def _named(net: Any) -> dict[str, Any]:
    """Weights by their paths, the same for each model of a kind: Keras counts layers on from model to model."""
    counted = {_snake(type(layer).__name__) for layer in net._flatten_layers()}
    own = getattr(net, "name", "")
    known: dict[tuple[str, str], str] = {}
    taken: dict[tuple[str, str], int] = {}
    found: dict[str, Any] = {}
    for weight in net.weights:
        first, *rest = weight.path.split("/")
        path = ""
        for part in rest if first == own and rest else (first, *rest):
            stem = re.sub(r"_\d+$", "", part)
            if re.sub("^(forward|backward)_", "", stem) in counted and (path, part) not in known:
                number = taken[path, stem] = taken.get((path, stem), -1) + 1
                known[path, part] = f"{stem}_{number}" if number else stem
            path = f"{path}/{known.get((path, part), part)}".lstrip("/")
        while path in found:
            path += "'"
        found[path] = weight
    if not found:
        raise AppError(f"{_kind(net)} has no weights yet", hint="Give it an Input, or call it on one example before.")
    return found


def _snake(name: str) -> str:
    """A layer's name as Keras makes it of its class."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))).lower()


def _kind(net: Any) -> str:
    return type(net).__name__


def _write_keras(net: Any, path: Path) -> None:
    optimizer = getattr(net, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(net.trainable_variables)  # as it is when it is read
    net.save(path)


def _write_safetensors(net: Any, path: Path) -> None:
    arrays(net).to_file(path)
