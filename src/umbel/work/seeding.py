"""Seed the global random generators per task, so that ordinary user code is reproducible, and give them back
afterwards.

A framework that is loaded while a task goes on, by an import within its handler, is seeded then: the first task of a
process must not differ from later ones.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..core.randomness import Key
from .generators import Keras, Tensorflow


class Generators(Protocol):
    """A framework's global generators."""

    def seed(self, value: int) -> None:
        """Seed them."""

    def save_rng(self) -> Any:
        """Their state, for `restore_rng`."""

    def restore_rng(self, saved: Any) -> None:
        """Set them to what `save_rng` returned."""


_tensorflow, _keras = Tensorflow(), Keras()
_FRAMEWORKS: dict[str, Callable[[], Generators]] = {
    "keras": lambda: _keras,  # seeds what it computes with as well, so it goes first
    "tensorflow": lambda: _tensorflow,
    # Its own module, for what is loaded may be umbel.torch itself, which loads torch first.
    "torch": lambda: sys.modules.get("umbel.torch.seeds") or importlib.import_module("umbel.torch.seeds"),
}
"""Frameworks with global generators, and what handles these."""


class _Arrivals(MetaPathFinder):
    """Sees to it that a framework is seeded as soon as it has been loaded; finds nothing itself."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.here: list[Generators] | None = None  # what handles the frameworks that are loaded, while none other comes
        self._looking = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that others find for a framework, with a loader that seeds it."""
        if name not in _FRAMEWORKS or self._looking or self.seed is None:
            return None
        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def loaded(module: ModuleType) -> None:
            load(module)
            self.here = None
            if self.seed is not None:
                _seed(self.seed, name)

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


_arrivals = _Arrivals()


def seed_generators(key: Key) -> None:
    """Seed the global generators of `random`, numpy and of every framework that is loaded."""
    seed_all(seed_of(key))


def seed_of(key: Key) -> int:
    """The seed of a key's global generators."""
    return key.integer(64)


def seed_all(seed: int) -> None:
    """Seed the global generators with what `seed_of` gave."""
    if _arrivals.seed is None:
        sys.meta_path.insert(0, _arrivals)
    _arrivals.seed = seed
    _seed(seed)


def _seed(seed: int, arrived: str = "") -> None:
    if (here := _arrivals.here) is None:
        here = _loaded(arrived)
        if not any(_is_arriving(sys.modules[name]) for name in _FRAMEWORKS if name in sys.modules):
            _arrivals.here = here
    for generators in here:
        generators.seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def note_generators() -> None:
    """Know of the generators that models have that are there already, before the garbage collector forgets them."""
    if "keras" in sys.modules:
        _keras.watch()


def drew_nothing(seed: int) -> bool:
    """Whether the global generators are as `seed_all` left them with this seed, which they are afterwards. Where they
    cannot be compared, such as those of Keras, they have been drawn from.
    """
    if _keras_is_loaded():
        return False
    after = _states()
    seed_all(seed)
    return after == _states()


def _states() -> list[bytes]:
    """The states of the global generators, as far as they can be compared."""
    name, words, *rest = np.random.get_state()
    known = [repr((random.getstate(), name, rest)).encode(), np.asarray(words).tobytes()]
    return known + [np.asarray(state).tobytes() for each in _loaded() for state in each.save_rng()]


def _keras_is_loaded() -> bool:
    return "keras" in sys.modules or "tensorflow" in sys.modules


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators as they were found."""
    kept = random.getstate(), np.random.get_state(), [(g, g.save_rng()) for g in _loaded()]
    seed = _arrivals.seed
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        for generators, state in kept[2]:
            generators.restore_rng(state)
        if seed is None and _arrivals.seed is not None:
            sys.meta_path.remove(_arrivals)
        _arrivals.seed, _arrivals.here = seed, None


def _loaded(arrived: str = "") -> list[Generators]:
    """What handles the frameworks that are loaded, or have just `arrived`; those on their way are left alone."""
    there = [name for name in _FRAMEWORKS if name in sys.modules]
    return [_FRAMEWORKS[name]() for name in there if name == arrived or not _is_arriving(sys.modules[name])]


def _is_arriving(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
