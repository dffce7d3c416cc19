"""The server's process: connects streams, the router, the store, run processes, operators' requests and the pages.

What the router and the desk put into the store is written by one task, in batches: whatever came while one batch was
being written goes into the next (group commit). What must not be seen before it is on disk waits for that.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import SettingError, StorageError
from ..store.blobs import Blobs
from ..store.commits import GroupCommit
from ..store.records import Row
from ..store.sql import SqlStore
from ..transport import grpc
from ..transport.exchange import Depot
from ..transport.handshake import Identity
from ..transport.side import SideStreams
from ..transport.stream import Listener
from ..transport.tasks import Tasks
from ..trust.authority import Authority, JoinText
from ..trust.credentials import Credentials, own_token, write_own
from ..trust.epochs import Epoch
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire.addresses import host_and_port
from . import pages
from .certificates import Certificates
from .connections import Connections
from .desk import Desk
from .dispatch import Dispatch
from .feeds import Feeds
from .ledger import ENDED, READERS
from .pages import Latencies
from .programs import Programs, Surroundings
from .registry import NodeRecord, Registry
from .router import Router
from .settings import ServerOpened, ServerSettings
from .signals import Event, Say
from .storage import Storage

_LOG = logging.getLogger("umbel.server")
EPOCH_SECONDS = 600.0
"""So often the number goes up by which nodes notice that they meet an older copy of the server's folder."""
LAZY_COMMIT = 0.1
"""So long what nobody waits for may wait to be written with something else."""


class Service:
    """A server that is up; `Offices` for its desk and `Facts` for its pages."""

    address = ""
    certificates: Certificates | None = None
    _listener: Listener | None = None
    now: Callable[[], datetime] = staticmethod(lambda: datetime.now(UTC))
    """The time by which certificates end."""
    endorsements: Sequence[m.Endorsement] = ()
    """What the servers above say of this one, where it is a relay's."""

    def __init__(self, settings: ServerSettings, after_commit: Callable[[], None] | None = None) -> None:
        folder = _made(settings.folder)
        self.settings = settings
        self.root = folder.absolute()
        self.fresh = not (folder / "server.db").exists()
        self.authority = Authority(folder / "authority")
        self.epoch, self.boot, self._tasks = Epoch(folder / "epoch"), secrets.token_hex(8), Tasks()
        self.store = SqlStore(folder / "server.db", after_commit=after_commit, readers=READERS)
        self.blobs = Blobs(folder / "blobs")
        self.depot, self.side = Depot(self.blobs), SideStreams()
        self.registry = Registry(self.store, time.time, folder=folder / "authority")
        self.storage = Storage(
            self.blobs,
            quota=settings.quota,
            node_quota=settings.node_quota,
            largest=settings.largest_answer,
            nodes=lambda: self.registry.approved,
        )
        self.router = Router(
            self.store,
            lambda sha, giver: self.blobs.path(sha, giver) is not None,
            largest=lambda role: self.storage.largest if role == "node" else self.storage.quota,
            claims=self.registry.claims,
            log_bytes=settings.log_quota,
        )
        self.feeds = Feeds(self._events, lambda run: self.programs.is_over(run))
        self.commit_seconds = Latencies()
        self.commits = self._group_commit()
        self.commit, self.summaries = self.commits.done, self.router.summaries
        around = Surroundings(
            root=self.root,
            server=self.authority.public.hex()[:16],
            store=self.store,
            blobs=self.blobs,
            depot=self.depot,
            side=self.side,
            storage=self.storage,
            registry=self.registry,
            router=self.router,
            feeds=self.feeds,
            commits=self.commits,
            summaries=self.summaries,
            begin=self._tasks.begin,
            tell=self.tell,
            carry=lambda effects: self.carry(effects),
            new_token=self._new_token,
            address=self._reached,
            epoch=self.epoch,
        )
        self.programs = Programs(around)
        self.start, self.stop = self.programs.start, self.programs.stop
        nodes = self.router.nodes
        self.online, self.denied, self.host = nodes.online, nodes.refused, nodes.by_client.get
        self.ails, self.standings = nodes.problem, self.router.ledger.standings
        self.desk = Desk(self)
        self.connections = Connections(around, self.programs, self.desk, self._greeting)
        self.registry.held = self._held
        self.dispatch = Dispatch(around, self.connections)
        self.insiders, self.carry = self.dispatch.insiders, self.dispatch.carry
        self.started_at = time.time()

    def _group_commit(self) -> GroupCommit[Any, Say]:
        return GroupCommit(
            self.store,
            lambda say: self.dispatch.post(say),
            lazy=LAZY_COMMIT,
            quick=0.0,
            log=_LOG,
            timed=self._written,
        )

    def _written(self, seconds: float) -> None:
        self.commit_seconds.observe(seconds)
        self.registry.audit.settle()

    # Life

    async def open(self) -> None:
        """Listen: who knocks waits until the server has begun."""
        (self.root / "runs").mkdir(mode=0o700, exist_ok=True)
        for hold in self.router.ledger.held():
            self.blobs.hold(hold.sha, hold.owner)
        for sha, owner in self.desk.submissions.held():
            self.blobs.hold(sha, owner)
        for node, blob in self.router.ledger.stored():
            self.storage.place(node, node, True).held[blob.sha256] = blob.size
        self.storage.collect()
        certificate, key, renewed = None, None, None
        if not self.settings.insecure:
            names = (*self.settings.names, host_and_port(self.settings.listen)[0])
            self.certificates = Certificates(self.authority, names, self.now)
            renewed = self.certificates.pair
            certificate, key = renewed()
            self._tasks.begin(self.certificates.keep())
        heard = self.connections.serve
        self._listener = await grpc.serve(
            self.settings.listen, certificate, key, heard, renewed=renewed, window=self.settings.window
        )
        self.address = self._listener.address
        self.side.open(host_and_port(self.settings.listen)[0], self.settings.ports_for_blobs(), renewed)
        self.epoch.raised()
        self._tasks.begin(self._count_up())
        self.commits.begin()
        write_own(self.root, Credentials(self._reached(), self.line(self._own_token())))
        for row in self.store.rows("runs"):
            if row["status"] in ENDED:
                self.registry.tokens.end_run(row["id"])
        await self.commit()

    async def begin(self) -> None:
        """Let in whoever knocks, and go on with the runs that were going on."""
        self.connections.begin()
        await self.programs.resume(self.desk.submissions.turn)

    async def close(self) -> None:
        """End run processes and connections, and write what is left."""
        await self.programs.close()
        await self.connections.close()
        await self.side.close()
        if self._listener is not None:
            await self._listener.close()
        await self._tasks.close()
        try:
            await self.commits.close()
        except StorageError as error:  # it is as if the server had been killed: nobody was told of any of it
            _LOG.error("the store cannot be written: %s", error.message)
        finally:
            self.store.close()

    def _greeting(self, who: Identity) -> m.Welcome:
        """What this server says of itself to whom it lets in."""
        successor = self.authority.successor
        named = [self.authority.endorse("successor", successor)] if successor else []
        port, now = self.side.port, time.time()
        if who.role != m.ROLE_NODE:
            return m.Welcome(endorsements=named, side_port=port, time=now)
        below = who.hello.authority if who.relay else b""
        said = [self.authority.endorse("relay", below)] if below else []
        told = [*self.endorsements, *said, *named]
        return m.Welcome(epoch=self.epoch.number, boot=self.boot, endorsements=told, side_port=port, time=now)

    async def _count_up(self) -> None:
        """Raise the epoch from time to time, so that a copy of the folder is older soon after it was made."""
        while True:
            await asyncio.sleep(EPOCH_SECONDS)
            self.epoch.raised()

    def _held(self, node: str) -> None:
        """Something is wrong with a node's folder or key: whoever is connected by it is put out."""
        _LOG.warning("node %s: its folder was restored or copied, or its key is stolen; it is held", node)
        for peer in [peer for peer in self.connections.peers.values() if peer.identity.id == node]:
            text = "this node's folder is used twice, or its key is stolen"
            self.connections.drop(peer.id, m.CODE_NOT_APPROVED, text, retry=True)

    def endorsed(self, said: Iterable[m.Endorsement]) -> None:
        """Take what the servers above say of this one; nodes that have heard another thing have to connect again."""
        found = list(said)
        if found != self.endorsements:
            self.endorsements = found
            self._greet_again()

    def _greet_again(self) -> None:
        text = "the server has something to say to all nodes: connect again"
        for peer in [peer for peer in self.connections.peers.values() if peer.identity.role == m.ROLE_NODE]:
            self.connections.drop(peer.id, m.CODE_SHUTTING_DOWN, text, retry=True)

    def rotate(self) -> str:
        """Make an authority that will take the place of this one, and have the nodes hear of it; its public key."""
        if not self.authority.successor:
            self.authority.rotate()
            self._greet_again()
        return self.authority.successor.hex()

    def retire(self) -> str:
        """Let the successor take its place, for whoever connects from now on; its public key."""
        self.authority.retire()
        if self.certificates is not None:
            self.certificates.renew()
        write_own(self.root, Credentials(self._reached(), self.line(self._own_token())))
        return self.authority.public.hex()

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

    def tell(self, event: Event) -> None:
        """Tell the router what happened, and do what it says."""
        self.dispatch.tell(event)

    # Runs

    def folder(self, run: str) -> Path:
        """Where a run keeps its files: in its process's folder, one of its own."""
        return self.root / "runs" / run / "run"

    def _new_token(self, run: str) -> str:
        """The line of a new token for a run; who has connected by an earlier one is put out."""
        token = self.registry.tokens.issue_run("server", run)
        self.connections.put_out(lambda who: who.role == m.ROLE_RUN and who.id == run)
        return self.line(token)

    def _events(self, run: str, after: int, most: int) -> list[tuple[int, str]]:
        rows = self.store.rows("events", above=after, limit=most, run=run)
        return [(row["number"], row["body"] or "") for row in rows]

    # What the desk needs beside

    def dismissed(self, token: str) -> None:
        """End the connections of an operator, and of runs that it drives."""
        self.connections.put_out(lambda who: who.role != m.ROLE_NODE and who.hello.token == token)

    def invitation(self, token: Token) -> str:
        """The line that a node types to join."""
        host, port = host_and_port(self.address)
        if host in ("0.0.0.0", "::"):
            host = self.settings.names[0] if self.settings.names else socket.gethostname()
        return f"umbel node {f'[{host}]' if ':' in host else host}:{port} --join {self.line(token)}"

    async def first_line(self, always: bool) -> str | None:
        """The line by which a first node joins: what a server says at its start may stay in a journal for long."""
        if not (self.fresh or always):
            return None
        token = self.registry.invite("server", None)
        await self.commit()
        return self.invitation(token)

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
        received, sent = self.connections.frames
        return pages.ServerFacts(
            server=self.address,
            software=f"umbel {version('umbel')}",
            started_at=self.started_at,
            now=time.time(),
            problem=self.commits.problem
            or self.dispatch.problem
            or self.storage.problem
            or self.store.problem
            or (self.certificates.problem if self.certificates else ""),
            certificate_until=self.certificates.until if self.certificates else None,
            nodes=tuple(_node_facts(self, node) for node in self.registry.nodes()),
            runs=tuple(_run_facts(self, row) for row in self.store.rows("runs")),
            sessions=self.connections.sessions,
            answers_stored=self.router.answers.count,
            blob_bytes=self.blobs.used,
            blob_quota=self.storage.quota,
            node_quota=self.storage.share,
            blobs_waiting=self.storage.waiting,
            store_bytes=sum(path.stat().st_size for path in self.root.glob("server.db*")),
            disk_free=shutil.disk_usage(self.root).free,
            commits=self.commit_seconds,
            frames_in=received,
            frames_out=sent,
        )


def _run_facts(service: Service, row: Row) -> pages.RunFacts:
    about = service.summaries.of(row["id"])
    standings = service.standings(row["id"]).values()
    return pages.RunFacts(
        id=row["id"],
        name=row["name"] or row["id"],
        status=row["status"] or "",
        owner=row["owner"] or "",
        round=about["rounds"],
        rounds=about["asked"],
        ready=sum(standing == m.STANDING_READY for standing, _ in standings),
        waiting=service.router.ledger.waiting(row["id"]),
    )


def _node_facts(service: Service, node: NodeRecord) -> pages.NodeFacts:
    kept = {name: getattr(node, name) for name in ("id", "name", "status", "seen_at")}
    return pages.NodeFacts(**kept, connected=service.online(node.id), clients=len(node.clients))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


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
    settings: ServerSettings,
    stopping: asyncio.Event,
    announce: Callable[[ServerOpened], None],
    *,
    invites: bool = False,
) -> None:
    """Be a server until `stopping` is set; `announce` is told where it is to be found before it lets anybody in, with
    an invitation where the folder is new or the server `invites` at each start.
    """
    service = Service(settings)
    try:
        await service.open()
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        showing: asyncio.Future[Any] | None = None
        url = None
        if settings.http:
            host, port = host_and_port(settings.http)
            showing = asyncio.create_task(
                pages.serve(service, host, port, names=settings.names, listening=place.set_result)
            )
            await asyncio.wait([showing, place], return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                showing.result()
            url = f"http://{host}:{place.result()}"
        line = await service.first_line(invites)
        gc.freeze()  # what imports have made stays: the collector need not go through it again and again
        announce(ServerOpened(service.address, url, settings.folder, line))
        await service.begin()
        await stopping.wait()
        if showing is not None:
            showing.cancel()
            await asyncio.wait({showing})
    finally:
        await service.close()


def serve(settings: ServerSettings, announce: Callable[[ServerOpened], None], *, invites: bool = False) -> None:
    """Be a server until SIGINT or SIGTERM; see `serve_until`."""

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        await serve_until(settings, stopping, announce, invites=invites)

    os.umask(0o077)
    _allow_many_files()
    asyncio.run(main())


def _allow_many_files() -> None:
    """Each connection is an open file: take as many as the system lets this process have."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
