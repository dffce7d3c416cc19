"""Tokens: what lets a node join once, an operator in, and a run speak for itself. Written ``id.secret``.

The secret is the seed of a key: who holds it signs, and the server keeps the public key alone, by which nobody can.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

from ..errors import SettingError
from .identity import SigningKey

_SEED = b"umbel/v1alpha\0token\0"
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
    def key(self) -> SigningKey:
        """What proofs are made with; its `public` part is what the server keeps."""
        return SigningKey.of_seed(hashlib.sha256(_SEED + self.secret.encode()).digest())
