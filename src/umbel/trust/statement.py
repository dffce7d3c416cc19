"""What an author signs of a run: not its code alone, but as which app, with what, where and until when it may run.

A statement is JSON in one form (sorted keys, no spaces, ASCII), of which the author signs the bytes::

    {"app": "mnist", "archive": SHA-256, "version": 3,
     "config": SHA-256, "contract": SHA-256, "federation": key, "expires": seconds since 1970}

The first three are always there. `version` is what the client's file declares (``[tool.umbel] version = 3``), 0 where
it declares none; whoever has let in one runs no lower one of the same author and app. `config` and `contract` are the
hashes of the run's settings and contract, in the same form of JSON; `federation` is the public key of the server's
authority. What an author leaves out is not bound; the owner of a node can require it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ..errors import AppError
from ..wire import messages as m
from .identity import SigningKey, check_statement, sign_statement

BOUND = ("config", "contract", "federation", "expires", "version")
"""What an author may leave out, and an owner require."""
LARGEST = 4096
"""Bytes of a statement at most."""

_TEXTS, _HASHES = ("app", "archive", "config", "contract", "federation"), ("archive", "config", "contract")


def canonical(value: Any) -> bytes:
    """JSON in the one form that is signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(text: str) -> str:
    """The hash of what JSON says, however it is written. Raises `ValueError` and `RecursionError`."""
    return hashlib.sha256(canonical(json.loads(text))).hexdigest()


@dataclass(frozen=True)
class Statement:
    """What an author says of a run; None and version 0 where nothing is said."""

    app: str
    archive: str
    version: int = 0
    config: str | None = None
    contract: str | None = None
    federation: str | None = None
    expires: float | None = None

    def text(self) -> bytes:
        """What is signed."""
        return canonical({name: value for name, value in asdict(self).items() if value is not None})

    def signed(self, key: SigningKey) -> bytes:
        """The signature of its author."""
        return sign_statement(key, self.text())

    @classmethod
    @lru_cache(maxsize=64)
    def read(cls, author: bytes, text: bytes, signature: bytes) -> Statement:
        """A statement that this author has signed. Raises `AppError`."""
        if not check_statement(author, text, signature):
            raise AppError("the run is not signed by the author that is named: it may have been tampered with")
        try:
            said: Any = json.loads(text) if len(text) <= LARGEST else None
            found = cls(**said)
        except (ValueError, TypeError, RecursionError):
            raise AppError("what the author has signed is no statement about a run") from None
        if found.text() != text or not found._well_formed():
            raise AppError("what the author has signed is no statement about a run")
        return found

    @classmethod
    def of(cls, spec: m.RunSpec) -> Statement | None:
        """What the author of a run has signed; None where nobody has. Raises `AppError`."""
        if not (spec.author or spec.signature or spec.statement):
            return None
        return cls.read(spec.author, spec.statement, spec.signature)

    def against(self, spec: m.RunSpec, sha256: bytes, federations: Container[str], now: float) -> list[str]:
        """Why this is not about that run, of an archive with this hash, here and now; empty if it is."""
        reasons = []
        if self.archive != sha256.hex():
            reasons.append("its author has signed another archive")
        if self.app != spec.name:
            reasons.append(f"its author has signed it as {self.app!r:.80}, and the run is called {spec.name!r:.80}")
        for what in ("config", "contract"):
            signed = getattr(self, what)
            try:
                other = signed is not None and signed != digest(getattr(spec, what) or "null")
            except (ValueError, RecursionError):
                other = True
            if other:
                reasons.append(f"its {what} is another than its author has signed")
        if self.federation is not None and self.federation not in federations:
            reasons.append(f"its author has signed it for another federation ({self.federation[:16]})")
        return reasons + self.expired(now)

    def expired(self, now: float) -> list[str]:
        """Why it is not good any more; empty while it is."""
        if self.expires is None or now <= self.expires:
            return []
        until, at = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when)) for when in (self.expires, now))
        return [f"its author's signature was good until {until} UTC, and this machine's clock says {at}"]

    def _well_formed(self) -> bool:
        texts = [getattr(self, name) for name in _TEXTS]
        hashes = [value for name in _HASHES if (value := getattr(self, name)) is not None]
        return (
            all(value is None or isinstance(value, str) for value in texts)
            and None not in (self.app, self.archive)
            and all(len(value) == 64 for value in hashes)
            and type(self.version) is int
            and 0 <= self.version < 2**53
            and (self.expires is None or (type(self.expires) in (int, float) and 0 <= self.expires < 1e11))
        )
