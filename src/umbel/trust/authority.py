"""The server's own certificate authority, and the line by which others come to trust it.

The line carries nothing but the authority's public key. Whoever has it builds a root certificate around that key: all
other fields of the root are fixed, and nobody looks at the signature of a root. So a certificate that the authority has
signed is accepted, and no other.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import SettingError
from ..wire import messages as m
from . import keyfile
from .tokens import Token

SERVER_NAME = "umbel-server"
"""The name that every server's certificate holds, whatever the address: those who connect expect this one."""
LIFE = timedelta(days=365)
RENEWAL = timedelta(days=60)
"""A certificate that ends sooner is made anew."""

_PREFIX = "umbel1"
_CURVE = ec.SECP256R1()
_POINT_BYTES = 33
_BEGIN, _END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2055, 1, 1, tzinfo=UTC)
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Umbel authority")])
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Serving:
    """What a TLS server needs, as PEM: its certificate and the certificate's key; `until` is when it ends."""

    certificate: bytes
    key: bytes = field(repr=False)
    until: datetime


class Authority:
    """The authority in a folder; its key is made at the first start, and stays in `authority.key`.

    `successor` is the public key of the one that will take its place, whose key is in `next.key`; empty for none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own, self._next = folder / "authority.key", folder / "next.key"
        self._load()

    def _load(self) -> None:
        self._key = _loaded(self._own, keyfile.kept(self._own, _new_pem))
        self.public = _point(self._key)
        self.successor = _point(_loaded(self._next, self._next.read_bytes())) if self._next.exists() else b""
        if self.successor == self.public:  # it had taken its place when the power went
            self._next.unlink()
            self.successor = b""

    def rotate(self) -> None:
        """Make a successor, if there is none. Raises `StorageError`."""
        keyfile.kept(self._next, _new_pem)
        self._load()

    def retire(self) -> None:
        """Let the successor take the place of this one, whose key is gone then. Raises `SettingError` for none."""
        if not self.successor:
            raise SettingError(
                "this authority has no successor", hint="`umbel authority rotate` makes one, which nodes learn of."
            )
        keyfile.replace(self._own, self._next.read_bytes())
        self._load()

    def __repr__(self) -> str:
        return f"Authority({self.public.hex()})"

    def root(self) -> bytes:
        """The authority's certificate, as PEM: what `root_certificate` makes of its public key."""
        return _root(self._key.public_key(), self._key)

    def serving(self, names: Iterable[str] = (), now: datetime | None = None) -> Serving:
        """The server's certificate, for localhost, this host's name and `names` (host names or addresses) besides. It
        is kept in `server.pem`, and made anew when it is near its end or lacks a name.
        """
        now = now or datetime.now(UTC)
        wanted = _alternatives(names)
        found = self._kept(wanted, now)
        if found is None:
            key = ec.generate_private_key(_CURVE)
            found = Serving(self._signed(key.public_key(), wanted, now), _key_pem(key), now + LIFE)
            keyfile.replace(self._folder / "server.pem", found.key + found.certificate)
        return found

    def endorse(self, role: str, of: bytes) -> m.Endorsement:
        """That another authority, by its public key, is that of a ``relay`` of this one, or its ``successor``."""
        said = m.Endorsement(by=self.public, of=of, role=role)
        said.signature = self._key.sign(_about(said), ec.ECDSA(hashes.SHA256()))
        return said

    def _kept(self, wanted: list[x509.GeneralName], now: datetime) -> Serving | None:
        try:
            data = (self._folder / "server.pem").read_bytes()
            certificate = x509.load_pem_x509_certificate(data)
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(self.root()))
            key = serialization.load_pem_private_key(data, password=None)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:  # whatever is wrong with it: it can be made anew
            return None
        until = certificate.not_valid_after_utc
        good = certificate.not_valid_before_utc <= now < until - RENEWAL and set(wanted) <= set(names)
        if not good or not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        return Serving(certificate.public_bytes(_PEM), _key_pem(key), until)

    def _signed(self, public: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], now: datetime) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)]))
            .issuer_name(_NAME)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))  # clocks of those who connect may be behind
            .not_valid_after(now + LIFE)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM)


def root_certificate(public: bytes) -> bytes:
    """A root certificate, as PEM, that stands for the authority with this public key (a compressed point of P-256, 33
    bytes). Raises `SettingError` where it is no such key.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
    except ValueError:
        raise SettingError("this is no public key of a server's authority") from None
    return _root(key, ec.generate_private_key(_CURVE))


def _new_pem() -> bytes:
    return _key_pem(ec.generate_private_key(_CURVE))


def _loaded(path: Path, data: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SettingError(f"{path} holds no key of an authority (EC P-256)")
    return key


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def endorses(said: m.Endorsement) -> bool:
    """Whether an authority has said this."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, said.by)
        key.verify(said.signature, _about(said), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _about(said: m.Endorsement) -> bytes:
    return b"\0".join((b"endorsement", said.role.encode(), said.of))


def _root(public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey) -> bytes:
    usage = x509.KeyUsage(
        key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(_PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    wanted = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", "::1", socket.gethostname(), *names])
    return [name for text in wanted if (name := _general(text)) is not None]


def _general(text: str) -> x509.GeneralName | None:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text) if text else None
    except ValueError:
        return None  # a host's name that no certificate can hold


@dataclass(frozen=True)
class JoinText:
    """The line that a server hands out: ``umbel1.<authority>.<token's id>.<token's secret>``.

    `authority` is the authority's public key; empty, written ``-``, for a server without TLS. The token is a node's, a
    run's or an operator's; without one the line ends after the authority.
    """

    authority: bytes
    token: Token | None = None

    @property
    def text(self) -> str:
        """The line."""
        key = base64.urlsafe_b64encode(self.authority).rstrip(b"=").decode() or "-"
        return ".".join([_PREFIX, key, *([self.token.text] if self.token else [])])

    @classmethod
    def parse(cls, text: str) -> JoinText:
        """Read such a line. Raises `SettingError`, which does not repeat the line."""
        prefix, _, rest = text.strip().partition(".")
        key, dot, token = rest.partition(".")
        if prefix != _PREFIX:
            raise SettingError(
                "this is not a line that a server handed out",
                hint=f"It begins with {_PREFIX}. and stands where the server or `umbel nodes invite` printed it.",
            )
        try:
            authority = b"" if key == "-" else base64.b64decode(key + "=" * (-len(key) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            authority = b"?"
        if len(authority) not in (0, _POINT_BYTES) or (not authority and key != "-"):
            raise SettingError("the server's key in this line is damaged", hint="Was all of it copied?")
        return cls(authority, Token.parse(token) if dot else None)

    def root(self) -> bytes | None:
        """The root certificate to trust, as PEM; None for a server without TLS. Raises `SettingError`."""
        return root_certificate(self.authority) if self.authority else None
