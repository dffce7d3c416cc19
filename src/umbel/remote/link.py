"""A run's way to its server over gRPC: a thread that keeps the connection, and makes it anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
import queue
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConnectionLost, CorruptFile, PeerError, ProtocolError, Refused, StorageError, UmbelError
from ..store.blobs import Blobs
from ..store.patience import Patience
from ..transport import grpc
from ..transport.connection import Connection
from ..transport.dialer import Dialer
from ..transport.exchange import Depot, Exchange
from ..transport.handshake import introduce
from ..transport.side import SideDialer
from ..transport.stream import Stream
from ..transport.tasks import Tasks
from ..trust.credentials import SUCCESSORS, Credentials, find, home
from ..trust.proofs import TokenProof
from ..trust.servers import Successors
from ..wire import messages as m
from .payloads import Stored, stored_in
from .session import Arrived, Down, Item, Missing, Up

_LOG = logging.getLogger("umbel.runs")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
TOGETHER = 0.1
"""For so many seconds messages are gathered, unless somebody waits."""
INLINE = 12 << 10
"""What is larger is sent once as a blob, however many get it."""
LONGEST_WAIT = 3600.0
"""Nobody waits longer than so many seconds at once: systems cannot wait for ever by the clock."""


def connect(address: str | None, *, token: str | None, folder: Any, run: str) -> ServerLink:
    """The way of a run to a server that lets it in by an operator's token. Raises `Refused`, and `ConnectionLost` where
    the server cannot be reached.
    """
    return ServerLink(find(address, token, None if folder is None else Path(folder)), run)


class ServerLink:
    """See `umbel.remote.session.Link`. Without `patient` the first connection has to succeed; `scratch` is where blobs
    are, a temporary folder by default; `given` where the server links its own, if it does.
    """

    def __init__(
        self,
        credentials: Credentials,
        run: str,
        *,
        patient: bool = False,
        scratch: Path | None = None,
        given: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._run = run
        self._patient = patient
        self._clock = clock
        self._own = None if scratch is not None else Path(tempfile.mkdtemp(prefix="umbel-run-"))
        self._scratch = scratch if scratch is not None else self._own or Path()
        self._blobs = Blobs(self._scratch / "blobs", given=given)
        self._patience = Patience(None, _LOG.warning)
        stored = stored_in(self._blobs.folder, self._adopt, INLINE)
        self.store: Stored = lambda value: self._patience(stored, value)
        self._items: queue.SimpleQueue[Item | UmbelError | list[m.Message]] = queue.SimpleQueue()
        self._here: deque[m.Message] = deque()
        self._up = False
        self._since = 0.0
        self._before = 0.0
        self._outgoing: list[tuple[int, m.Message]] = []
        self._looking = False
        self._connections, self._known = 0, 0
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._fetches = Tasks()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="umbel-link", daemon=True)
        self._thread.start()
        try:
            while not isinstance(self._next(None), Up):
                pass
        except BaseException:
            self.close()
            raise

    # What a session calls, from its thread

    @property
    def federation(self) -> str | None:
        """The public key of the server's authority."""
        return self._credentials.join.authority.hex() or None

    def keep(self, data: bytes) -> m.Payload:
        """Bytes as a payload."""
        return (
            m.Payload(inline=data)
            if len(data) <= INLINE
            else m.Payload(blob=self._patience(self._blobs.put, data, "kept"))
        )

    def send(self, message: m.Message) -> None:
        """Send a message; while there is no connection it is lost."""
        with self._lock:
            self._outgoing.append((self._known, message))
            asleep, self._looking = not self._looking, True
        if asleep and not self._closing:
            self._loop.call_soon_threadsafe(self._look_later)

    def receive(self, timeout: float | None) -> Item | None:
        """What comes next, within so many seconds of served time. Raises `Refused` where the server says no."""
        until = None if timeout is None else self.served() + timeout
        if self._outgoing and not self._closing:
            self._loop.call_soon_threadsafe(self._flush)
        while True:
            # While the server is away its time stands still, and so does what waits for it.
            left = None if until is None or not self._up else max(0.0, until - self.served())
            try:
                return self._next(left)
            except queue.Empty:
                if until is not None and self._up and self.served() >= until:
                    return None

    def fetch(self, blob: m.Blob) -> None:
        """Have a blob sent."""
        self._loop.call_soon_threadsafe(self._fetch, blob)

    def release(self, sha: bytes) -> None:
        """Let go of a blob."""
        self._blobs.release(sha.hex())
        self._blobs.collect()

    def served(self) -> float:
        """Seconds in which there was a connection."""
        return self._before + (self._clock() - self._since if self._up else 0.0)

    def close(self) -> None:
        """End the connection, after what was sent."""
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._loop.close()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def _next(self, timeout: float | None) -> Item:
        if self._here:
            return self._here.popleft()
        item = self._items.get(timeout=None if timeout is None else min(timeout, LONGEST_WAIT))
        if isinstance(item, list):
            self._here.extend(item)
            return self._here.popleft()
        if isinstance(item, UmbelError):
            raise item
        if isinstance(item, Up):
            self._since, self._up = self._clock(), True
            self._known += 1
        elif isinstance(item, Down):
            self._before, self._up = self.served(), False
        return item

    def _adopt(self, path: Path, sha: bytes, size: int) -> None:
        self._blobs.hold(sha, sha.hex())
        self._blobs.adopt(path, m.Blob(sha256=sha, size=size), verify=False)

    # In the thread of the connection

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_connected())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whoever waits has to know
            self._items.put(ConnectionLost(f"the connection to the server failed: {type(error).__name__}: {error}"))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _keep_connected(self) -> None:
        self._main = asyncio.current_task()
        dialer = Dialer(self._dial, first=FIRST_PAUSE, longest=LONGEST_PAUSE, gives_up=self._gives_up)
        try:
            await dialer.keep(partial(self._converse, dialer), asyncio.Event(), m.Problem())
        except PeerError as error:
            self._items.put(error)

    def _gives_up(self, error: PeerError) -> bool:
        return not error.retry or not (self._patient or self._connections or isinstance(error, Refused))

    async def _dial(self) -> Stream:
        roots = Successors(home() / SUCCESSORS).roots(self._credentials.join.authority)
        return await grpc.connect(self._credentials.address, roots)

    async def _converse(self, dialer: Dialer, connection: Connection) -> None:
        """One connection, from its beginning to its end. Raises what kept it from beginning, or forbids another."""
        token = self._credentials.token
        try:
            hello = m.Hello(role=m.ROLE_RUN, name=self._run, token=token.id)
            welcome = await introduce(connection, TokenProof(token), hello)
            dialer.welcomed(connection, welcome)
            depot = Depot(self._blobs, lends_below=Path("/"))
            side = SideDialer(connection.beside, welcome.side_port)
            self._exchange = Exchange(connection, depot, self._has, same_machine=welcome.same_machine, side=side)
            self._connections += 1
            self._connection = connection
            self._items.put(Up())
            try:
                while True:
                    self._items.put(await connection.receive())
            except PeerError as error:
                self._items.put(Down())
                if not self._closing and isinstance(error, Refused) and not error.retry:
                    raise
        finally:
            self._connection = None
            if self._exchange is not None:
                await self._exchange.close()
                self._exchange = None

    def _has(self, run: str, blob: m.Blob) -> bool:
        """A run has all that it names, until it lets go of it."""
        return self._blobs.path(blob.sha256) is not None

    def _look_later(self) -> None:
        """What is sent together goes together; whoever waits for an answer has it go at once."""
        self._loop.call_later(TOGETHER, self._look)

    def _look(self) -> None:
        """Send what nobody waits for, and look again for as long as there is something: to be woken takes longer."""
        with self._lock:
            self._looking = bool(self._outgoing)
        if self._looking:
            self._flush()
            self._look_later()

    def _flush(self) -> None:
        with self._lock:
            outgoing, self._outgoing = self._outgoing, []
        for known, message in outgoing:
            # What was said before the session knew of this connection relies on what an earlier one has lost.
            if self._connection is not None and known == self._connections:
                try:
                    self._connection.post(message)
                except ProtocolError as error:  # it is too large for a frame, now and later
                    self._items.put(error)

    def _fetch(self, blob: m.Blob) -> None:
        self._fetches.begin(self._fetched(blob))

    async def _fetched(self, blob: m.Blob) -> None:
        if self._exchange is None:
            return  # it is asked for again on the next connection
        self._blobs.hold(blob.sha256, blob.sha256.hex())
        try:
            exchange = self._exchange
            path = await self._patience.later(lambda: exchange.fetch(blob, self._run))
            self._items.put(Arrived(blob.sha256, path))
        except ConnectionLost:
            return
        except (Refused, CorruptFile, StorageError) as error:
            self._items.put(Missing(blob.sha256, error.message))

    def _stop(self) -> None:
        self._flush()
        if self._main is not None and not self._main.done():  # else the loop ends, and what is begun would not be done
            self._loop.create_task(self._part())

    async def _part(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        await self._fetches.close()
        if self._main is not None:
            self._main.cancel()

    _main: asyncio.Task[Any] | None = None
