"""Seed the global random generators per task, so that ordinary user code is reproducible, and give them back
afterwards.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from ..randomness import Key

_ADAPTERS = {"torch": "umbel.torch"}
"""Frameworks with a global generator of their own, and the module whose `seed`, `save_rng` and `restore_rng` handle
it.
"""


def seed_generators(key: Key) -> None:
    """Seed the global generators of `random`, numpy and of every framework that is loaded."""
    seed_all(seed_of(key))


def seed_of(key: Key) -> int:
    """The seed of a key's global generators."""
    return key.integer(64)


def seed_all(seed: int) -> None:
    """Seed the global generators with what `seed_of` gave."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    for adapter in _loaded():
        adapter.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators as they were found."""
    kept = random.getstate(), np.random.get_state(), [(a, a.save_rng()) for a in _loaded()]
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        for adapter, state in kept[2]:
            adapter.restore_rng(state)


def _loaded() -> list[ModuleType]:
    found = []
    for framework, name in _ADAPTERS.items():
        if framework in sys.modules:
            found.append(sys.modules.get(name) or importlib.import_module(name))
    return found
