"""A node as a process: connects to its server for ever, and carries out what its state machine says."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .. import transforms
from ..core.task import Ticked
from ..errors import (
    ConnectionLost,
    CorruptFile,
    PeerError,
    ProtocolError,
    Refused,
    SettingError,
    StorageError,
    UmbelError,
)
from ..store.blobs import Blobs
from ..store.commits import GroupCommit
from ..store.patience import Patience
from ..transport.connection import Connection
from ..transport.dialer import Dialer
from ..transport.exchange import Depot, Exchange
from ..transport.handshake import introduce
from ..transport.side import SideDialer
from ..transport.stream import Stream
from ..transport.tasks import Tasks
from ..trust import archive as archives
from ..trust.epochs import Epoch
from ..trust.identity import SigningKey
from ..trust.policy import PrivacyBudget
from ..trust.proofs import NodeProof
from ..trust.servers import KnownServer
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched, run_giver
from ..wire.limits import HELLO_BYTES
from ..wire.portions import text_bytes
from .audit import OWNER, NodeAudit
from .children import Children
from .gate import Gate, Verdict, against_client, against_start
from .holdings import REASON_LETTERS
from .ledger import PrivacyLedger
from .limits import Limits
from .machine import NodeMachine
from .orders import blob_of
from .run_host import ChildSettings, Program, holder
from .sessions import SecureSessions
from .signals import (
    Approved,
    Denied,
    Effect,
    EndRun,
    Event,
    FetchBlob,
    HostDied,
    HostReady,
    HostRefused,
    Moved,
    Note,
    OwnerAsked,
    Prepare,
    ReleaseBlob,
    SayToServer,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Start,
    Stop,
    TaskDone,
    TaskFailed,
)
from .spool import Batch, Spool

log = logging.getLogger("umbel.node")

IDLE_COMMIT = 1.0
"""What nobody waits for is on disk after so many seconds."""

QUICK_COMMIT = 0.1
"""What takes longer to be on disk is written in a thread: until then nothing that a node does is worth one."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0
MOVED_EVERY = 1.0
FREE_SHARE = 0.8
"""Where a node has no quota, no blob may have more of what was free, or was the node's, when it started."""


class Hosts(Protocol):
    """Where a node's runs are hosted, as the effects of the same names demand.

    Events go to the function that it was made with, never from within a call, and none of a run that was ended.
    """

    def prepare(self, run: str, spec: m.RunSpec, archive: Path) -> None: ...
    def start(self, effect: Start) -> None: ...
    def stop(self, effect: Stop) -> None: ...
    def end_run(self, run: str) -> None: ...
    async def close(self) -> None: ...


MakeHosts = Callable[[Blobs, Callable[[Event], None]], Hosts]
AskOwner = Callable[[m.RunSpec, Path], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a node is.

    - `folder`: where it keeps its spool, blobs, logs and what runs need; it is this node's alone.
    - `connect`: opens a stream to the server. Raises `ConnectionLost`.
    - `key`, `token`: by what it is known, and what lets it join.
    - `clients`: what it hosts, each with its source; `slots`: how many tasks it does at once.
    - `gate`: what it lets in; `ask_owner`: answers for the owner where the gate leaves it to them, by the file of the
      archive.
    - `device`, `data_cache`, `grace`, `environment`, `limits`: see `ChildSettings`.
    - `quota`: bytes of blobs that it keeps at most, beside those of its own results.
    - `lends_below`: where a server on the same machine may have files linked; None for nowhere.
    - `hosts`: makes what hosts runs, in place of child processes.
    - `server`: what it knows of its server.
    - `budget`: what each client may spend of its privacy; None for no bound.
    - `rest`: how it waits for room on a full disk, which it does for as long as it takes.
    """

    folder: Path
    connect: Callable[[], Awaitable[Stream]]
    key: SigningKey
    clients: Mapping[str, Any]
    gate: Gate
    name: str = ""
    token: Token | None = None
    slots: int = 1
    ask_owner: AskOwner | None = None
    device: str = "auto"
    data_cache: int = 1000
    grace: float = 5.0
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    quota: int | None = None
    lends_below: Path | None = None
    hosts: MakeHosts | None = None
    server: KnownServer = field(default_factory=KnownServer)
    budget: PrivacyBudget | None = None
    first_wait: float = FIRST_WAIT
    longest_wait: float = LONGEST_WAIT
    rest: Callable[[float], Awaitable[object]] = asyncio.sleep

    def hello(self) -> m.Hello:
        """How it introduces itself."""
        known = [m.Step(name=name, version=version) for name, version in transforms.known_transforms()]
        return m.Hello(
            role=m.ROLE_NODE,
            name=self.name,
            key=self.key.public,
            token=self.token.id if self.token is not None else "",
            software=f"umbel {getattr(sys.modules.get('umbel'), '__version__', '')}",
            capabilities=m.Capabilities(transforms=known, archives=True),
            clients=sorted(self.clients),
        )


async def run_node(settings: NodeSettings, stopping: asyncio.Event) -> None:
    """Be a node until `stopping` is set. Raises `StorageError` or `CorruptFile` where its folder cannot be used, and
    `SettingError` for more clients than it could name.
    """
    if sum(map(text_bytes, settings.clients)) > HELLO_BYTES:
        raise SettingError(
            f"a node cannot host {len(settings.clients)} clients: their names take more than {HELLO_BYTES} bytes",
            hint="Spread them over several nodes, or give them shorter names.",
        )
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    node = NodeService(settings)
    serving = asyncio.create_task(node.serve(stopping))
    try:
        await asyncio.wait({serving, node.fault}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        await asyncio.wait({serving})
        await node.close()
    serving.result()
    if node.fault.done():
        node.fault.result()


class NodeService:
    """A node's state machine, and the world around it."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.fault: asyncio.Future[None] = self._loop.create_future()
        spool = Spool(settings.folder / "node.db")
        self._epoch, self._boot = Epoch(settings.folder / "epoch"), secrets.token_hex(8)
        self._blobs = Blobs(settings.folder / "blobs", settings.quota)
        self._depot = Depot(self._blobs, lends_below=settings.lends_below)
        self._audit = NodeAudit(spool, settings.folder)
        known_as = lambda: settings.server.known_as  # noqa: E731
        self._ledger = PrivacyLedger(self._audit.records, settings.key, settings.budget, server=known_as)
        self._sessions = SecureSessions(self._audit.records)
        self._patience = Patience(None, self._waits, rest=settings.rest)
        self._machine = NodeMachine(
            spool,
            settings.clients,
            slots=settings.slots,
            allows=self._audit.against_ask(settings.gate.against_ask),
            admits=settings.gate.against_run,
            largest=self._largest(),
            account=self._account,
        )
        for run, sha in self._machine.needed():
            self._blobs.hold(sha, holder(run, sha))
        self._blobs.collect()
        self._hosts = (settings.hosts or _children(settings, self._patience))(self._blobs, self._told)
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._specs: dict[str, m.RunSpec] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._moved: dict[bytes, float] = {}
        self._fetches: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks(self._fail)
        self._collecting = False
        self._dialer = Dialer(
            settings.connect, first=settings.first_wait, longest=settings.longest_wait, who="node", log=log
        )
        self._spool = spool
        self._commits = GroupCommit[Batch, tuple[Connection | None, m.Message]](
            spool,
            self._say,
            lazy=IDLE_COMMIT,
            quick=QUICK_COMMIT,
            log=log,
            timed=lambda seconds: self._audit.settle(),
            troubled=self._say_problem,
        )
        self._commits.begin()

    def _largest(self) -> int:
        """What one blob may have: by the quota, or by what is free."""
        if self._settings.quota is not None:
            return self._settings.quota
        return int(FREE_SHARE * (self._blobs.used + shutil.disk_usage(self._blobs.folder).free))

    # the connection

    async def serve(self, stopping: asyncio.Event) -> None:
        """Connect, and connect again whenever the connection ends."""
        parting = m.Problem(code=m.CODE_SHUTTING_DOWN, text="the node ends", retry=True)
        await self._dialer.keep(self._converse, stopping, parting)

    async def _converse(self, connection: Connection) -> None:
        proof = NodeProof(self._settings.key, self._settings.token)
        try:
            hello = self._settings.hello()
            hello.epoch, hello.boot = self._epoch.raised(), self._boot
            welcome = await introduce(connection, proof, hello)
            try:
                self._settings.server.welcomed(welcome)
            except Refused as error:
                await connection.close(error)
                raise
            self._dialer.welcomed(connection, welcome, self._settings.name)
            self._audit.connected(connection.peer, welcome)
            self._connection = connection
            self._exchange = Exchange(
                connection,
                self._depot,
                self._may_read,
                same_machine=welcome.same_machine,
                progress=self._progressed,
                giver=run_giver,
                source=run_giver,
                side=SideDialer(connection.beside, welcome.side_port),
            )
            self._handle(SessionBegun(welcome))
            if self._problem:
                self._say_problem()
            async for batch in connection.batches():
                for left, message in zip(range(len(batch) - 1, -1, -1), batch, strict=True):
                    self._settings.server.acknowledged(message.ack.epoch)
                    try:
                        self._handle(ServerSaid(message, left > 0))
                    except ProtocolError as error:
                        await connection.close(error)
                        raise
        finally:
            exchange, self._connection, self._exchange = self._exchange, None, None
            if exchange is not None:
                self._handle(SessionEnded())
                await exchange.close()

    def _may_read(self, run: str, blob: m.Blob) -> bool:
        return (run, blob.sha256) in self._machine.needed()

    def _progressed(self, sha: bytes, offset: int) -> None:
        now = self._loop.time()
        if now - self._moved.get(sha, 0.0) >= MOVED_EVERY:
            self._moved[sha] = now
            for run, needed in self._machine.needed():
                if needed == sha:
                    self._told(Moved(run, sha))

    # what its server's operators should know

    @property
    def _problem(self) -> str:
        return self._commits.problem or self._patience.problem

    def _waits(self, text: str) -> None:
        log.error("%s", text)
        self._say_problem()

    def _say_problem(self) -> None:
        if self._connection is not None:
            self._connection.post(m.Message(notice=m.Notice(text=self._problem[:REASON_LETTERS])))

    # the machine

    def _account(self, task: m.Task, ask: m.AskSpec) -> None:
        """The answer of a task is put into the spool: so is what is kept of it."""
        self._ledger.commit(task, ask)
        self._sessions.commit(task, ask)

    def _told(self, event: Event) -> None:
        """Take an event from anywhere but the server; what goes wrong then is the node's own fault, and its end."""
        try:
            self._audit.told(event)
            if isinstance(event, TaskDone) and (reason := self._sessions.done(event) or self._ledger.done(event)):
                event = self._withheld(event, reason)
            if isinstance(event, HostReady):
                reason = against_client(self._specs[event.run].contract, event)
                if reason:
                    self._hosts.end_run(event.run)
                    event = HostRefused(event.run, reason)
            self._handle(event)
            self._ledger.over(event)
            self._sessions.over(event)
        except Exception as error:
            if not self.fault.done():
                self.fault.set_exception(error)

    def _withheld(self, event: TaskDone, reason: str) -> TaskFailed:
        """The answer of a task is not given."""
        blob = blob_of(event.result, "update")
        if blob is not None and (event.run, blob.sha256) not in self._machine.needed():
            self._blobs.release(holder(event.run, blob.sha256))
        self._audit.against_task(m.Task(run=event.run, task=event.task), reason)
        return TaskFailed(event.run, event.task, event.attempt, reason, False)

    def _handle(self, event: Event) -> None:
        for effect in self._machine.handle(event, self._loop.time()):
            self._carry_out(effect)
        self._commits.later()
        at = self._machine.next_tick
        if at != (self._tick.when() if self._tick is not None else None):
            if self._tick is not None:
                self._tick.cancel()
            self._tick = None if at is None else self._loop.call_at(at, self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self._told(Ticked())

    def _say(self, held: tuple[Connection | None, m.Message]) -> None:
        """Say what is on disk by now, unless its session is over."""
        connection, message = held
        if connection is not None and connection is self._connection:
            connection.post(message)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SayToServer(message, durable, lazy):
                if durable:
                    self._commits.hold((self._connection, message))
                    if lazy:
                        self._commits.later(lazy)
                    else:
                        self._commits.soon()
                elif self._connection is not None:
                    self._connection.post(message)
            case FetchBlob(run, blob):
                self._fetch(run, blob)
            case ReleaseBlob(run, sha):
                self._release(run, sha)
            case Prepare():
                self._specs[effect.run] = effect.spec
                self._prepare_by(effect.run, self._prepare(effect))
            case Start():
                gate, spec, path = self._settings.gate, self._specs[effect.run], self._blobs.path
                reason = against_start(gate, effect, spec.config, path)
                if reason := reason or self._sessions.begin(effect) or self._ledger.begin(effect, spec.name, path):
                    task = effect.task
                    self._audit.against_task(task, reason)
                    failed = TaskFailed(effect.run, task.task, task.attempt, reason, False)
                    self._loop.call_soon(self._told, failed)
                else:
                    self._hosts.start(effect)
            case Stop():
                self._hosts.stop(effect)
            case EndRun(run):
                self._audit.ended(run)
                self._ledger.ended(run)
                self._sessions.ended(run)
                self._specs.pop(run, None)
                if (preparing := self._preparing.pop(run, None)) is not None:
                    preparing.cancel()
                self._hosts.end_run(run)
                self._blobs.release(f"{run}/archive")
                self._blobs.alike.over(run_giver(run))
                self._collect()
            case Note(text):
                log.info("%s", text)

    # blobs

    def _fetch(self, run: str, blob: m.Blob) -> None:
        key = (run, blob.sha256)
        self._blobs.hold(blob.sha256, holder(*key))
        if key not in self._fetches and self._exchange is not None:
            task = self._fetches[key] = self._tasks.begin(self._fetched(run, blob, self._exchange))
            task.add_done_callback(lambda done: self._fetches.get(key) is done and self._fetches.pop(key))

    async def _fetched(self, run: str, blob: m.Blob, exchange: Exchange) -> None:
        try:
            await self._patience.later(lambda: exchange.fetch(blob, run))
        except ConnectionLost:
            return  # it is asked for again in the next session
        except (PeerError, CorruptFile, StorageError) as error:
            self._told(NotFetched(run, blob.sha256, error.message))
        else:
            self._told(Fetched(run, blob.sha256))

    def _release(self, run: str, sha: bytes) -> None:
        fetching = self._fetches.pop((run, sha), None)
        if fetching is not None:
            fetching.cancel()
        self._moved.pop(sha, None)
        self._blobs.release(holder(run, sha))
        self._collect()

    def _collect(self) -> None:
        if not self._collecting:
            self._collecting = True
            self._tasks.begin(self._collected())

    async def _collected(self) -> None:
        self._collecting = False
        try:
            await asyncio.to_thread(self._blobs.collect)
        except StorageError as error:
            log.warning("%s", error)
        self._depot.freed()

    # runs

    def _prepare_by(self, run: str, work: Coroutine[Any, Any, None]) -> None:
        if (before := self._preparing.pop(run, None)) is not None:
            before.cancel()
        task = self._preparing[run] = self._tasks.begin(work)
        task.add_done_callback(lambda done: self._preparing.get(run) is done and self._preparing.pop(run))

    async def _prepare(self, effect: Prepare) -> None:
        run, spec = effect.run, effect.spec
        self._audit.came(spec)
        try:
            archive = await self._patience.later(lambda: asyncio.to_thread(self._archive, spec))
            verdict = await asyncio.to_thread(self._settings.gate.check, spec, archive)
        except (StorageError, OSError) as error:  # the node's disk, not the run
            self._told(HostDied(run, error.message if isinstance(error, UmbelError) else str(error)))
            return
        except UmbelError as error:
            verdict = Verdict("deny", error.message)
        if verdict.word != "ask":
            self._audit.judged(spec, verdict)
        if verdict.word == "deny":
            self._told(HostRefused(run, verdict.reason))
        elif verdict.word == "allow" or effect.approved:
            self._hosts.prepare(run, spec, archive)
        else:
            self._told(OwnerAsked(run))
            if self._settings.ask_owner is not None:
                said = await self._settings.ask_owner(spec, archive)
                self._audit.judged(spec, Verdict("allow" if said else "deny"), OWNER)
                self._loop.call_soon(self._told, Approved(run) if said else Denied(run))

    def _archive(self, spec: m.RunSpec) -> Path:
        blob = spec.archive.blob
        if spec.archive.WhichOneof("at") == "inline":
            blob = self._blobs.put(spec.archive.inline, f"{spec.run}/archive")
        path = self._blobs.path(blob.sha256)
        if path is None:
            raise StorageError("the client's archive is not in the node's folder any more")
        return path

    # the end

    def _fail(self, error: BaseException) -> None:
        """What goes wrong here ends the node."""
        if not self.fault.done():
            self.fault.set_exception(error)

    async def close(self) -> None:
        """End all that runs, and write what is not on disk yet."""
        await self._hosts.close()
        self._audit.close()
        if self._tick is not None:
            self._tick.cancel()
        await self._tasks.close()
        try:
            await self._commits.close()
        finally:
            self._spool.close()


def unpacked(archive: Path, folder: Path) -> Program:
    """Unpack a client's archive that has been checked. Raises `AppError` and `StorageError`."""
    read = archives.read(archive.read_bytes())
    archives.unpack(read, folder)
    return Program(folder, read.manifest["module"], read.manifest["attribute"])


def _children(settings: NodeSettings, patience: Patience) -> MakeHosts:
    started = ChildSettings(
        folder=settings.folder,
        sources=settings.clients,
        device=settings.device,
        data_cache=settings.data_cache,
        grace=settings.grace,
        environment=settings.environment,
        limits=settings.limits,
        patience=patience,
    )
    return lambda blobs, tell: Children(started, blobs, unpacked, tell)
