"""A relay as a process: a server to the nodes below, and one node to the server above."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from .. import transforms
from ..core.task import Ticked
from ..errors import ConnectionLost, CorruptFile, ProtocolError, Refused, StorageError, UmbelError
from ..transport.connection import Connection
from ..transport.dialer import Dialer
from ..transport.exchange import Exchange
from ..transport.handshake import introduce
from ..transport.side import SideDialer
from ..transport.stream import Stream
from ..transport.tasks import Tasks
from ..trust import keyfile
from ..trust.epochs import Epoch
from ..trust.identity import SigningKey
from ..trust.proofs import NodeProof
from ..trust.servers import KnownServer
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire.blobs import run_giver
from ..wire.limits import HELLO_BYTES
from ..wire.portions import portions, text_bytes
from . import signals
from .folding import bundle
from .relaying import Relaying
from .service import Service
from .settings import ServerOpened, ServerSettings
from .signals import Bounded, Connected, Event, Received, RelayEvent, Released, Revoked, Say

log = logging.getLogger("umbel.relay")

ABOVE = "above"
INLINE = 16 << 10
"""What is larger crosses as a blob."""
MOVED_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class RelaySettings:
    """What a relay is.

    - `connect`: opens a stream to the server above. Raises `ConnectionLost`.
    - `key`, `token`, `name`: by what it is known there, and what lets it join.
    - `below`: the server that it is to the nodes below.
    - `server`: what it knows of the server above.
    """

    connect: Callable[[], Awaitable[Stream]]
    key: SigningKey
    below: ServerSettings
    name: str = ""
    token: Token | None = None
    server: KnownServer = field(default_factory=KnownServer)
    first_wait: float = 0.1
    longest_wait: float = 30.0


async def run_relay(
    settings: RelaySettings,
    stopping: asyncio.Event,
    announce: Callable[[ServerOpened], None],
    *,
    invites: bool = False,
) -> None:
    """Be a relay until `stopping` is set; `announce` is told where nodes connect, and by which line one joins, as a
    server does that `invites`.

    Raises `StorageError` or `CorruptFile` where its folder cannot be used.
    """
    relay = Relay(settings)
    try:
        await relay.below.open()
        line = await relay.below.first_line(invites)
        announce(ServerOpened(relay.below.address, None, settings.below.folder, line))
        await relay.below.begin()
        await relay.serve(stopping)
    finally:
        await relay.close()


class Relay:
    """What is between a server above and its own server below."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self.below = _Below(settings.below, self)
        self._epoch = Epoch(self.below.root / "above.epoch")
        self._told = self.below.root / "above.told"
        with suppress(Exception):  # what is lost, or damaged, is told again
            # Nodes that come before the server above do have to know whose federation this is.
            self.below.endorsements = list(m.Welcome.FromString(self._told.read_bytes()).endorsements)
        self._machine = Relaying(self.below.store, self.below.router.nodes.clients())
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._events: deque[RelayEvent] = deque()
        self._at_work = False
        self._tick: asyncio.TimerHandle | None = None
        self._moved: dict[bytes, float] = {}
        self._folds = Tasks()
        self._folding = asyncio.Lock()
        self._dialer = Dialer(
            settings.connect, first=settings.first_wait, longest=settings.longest_wait, who="relay", log=log
        )
        self.below.insiders[ABOVE] = self

    # The connection to the server above

    async def serve(self, stopping: asyncio.Event) -> None:
        """Connect to the server above, and connect again whenever the connection ends, until `stopping` is set."""
        parting = m.Problem(code=m.CODE_SHUTTING_DOWN, text="the relay ends", retry=True)
        await self._dialer.keep(self._converse, stopping, parting)

    async def _converse(self, connection: Connection) -> None:
        hello = self._hello()
        try:
            hello.epoch, hello.boot = self._epoch.raised(), self.below.boot
            welcome = await introduce(connection, NodeProof(self._settings.key, self._settings.token), hello)
            try:
                self._settings.server.welcomed(welcome)
            except Refused as error:
                await connection.close(error)
                raise
            self._dialer.welcomed(connection, welcome, self._settings.name)
            if list(welcome.endorsements) != self.below.endorsements:
                keyfile.replace(self._told, m.Welcome(endorsements=welcome.endorsements).SerializeToString())
            self.below.endorsed(welcome.endorsements)
            self._connection = connection
            self._exchange = Exchange(
                connection,
                self.below.depot,
                lambda run, blob: self._machine.may_read(run, blob.sha256),
                same_machine=welcome.same_machine,
                progress=self._progressed,
                giver=run_giver,
                side=SideDialer(connection.beside, welcome.side_port),
            )
            self.put(signals.Reached(frozenset(hello.clients)))
            async for message in connection.messages():
                self._settings.server.acknowledged(message.ack.epoch)
                if message.HasField("notice"):
                    log.warning("the server above says: %s", message.notice.text)
                    continue
                try:
                    self.put(signals.Asked(message))
                except ProtocolError as error:
                    await connection.close(error)
                    raise
        finally:
            exchange, self._connection, self._exchange = self._exchange, None, None
            if exchange is not None:
                self.put(signals.Parted())
                await exchange.close()

    def _hello(self) -> m.Hello:
        settings = self._settings
        known = [m.Step(name=name, version=version) for name, version in transforms.known_transforms()]
        return m.Hello(
            role=m.ROLE_NODE,
            name=settings.name,
            key=settings.key.public,
            token=settings.token.id if settings.token is not None else "",
            software=f"umbel {version('umbel')}",
            capabilities=m.Capabilities(transforms=known, archives=True, partials=True),
            authority=self.below.authority.public,
            clients=next(portions(sorted(self.below.router.nodes.clients()), text_bytes, most_bytes=HELLO_BYTES), []),
        )

    def _progressed(self, sha: bytes, offset: int) -> None:
        now = self._loop.time()
        if now - self._moved.get(sha, 0.0) >= MOVED_EVERY:
            self._moved = {each: at for each, at in self._moved.items() if now - at < MOVED_EVERY} | {sha: now}
            self.put(signals.MovedAbove(sha))

    # The machine

    def put(self, event: RelayEvent) -> None:
        """Take an event, and do what follows from it. Raises `ProtocolError` where the server above said it."""
        self._events.append(event)
        if self._at_work:
            return
        self._at_work = True
        try:
            while self._events:
                for effect in self._machine.handle(self._events.popleft(), self._loop.time()):
                    if isinstance(effect, signals.TellRouter):
                        self._tell(effect.event)
                    elif isinstance(effect, signals.FoldAnswers):
                        self._folds.begin(self._fold(effect))
                    elif isinstance(effect, signals.Forget):
                        self._forget(effect.number)
                    else:
                        self.below.carry([Say(ABOVE, effect.message, effect.durable)])
        finally:
            self._at_work = False
        if self._tick is not None:
            self._tick.cancel()
        at = self._machine.next_tick
        self._tick = None if at is None else self._loop.call_at(at, self.put, Ticked())

    def _tell(self, event: Event) -> None:
        if isinstance(event, Connected):
            self.below.insiders[event.peer] = self
        self.below.tell(event)

    def say(self, peer: str, message: m.Message) -> None:
        """What the server below says to a run; and what goes up, once it may."""
        if peer != ABOVE:
            self.put(signals.RouterSaid(message))
        elif self._connection is not None:
            self._connection.post(message)

    def dropped(self, peer: str, text: str) -> None:
        """The server below hears no more of a run."""
        self.put(signals.RouterDropped(peer, text))

    async def fetch(self, blob: m.Blob, run: str) -> None:
        """Get a blob from above. Raises `ConnectionLost`: it is wanted again in the next session."""
        if self._exchange is None:
            raise ConnectionLost("there is no connection to the server above")
        try:
            await self._exchange.fetch(blob, run)
        except ConnectionLost:
            raise
        except (Refused, CorruptFile, StorageError) as error:
            self.put(signals.Unfetched(run, blob.sha256, error.message))
            raise

    def hosting(self) -> None:
        """The clients of the nodes below may have changed."""
        self.put(signals.Hosting(self.below.router.nodes.clients()))

    # Folding

    async def _fold(self, fold: signals.FoldAnswers) -> None:
        blobs, owner = self.below.blobs, _owner(fold.number)
        folded = signals.Folded(fold.number, None)
        try:
            async with self._folding:
                sheaf = await asyncio.to_thread(bundle, fold.spec, fold.answers, blobs.path)
                if sheaf is not None:
                    payload = m.Payload(inline=sheaf.data)
                    if len(sheaf.data) > INLINE:
                        payload = m.Payload(blob=await asyncio.to_thread(blobs.put, sheaf.data, owner))
                    folded = signals.Folded(fold.number, payload, sheaf.receipts, sheaf.refused)
        except UmbelError as error:  # then the answers go up as they came
            log.warning("answers to ask %s of %s were not folded: %s", fold.spec.ask, fold.spec.run, error.message)
        except Exception:
            log.exception("answers to ask %s of %s were not folded", fold.spec.ask, fold.spec.run)
        self.put(folded)

    def _forget(self, number: int) -> None:
        self.below.blobs.release(_owner(number))
        self.below.blobs.collect()
        self.below.depot.freed()

    async def close(self) -> None:
        """End everything."""
        if self._tick is not None:
            self._tick.cancel()
        await self._folds.close()
        await self.below.close()


class _Below(Service):
    """The server to the nodes below, which tells its relay what clients these host."""

    def __init__(self, settings: ServerSettings, relay: Relay) -> None:
        super().__init__(settings)
        self._relay = relay

    def tell(self, event: Event) -> None:
        """Tell the router what happened, and do what it says."""
        super().tell(event)
        who: Any = isinstance(event, Connected) and event.role == "node"
        said = isinstance(event, Received) and event.message.HasField("hosted")
        if who or said or isinstance(event, Revoked | Bounded | Released):
            self._relay.hosting()


def _owner(number: int) -> str:
    return f"relay/{number}"
