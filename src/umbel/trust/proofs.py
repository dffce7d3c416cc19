"""Proofs of a handshake, as those who connect make them."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire import messages as m
from . import identity
from .identity import SigningKey
from .tokens import Token


@dataclass(frozen=True)
class TokenProof:
    """That one holds a token: an operator's, or a run's."""

    token: Token

    def proof(self, transcript: bytes) -> m.Proof:
        """The proof for one handshake."""
        return m.Proof(seal=identity.seal(self.token.key, transcript))


@dataclass(frozen=True)
class NodeProof:
    """That one holds a node's key and, where the node joins, the token that lets it in."""

    key: SigningKey
    token: Token | None = None

    def proof(self, transcript: bytes) -> m.Proof:
        """The proof for one handshake."""
        seal = b"" if self.token is None else identity.seal(self.token.key, transcript)
        return m.Proof(signature=identity.sign_node(self.key, transcript), seal=seal)
