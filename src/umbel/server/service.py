"""The server's process: connects streams, the router, the store, run processes, operators' requests and the pages.

What the router and the desk put into the store is written by one task, in batches: whatever came while one batch was
being written goes into the next (group commit). What must not be seen before it is on disk waits for that.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from ..errors import (
    ConnectionLost,
    CorruptFile,
    PeerError,
    ProtocolError,
    Refused,
    SettingError,
    StorageError,
)
from ..store.blobs import Blobs
from ..store.sql import SqlStore
from ..transport import grpc
from ..transport.connection import Connection
from ..transport.exchange import Depot, Exchange
from ..transport.handshake import Handshakes, Identity, accept
from ..transport.stream import Listener, Stream
from ..trust.authority import Authority, JoinText
from ..trust.credentials import Credentials, own_token, write_own
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire import roles
from ..wire.addresses import host_and_port
from ..wire.blobs import Fetched, NotFetched
from . import pages
from .commits import RETRY_SECONDS, Commits
from .desk import Desk
from .feeds import Feeds
from .ledger import ENDED
from .programs import Programs, Surroundings
from .registry import Registry
from .router import Router
from .settings import ServerOpened, ServerSettings
from .signals import (
    Connected,
    Drop,
    Effect,
    Event,
    Fetch,
    Hold,
    Lost,
    Received,
    Release,
    Revoked,
    RunBegun,
    RunEnded,
    Say,
    Tell,
)
from .storage import Storage
from .summaries import Summaries

_LOG = logging.getLogger("umbel.server")
LAZY = frozenset({"ack", "log_ack", "close_ask"})
"""Messages that nobody waits for."""
LASTING = frozenset({"runs.submit", "runs.stop", "runs.resume"})
"""Requests that are seen to their end also if whoever asked is gone by then: half of one would leave a run that is said
to be going on and has no process."""
OPERATOR_CONNECTIONS = 100
"""So many connections may be there by the token of one operator."""


class PeerConnection:
    """One connection, as the server knows it; an operator's is what the desk calls a `PeerConnection`."""

    def __init__(self, service: Service, number: int, identity: Identity, connection: Connection) -> None:
        self.id = f"{roles.NAMES[identity.role]} {identity.id} #{number}"
        self.identity = identity
        self.connection = connection
        self._service = service
        self._offered: set[bytes] = set()
        self.exchange = Exchange(
            connection,
            service.depot,
            self._may_read,
            same_machine=service.same_machine(identity),
            progress=self._moved,
            room=service.storage.place(
                identity.id, f"{roles.NAMES[identity.role]} {identity.name}", identity.role == m.ROLE_NODE, self._waits
            ),
        )

    @property
    def name(self) -> str:
        """By what an operator is known."""
        return self.identity.name

    @property
    def role(self) -> str:
        """What an operator may do."""
        return self._service.registry.tokens.role(self.identity)

    async def fetch(self, blob: m.Blob) -> None:
        """Get a blob from there."""
        await self.exchange.fetch(blob)

    def offer(self, blob: m.Blob) -> None:
        """Let it have a blob, for as long as it is connected."""
        self._service.blobs.hold(blob.sha256, self.id)
        self._offered.add(blob.sha256)

    def _may_read(self, run: str, blob: m.Blob) -> bool:
        if self.identity.role == m.ROLE_OPERATOR:
            return blob.sha256 in self._offered
        return self._service.router.may_read(self.id, run, blob.sha256)

    def _waits(self, run: str, text: str) -> None:
        """What it sends for a run has to wait for room: it is told, and the run is."""
        _LOG.warning("%s", text)
        for peer in self._service.peers.values():
            if peer is self or (peer.identity.role == m.ROLE_RUN and peer.identity.id == run):
                peer.connection.post(m.Message(notice=m.Notice(text=text)))

    def _moved(self, sha256: bytes, offset: int) -> None:
        """A transfer is a sign of life; the connection counts it."""


class InternalPeer(Protocol):
    """Somebody in this process to whom the router speaks as to a peer, and who gets blobs for it."""

    def say(self, peer: str, message: m.Message) -> None: ...
    async def fetch(self, blob: m.Blob, run: str) -> None: ...


class Service:
    """A server that is up; `Offices` for its desk and `Facts` for its pages."""

    def __init__(self, settings: ServerSettings, after_commit: Callable[[], None] | None = None) -> None:
        folder = settings.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error.strerror}") from error
        self.settings = settings
        self.root = folder.absolute()
        self.authority = Authority(folder / "authority")
        self.store = SqlStore(folder / "server.db", after_commit=after_commit)
        self.blobs = Blobs(folder / "blobs")
        self.depot = Depot(self.blobs, lends_below=folder / "runs")
        self.registry = Registry(self.store, time.time)
        self.storage = Storage(
            self.blobs,
            quota=settings.quota,
            node_quota=settings.node_quota,
            largest=settings.largest_answer,
            nodes=lambda: self.registry.approved,
        )
        self.router = Router(
            self.store,
            lambda sha: self.blobs.path(sha) is not None,
            largest=lambda role: self.storage.largest if role == "node" else self.storage.quota,
        )
        self.feeds = Feeds(self._stored_events, lambda run: self.programs.is_over(run))
        self.commits = Commits(self.store, self._post)
        self.commit = self.commits.done
        self.summaries = Summaries(self.store)
        self.programs = Programs(
            Surroundings(
                root=self.root,
                store=self.store,
                blobs=self.blobs,
                registry=self.registry,
                router=self.router,
                feeds=self.feeds,
                commits=self.commits,
                summaries=self.summaries,
                carry=self.carry,
                new_token=self._new_token,
                address=self._reached,
            )
        )
        self.start, self.stop = self.programs.start, self.programs.stop
        nodes, ledger = self.router.nodes, self.router.ledger
        self.online, self.elsewhere, self.standings = nodes.online, nodes.elsewhere, ledger.standings
        self.desk = Desk(self)
        self.peers: dict[str, PeerConnection] = {}
        self.insiders: dict[str, InternalPeer] = {}
        self.address = ""
        self.started_at = time.time()
        self._full = ""
        self._fetching: set[tuple[str, str, bytes]] = set()
        self._numbers = 0
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handshakes = Handshakes()
        self._traffic = [0, 0]
        self._begun = asyncio.Event()

    # Life

    async def open(self) -> None:
        """Listen: who knocks waits until the server has begun."""
        (self.root / "runs").mkdir(mode=0o700, exist_ok=True)
        for sha, owner in [(hold.sha, hold.owner) for hold in self.router.ledger.held()] + list(self.desk.held()):
            self.blobs.hold(sha, owner)
        for node, blob in self.router.ledger.stored():
            self.storage.place(node, node, True).held[blob.sha256] = blob.size
        self.storage.collect()
        certificate = key = None
        if not self.settings.insecure:
            serving = self.authority.serving((*self.settings.names, host_and_port(self.settings.listen)[0]))
            certificate, key = serving.certificate, serving.key
        self._listener = await grpc.serve(self.settings.listen, certificate, key, self._serve)
        self.address = self._listener.address
        self._task(self.commits.write_always())
        write_own(self.root, Credentials(self._reached(), self.line(self._own_token())))
        for row in self.store.rows("runs"):
            if row["status"] in ENDED:
                self.registry.tokens.end_run(row["id"])
        await self.commit()

    async def begin(self) -> None:
        """Let in whoever knocks, and go on with the runs that were going on."""
        self._begun.set()
        await self.programs.resume()

    async def close(self) -> None:
        """End run processes and connections, and write what is left."""
        await self.programs.close()
        problem = m.Problem(code=m.CODE_SHUTTING_DOWN, text="the server ends", retry=True)
        await asyncio.gather(
            *(peer.connection.close(problem) for peer in list(self.peers.values())), return_exceptions=True
        )
        if self._listener is not None:
            await self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            self.commits.write_rest()
        except StorageError as error:  # it is as if the server had been killed: nobody was told of any of it
            _LOG.error("the store cannot be written: %s", error.message)
        finally:
            self.store.close()

    def _own_token(self) -> Token:
        """What operators on this machine use: the one that is in the server's folder already, if it is good still."""
        with suppress(SettingError):
            kept = own_token(self.root)
            if kept is not None and self.registry.tokens.holds(kept, "admin"):
                return kept
        with suppress(SettingError):
            self.registry.tokens.remove_operator("server", "local")
        return self.registry.tokens.grant("server", "local", "admin")

    def _reached(self) -> str:
        """The address as this machine reaches it."""
        host, port = host_and_port(self.address)
        return f"127.0.0.1:{port}" if host in ("0.0.0.0", "::") else self.address

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Connections

    def same_machine(self, identity: Identity) -> bool:
        """Whether a peer is a run process that this server has started."""
        return identity.role == m.ROLE_RUN and identity.id in self.programs.running

    async def _serve(self, stream: Stream) -> None:
        await self._begun.wait()
        connection = Connection(stream)
        try:
            identity = await accept(
                connection,
                self.registry,
                server=self.authority.public.hex()[:16],
                same_machine=self.same_machine,
                handshakes=self._handshakes,
                settled=self.commit,
            )
        finally:
            self.commits.soon()  # what the registry noted
        if not self.registry.admits(identity):  # revoked while the welcome waited for the disk
            await connection.close(m.Problem(code=m.CODE_REVOKED, text="it was revoked just now"))
            return
        same = [peer for peer in self.peers.values() if peer.identity.id == identity.id]
        if identity.role == m.ROLE_OPERATOR and len(same) >= OPERATOR_CONNECTIONS:
            text = f"{len(same)} others have connected by this token"
            await connection.close(m.Problem(code=m.CODE_BUSY, text=text, retry=True))
            return
        self._numbers += 1
        peer = PeerConnection(self, self._numbers, identity, connection)
        self.peers[peer.id] = peer
        level = logging.DEBUG if identity.role == m.ROLE_OPERATOR else logging.INFO  # each command connects
        _LOG.log(level, "%s has connected from %s", peer.id, connection.peer)
        try:
            if identity.role == m.ROLE_OPERATOR:
                await self._serve_operator(peer)
            else:
                await self._serve_machine(peer)
        except PeerError as error:
            _LOG.log(level, "%s is gone: %s", peer.id, error.message)
        finally:
            self.peers.pop(peer.id, None)
            self._traffic[0] += connection.received.frames
            self._traffic[1] += connection.sent.frames
            if identity.role != m.ROLE_OPERATOR:
                self.tell(Lost(peer.id))
            if identity.role == m.ROLE_RUN and identity.id not in self.programs.running:
                self._task(self._parted(identity.id))
            self.blobs.release(peer.id)
            await peer.exchange.close()
            await connection.close()

    async def _serve_machine(self, peer: PeerConnection) -> None:
        identity = peer.identity
        hello = identity.hello
        self.tell(Connected(peer.id, roles.NAMES[identity.role], identity.id, identity.name, tuple(hello.clients)))
        while True:
            for message in await peer.connection.receive():
                self.tell(Received(peer.id, message))

    async def _serve_operator(self, peer: PeerConnection) -> None:
        answering: set[asyncio.Task[None]] = set()
        try:
            async for message in peer.connection.messages():
                task = self._task(self._answer(peer, message.request))
                if message.request.method in LASTING:
                    continue
                answering.add(task)
                task.add_done_callback(answering.discard)
        finally:
            for task in answering:
                task.cancel()

    async def _answer(self, peer: PeerConnection, request: m.Request) -> None:
        async for response in self.desk.answer(peer, request):
            peer.connection.post(m.Message(response=response))
        self.commits.soon()

    # The router's events and effects

    def tell(self, event: Event) -> None:
        """Tell the router what happened, and do what it says."""
        self.carry(self.router.handle(event, time.time()))

    def carry(self, effects: Iterable[Effect]) -> None:
        """Do what the router says."""
        soon = False
        for effect in effects:
            if isinstance(effect, Say):
                if effect.durable:
                    self.commits.hold(effect)
                    soon = soon or effect.message.WhichOneof("body") not in LAZY
                else:
                    self._post(effect)
            elif isinstance(effect, Fetch):
                self._task(self._fetch(effect))
            elif isinstance(effect, Hold):
                self.blobs.hold(effect.sha, effect.owner)
            elif isinstance(effect, Release):
                self.blobs.release(effect.owner)
                self.storage.collect()
                self.depot.freed()
            elif isinstance(effect, Tell):
                self.feeds.tell(effect.run, effect.number, effect.event)
            elif isinstance(effect, Drop):
                peer = self.peers.get(effect.peer)
                if peer is not None:
                    problem = m.Problem(code=effect.code, text=effect.text)  # type: ignore[arg-type]
                    self._task(peer.connection.close(problem))
            elif isinstance(effect, RunBegun):
                self.feeds.begun(effect.run)
            elif isinstance(effect, RunEnded):
                self.registry.tokens.end_run(effect.run)
                self._task(self._ended(effect))
        if soon:
            self.commits.soon()
        else:
            self.commits.later()

    def _post(self, say: Say) -> None:
        if (insider := self.insiders.get(say.peer)) is not None:
            insider.say(say.peer, say.message)
            return
        peer = self.peers.get(say.peer)
        if peer is None:
            return
        try:
            peer.connection.post(say.message, lazy=say.message.WhichOneof("body") in LAZY)
        except ProtocolError as error:  # whoever made it so large has to do without
            _LOG.error("what %s is to be told is lost: %s", peer.id, error.message)

    async def _fetch(self, fetch: Fetch) -> None:
        key = (fetch.peer, fetch.run, fetch.blob.sha256)
        if key in self._fetching:
            return  # it was named more than once
        self._fetching.add(key)
        try:
            await self._fetched(fetch)
        finally:
            self._fetching.discard(key)

    async def _fetched(self, fetch: Fetch) -> None:
        while True:
            insider, peer = self.insiders.get(fetch.peer), self.peers.get(fetch.peer)
            if insider is None and peer is None:
                return
            try:
                if insider is not None:
                    await insider.fetch(fetch.blob, fetch.run)
                elif peer is not None:
                    await peer.exchange.fetch(fetch.blob, fetch.run)
            except ConnectionLost:
                return  # it is fetched again when whoever has it says so again
            except (Refused, CorruptFile) as error:
                self.tell(NotFetched(fetch.run, fetch.blob.sha256, error.message))
                return
            except StorageError as error:  # whoever has it keeps it, and will not say so again: try until there is room
                self._full = f"what nodes and runs send cannot be written: {error.message}"
                _LOG.error("%s; trying again", error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._full = ""
            self.tell(Fetched(fetch.run, fetch.blob.sha256))
            return

    # The store

    def _stored_events(self, run: str, after: int) -> list[tuple[int, str]]:
        return [(row["number"], row["body"]) for row in self.store.rows("events", above=after, run=run)]

    def folder(self, run: str) -> Path:
        """Where a run keeps its files: in its process's folder, one of its own."""
        return self.root / "runs" / run / "run"

    def _new_token(self, run: str) -> str:
        """The line of a new token for a run; who has connected by an earlier one is put out."""
        token = self.registry.tokens.issue_run("server", run)
        self._put_out(lambda peer: peer.identity.role == m.ROLE_RUN and peer.identity.id == run)
        return self.line(token)

    async def _parted(self, run: str) -> None:
        async with self.desk.turn(run):  # who goes on with it just now has started its process then
            await self.programs.parted(run)

    async def _ended(self, effect: RunEnded) -> None:
        await self.commit()
        self.feeds.ended(effect.run)

    # What the desk needs beside

    def revoked(self, node: str) -> None:
        """End a node's part in everything."""
        self.tell(Revoked(node))

    def dismissed(self, token: str) -> None:
        """End the connections of an operator, and of runs that it drives."""
        self._put_out(lambda peer: peer.identity.role != m.ROLE_NODE and peer.identity.hello.token == token)

    def _put_out(self, whom: Callable[[PeerConnection], bool]) -> None:
        problem = m.Problem(code=m.CODE_REVOKED, text="this token is good no more")
        for peer in filter(whom, self.peers.values()):
            self._task(peer.connection.close(problem))

    def invitation(self, token: Token) -> str:
        """The line that a node types to join."""
        host, port = host_and_port(self.address)
        if host in ("0.0.0.0", "::"):
            host = self.settings.names[0] if self.settings.names else socket.gethostname()
        return f"umbel node {f'[{host}]' if ':' in host else host}:{port} --join {self.line(token)}"

    def line(self, token: Token) -> str:
        """What somebody is given for a token."""
        return JoinText(b"" if self.settings.insecure else self.authority.public, token).text

    def status(self) -> dict[str, Any]:
        """How the server is, as plain values."""
        known = self.facts()
        return {
            "server": known.server,
            "software": known.software,
            "address": self.address,
            "seconds": round(known.now - known.started_at, 3),
            "problem": known.problem,
            "sessions": dict(known.sessions),
            "waiting": known.waiting,
            "storage": known.storage,
        }

    # The pages

    def facts(self) -> pages.ServerFacts:
        """How the server is."""
        sessions: dict[str, int] = {}
        for peer in self.peers.values():
            role = roles.NAMES[peer.identity.role]
            sessions[role] = sessions.get(role, 0) + 1
        received = self._traffic[0] + sum(peer.connection.received.frames for peer in self.peers.values())
        sent = self._traffic[1] + sum(peer.connection.sent.frames for peer in self.peers.values())
        return pages.ServerFacts(
            server=self.address,
            software=f"umbel {version('umbel')}",
            started_at=self.started_at,
            now=time.time(),
            problem=self.commits.problem or self._full or self.storage.problem,
            nodes=tuple(self._node_facts()),
            runs=tuple(self._run_facts()),
            sessions=sessions,
            answers_stored=self.router.answers.count,
            blob_bytes=self.blobs.used,
            blob_quota=self.storage.quota,
            node_quota=self.storage.share,
            blobs_waiting=self.storage.waiting,
            store_bytes=sum(path.stat().st_size for path in self.root.glob("server.db*")),
            disk_free=shutil.disk_usage(self.root).free,
            commits=self.commits.seconds,
            frames_in=received,
            frames_out=sent,
        )

    def _node_facts(self) -> Iterable[pages.NodeFacts]:
        for node in self.registry.nodes():
            yield pages.NodeFacts(
                id=node.id,
                name=node.name,
                status=node.status,
                connected=self.router.nodes.online(node.id),
                clients=len(node.clients),
                seen_at=node.seen_at,
            )

    def _run_facts(self) -> Iterable[pages.RunFacts]:
        for row in self.store.rows("runs"):
            about = self.summaries.of(row["id"])
            standings = self.router.ledger.standings(row["id"])
            yield pages.RunFacts(
                id=row["id"],
                name=row["name"] or row["id"],
                status=row["status"] or "",
                owner=row["owner"] or "",
                round=about["rounds"],
                rounds=about["asked"],
                ready=sum(standing == m.STANDING_READY for standing, _ in standings.values()),
                waiting=self.router.ledger.waiting(row["id"]),
            )


@asynccontextmanager
async def running(settings: ServerSettings, **more: Any) -> AsyncIterator[Service]:
    """A server that is up while in the block; its pages, if any, are up too."""
    service = Service(settings, **more)
    try:
        await service.open()
        await service.begin()
        yield service
    finally:
        await service.close()


async def serve_until(
    settings: ServerSettings, stopping: asyncio.Event, announce: Callable[[ServerOpened], None]
) -> None:
    """Be a server until `stopping` is set; `announce` is told where it is to be found before it lets anybody in."""
    service = Service(settings)
    try:
        await service.open()
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        showing: asyncio.Future[Any] | None = None
        url = None
        if settings.http:
            host, port = host_and_port(settings.http)
            showing = asyncio.create_task(pages.serve(service, host, port, listening=place.set_result))
            await asyncio.wait([showing, place], return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                showing.result()
            url = f"http://{host}:{place.result()}"
        token = service.registry.invite("server", None)
        await service.commit()
        gc.freeze()  # what imports have made stays: the collector need not go through it again and again
        announce(ServerOpened(service.address, url, settings.folder, service.invitation(token)))
        await service.begin()
        await stopping.wait()
        if showing is not None:
            showing.cancel()
            await asyncio.wait({showing})
    finally:
        await service.close()


def serve(settings: ServerSettings, announce: Callable[[ServerOpened], None]) -> None:
    """Be a server until SIGINT or SIGTERM."""

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        await serve_until(settings, stopping, announce)

    os.umask(0o077)
    _allow_many_files()
    asyncio.run(main())


def _allow_many_files() -> None:
    """Each connection is an open file: take as many as the system lets this process have."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
