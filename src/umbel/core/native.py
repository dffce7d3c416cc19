"""Models of a framework: how one is made, becomes arrays, and is written in the framework's own format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AppError, SettingError
from .arrays import Array, Arrays

Writer = Callable[[Any, Path], None]
"""Writes a framework's model to a file."""


@dataclass(frozen=True)
class NativeModel:
    """A framework's own model, which an `App` may have as its `model`; adapters make it (``umbel.torch.model(Net)``).

    - `make`: makes one, such as a class of modules, or a function that builds and compiles one.
    - `arrays`: what of it travels. `load`: the same put into a model, in place where that can be, which is returned.
    - `formats`: by the ending of a file's name (``".pt"``), what writes a model there.
    """

    make: Callable[[], Any]
    arrays: Callable[[Any], Arrays]
    load: Callable[[Any, Mapping[str, Array]], Any]
    formats: Mapping[str, Writer] = field(default_factory=dict)

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
        return self.load(self.make(), model)

    def save(self, model: Mapping[str, Array], path: Path) -> None:
        """Write a model in the framework's format that the file's ending names. Raises `AppError` for another."""
        writer = self.formats.get(path.suffix)
        if writer is None:
            raise AppError(
                f"such a model is not written as {path.suffix or path.name!r}",
                hint=f"Name a file that ends in {', '.join(sorted(self.formats)) or '.safetensors'}.",
            )
        writer(self.loaded(model), path)
