"""Tokens: what lets a node join once, an operator in, and a run speak for itself. Written ``id.secret``; the server
keeps the secret's digest alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from ..errors import SettingError

_FORM = re.compile(r"([0-9a-f]{12})\.([0-9a-f]{32})")


@dataclass(frozen=True)
class Token:
    """A token: its id is no secret."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Token:
        """A fresh token, with a secret of 128 bits from the operating system."""
        return cls(secrets.token_hex(6), secrets.token_hex(16))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read ``id.secret``. Raises `SettingError`, which does not repeat the text."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise SettingError(
                "this is not a token", hint="A token is 12 hexadecimal digits, a dot and 32 more: was all of it copied?"
            )
        return cls(found[1], found[2])

    @property
    def text(self) -> str:
        """The whole token, secret included."""
        return f"{self.id}.{self.secret}"

    @property
    def digest(self) -> bytes:
        """What the server keeps, and what proofs are made with."""
        return digest(self.secret)


def digest(secret: str) -> bytes:
    """The SHA-256 of a secret, as it is written."""
    return hashlib.sha256(secret.encode()).digest()


def check(secret: str, kept: bytes) -> bool:
    """Whether a secret has this digest, in constant time."""
    return hmac.compare_digest(digest(secret), kept)
