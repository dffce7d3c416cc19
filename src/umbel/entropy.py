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


_FEW = 64
"""So many words at most are the operating system's own, which takes ten times as long as a cipher does."""


def _words(n: int) -> Words:
    if n <= _FEW:
        return np.frombuffer(os.urandom(8 * n), np.uint64).copy()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16)))  # the key is for these words alone
    return np.frombuffer(cipher.encryptor().update(bytes(8 * n)), np.uint64).copy()


class Entropy:
    """A source of random words: the operating system, or, in tests alone, `words`, such as those of a key's draws.

    Many words at once are those of AES-256 in counter mode, under a key that is drawn from it anew for each time, and
    forgotten.

    Threads must not share one that is pinned.
    """

    __slots__ = ("words",)

    def __init__(self, words: Callable[[int], Words] = _words) -> None:
        self.words = words


SYSTEM = Entropy()
"""The operating system's."""
