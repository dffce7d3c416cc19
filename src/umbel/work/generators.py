"""The global generators of Keras and TensorFlow: how they are seeded for a task, kept, and given back.

Nothing is imported here: what is seeded has been loaded by whoever uses it.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import sys
import weakref
from typing import Any

MOST = 10**9
"""Keras draws its generators' seeds from 1 to this."""
PHILOX = 1
"""TensorFlow's number for the algorithm that it takes by default."""


class Tensorflow:
    """TensorFlow's global seed, from which its operations draw theirs, and its global generator."""

    def seed(self, value: int) -> None:
        """Seed them."""
        value &= (1 << 63) - 1
        sys.modules["tensorflow"].random.set_seed(value)
        generators = _tensorflows("tensorflow.python.ops.stateful_random_ops")
        if generators is None:
            return
        if generators.global_generator is None:  # its first user would get one that nobody seeded
            generators.set_global_generator(generators.Generator.from_seed(value))
        elif generators.global_generator.algorithm == PHILOX:
            generators.global_generator.state.assign([value, 0, 0])  # what `reset_from_seed` comes to, in a tenth of it
        else:
            generators.global_generator.reset_from_seed(value)

    def save_rng(self) -> Any:
        """Their state, for `restore_rng`."""
        context = _tensorflows("tensorflow.python.eager.context")
        generators = _tensorflows("tensorflow.python.ops.stateful_random_ops")
        now = None if context is None else context.context()
        generator = None if generators is None else generators.global_generator
        state = None if generator is None else generator.state.numpy()
        return getattr(now, "_seed", None), getattr(now, "_rng", None), generator, state

    def restore_rng(self, saved: Any) -> None:
        """Set them to what `save_rng` returned."""
        seed, rng, generator, state = saved
        context = _tensorflows("tensorflow.python.eager.context")
        generators = _tensorflows("tensorflow.python.ops.stateful_random_ops")
        if context is not None:
            context.context()._seed, context.context()._rng = seed, rng
        if generators is not None:
            generators.global_generator = generator
            if generator is not None:
                generator.state.assign(state)


class Keras:
    """The global seed of Keras 3, and the generators of its layers, such as of dropout.

    A layer's generator goes on from task to task where its model is used again. So all that live are set at each task's
    beginning, by the task's seed and by how many were made before it in its task, or when its module was imported:
    which tasks a process has done before must not matter.
    """

    def __init__(self) -> None:
        self._living: weakref.WeakKeyDictionary[Any, tuple[int | None, int]] = weakref.WeakKeyDictionary()
        self._seed: int | None = None
        self._made = 0
        self._watched: Any = None

    def watch(self) -> None:
        """Know of all generators from now on, and of those that there are."""
        kind = sys.modules["keras"].random.SeedGenerator
        if self._watched is kind:
            return
        self._watched = kind
        made = [found for found in gc.get_objects() if type(found) is kind]
        for generator in sorted(made, key=lambda found: (len(found.name), found.name)):  # names are numbered
            self._note(generator, generator.get_config()["seed"])
        make = kind.__init__

        @functools.wraps(make)
        def made_here(generator: Any, seed: int | None = None, *arguments: Any, **more: Any) -> None:
            unseeded = seed is None and self._seed is not None
            make(generator, self._drawn(self._made) if unseeded else seed, *arguments, **more)
            if unseeded:
                generator._initial_seed = None  # as its config says it
            self._note(generator, seed)

        kind.__init__ = made_here

    def _note(self, generator: Any, seed: int | None) -> None:
        """Know a generator by the seed that it was made with, or else by its number."""
        self._living[generator] = seed, self._made
        self._made += seed is None

    def _drawn(self, number: int) -> int:
        data = hashlib.blake2b(f"{self._seed}/{number}".encode(), digest_size=8).digest()
        return 1 + int.from_bytes(data, "big") % MOST

    def seed(self, value: int) -> None:
        """Seed them."""
        self.watch()
        sys.modules["keras"].utils.set_random_seed(value & 0xFFFFFFFF)
        self._seed, self._made = value, 0
        for generator, (own, number) in list(self._living.items()):
            generator.state.assign([self._drawn(number) if own is None else own, 0])

    def save_rng(self) -> Any:
        """Their state, for `restore_rng`."""
        self.watch()
        numpy = sys.modules["keras"].ops.convert_to_numpy
        states = [(weakref.ref(generator), numpy(generator.state)) for generator in self._living]
        return self._seed, self._made, states

    def restore_rng(self, saved: Any) -> None:
        """Set them to what `save_rng` returned."""
        self._seed, self._made, states = saved
        for reference, state in states:
            if (generator := reference()) is not None:
                generator.state.assign(state)


def _tensorflows(name: str) -> Any:
    """A module of TensorFlow's own, if it is there."""
    return sys.modules.get(name)
