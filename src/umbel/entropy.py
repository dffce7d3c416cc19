"""Randomness that nobody else knows, from which privacy noise is drawn.

A run knows its keys and all that derives from them, so noise drawn from a key would hide nothing from it. Whoever adds
noise draws it from the operating system; tests pin it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def _words(n: int) -> Words:
    return np.frombuffer(os.urandom(8 * n), np.uint64).copy()


class Entropy:
    """A source of random words: the operating system, or, in tests alone, `words`, such as those of a key's draws.

    Threads must not share one that is pinned.
    """

    __slots__ = ("words",)

    def __init__(self, words: Callable[[int], Words] = _words) -> None:
        self.words = words


SYSTEM = Entropy()
"""The operating system's."""
