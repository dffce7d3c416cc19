"""Ed25519 keys of nodes and authors, and what they sign. Each use has a prefix of its own, so that what is signed for
one can never pass for another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import SettingError
from . import keyfile

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_HANDSHAKE = b"umbel/v1alpha\0"
_NODE = b"node\0"
_TOKEN = b"token\0"
_STATEMENT = b"statement\0"
_LEDGER = b"ledger\0"


class SigningKey:
    """A private key. It shows nothing of itself, and cannot be pickled or copied."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def new(cls) -> SigningKey:
        """A fresh key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def of_seed(cls, seed: bytes) -> SigningKey:
        """The key of a seed of 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def kept(cls, path: Path) -> SigningKey:
        """The key in a file, which is made if it is not there. Raises `StorageError`, and `SettingError` where the file
        holds no key.
        """
        data = keyfile.kept(path, lambda: cls.new()._pem())
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingError(f"{path} holds no Ed25519 key", hint="Put the right file there, or move this one away.")
        return cls(key)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, 64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key stays where it is")

    def _pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def verified(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `data` by the owner of the key."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def node_id(public: bytes) -> str:
    """By what a node is known: the first half of its key's SHA-256, in hexadecimal."""
    return hashlib.sha256(public).hexdigest()[:32]


def transcript(hello: bytes, challenge: bytes) -> bytes:
    """What proofs are about: both messages, as they were sent."""
    return _HANDSHAKE + hashlib.sha256(hello).digest() + hashlib.sha256(challenge).digest()


def sign_node(key: SigningKey, transcript: bytes) -> bytes:
    """A node's proof that it holds its key."""
    return key.sign(_NODE + transcript)


def check_node(public: bytes, transcript: bytes, signature: bytes) -> bool:
    """Whether a node's proof holds."""
    return verified(public, _NODE + transcript, signature)


def seal(key: SigningKey, transcript: bytes) -> bytes:
    """The proof that one holds a token, by its key."""
    return key.sign(_TOKEN + transcript)


def check_seal(public: bytes, transcript: bytes, sealed: bytes) -> bool:
    """Whether a token's proof holds, by what is kept of it: its public key."""
    return verified(public, _TOKEN + transcript, sealed)


def sign_statement(key: SigningKey, statement: bytes) -> bytes:
    """An author's signature of a statement about a run."""
    return key.sign(_STATEMENT + statement)


def check_statement(public: bytes, statement: bytes, signature: bytes) -> bool:
    """Whether the author has signed this statement."""
    return verified(public, _STATEMENT + statement, signature)


def sign_entry(key: SigningKey, entry: bytes) -> bytes:
    """A node's signature of an entry of its ledger."""
    return key.sign(_LEDGER + entry)


def check_entry(public: bytes, entry: bytes, signature: bytes) -> bool:
    """Whether the node has signed this entry."""
    return verified(public, _LEDGER + entry, signature)
