"""Trees of frameworks' tensors: as arrays by their names, as what can be kept, and back.

A tree is dictionaries, lists and tuples, one in another, down to arrays. Nothing is imported here: whoever has a
framework's tensor has loaded the framework.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import StrategyError

Tree = TypeVar("Tree")
_TENSOR = ("__array__", "dtype", "shape")
_PLAIN = frozenset((np.ndarray, type(None), bool, int, float, str, bytes))


def as_array(value: Any) -> npt.NDArray[Any]:
    """What `numpy.asarray` takes, and tensors wherever they are, as an array; without a copy where that can be."""
    if type(value) is np.ndarray:
        return value
    found = tensor_array(value)
    return np.asarray(value) if found is None else found


def tensor_array(value: Any) -> npt.NDArray[Any] | None:
    """A framework's tensor as an array: of PyTorch on any device and with a gradient, of JAX, keys included, of
    TensorFlow and Keras. None for anything else.
    """
    if isinstance(value, np.ndarray | np.generic) or not all(hasattr(value, name) for name in _TENSOR):
        return None
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            if value.dtype is not torch.bfloat16:
                return value.numpy(force=True)  # type: ignore[no-any-return]
            import ml_dtypes

            return value.detach().view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        if jax is not None and isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise StrategyError(f"a {type(value).__name__} of {value.dtype} cannot become an array: {error}") from error


def keepable(tree: Any) -> Any:
    """A tree as it can be kept, itself where nothing is to be changed: tensors as arrays, other kinds of dictionaries
    and tuples as plain ones.
    """
    if type(tree) in _PLAIN:
        return tree
    if isinstance(tree, dict | list | tuple):
        values = list(tree.values()) if isinstance(tree, dict) else tree
        parts = [keepable(value) for value in values]
        kind = next(kind for kind in (dict, list, tuple) if isinstance(tree, kind))
        if type(tree) is kind and all(part is value for part, value in zip(parts, values, strict=True)):
            return tree
        return dict(zip(tree, parts, strict=True)) if kind is dict else kind(parts)
    found = tensor_array(tree)
    return tree if found is None else found


def flat(tree: Any) -> Mapping[str, Any]:
    """The arrays of a tree by dotted names, such as ``layers.0.kernel``; a mapping of names to arrays is itself.

    A name is made of keys, of places in lists and tuples, and of the fields of named tuples; None is no array. A list
    of numbers is an array, one of arrays is a part of the tree. Raises `StrategyError` for two arrays of one name.
    """
    if isinstance(tree, Mapping) and not any(is_tree(value) or value is None for value in tree.values()):
        return tree
    found: dict[str, Any] = {}
    for name, leaf in _leaves(tree, ""):
        if name in found:
            raise StrategyError(
                f"two arrays of the tree have the name {name!r}", hint="Have no dots in the keys of a tree of arrays."
            )
        found[name] = leaf
    return found


def as_tree(arrays: Mapping[str, Any], like: Tree) -> Tree:
    """Arrays by their names, such as a model, as a tree of dictionaries, lists and tuples like the one that they were
    made of. Raises `StrategyError` for an array that is not there.
    """
    for name in flat(like):
        if name not in arrays:
            raise StrategyError(f"there is no array {name!r} for the tree", hint=f"There are {', '.join(arrays)}.")
    made: Tree = _filled(like, arrays, "")
    return made


def put_(tree: Any, arrays: Mapping[str, Any], path: str = "") -> Any:
    """A tree with these arrays in the places of its own, in place where that can be: in numpy's arrays that can be
    written to, else in the dictionary or list that has them.
    """
    if tree is None:
        return tree
    if path and not is_tree(tree):
        if isinstance(tree, np.ndarray) and tree.flags.writeable:
            tree[...] = arrays[path]
            return tree
        jax = sys.modules.get("jax")
        return (
            np.array(arrays[path]) if jax is None or not isinstance(tree, jax.Array) else jax.numpy.array(arrays[path])
        )
    parts = [put_(value, arrays, f"{path}.{key}" if path else key) for key, value in _parts(tree)]
    if isinstance(tree, MutableMapping | list):
        for key, part in zip(tree if isinstance(tree, MutableMapping) else range(len(tree)), parts, strict=True):
            tree[key] = part
        return tree
    return _again(tree, parts)


def _filled(tree: Any, arrays: Mapping[str, Any], path: str) -> Any:
    if tree is None or (path and not is_tree(tree)):
        return tree if tree is None else arrays[path]
    parts = [_filled(value, arrays, f"{path}.{key}" if path else key) for key, value in _parts(tree)]
    return _again(tree, parts)


def _again(tree: Any, parts: list[Any]) -> Any:
    """A tree of the kind of another, of other parts."""
    if isinstance(tree, Mapping):
        return dict(zip(tree, parts, strict=True))
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in _parts(tree):
        name = f"{path}.{key}" if path else key
        if is_tree(value):
            yield from _leaves(value, name)
        elif value is not None:
            yield name, value


def _parts(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        return ((str(key), value) for key, value in tree.items())
    if hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    return ((str(at), value) for at, value in enumerate(tree))


def is_tree(value: Any) -> bool:
    """Whether a value is a tree, or a part of one, and no array."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, Mapping) or hasattr(value, "_fields"):
        return True
    return isinstance(value, list | tuple) and any(
        each is None or is_tree(each) or (hasattr(each, "ndim") and not isinstance(each, np.generic)) for each in value
    )
