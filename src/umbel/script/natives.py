"""A script's own model, whatever it is: what of it travels, and how it takes what comes.

Nothing is imported but for a framework that is loaded: whoever has its model has loaded it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..core.arrays import Array, Arrays
from ..core.trees import flat, put_
from ..errors import AppError

KINDS = (("torch.nn", "Module", "torch"), ("keras", "Model", "keras"), ("sklearn.base", "BaseEstimator", "sklearn"))
"""The classes of frameworks' models: the module, the name there, and the adapter, a module of Umbel's."""


def adapter_of(native: Any) -> Any:
    """What has `arrays(native)` and `load_(native, arrays)` for a model of PyTorch, Keras or scikit-learn, and for a
    dictionary of arrays, or of dictionaries and lists of them. Raises `AppError` for anything else.
    """
    for module, name, adapter in KINDS:
        if module in sys.modules and isinstance(native, getattr(sys.modules[module], name)):
            return import_module(f"umbel.{adapter}")
    if isinstance(native, MutableMapping | list):
        return SimpleNamespace(arrays=tree_arrays, load_=load_tree_)
    raise AppError(
        f"fl.tasks(...) got a {type(native).__name__}, which is no model that it knows",
        hint="Pass a PyTorch module, a Keras model, a scikit-learn estimator or a dictionary of arrays. Of another "
        "kind, pass what has arrays(model) and load_(model, arrays) too: fl.tasks(model, adapter=...).",
    )


def tree_arrays(tree: Any) -> Arrays:
    """Copies of the arrays in a tree of dictionaries and lists, by dotted names such as ``layers.0.kernel``."""
    return Arrays({name: np.array(value) for name, value in flat(tree).items()})


def load_tree_(tree: Any, arrays: Mapping[str, Array]) -> Any:
    """Put arrays in the places of those that the tree has: numpy's are written to, others, such as JAX's, exchanged."""
    own = flat(tree)
    if own.keys() != arrays.keys():
        odd = sorted(own.keys() ^ arrays.keys())
        raise AppError(f"the model that came and the script's do not both have {odd[0]!r}")
    for name, value in own.items():
        if np.shape(value) != arrays[name].shape:
            raise AppError(f"the array {name!r} that came has another shape than the script's")
    return put_(tree, arrays)
