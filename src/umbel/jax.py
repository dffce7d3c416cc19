"""JAX: trees of arrays, of Flax's linen and nnx and of optax too, as arrays and back; keys; local training.

Used as ``umbel.jax``; needs JAX: ``pip install "umbel[jax]"``. Names have dots: ``params.Dense_0.kernel``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .core.arrays import Array, Arrays, Role, is_floating
from .core.native import NativeModel, check_fit, check_names, listed, mark_personal, missing_package
from .core.trees import tensor_array
from .core.update import Update
from .entropy import SYSTEM
from .errors import AppError

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise missing_package(error, "jax", "jax") from error

if TYPE_CHECKING:
    from .core.client import Context
    from .privacy.example import ExamplePrivacy

Tree = TypeVar("Tree")
Loss = Callable[[Any, Any, Any], Any]

BLOCK = 1024

__all__ = ["arrays", "fit", "key", "load_", "model"]


def arrays(tree: Any, *, personal: Sequence[str] = ()) -> Arrays:
    """The arrays of a tree, or of an nnx module or its state, by dotted names; views of JAX's where they are in memory.

    Floating-point arrays are parameters, all others buffers; so are Flax's collections beside ``params``, such as
    ``batch_stats``, and variables of nnx that are no ``Param``. The state of an nnx module's random generators is left
    out. Keys have the role `buffer` and are their data. Names that match a glob pattern in `personal` are personal; a
    pattern that matches none is an `AppError`.
    """
    values: dict[str, Array] = {}
    roles: dict[str, Role] = {}
    for name, (leaf, trained) in _rows(tree).items():
        found = tensor_array(leaf)
        array = np.asarray(leaf) if found is None else found
        # Numbers, and numpy's arrays of 64 bits, become what JAX computes with.
        values[name] = np.asarray(array, _dtype(array)) if array.dtype.kind in "fiu" else array
        roles[name] = "parameter" if trained and is_floating(values[name].dtype) else "buffer"
    mark_personal(roles, personal, type(tree).__name__)
    return Arrays(values, roles)


def load_(tree: Tree, model: Mapping[str, Array], *, strict: bool = True) -> Tree:
    """A tree like this one with the arrays of a model; an nnx module gets them in place, and is returned.

    What ``ctx.state`` kept of ``arrays(tree)`` comes back the same way: an optimizer's state by
    ``load_(optimizer.init(params), ctx.state["optimizer"])``. Floating-point values take the dtype of the tree's. With
    `strict=False` names may be missing, whose arrays stay. Other names, shapes or dtypes are an `AppError`.
    """
    rows = {name: leaf for name, (leaf, _) in _rows(tree).items()}
    check_names(type(tree).__name__, rows, model, strict)
    new = {name: _like(name, leaf, model[name]) if name in model else leaf for name, leaf in rows.items()}
    if (nnx := _nnx(tree)) is not None:
        state = nnx.state(tree)
        flat = [(p, v.replace(new[n]) if (n := _dotted(p)) in new else v) for p, v in nnx.to_flat_state(state)]
        state = nnx.from_flat_state(flat)
        if isinstance(tree, nnx.State):
            return state  # type: ignore[no-any-return]
        nnx.update(tree, state)
        return tree
    structure = jax.tree_util.tree_structure(tree)
    return jax.tree_util.tree_unflatten(structure, list(new.values()))  # type: ignore[no-any-return]


def model(make: Callable[[], Any], *, personal: Sequence[str] = ()) -> NativeModel:
    """What `make` makes, a tree of arrays or an nnx module, as an app's model.

    It is written as ``.safetensors``, and with Flax as ``.msgpack``, which ``flax.serialization.from_bytes(tree,
    data)`` reads; that of an nnx module is nested by its names.
    """
    formats = {".safetensors": _write_safetensors, ".msgpack": _write_msgpack}
    return NativeModel(make, partial(arrays, personal=personal), load_, formats)


def key(ctx: Context, *names: str | int) -> Any:
    """A key of `jax.random` that the task has for itself; another one for other names."""
    bits = ctx.key.derive("jax", *names).integer(62)
    return jax.random.fold_in(jax.random.key(bits >> 31), bits & (2**31 - 1))


def fit(
    tree: Any,
    data: Any,
    ctx: Context,
    loss: Loss,
    *,
    optimizer: Callable[[Any], Any] | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    keep_optimizer: bool = False,
    privacy: ExamplePrivacy | None = None,
) -> Update:
    """Train a tree, or in place an nnx module, on a client's data, as the strategy wants it done, and give the update.

    `data` is a tuple of arrays with a row an example; ``loss(tree, batch, key)`` gives the mean loss of a batch. Where
    Flax's variables have collections beside ``params``, it gives the loss and what of these has changed, as
    ``net.apply(variables, x, mutable=["batch_stats"])`` does; an nnx module keeps what changes in itself, and its
    random generators are the task's.

    `optimizer` makes one of optax's of a learning rate (``optax.adam``), by default plain SGD. Loss and optimizer are
    compiled once if they are the same objects in each task, such as functions of a module. `lr`, `epochs` (1) and
    `batch` (32; 0 for all data at once) come from `ctx.config` where they are not given. `keep_optimizer` has the
    client go on with its optimizer's state, which is in ``ctx.state``. `privacy`, an `umbel.privacy.ExamplePrivacy`,
    hides each example of the data; `batch` is then how many a step takes on average, the weight is what `privacy` says,
    and there is no loss among the metrics.

    All corrections are applied but procedures, which are an `UnusedCorrection`. The update has the weight of as many
    examples, and the metrics `loss`, `steps`, `lr`, and `initial_loss` where it is wanted.
    """
    config, offered = ctx.config, ctx.correction
    lr = config.get("lr") if lr is None else lr
    if lr is None:
        raise AppError("fit needs a learning rate", hint="Pass lr=0.1, or put it into the app's config: {'lr': 0.1}.")
    epochs = int(config.get("epochs", 1) if epochs is None else epochs)
    rows = len(data[0])
    all_of_them = max(1, rows) if privacy is None else privacy.examples
    size = int(config.get("batch", 32) if batch is None else batch) or all_of_them
    kind, trained, held = _split(tree, ctx)
    _check_trained(trained, offered)
    slope, move, clipped = _compiled(loss, optimizer)
    state = None if optimizer is None else optimizer(lr).init(trained)
    if keep_optimizer and "optimizer" in ctx.state:
        state = load_(state, ctx.state["optimizer"])
    metrics = {"steps": 0.0, "lr": float(lr), **({"loss": 0.0} if privacy is None else {})}
    if privacy is None and offered is not None and "initial_loss" in offered.reports:
        metrics["initial_loss"] = float(slope(trained, held, kind, data, key(ctx, "initial"))[0][0])
    for chosen in _batches(ctx, rows, size, epochs, held, privacy):
        metrics["steps"] += 1
        if privacy is None:
            more = (held, kind, tuple(part[chosen] for part in data), key(ctx, int(metrics["steps"] - 1)))
            (value, held), found = slope(trained, *more)
            again = partial(_slopes, slope, trained, more)
            metrics["loss"] += (float(value) - metrics["loss"]) / metrics["steps"]
        else:
            found = _noised(partial(clipped, trained, held, kind), trained, data, chosen, size, privacy)
            again = partial(_same, found)
        if offered is not None:
            found = load_(found, offered.corrected(again, arrays(trained)))
        trained, state = move(trained, found, state, lr)
        ctx.step()
    if keep_optimizer:
        ctx.state["optimizer"] = arrays(state)
    if isinstance(kind, str):
        trained = {**held, **trained}
    elif kind is not None:
        sys.modules["flax.nnx"].update(tree, trained, held)
        trained = tree
    return Update(arrays(trained), weight=rows if privacy is None else privacy.examples, metrics=metrics)


def _batches(
    ctx: Context, rows: int, size: int, epochs: int, held: Any, privacy: ExamplePrivacy | None
) -> Iterator[Any]:
    """The examples of each step, by their indices; with privacy in portions, by dice that nobody else knows."""
    if privacy is None:
        for _ in range(epochs):
            order = ctx.rng.permutation(rows)
            yield from (order[at : at + size] for at in range(0, rows, size))
        return
    if names := list(_rows(held)):
        raise AppError(
            f"{listed(names)}: what is no parameter changes by examples that noise does not hide",
            hint="Take layers that keep no statistics, and draw by the key that the loss is given.",
        )
    for _ in range(privacy.begin(ctx, size, epochs)):
        yield privacy.drawn(rows, size)


def _noised(clipped: Any, trained: Any, data: Any, chosen: Any, size: int, privacy: ExamplePrivacy) -> Any:
    """The noised mean of clipped gradients. Whatever a portion has, what is compiled sees as many rows: those beyond
    are another example's, and count nothing.
    """
    room = privacy.capacity(size)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), trained)
    for portion in chosen:
        at = np.resize(portion, room)
        own = jax.random.wrap_key_data(jnp.asarray(SYSTEM.words(1).view(np.uint32)), impl="threefry2x32")
        there = np.arange(room) < len(portion)
        found = clipped(tuple(part[at] for part in data), jax.random.split(own, room), there, privacy.limit)
        sums = jax.tree.map(jnp.add, sums, found)

    def mean(total: Any) -> Any:
        noise = privacy.drawn_noise(total.size).reshape(total.shape)
        return (total + jnp.asarray(noise, total.dtype)) / size

    return jax.tree.map(mean, sums)


def _same(found: Any, at: Mapping[str, Array]) -> Mapping[str, Array]:
    return arrays(found)


def _split(tree: Any, ctx: Context) -> tuple[Any, Any, Any]:
    """The kind of a tree, what of it is trained, and what else a step may change."""
    if isinstance(tree, Mapping) and "params" in tree and len(tree) > 1:
        return (
            "collections",
            {"params": tree["params"]},
            {name: part for name, part in tree.items() if name != "params"},
        )
    nnx = _nnx(tree)
    if nnx is None or not isinstance(tree, nnx.Module):
        return None, tree, {}
    drawn = []  # the module may have been another task's before
    for path, variable in nnx.to_flat_state(nnx.state(tree, nnx.RngState)):
        value = variable.get_value()
        if isinstance(variable, nnx.RngKey):
            new = jax.random.key(ctx.key.derive("nnx", _dotted(path)).integer(31), impl=jax.random.key_impl(value))
            drawn.append((path, variable.replace(jax.random.split(new, value.shape) if value.shape else new)))
        else:
            drawn.append((path, variable.replace(jnp.zeros_like(value))))
    nnx.update(tree, nnx.from_flat_state(drawn))
    return nnx.split(tree, nnx.Param, ...)  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def _compiled(loss: Loss, optimizer: Callable[[Any], Any] | None) -> tuple[Any, Any, Any]:
    """The loss, and what it changed, with its gradient; a step against one; and the sum over examples, a row each, of
    those that are `there`, of their gradients scaled down to a norm.
    """

    def whole(trained: Any, held: Any, kind: Any, batch: Any, drawn: Any) -> tuple[Any, Any]:
        if kind is None:
            return loss(trained, batch, drawn), held
        if isinstance(kind, str):
            value, changed = loss({**held, **trained}, batch, drawn)
            return value, {name: changed.get(name, part) for name, part in held.items()}
        nnx = sys.modules["flax.nnx"]
        net = nnx.merge(kind, trained, held, copy=True)
        return loss(net, batch, drawn), nnx.split(net, nnx.Param, ...)[2]

    def move(trained: Any, found: Any, state: Any, lr: Any) -> Any:
        if optimizer is None:
            return jax.tree.map(lambda w, slope: (w - lr * slope).astype(w.dtype), trained, found), state
        change, state = optimizer(lr).update(found, state, trained)
        return jax.tree.map(lambda w, step: (w + step).astype(w.dtype), trained, change), state

    def clipped(trained: Any, held: Any, kind: Any, rows: Any, keys: Any, there: Any, limit: Any) -> Any:
        def one(row: Any, drawn: Any) -> Any:
            alone = tuple(part[None] for part in row)
            found = jax.grad(whole, has_aux=True)(trained, _redrawn(held, drawn), kind, alone, drawn)[0]
            return jax.tree.map(lambda slope: slope.astype(jnp.promote_types(slope.dtype, jnp.float32)), found)

        slopes = jax.vmap(one)(rows, keys)
        norms = jnp.sqrt(sum(_squared_norms(slope.reshape(len(there), -1)) for slope in jax.tree.leaves(slopes)))
        good = there & jnp.isfinite(norms)
        scales = jnp.where(good, jnp.minimum(1, limit / norms), 0)

        def total(slope: Any) -> Any:
            row = good.reshape(-1, *[1] * (slope.ndim - 1))
            return jnp.tensordot(scales, jnp.where(row, slope, 0), 1)

        return jax.tree.map(total, slopes)

    slope = jax.jit(jax.value_and_grad(whole, has_aux=True), static_argnums=2)
    return slope, jax.jit(move), jax.jit(clipped, static_argnums=2)


def _redrawn(held: Any, drawn: Any) -> Any:
    """What an nnx module holds beside weights, with the keys of its random generators drawn by another key."""
    nnx = _nnx(held)
    if nnx is None:
        return held
    flat = []
    for at, (path, variable) in enumerate(nnx.to_flat_state(held)):
        if isinstance(variable, nnx.RngKey):
            old = variable.get_value()
            bits = jax.random.bits(jax.random.fold_in(drawn, at), jax.random.key_data(old).shape, np.uint32)
            variable = variable.replace(jax.random.wrap_key_data(bits, impl=jax.random.key_impl(old)))
        flat.append((path, variable))
    return nnx.from_flat_state(flat)


def _squared_norms(rows: Any) -> Any:
    """Those of rows, in blocks, for many squares that float32 adds up one by one err by more than a bound can bear."""
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK)))
    return jnp.square(padded.reshape(len(rows), -1, BLOCK)).sum(2).sum(1)


def _slopes(slope: Any, like: Any, more: tuple[Any, ...], at: Mapping[str, Array]) -> Mapping[str, Array]:
    return arrays(slope(load_(like, at), *more)[1])


def _check_trained(trained: Any, offered: Any) -> None:
    others = [name for name, role in arrays(trained).roles.items() if role != "parameter"]
    nnx = _nnx(trained)
    if others or (nnx is not None and not isinstance(trained, nnx.State)):
        raise AppError(
            f"fit trains a tree of floating-point numbers, and {listed(others) or type(trained).__name__} is none",
            hint="Give what a gradient can be taken of, such as variables['params'], or write the loop by hand.",
        )
    if offered is not None and (unknown := [name for name in _rows(trained) if name not in offered.anchor]):
        raise AppError(
            f"the strategy corrects a model that does not have {listed(unknown)}",
            hint="Give fit the whole tree that the app's model was made from, and not a part of it.",
        )


# --- The leaves of a tree


def _rows(tree: Any) -> dict[str, tuple[Any, bool]]:
    found: dict[str, tuple[Any, bool]] = {}
    for name, leaf, trained in _leaves(tree):
        if name in found:
            raise AppError(f"two arrays of the tree have the name {name!r}", hint="Have no dots in a tree's keys.")
        found[name] = leaf, trained
    return found


def _leaves(tree: Any) -> Iterator[tuple[str, Any, bool]]:
    """Names and arrays in their order, and whether each is trained."""
    if (nnx := _nnx(tree)) is not None:
        for path, variable in nnx.to_flat_state(tree if isinstance(tree, nnx.State) else nnx.state(tree)):
            if not isinstance(variable, nnx.RngState):
                yield _dotted(path), variable.get_value(), isinstance(variable, nnx.Param)
        return
    collections = isinstance(tree, Mapping) and "params" in tree
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        yield name, leaf, not collections or name.startswith("params.")


def _nnx(tree: Any) -> Any:
    """Flax's nnx where the tree is one of its modules, optimizers or states; None otherwise."""
    nnx = sys.modules.get("flax.nnx")
    return nnx if nnx is not None and isinstance(tree, nnx.Module | nnx.Optimizer | nnx.State) else None


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _dtype(leaf: Any) -> Any:
    """What JAX computes with, of an array, a number, or numpy's 64 bits."""
    return jax.dtypes.canonicalize_dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)


def _like(name: str, leaf: Any, array: Array) -> Any:
    """An array as JAX's, of the dtype of a leaf."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    dtype = _dtype(leaf)
    check_fit(name, array, np.shape(leaf), dtype.name)
    return jnp.asarray(array, dtype)


def _write_safetensors(tree: Any, path: Path) -> None:
    arrays(tree).to_file(path)


def _write_msgpack(tree: Any, path: Path) -> None:
    try:
        from flax import serialization
    except ModuleNotFoundError as error:
        raise AppError("msgpack files are written by Flax, which is not here", hint="pip install flax") from error
    if _nnx(tree) is None:
        nested = serialization.to_state_dict(tree)
    else:
        nested = {}
        for name, array in arrays(tree).items():
            *parents, last = name.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = array
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, nested)))
