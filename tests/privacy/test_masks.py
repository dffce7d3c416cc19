"""Masks, against the cipher itself."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import InternalError
from umbel.privacy.masks import add_masks, derived

dtypes = st.sampled_from(["<u2", "<u4", "<u8"])
lengths = st.lists(st.integers(0, 40_000), min_size=1, max_size=3)


def keystream(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


@given(st.binary(min_size=32, max_size=32), dtypes, lengths, st.booleans())
def test_a_mask_is_the_ciphers_keystream(key: bytes, dtype: str, sizes: list[int], negative: bool) -> None:
    vectors = [np.arange(size).astype(dtype) for size in sizes]
    add_masks(vectors, **{"minus" if negative else "plus": [key]})
    words = np.frombuffer(keystream(key, np.dtype(dtype).itemsize * sum(sizes)), dtype)
    for part, vector in zip(np.split(words, np.cumsum(sizes)[:-1]), vectors, strict=True):
        plain = np.arange(len(vector)).astype(dtype)
        assert vector.tolist() == ((plain - part) if negative else (plain + part)).tolist()


@given(st.binary(min_size=32, max_size=32), lengths)
def test_a_head_and_a_body_of_other_widths_follow_each_other(key: bytes, sizes: list[int]) -> None:
    vectors = [np.zeros(3, "<u8"), *(np.zeros(size, "<u2") for size in sizes)]
    add_masks(vectors, plus=[key])
    assert b"".join(each.tobytes() for each in vectors) == keystream(key, 24 + 2 * sum(sizes))


@given(st.binary(min_size=32, max_size=32), dtypes, st.integers(0, 100_000))
def test_what_was_added_can_be_taken_off(key: bytes, dtype: str, size: int) -> None:
    vector = np.arange(size).astype(dtype)
    add_masks([vector], plus=[key])
    assert size < 10 or (vector != np.arange(size).astype(dtype)).any()
    add_masks([vector], minus=[key])
    assert (vector == np.arange(size).astype(dtype)).all()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=4), st.integers(0, 60_000), st.integers(0, 4))
def test_many_at_once_are_each_of_them(keys: list[bytes], size: int, split: int) -> None:
    vector, expected = np.zeros(size, "<u4"), np.zeros(size, "<u4")
    add_masks([vector], plus=keys[:split], minus=keys[split:])
    for i, key in enumerate(keys):
        add_masks([expected], **{"plus" if i < split else "minus": [key]})
    assert (vector == expected).all()


@pytest.mark.parametrize("vector", [np.zeros(4), np.zeros((2, 2), "<u4"), np.zeros(8, "<u4")[::2], np.zeros(3, "<i8")])
def test_a_mask_is_added_to_nothing_else(vector: np.ndarray) -> None:
    with pytest.raises(InternalError, match="contiguous vectors of unsigned"):
        add_masks([vector], plus=[bytes(32)])


OWN = "2b288bd7b178b941569e9a09e2a4eb21a70a60f55cedd31b57da0837536a365f"
SHARES = "308d68a13d0fd0fe9c1ecd2fad5475501cca6ab3b4c1048f7261861c3085aa31"


def test_keys_are_those_that_are_written_down() -> None:
    """Test vectors for other languages: HKDF-SHA256 without salt, of 32 zeros."""
    assert derived(bytes(32), "own mask", b"1.0.1").hex() == OWN
    assert derived(bytes(32), "shares", b"1.0.1", b"2 to 7").hex() == SHARES


@given(st.binary(min_size=1, max_size=40), st.text(max_size=5), st.lists(st.binary(max_size=4), max_size=3))
def test_keys_are_those_of_hkdf(secret: bytes, purpose: str, parts: list[bytes]) -> None:
    info = f"umbel {purpose}".encode() + b"".join(len(each).to_bytes(4, "little") + each for each in parts)
    assert derived(secret, purpose, *parts) == HKDF(SHA256(), 32, None, info).derive(secret)


@given(st.lists(st.binary(max_size=4), max_size=3), st.lists(st.binary(max_size=4), max_size=3))
def test_other_bindings_are_other_keys(one: list[bytes], other: list[bytes]) -> None:
    assert (derived(bytes(32), "x", *one) == derived(bytes(32), "x", *other)) == (one == other)
