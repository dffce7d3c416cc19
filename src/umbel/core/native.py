"""Models of a framework: how one is made, becomes arrays, and is written in the framework's own format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AppError, SettingError, UpdateRejected
from .arrays import Array, Arrays, Role, is_floating

Writer = Callable[[Any, Path], None]
"""Writes a framework's model to a file."""


@dataclass(frozen=True)
class NativeModel:
    """A framework's own model, which an `App` may have as its `model`; adapters make it (``umbel.torch.model(Net)``).

    - `make`: makes one, such as a class of modules, or a function that builds and compiles one.
    - `arrays`: what of it travels. `load`: the same put into a model, in place where that can be, which is returned.
    - `blank`: makes what is loaded where that takes less than `make`, whose weights are of no account then.
    - `formats`: by the ending of a file's name (``".pt"``), what writes a model there; that of ``""`` makes a folder.
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
                hint=f"Name a file that ends in {', '.join(sorted(filter(None, self.formats))) or '.safetensors'}"
                + (", or in nothing, for a folder." if "" in self.formats else "."),
            )
        writer(self.loaded(model), path)


def check_same_form(own: Mapping[str, Array], model: Mapping[str, Array], what: str) -> None:
    """Raise `AppError`, naming an array, unless `model` has the names and shapes of `own`, the arrays of `what`, and
    their dtypes but for floating-point arrays, which are converted.
    """
    check_names(what, own, model, strict=True)
    for name, array in own.items():
        check_fit(name, np.asarray(model[name]), array.shape, array.dtype.name)


def columns_of(rows: Any, names: Iterable[Any] | None) -> Any:
    """Rows with the columns that a model has, in its order: of a frame those of these names; others as they are.

    Raises `AppError` for a column that a frame lacks.
    """
    if names is None or not hasattr(rows, "columns"):
        return rows
    names = list(names)
    if missing := [name for name in names if name not in rows.columns]:
        raise AppError(f"the rows lack the columns {listed(map(str, missing))} of the model")
    return rows[names]


def check_same_trees(own: Mapping[str, Any], given: Mapping[str, Any], check: Callable[[], object] = bool) -> None:
    """Raise `AppError` where what is known of an ensemble, `given`, is not what its booster says, `own`, and where
    `check` of its trees rejects them.
    """
    for name, value in own.items():
        if given.get(name) != value:
            raise AppError(
                f"the model's {name} are {given.get(name)!r:.200}, those of the booster {value!r:.200}",
                hint="Load a model into what it was made from: in a later version of an app its features stay.",
            )
    try:
        check()
    except UpdateRejected as error:
        raise AppError(error.message) from None


def missing_package(error: ModuleNotFoundError, package: str, extra: str) -> ImportError:
    """What to raise where an adapter's package is not installed; `error` itself where it is another that is missing."""
    if error.name is None or error.name.partition(".")[0] != package:
        return error
    hint = f'umbel.{extra} needs {package}, which is not installed here. Install it with: pip install "umbel[{extra}]"'
    return ImportError(hint, name=package)


def mark_personal(roles: dict[str, Role], personal: Sequence[str], kind: str) -> None:
    """Give the names that match one of these glob patterns the role `personal`. Raises `AppError` for a pattern that
    matches none: a misspelt one would let a personal array leave its holder.
    """
    for pattern in (personal,) if isinstance(personal, str) else personal:
        matches = [name for name in roles if fnmatchcase(name, pattern)]
        if not matches:
            raise AppError(
                f"the personal pattern {pattern!r} matches no tensor of {kind}",
                hint=f"Its tensors are {listed(roles)}.",
            )
        roles.update(dict.fromkeys(matches, "personal"))


def check_names(kind: str, needed: Collection[str], given: Collection[str], strict: bool) -> None:
    """Raise `AppError` where a model has other names than what it is loaded into, a `kind`."""
    if unknown := [name for name in given if name not in needed]:
        raise AppError(
            f"the model holds {listed(unknown)}, which {kind} does not have",
            hint=f"{kind} has {listed(needed)}. Load a model into the kind of module that it was made from, "
            "before compiling or wrapping it.",
        )
    if strict and (missing := [name for name in needed if name not in given]):
        raise AppError(
            f"the model lacks {listed(missing)}, which {kind} has",
            hint="strict=False keeps the module's own values for what is missing, such as personal arrays.",
        )


def check_fit(name: str, array: Array, shape: Sequence[int], dtype: str) -> None:
    """Raise `AppError` where an array cannot be put into a tensor of this shape and dtype."""
    if array.shape != tuple(shape):
        raise AppError(f"the array {name!r} has shape {list(array.shape)}, the module's tensor {list(shape)}")
    if array.dtype.name != dtype and not (is_floating(array.dtype) and "float" in dtype):
        raise AppError(
            f"the array {name!r} has dtype {array.dtype.name}, the module's tensor {dtype}",
            hint="Only floating-point arrays are converted.",
        )


def listed(names: Iterable[str]) -> str:
    """Some of the names, for people."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(repr(name) for name in names[:4]) + more
