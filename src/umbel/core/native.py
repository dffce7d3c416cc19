"""Models of a framework: how one is made, becomes arrays, and is written in the framework's own format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AppError, SettingError
from .arrays import Array, Arrays, is_floating

Writer = Callable[[Any, Path], None]
"""Writes a framework's model to a file."""


@dataclass(frozen=True)
class NativeModel:
    """A framework's own model, which an `App` may have as its `model`; adapters make it (``umbel.torch.model(Net)``).

    - `make`: makes one, such as a class of modules, or a function that builds and compiles one.
    - `arrays`: what of it travels. `load`: the same put into a model, in place where that can be, which is returned.
    - `blank`: makes what is loaded where that takes less than `make`, whose weights are of no account then.
    - `formats`: by the ending of a file's name (``".pt"``), what writes a model there.
    """

    make: Callable[[], Any]
    arrays: Callable[[Any], Arrays]
    load: Callable[[Any, Mapping[str, Array]], Any]
    formats: Mapping[str, Writer] = field(default_factory=dict)
    blank: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise SettingError(
                f"a model is made by a function, not given as {self.make!r:.60}",
                hint="Pass a class or a function without arguments: umbel.torch.model(Net), not model(Net()).",
            )

    def __call__(self) -> Arrays:
        """The initial model, made anew."""
        return self.arrays(self.make())

    def loaded(self, model: Mapping[str, Array]) -> Any:
        """A model of the framework with these arrays."""
        return self.load((self.blank or self.make)(), model)

    def save(self, model: Mapping[str, Array], path: Path) -> None:
        """Write a model in the framework's format that the file's ending names. Raises `AppError` for another."""
        writer = self.formats.get(path.suffix)
        if writer is None:
            raise AppError(
                f"such a model is not written as {path.suffix or path.name!r}",
                hint=f"Name a file that ends in {', '.join(sorted(self.formats)) or '.safetensors'}.",
            )
        writer(self.loaded(model), path)


def check_same_form(own: Mapping[str, Array], model: Mapping[str, Array], what: str) -> None:
    """Raise `AppError`, naming an array, unless `model` has the names and shapes of `own`, the arrays of `what`, and
    their dtypes but for floating-point arrays, which are converted.
    """
    hint = f"{what} has {', '.join(list(own)[:6]) or 'none'}. Load a model into what it was made from: in a later "
    hint += "version of an app its names, shapes and features have to be those of the model."
    if unknown := [name for name in model if name not in own]:
        raise AppError(f"the model holds {unknown[0]!r}, which {what} does not have", hint=hint)
    if missing := [name for name in own if name not in model]:
        raise AppError(f"the model lacks {missing[0]!r}, which {what} has", hint=hint)
    for name, array in own.items():
        if (given := np.shape(model[name])) != array.shape:
            raise AppError(f"{name!r} has shape {list(given)} in the model, {list(array.shape)} in {what}", hint=hint)
        kinds = array.dtype, np.asarray(model[name]).dtype
        if kinds[0] != kinds[1] and not all(map(is_floating, kinds)):
            raise AppError(f"{name!r} is {kinds[1]} in the model, {kinds[0]} in {what}", hint=hint)


def missing_package(error: ModuleNotFoundError, package: str, extra: str) -> ImportError:
    """What to raise where an adapter's package is not installed; `error` itself where it is another that is missing."""
    if error.name != package:
        return error
    hint = f'umbel.{extra} needs {package}, which is not installed here. Install it with: pip install "umbel[{extra}]"'
    return ImportError(hint, name=package)
