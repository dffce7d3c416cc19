"""Masks: keystreams as vectors of unsigned integers, which are added to what they hide modulo a power of two.

A mask is the keystream of AES-256 in counter mode, from block 0 on, read as little-endian words of the vector's width:
of a `Sealed` sum first those of the head, then those of the body. Its key derives from a secret by HKDF.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..errors import InternalError

Words = npt.NDArray[np.unsignedinteger[npt.NBitBase]]

KEY_BYTES = 32
_PART = 1 << 16
"""So many bytes are made at a time: they, and what they are added to, stay in the cache."""
_NOUGHT = bytes(_PART)


class Mask:
    """The keystream of a key of 32 bytes, taken from its beginning on."""

    __slots__ = ("_room", "_stream")

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._room = bytearray(_PART)

    def add(self, vector: Words, *, negative: bool = False) -> None:
        """Add, or subtract, the next words to a vector in place, modulo 2 to the power of its bits."""
        if vector.ndim != 1 or not vector.flags.c_contiguous or vector.dtype.kind != "u":
            raise InternalError("a mask is added to a contiguous vector of unsigned integers")
        step = _PART // vector.itemsize
        words = np.frombuffer(self._room, vector.dtype.newbyteorder("<"))
        change = np.subtract if negative else np.add
        for at in range(0, len(vector), step):
            part = vector[at : at + step]
            with memoryview(_NOUGHT)[: part.nbytes] as nought:
                self._stream.update_into(nought, self._room)
            change(part, words[: len(part)], out=part)


def add_masks(vectors: Iterable[Words], key: bytes, *, negative: bool = False) -> None:
    """Add, or subtract, the mask of a key to vectors in place, one after the other."""
    mask = Mask(key)
    for vector in vectors:
        mask.add(vector, negative=negative)


def derived(secret: bytes, purpose: str, *bound_to: bytes) -> bytes:
    """A key of 32 bytes by HKDF-SHA256 from a secret, without salt, for one purpose and whatever else it is bound to:
    the info is ``umbel <purpose>``, and of each of these its length, as 4 bytes in little-endian order, and itself.
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"".join([f"umbel {purpose}".encode(), *(len(each).to_bytes(4, "little") + each for each in bound_to)])
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)
