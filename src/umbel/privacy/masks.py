"""Masks: keystreams as vectors of unsigned integers, which are added to what they hide modulo a power of two.

A mask is the keystream of AES-256 in counter mode, from block 0 on, read as little-endian words of the vector's width:
of several vectors one after the other. Its key derives from a secret by HKDF.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..errors import InternalError

Words = npt.NDArray[np.unsignedinteger[npt.NBitBase]]

KEY_BYTES = 32
_PART = 1 << 16
"""So many bytes are made at a time: they, and what they are added to, stay in the cache."""
_NOUGHT = bytes(_PART)


def add_masks(vectors: Iterable[Words], *, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add the masks of some keys to vectors in place, one vector after the other, and subtract those of others."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    streams = [
        (Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), change)
        for change, keys in ((np.add, plus), (np.subtract, minus))
        for key in keys
    ]
    room = bytearray(_PART)
    for vector in vectors:
        if vector.ndim != 1 or not vector.flags.c_contiguous or vector.dtype.kind != "u":
            raise InternalError("masks are added to contiguous vectors of unsigned integers")
        words, step = np.frombuffer(room, vector.dtype.newbyteorder("<")), _PART // vector.itemsize
        for at in range(0, len(vector), step):
            part = vector[at : at + step]
            nought = memoryview(_NOUGHT)[: part.nbytes]
            for stream, change in streams:
                stream.update_into(nought, room)
                change(part, words[: len(part)], out=part)


def derived(secret: bytes, purpose: str, *bound_to: bytes) -> bytes:
    """A key of 32 bytes by HKDF-SHA256 from a secret, without salt, for one purpose and whatever else it is bound to:
    the info is ``umbel <purpose>``, and of each of these its length, as 4 bytes in little-endian order, and itself.
    """
    info = b"".join([f"umbel {purpose}".encode(), *(len(each).to_bytes(4, "little") + each for each in bound_to)])
    # Of one block, and without the parts that take cryptography's HKDF ten times as long.
    return hmac.digest(hmac.digest(bytes(KEY_BYTES), secret, "sha256"), info + b"\1", "sha256")
