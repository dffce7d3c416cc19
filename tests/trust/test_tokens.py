"""Tokens: fresh, strict, and silent about their secret."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from umbel.errors import SettingError
from umbel.trust.tokens import Token


def test_a_token_is_read_as_it_is_written():
    token = Token.new()
    assert Token.parse(f" {token.text}\n") == token
    assert len(token.secret) == 32
    assert Token.new() != token


def test_a_tokens_key_is_made_of_its_secret_as_it_is_written():
    token = Token("0" * 12, "ab" * 16)
    seed = hashlib.sha256(b"umbel/v1alpha\0token\0" + b"ab" * 16).digest()
    assert token.key.public == Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert token.key.public == Token("1" * 12, "ab" * 16).key.public != Token.new().key.public


def test_a_token_does_not_show_its_secret():
    token = Token.new()
    assert token.secret not in repr(token) + str(token)


@pytest.mark.parametrize("text", ["", ".", "x.y", "0" * 12, "0" * 12 + "." + "g" * 32, "0" * 12 + "." + "a" * 33])
def test_what_is_no_token_is_an_error_that_does_not_repeat_it(text):
    with pytest.raises(SettingError, match="not a token") as caught:
        Token.parse(text)
    assert not text.strip(".") or text not in str(caught.value)
