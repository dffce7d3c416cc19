"""The connections of a server: who is let in, and is heard until it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from ..errors import PeerError, ProtocolError, Refused
from ..transport.budget import Budget, Turns
from ..transport.connection import Connection
from ..transport.exchange import Exchange, Room
from ..transport.handshake import Handshakes, Identity, accept, origin
from ..transport.stream import Stream
from ..trust.audit import PEER
from ..wire import messages as m
from ..wire import roles
from ..wire.blobs import run_giver
from ..wire.bodies import tasks_of
from ..wire.limits import ANSWER_WAITING_BYTES, OPERATOR_CONNECTIONS, OPERATOR_REQUESTS, RUN_MILLISECONDS, RUNS_PERCENT
from .desk import Desk
from .programs import Programs, Surroundings
from .signals import Connected, Lost, Received
from .supervision import Places

_LOG = logging.getLogger("umbel.server")
LAZY = {"ack": 0.25, "close_ask": 0.25, "log_ack": 0.05}
"""Messages that nobody waits for, and for how many seconds they wait for others to go with."""
SLICE = 64
"""After so many messages of one peer it is the others' turn."""
VIOLATIONS = frozenset({m.CODE_MALFORMED, m.CODE_TOO_LARGE, m.CODE_NOT_ALLOWED, m.CODE_OUT_OF_ORDER, m.CODE_INTERNAL})
"""Why peers are dropped for what they have sent."""


class PeerConnection:
    """One connection, as the server knows it; an operator's is what the desk calls an `OperatorPeer`."""

    def __init__(
        self, around: Surroundings, id: str, identity: Identity, connection: Connection, room: Room, same_machine: bool
    ) -> None:
        self.id = id
        self.identity = identity
        self.connection = connection
        self._around = around
        self._offered: set[bytes] = set()
        self.answering: set[object] = set()
        giver = f"{roles.NAMES[identity.role]} {identity.id}"
        places = Places(around.root / "runs" / identity.id) if same_machine else None
        self.exchange = Exchange(
            connection,
            around.depot,
            self._may_read,
            same_machine=same_machine,
            handed=places.handed if places is not None else None,
            given=places.given if places is not None else None,
            room=room,
            giver=lambda run: giver,
            source=run_giver if identity.role == m.ROLE_NODE else lambda run: "",
            side=around.side,
        )

    @property
    def name(self) -> str:
        """By what an operator is known."""
        return self.identity.name

    @property
    def role(self) -> str:
        """What an operator may do."""
        return self._around.registry.tokens.role(self.identity)

    async def fetch(self, blob: m.Blob, run: str = "") -> None:
        """Get a blob from there."""
        await self.exchange.fetch(blob, run)

    def offer(self, blob: m.Blob) -> None:
        """Let it have a blob, for as long as it is connected."""
        self._around.blobs.hold(blob.sha256, self.id)
        self._offered.add(blob.sha256)

    def say(self, message: m.Message, lazy: float = 0.0) -> None:
        """Send a message, within `lazy` seconds; one that no frame can hold is lost."""
        if self.connection.budget is not None:
            self.connection.budget.asked += message.HasField("task")
        if message.HasField("ack"):
            message.ack.epoch = self._around.epoch.number
        try:
            self.connection.post(message, lazy=LAZY.get(message.WhichOneof("body") or "", lazy))
        except ProtocolError as error:  # whoever made it so large has to do without
            _LOG.error("what %s is to be told is lost: %s", self.id, error.message)

    def _may_read(self, run: str, blob: m.Blob) -> bool:
        if self.identity.role != m.ROLE_NODE and self._around.blobs.path(blob.sha256) is None:
            return False  # only nodes are told of blobs that are still to come
        if self.identity.role == m.ROLE_OPERATOR:
            return blob.sha256 in self._offered
        return self._around.router.may_read(self.id, run, blob.sha256)


class Connections:
    """Everybody who is connected, as `peers`: who knocks waits until it is told to `begin`."""

    def __init__(
        self, around: Surroundings, programs: Programs, desk: Desk, greeting: Callable[[Identity], m.Welcome]
    ) -> None:
        self._around = around
        self._programs = programs
        self._desk = desk
        self._greeting = greeting
        self.peers: dict[str, PeerConnection] = {}
        self._turns = Turns()
        # Who is read waits for nobody who comes again and again, nor does who is let in for who is refused.
        self._admissions, self._refusals = Turns(), Turns()
        self._runs_turns = Turns(free=RUN_MILLISECONDS / 1000, percent=RUNS_PERCENT)
        self._numbers = 0
        self._handshakes = Handshakes()
        self._frames = [0, 0]
        self._begun = asyncio.Event()
        self._closing = False

    def begin(self) -> None:
        """Let in whoever knocks."""
        self._begun.set()

    async def close(self) -> None:
        """Tell everybody that the server ends, and end all connections; nobody is let in any more."""
        self._closing = True
        self._begun.set()
        problem = m.Problem(code=m.CODE_SHUTTING_DOWN, text="the server ends", retry=True)
        ending = [peer.connection.close(problem) for peer in self.peers.values()]
        await asyncio.gather(*ending, return_exceptions=True)

    async def serve(self, stream: Stream) -> None:
        """Let a peer in, if it may come, and hear it until it is gone."""
        await self._begun.wait()
        if self._closing:
            return
        connection = Connection(stream)
        PEER.set(connection.peer)
        try:
            identity = await accept(
                connection,
                self._around.registry,
                server=self._around.server,
                same_machine=self.same_machine,
                handshakes=self._handshakes,
                settled=partial(self._admitted, connection),
                greeting=self._greeting,
            )
        except PeerError as error:
            if not isinstance(error, Refused) or error.code in (m.CODE_BUSY, m.CODE_VERSION):
                self._refused(error.code, error.message)  # of others the registry has noted more
            raise
        finally:
            self._around.commits.soon()  # what was noted
        if not self._around.registry.admits(identity):  # revoked while the welcome waited for the disk
            await connection.close(m.Problem(code=m.CODE_REVOKED, text="it was revoked just now"))
            return
        if identity.role == m.ROLE_CHECK:  # it has heard all that it wanted to know
            await connection.close()
            return
        same = [peer for peer in self.peers.values() if peer.identity.id == identity.id]
        if identity.role == m.ROLE_OPERATOR and len(same) >= OPERATOR_CONNECTIONS:
            text = f"{len(same)} others have connected by this token"
            self._refused(m.CODE_BUSY, text, identity.name)
            await connection.close(m.Problem(code=m.CODE_BUSY, text=text, retry=True))
            return
        await self._hear(self._known(identity, connection))

    async def _admitted(self, connection: Connection, identity: Identity | None) -> None:
        """Before a peer is welcomed, or refused: it has waited as long as it has to, and what was noted is on disk."""
        if identity is None or identity.role == m.ROLE_CHECK:  # whose key may be another one each time
            await asyncio.sleep(self._refusals.admission(f"from {origin(connection.peer)}"))
        elif identity.role != m.ROLE_RUN:
            await asyncio.sleep(self._admissions.admission(identity.id))
        await self._around.commits.done()

    def _refused(self, code: int, why: str, who: str = "unknown") -> None:
        self._around.registry.audit.limited(who, "connections.refused", code=int(code), reason=why[:200])

    def drop(self, peer: str, code: int, text: str, *, retry: bool = False) -> None:
        """End a connection, if it is there still, and say why."""
        if (found := self.peers.get(peer)) is not None:
            if code in VIOLATIONS:
                self._keep_out(found.identity)
            problem = m.Problem(code=code, text=text, retry=retry)  # type: ignore[arg-type]
            self._around.begin(found.connection.close(problem))

    def _keep_out(self, identity: Identity) -> None:
        """A peer has done what it may not; a run, whose id may be that of somebody else, need not wait for it."""
        if identity.role != m.ROLE_RUN:
            self._admissions.put_out(identity.id)

    def put_out(self, whom: Callable[[Identity], bool]) -> None:
        """End the connections of those whose token is good no more."""
        for peer in self.peers.values():
            if whom(peer.identity):
                self.drop(peer.id, m.CODE_REVOKED, "this token is good no more")

    @property
    def sessions(self) -> Counter[str]:
        """How many there are of each role."""
        return Counter(roles.NAMES[peer.identity.role] for peer in self.peers.values())

    @property
    def frames(self) -> tuple[int, int]:
        """How many frames came, and went, since the start."""
        there = [peer.connection for peer in self.peers.values()]
        received = self._frames[0] + sum(connection.received.frames for connection in there)
        return received, self._frames[1] + sum(connection.sent.frames for connection in there)

    def same_machine(self, identity: Identity) -> bool:
        """Whether a peer is a run process that this server has started."""
        return identity.role == m.ROLE_RUN and identity.id in self._programs.running

    def _known(self, identity: Identity, connection: Connection) -> PeerConnection:
        """Who has come, with a number of its own."""
        self._numbers += 1
        role = roles.NAMES[identity.role]
        id, label = f"{role} {identity.id} #{self._numbers}", f"{role} {identity.name}"
        room = self._around.storage.place(
            identity.id, label, identity.role == m.ROLE_NODE, lambda run, text: self._waits(id, run, text)
        )
        peer = PeerConnection(self._around, id, identity, connection, room, self.same_machine(identity))
        self.peers[id] = peer
        return peer

    def _waits(self, sender: str, run: str, text: str) -> None:
        """What a peer sends for a run has to wait for room: it is told, and the run is."""
        _LOG.warning("%s", text)
        for peer in self.peers.values():
            if peer.id == sender or (peer.identity.role == m.ROLE_RUN and peer.identity.id == run):
                peer.connection.post(m.Message(notice=m.Notice(text=text)))

    async def _hear(self, peer: PeerConnection) -> None:
        identity, connection = peer.identity, peer.connection
        budget = (self._runs_turns if identity.role == m.ROLE_RUN else self._turns).budget(identity.id)
        connection.budget, connection.takes = budget, identity.role != m.ROLE_RUN
        level = logging.DEBUG if identity.role == m.ROLE_OPERATOR else logging.INFO  # each command connects
        _LOG.log(level, "%s has connected from %s", peer.id, connection.peer)
        try:
            if identity.role == m.ROLE_OPERATOR:
                await self._answer_requests(peer, budget)
            else:
                role, clients = roles.NAMES[identity.role], tuple(identity.hello.clients)
                self._tell(budget, Connected(peer.id, role, identity.id, identity.name, clients, identity.relay))
                while True:
                    batch = await connection.receive()
                    for number, message in enumerate(batch, 1):
                        asked = budget.was_asked(len(tasks_of(message)))
                        began = 0.0 if asked else budget.timer()
                        self._around.tell(Received(peer.id, message))
                        if not asked:
                            budget.spend(budget.timer() - began + connection.read_seconds / len(batch))
                        if number % SLICE == 0:
                            await asyncio.sleep(0)
        except PeerError as error:
            if isinstance(error, ProtocolError):
                self._keep_out(identity)
            _LOG.log(level, "%s is gone: %s", peer.id, error.message)
            error.__traceback__ = None  # whose frames hold the connection, which holds how it ended
        finally:
            self.peers.pop(peer.id, None)
            self._frames[0] += connection.received.frames
            self._frames[1] += connection.sent.frames
            if identity.role != m.ROLE_OPERATOR:
                self._tell(budget, Lost(peer.id))
                budget.turn()  # for which those wait who are read by turns
            if identity.role == m.ROLE_RUN and not self.same_machine(identity):
                self._around.begin(self._parted(identity.id))
            self._around.blobs.release(peer.id)
            await peer.exchange.close()
            await connection.close()
            self._around.let_go()

    def _tell(self, budget: Budget, event: Connected | Lost) -> None:
        began = budget.timer()
        self._around.tell(event)
        budget.spend(budget.timer() - began)

    async def _answer_requests(self, peer: PeerConnection, budget: Budget) -> None:
        answering: set[asyncio.Task[None]] = set()
        try:
            async for message in peer.connection.messages():
                budget.spend(peer.connection.read_seconds)
                if len(peer.answering) >= OPERATOR_REQUESTS:
                    text = f"{len(peer.answering)} requests are being answered on this connection; wait for one of them"
                    busy = m.Response(id=message.request.id, code=m.CODE_BUSY, text=text)
                    await peer.connection.taken(ANSWER_WAITING_BYTES)
                    peer.connection.post(m.Message(response=busy))
                    continue
                peer.answering.add(place := object())
                task = self._around.begin(budget.spent(self._answer, peer, message.request, place))
                if not self._desk.lasts(message.request):
                    answering.add(task)
                    task.add_done_callback(answering.discard)
        finally:
            for task in answering:
                task.cancel()

    async def _answer(self, peer: PeerConnection, request: m.Request, place: object) -> None:
        """Answer a request: what is not taken over there is not read here."""
        try:
            async with aclosing(self._desk.answer(peer, request)) as responses:
                while True:
                    await peer.connection.taken(ANSWER_WAITING_BYTES)
                    await peer.connection.turn()
                    if (response := await anext(responses, None)) is None:
                        break
                    if not response.more:  # who has heard all of it may ask again
                        peer.answering.discard(place)
                    peer.connection.post(m.Message(response=response))
        finally:
            peer.answering.discard(place)
        self._around.commits.soon()

    async def _parted(self, run: str) -> None:
        async with self._desk.submissions.turn(run):  # who goes on with it just now has started its process then
            await self._programs.parted(run)
