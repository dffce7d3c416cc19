"""Modules as models of an app, their files, and what is kept of an optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..core.native import NativeModel
from ..errors import AppError
from .modules import arrays, load_, plain, tensor_of

Optimizing = TypeVar("Optimizing", bound=torch.optim.Optimizer)


def model(
    make: Callable[[], nn.Module],
    *,
    personal: Sequence[str] = (),
    trainable_only: bool = False,
    example: Any = None,
) -> NativeModel:
    """What `make` makes, a class of modules or a function, as an app's model: ``App(model=umbel.torch.model(Net))``.

    `personal` and `trainable_only` are those of `arrays`. It is written as ``.pt`` (the ``state_dict``, which
    ``net.load_state_dict(torch.load(path))`` reads), ``.safetensors``, and ``.onnx`` with the package onnx and an
    `example`: the module's input, or a tuple of them, of which the first dimension may then be any.
    """
    return NativeModel(
        make,
        partial(arrays, personal=personal, trainable_only=trainable_only),
        partial(load_, strict=not trainable_only),
        {".pt": _write_state, ".safetensors": _write_safetensors, ".onnx": partial(_write_onnx, example=example)},
    )


def load_optimizer_(optimizer: Optimizing, kept: Mapping[str, Any] | None) -> Optimizing:
    """Put an optimizer's ``state_dict()`` that was kept in ``ctx.state`` back into one, in place, and return it.

    Only moments and counts are taken from it: settings, such as the learning rate, stay those of the optimizer. Nothing
    is done for None. Raises `AppError` for the state of an optimizer of other parameters.
    """
    if not kept:
        return optimizer
    now = optimizer.state_dict()
    sizes = [[len(group["params"]) for group in each["param_groups"]] for each in (kept, now)]
    if sizes[0] != sizes[1]:
        raise AppError(
            f"the optimizer's state is of groups of {sizes[0]} parameters, and this one has {sizes[1]}",
            hint="Has the model changed? Begin anew: leave the state of the client's last tasks aside.",
        )
    optimizer.load_state_dict({"state": with_tensors(kept["state"]), "param_groups": now["param_groups"]})
    return optimizer


def with_tensors(tree: Any) -> Any:
    """What ``ctx.state`` kept, with tensors for arrays."""
    if isinstance(tree, np.ndarray | np.generic):
        return tensor_of("state", np.array(tree))
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, Mapping):
        return {name: with_tensors(part) for name, part in tree.items()}
    return type(tree)(map(with_tensors, tree)) if isinstance(tree, list | tuple) else tree


def _write_state(net: nn.Module, path: Path) -> None:
    torch.save(plain(net).state_dict(), path)


def _write_safetensors(net: nn.Module, path: Path) -> None:
    arrays(net, copy=False).to_file(path)


def _write_onnx(net: nn.Module, path: Path, example: Any) -> None:
    if example is None:
        raise AppError(
            "an ONNX file is made by running the module once, and there is no example of its input",
            hint="Pass one: umbel.torch.model(Net, example=torch.zeros(1, 1, 28, 28)).",
        )
    if any(find_spec(package) is None for package in ("onnx", "onnxscript")):
        raise AppError(
            "ONNX files are written by packages that are not here", hint="Install them: pip install onnx onnxscript"
        )
    given = tuple(map(_twice, example if isinstance(example, tuple) else (example,)))
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if isinstance(x, torch.Tensor) and x.ndim else None for x in given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            net.eval(), given, str(path), dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False
        )


def _twice(example: Any) -> Any:
    """A single example as two, since what is traced with one row takes no more."""
    return torch.cat([example, example]) if getattr(example, "ndim", 0) and len(example) == 1 else example
