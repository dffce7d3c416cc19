"""States of transforms of which a run's files must not tell: whoever may have these, as operators who pull them, is not
to have what hides clients. They are masked by the run's secret, which stays where the run is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core import encoding
from ..core.arrays import Array
from ..core.randomness import Key
from ..errors import CorruptFile


def masked(tree: Any, secret: Key) -> dict[str, Any]:
    """The tree as bytes that tell nothing but how many they are, and whether two are of the same tree."""
    data = encoding.encode(tree)
    mark = _mark(data, secret)
    return {"masked": _mixed(data, mark, secret), "mark": mark.hex()}


def is_masked(tree: Any) -> bool:
    """Whether a state is what `masked` gives."""
    return isinstance(tree, Mapping) and tree.keys() == {"masked", "mark"}


def unmasked(kept: Mapping[str, Any], secret: Key) -> Any:
    """The tree again. Raises `CorruptFile` where the secret, or what is masked, is another."""
    mark = bytes.fromhex(kept["mark"])
    data = _mixed(np.asarray(kept["masked"]).tobytes(), mark, secret).tobytes()
    if _mark(data, secret) != mark:
        raise CorruptFile(
            "what hides clients was masked by another secret than the run's folder has",
            hint="Go on with the run where it was: its secret is not in what is pulled.",
        )
    return encoding.decode(data)


def _mark(data: bytes, secret: Key) -> bytes:
    return hashlib.blake2b(data, key=secret.derive("mark").raw, digest_size=32).digest()


def _mixed(data: bytes, mark: bytes, secret: Key) -> Array:
    """The bytes and as many pseudorandom ones, each bit added up: what was mixed is so unmixed."""
    stream = hashlib.shake_256(secret.derive("mask").raw + mark).digest(len(data))
    return np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(stream, np.uint8))
