"""The handshake: who is at the other end, proved over fresh random bytes of both sides, and which limits hold.

::

    who connects         Hello ->            <- Challenge         Proof ->            <- Welcome

Each message has a frame of its own. Proofs are over both Hello and Challenge as they were sent, so that none of it can
be changed on the way or used again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from ..errors import ConnectionLost, PeerError, ProtocolError, Refused
from ..trust.identity import KEY_BYTES, transcript
from ..wire import messages as m
from ..wire import roles
from ..wire.limits import CAPABILITIES, HANDSHAKE_SECONDS, HANDSHAKES
from . import frames
from .connection import Connection

VERSION = 1
"""The version of the protocol that this software speaks, the only one so far."""
NONCE_BYTES = 32


@dataclass(frozen=True)
class Identity:
    """Who has connected, as the verifier says: `id` is by what the server knows it; `hello` is what it said itself;
    a node that is a `relay` may fold.
    """

    role: int
    id: str
    name: str
    hello: m.Hello
    relay: bool = False


class Verifier(Protocol):
    """Decides who is let in: the Identity of whoever sent this proof. Raises `Refused` with a code and reason."""

    def verify(self, hello: m.Hello, challenge: m.Challenge, transcript: bytes, proof: m.Proof) -> Identity: ...


class Prover(Protocol):
    """Proves who connects: with a node's key, or a token's secret."""

    def proof(self, transcript: bytes) -> m.Proof: ...


def origin(peer: str) -> str:
    """By what connections count as from one place: the address without its port, of IPv6 the network of 64 bits that
    one host may have all to itself.
    """
    kind, _, where = unquote(peer).partition(":")
    host = where.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or kind
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


class Handshakes:
    """The handshakes that are under way at a server: at `most` so many.

    Where one more comes, the oldest from the place that has the most of them is given up, so that nobody keeps others
    out by connecting and saying nothing. Who has been let in does not count.
    """

    def __init__(self, most: int = HANDSHAKES) -> None:
        self.most = most
        self._pending: dict[str, list[asyncio.Timeout]] = {}

    @property
    def pending(self) -> int:
        """How many there are."""
        return sum(map(len, self._pending.values()))

    @asynccontextmanager
    async def place(self, peer: str) -> AsyncIterator[None]:
        """Take part while in the block. Raises `Refused` where it was given up for another."""
        if self.pending >= self.most:
            crowd = max(self._pending.values(), key=len)
            crowd.pop(0).reschedule(0.0)
        place = origin(peer)
        try:
            async with asyncio.timeout(None) as mine:
                self._pending.setdefault(place, []).append(mine)
                try:
                    yield
                finally:
                    self._left(place, mine)
        except TimeoutError:
            if not mine.expired():
                raise
            raise Refused("too many are connecting just now", m.CODE_BUSY, retry=True) from None

    def _left(self, place: str, mine: asyncio.Timeout) -> None:
        if mine in self._pending.get(place, ()):
            self._pending[place].remove(mine)
        if not self._pending.get(place):
            self._pending.pop(place, None)


async def introduce(
    connection: Connection, prover: Prover, hello: m.Hello, *, seconds: float = HANDSHAKE_SECONDS
) -> m.Welcome:
    """Connect as `hello` says, which gets its version and nonce here; afterwards the connection has its limits.

    Raises `Refused`, `ProtocolError` or `ConnectionLost`; the connection is closed then.
    """
    said = m.Hello()
    said.CopyFrom(hello)
    said.nonce = secrets.token_bytes(NONCE_BYTES)
    said.version.CopyFrom(m.Version(least=VERSION, most=VERSION))
    async with _closing(connection, seconds):
        connection.limits = frames.handshake_limits()
        sent = said.SerializeToString()
        connection.post(frames.message("hello", sent))
        challenge, received = await _next(connection, "challenge")
        if challenge.challenge.version != VERSION:
            raise ProtocolError(
                f"the server chose version {challenge.challenge.version} of the protocol, which this software "
                f"did not offer: it speaks {VERSION}",
                m.CODE_VERSION,
            )
        _check_nonce(challenge.challenge.nonce)
        connection.post(m.Message(proof=prover.proof(transcript(sent, received))))
        welcome = (await _next(connection, "welcome"))[0].welcome
        connection.limits = _limits(welcome.limits)
        connection.allowed, connection.forbidden = (
            roles.EITHER | roles.HEARS[roles.NAMES[said.role]],
            m.CODE_NOT_ALLOWED,
        )
    return welcome


async def accept(
    connection: Connection,
    verifier: Verifier,
    *,
    server: str = "",
    limits: m.Limits | None = None,
    same_machine: Callable[[Identity], bool] = lambda identity: False,
    handshakes: Handshakes | None = None,
    settled: Callable[[Identity | None], Awaitable[None]] | None = None,
    greeting: Callable[[Identity], m.Welcome] | None = None,
    seconds: float = HANDSHAKE_SECONDS,
) -> Identity:
    """Find out who has connected and welcome it; afterwards the connection has `limits` and takes what its role allows.
    `settled` is awaited before the welcome, or with None before a refusal: what the verifier has changed is on disk
    then, and who has to wait has waited. `greeting` is what the welcome says besides.

    Raises `Refused`, `ProtocolError` or `ConnectionLost`; the peer has been told then and the connection is closed.
    """
    async with _closing(connection, seconds):
        async with (handshakes or Handshakes()).place(connection.peer):
            connection.limits = frames.handshake_limits()
            hello, said = await _next(connection, "hello")
            _check_hello(hello.hello)
            challenge = m.Challenge(version=VERSION, nonce=secrets.token_bytes(NONCE_BYTES), server=server)
            sent = challenge.SerializeToString()
            connection.post(frames.message("challenge", sent))
            proof, _ = await _next(connection, "proof")
            try:
                identity = verifier.verify(hello.hello, challenge, transcript(said, sent), proof.proof)
            except Refused:
                if settled is not None:
                    await settled(None)
                raise
        if settled is not None:
            await settled(identity)
        granted = _limits(limits if limits is not None else frames.standard_limits())
        welcome = m.Welcome(
            session=secrets.token_hex(8),
            id=identity.id,
            limits=granted,
            same_machine=same_machine(identity),
            name=identity.name,
        )
        if greeting is not None:
            welcome.MergeFrom(greeting(identity))
        connection.limits = granted
        connection.allowed, connection.forbidden = (
            roles.EITHER | roles.SAYS["relay" if identity.relay else roles.NAMES[identity.role]],
            m.CODE_NOT_ALLOWED,
        )
        connection.post(m.Message(welcome=welcome))
        connection.next_frame()
    return identity


class _closing:
    """Bounds the time of a handshake, and closes the connection, with a problem for the peer, where it fails."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._timeout = asyncio.timeout(seconds)
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._connection.keeps_raw = True
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        connection = self._connection
        connection.keeps_raw, connection.raw = False, b""
        try:
            await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except TimeoutError:
            late = ConnectionLost(f"the handshake took more than {self._seconds:g} s", m.CODE_TOO_SLOW)
            await connection.close(late)
            raise late from None
        if isinstance(error, PeerError):
            await connection.close(error)
        elif error is not None:
            await connection.close(m.Problem(code=m.CODE_INTERNAL, text="the handshake has failed", retry=True))


async def _next(connection: Connection, name: str) -> tuple[m.Message, bytes]:
    """The next message, which has to be of this kind, and its body's bytes."""
    connection.allowed, connection.forbidden = frozenset({name}), m.CODE_OUT_OF_ORDER
    (message,) = await connection.receive()
    return message, frames.raw_body(connection.raw)


def _check_hello(hello: m.Hello) -> None:
    if not hello.version.least <= VERSION <= hello.version.most:
        offered = f"{hello.version.least} to {hello.version.most}"
        raise Refused(f"this server speaks version {VERSION} of the protocol, not {offered}", m.CODE_VERSION)
    if hello.role not in roles.NAMES:
        raise ProtocolError(f"{hello.role} is no role", m.CODE_MALFORMED)
    if len(hello.key) != (KEY_BYTES if hello.role in (m.ROLE_NODE, m.ROLE_CHECK) else 0):
        raise ProtocolError(f"a key of {len(hello.key)} bytes; a node has one of {KEY_BYTES}", m.CODE_MALFORMED)
    brings = hello.capabilities
    if max(len(brings.kinds), len(brings.transforms), len(brings.dtypes)) > CAPABILITIES:
        raise ProtocolError(f"more than {CAPABILITIES} kinds, transforms or dtypes", m.CODE_TOO_LARGE)
    _check_nonce(hello.nonce)


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise ProtocolError(f"a nonce of {len(nonce)} bytes, not {NONCE_BYTES}", m.CODE_MALFORMED)


def _limits(wanted: m.Limits) -> m.Limits:
    """Limits in which zero means the standard."""
    limits = frames.standard_limits()
    limits.MergeFrom(wanted)
    return limits
