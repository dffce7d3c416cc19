"""Blobs over a connection: pulled by whoever lacks them, as far as its credit goes, from where it stopped before."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from ..errors import ConnectionLost, PeerError, ProtocolError, Refused, StorageError
from ..store.alike import AlikeBlobs
from ..wire import messages as m
from ..wire.blobs import LARGE_BLOB
from ..wire.limits import PEER_SIDE_STREAMS, WANTS
from . import frames
from .connection import Connection
from .side import Claim, SideDialer, SideStreams
from .transfers import IncomingTransfer, OutgoingTransfer

T = TypeVar("T")

WINDOW = 8 << 20
"""Bytes of a blob that may be under way; it is less while so much would take long, so that other messages need not
wait behind it."""
AT_ONCE = 16
"""Blobs that are fetched from one peer at the same time in the name of one giver, who may never bring them."""


class IncomingBlob(Protocol):
    """A blob that is being received; `offset` is how much of it is there, and `finish` checks its hash."""

    offset: int

    def write(self, data: bytes | memoryview) -> None: ...
    def skip(self, count: int) -> None: ...
    def finish(self) -> Path: ...
    def close(self) -> None: ...


class BlobStore(Protocol):
    """Where blobs are kept, as `umbel.store.blobs.Blobs` does."""

    alike: AlikeBlobs

    def path(self, sha256: bytes, giver: str = "", /) -> Path | None: ...
    def room(self, wanted: m.Blob, giver: str = "", /) -> bool: ...
    def part(self, blob: m.Blob, /, *, giver: str = "") -> IncomingBlob: ...
    def place(self, blob: m.Blob, folder: Path | None, /) -> Path: ...
    def linked(self, place: Path, blob: m.Blob, giver: str = "", handed: bool = False, /) -> Path: ...
    def lend(self, sha256: bytes, place: Path, /) -> bool: ...


class Room(Protocol):
    """Who has room for what one peer sends.

    - `take` takes room for a blob, if there is some.
    - `waits` is told when a blob that is fetched for a run has to wait for room, and when it does no more.
    """

    def take(self, blob: m.Blob, giver: str = "", /) -> bool: ...
    def waits(self, blob: m.Blob, run: str, waiting: bool, /) -> None: ...


class Depot:
    """The blobs of this process for all its connections: who waits for one to be complete, or for room.

    What completes a blob otherwise than by a fetch calls `settled`; what lets go of blobs calls `freed`.
    `lends_below` is the folder below which a peer on the same machine may have files linked; None for nowhere.
    `executor` runs what reads and writes files.
    """

    def __init__(self, blobs: BlobStore, *, lends_below: Path | None = None, executor: Executor | None = None) -> None:
        self.blobs = blobs
        self.lends_below = lends_below.resolve() if lends_below is not None else None
        self._executor = executor
        self._waiting: dict[bytes, asyncio.Event] = {}
        self._freed = asyncio.Event()
        self._beginning = asyncio.Lock()

    async def ready(self, sha256: bytes, giver: str = "") -> Path | None:
        """The file of a blob, once it is complete, and the `giver` has brought it if one is named; None where it may be
        that nobody wants it any more.
        """
        path = self.blobs.path(sha256, giver)
        if path is None:
            await self._waiting.setdefault(sha256, asyncio.Event()).wait()
            path = self.blobs.path(sha256, giver)
        return path

    def settled(self, sha256: bytes) -> None:
        """A blob is complete, or may never be: whoever waits for it looks again."""
        waiting = self._waiting.pop(sha256, None)
        if waiting is not None:
            waiting.set()

    async def begun(self, blob: m.Blob, room: Room | None = None, run: str = "", giver: str = "") -> IncomingBlob:
        """Begin to receive a blob of a `giver`, once there is room for it; its room is taken from then on."""
        waiting = False
        try:
            while True:
                async with self._beginning:
                    if room.take(blob, giver) if room is not None else self.blobs.room(blob, giver):
                        return await self._begin(blob, giver)
                    freed = self._freed
                if room is not None and not waiting:
                    waiting = True
                    room.waits(blob, run, True)
                await freed.wait()
        finally:
            if room is not None and waiting:
                room.waits(blob, run, False)

    def freed(self) -> None:
        """Blobs were let go of: there may be more room than before, and what is waited for may never come."""
        self._freed.set()
        self._freed = asyncio.Event()
        for sha256 in list(self._waiting):
            self.settled(sha256)

    def may_lend(self, place: Path, below: Path | None = None) -> bool:
        """Whether a file may be linked at this place: `below` a folder of one peer's, or else one of all peers'."""
        below = self.lends_below if below is None else below.resolve()
        if below is None:
            return False
        try:
            return place.parent.resolve(strict=True).is_relative_to(below)
        except (OSError, ValueError, RuntimeError):
            return False

    async def aside(self, work: Callable[..., T], *args: object) -> T:
        """Do work with files in another thread; a cancelled caller goes on only when it is done with them."""
        done = asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await _finished(done)
            done.cancelled() or done.exception()  # looked at, so that nobody complains that it was not
            raise

    async def _begin(self, blob: m.Blob, giver: str) -> IncomingBlob:
        beginning = asyncio.ensure_future(self.aside(partial(self.blobs.part, giver=giver), blob))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await _finished(beginning)
            with suppress(StorageError):
                beginning.result().close()
            raise


class Exchange:
    """Moves blobs over one connection, both ways, while somebody reads from the connection.

    - `may_read(run, blob)`: whether the peer was granted a blob; others are not to be had.
    - `same_machine`: ask the peer to link its files instead of sending them; where that fails they are sent.
    - `handed`: a folder of the peer's own, where it is to link them; they are its own alone, unverified, as it may
      write to them still. Without it they are linked into the store.
    - `given`: the one folder of the peer's where files are linked for it, in place of all of the depot's.
    - `giver(run)`: in whose name the peer brings what is fetched for a run. What others have brought is not taken for
      its own: who has but heard of a hash would else get the bytes. By default whatever is here will do.
    - `source(run)`: who must have brought what the peer wants for a run; by default anybody.
    - `progress(sha256, offset)`: called whenever a blob has moved on, in either direction.
    - `room`: who has room for what comes; by default all blobs have room up to their quota.
    - `side`: where large blobs go by side streams: a server's, or what dials those of the peer.
    """

    def __init__(
        self,
        connection: Connection,
        blobs: BlobStore | Depot,
        may_read: Callable[[str, m.Blob], bool],
        *,
        same_machine: bool = False,
        handed: Path | None = None,
        given: Path | None = None,
        window: int = WINDOW,
        progress: Callable[[bytes, int], None] | None = None,
        room: Room | None = None,
        giver: Callable[[str], str] = lambda run: "",
        source: Callable[[str], str] = lambda run: "",
        side: SideStreams | SideDialer | None = None,
    ) -> None:
        self.connection = connection
        self.depot = blobs if isinstance(blobs, Depot) else Depot(blobs)
        self.same_machine = same_machine
        self._handed = handed
        self._given = given.resolve() if given is not None else None
        self._may_read = may_read
        self._window = window
        self._progress = progress
        self._room = room
        self._giver, self._source = giver, source
        self._givers: dict[bytes, str] = {}
        self._incoming: dict[bytes, IncomingTransfer] = {}
        self._abandoned: dict[bytes, asyncio.Event] = {}
        self._fetching: dict[bytes, asyncio.Task[Path]] = {}
        self._outgoing: dict[bytes, OutgoingTransfer] = {}
        self._serving: dict[bytes, asyncio.Task[None]] = {}
        self._parting: dict[bytes, asyncio.Task[None]] = {}
        self._dialer = side if isinstance(side, SideDialer) else None
        self._streams = side if isinstance(side, SideStreams) else None
        self._claims = 0
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._all_places = asyncio.Semaphore(WANTS // 2)  # the peer may still be at what was given up
        connection.on_blob = self._take
        connection.on_close.append(self._over)

    async def fetch(self, blob: m.Blob, run: str = "", *, progress: Callable[[int], None] | None = None) -> Path:
        """Get a blob from the peer on behalf of a run, and return its file; what is there already is not sent again.

        `progress` is called with how much is there. Several who want the same one share it. Raises `ConnectionLost`
        or what else ended the connection (fetch again on the next one: it resumes), `Refused` where the peer does not
        have it for us, `CorruptFile` where what it sent is something else, `StorageError`.
        """
        giver = self._giver(run)
        while (task := self._fetching.get(blob.sha256)) is not None and (
            task.cancelling() or self._givers[blob.sha256] != giver
        ):
            await asyncio.wait({task})  # those who wanted it have given it up just now, or it comes in another's name
        path = self.depot.blobs.path(blob.sha256, giver)
        if path is not None:
            return path
        if self.connection.end is not None:
            raise ConnectionLost(f"{self.connection.peer}: the connection is over")
        task = self._fetching.get(blob.sha256)
        if task is None:
            task = asyncio.create_task(self._fetch(blob, run))
            self._fetching[blob.sha256], self._givers[blob.sha256] = task, giver
            task.add_done_callback(lambda done: self._fetched(blob.sha256, done))
        incoming = self._incoming.setdefault(blob.sha256, IncomingTransfer(blob, self._window, self.connection.clock))
        if progress is not None:
            incoming.watchers.append(progress)
        incoming.fetchers += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if incoming.error is not None and own is not None and not own.cancelling():
                raise incoming.error from None  # it is the transfer that was cancelled
            if incoming.fetchers == 1:
                task.cancel()
                await asyncio.wait({task})
            raise
        finally:
            incoming.fetchers -= 1

    async def close(self) -> None:
        """Stop all transfers, without closing the connection, and wait until no file is in use."""
        self._stop(ConnectionLost("blobs are no longer exchanged here"))
        tasks = [*self._fetching.values(), *self._serving.values(), *self._parting.values()]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._may_read = lambda run, blob: False  # whoever said it holds this
        if self._dialer is not None:
            self._dialer.close()

    def _over(self, end: PeerError) -> None:
        self._stop(ConnectionLost(f"the connection ended during a transfer: {end.message}", end.code))

    def _stop(self, error: PeerError) -> None:
        for incoming in self._incoming.values():
            incoming.fail(error)
        for task in [*self._fetching.values(), *self._serving.values(), *self._parting.values()]:
            task.cancel()

    def _take(self, message: m.Message) -> bool:
        """What the peer says about blobs, and whether it had reason to. Raises `ProtocolError`."""
        name = message.WhichOneof("body")
        if name == "want":
            return self._wanted(message.want)
        if name == "chunk":
            return self._arrived(message.chunk)
        if name == "credit":
            if (outgoing := self._outgoing.get(message.credit.sha256)) is not None:
                outgoing.granted(message.credit.bytes)
            return outgoing is not None
        if name == "linked":
            incoming = self._incoming.get(message.linked.sha256)
            return incoming is not None and incoming.link(message.linked.ticket)
        return self._given_up(message.unwanted.sha256, message.unwanted.reason)

    def _given_up(self, sha256: bytes, reason: str) -> bool:
        """An Unwanted with a reason ends a transfer; one without says that nothing more of it will come."""
        if not reason:
            if (abandoned := self._abandoned.pop(sha256, None)) is not None:
                abandoned.set()
            return abandoned is not None
        if (incoming := self._incoming.get(sha256)) is not None and incoming.asked:
            incoming.fail(Refused(f"a blob is not to be had: {reason}", m.CODE_UNKNOWN))
            return True
        if len(self._parting) >= WANTS and sha256 not in self._parting:
            raise ProtocolError(f"more than {WANTS} blobs are given up at once", m.CODE_BUSY)
        serving = sha256 in self._serving
        if sha256 not in self._parting:
            self._parting[sha256] = asyncio.create_task(self._part(sha256))
        return serving

    async def _part(self, sha256: bytes) -> None:
        """Send no more of a blob, and say so behind its last chunk, which small messages would overtake."""
        if (task := self._serving.get(sha256)) is not None:
            task.cancel()
            await asyncio.wait({task})
        with suppress(ConnectionLost):
            await self.connection.send((m.Message(unwanted=m.Unwanted(sha256=sha256)).SerializeToString(),))
        self._parting.pop(sha256, None)

    # What the peer wants.

    def _wanted(self, want: m.Want) -> bool:
        sha256 = want.blob.sha256
        if len(sha256) != frames.HASH_BYTES or want.offset > want.blob.size:
            raise ProtocolError("a Want without a blob, or from beyond its end", m.CODE_MALFORMED)
        if len(self._serving) >= WANTS and sha256 not in self._serving:
            raise ProtocolError(f"more than {WANTS} blobs are wanted at once", m.CODE_BUSY)
        if not self._may_read(want.run, want.blob):
            self._deny(sha256, "it was not given to you, or it is gone")
            return False
        if (before := self._serving.get(sha256)) is not None:
            before.cancel()
        outgoing = OutgoingTransfer(want, self.connection.clock)
        task = asyncio.create_task(self._serve(outgoing))
        self._outgoing[sha256] = outgoing
        self._serving[sha256] = task
        task.add_done_callback(lambda done: self._served(outgoing, done))
        return before is None

    def _served(self, outgoing: OutgoingTransfer, task: asyncio.Task[None]) -> None:
        sha256 = outgoing.want.blob.sha256
        if self._serving.get(sha256) is task:
            del self._serving[sha256], self._outgoing[sha256]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError | StorageError):
            self._deny(sha256, "it cannot be read")
        elif error is not None and not isinstance(error, PeerError):
            self._deny(sha256, "it cannot be sent")
            task.get_loop().call_exception_handler({"message": "a blob was not sent", "exception": error})

    def _deny(self, sha256: bytes, reason: str) -> None:
        self.connection.post(m.Message(unwanted=m.Unwanted(sha256=sha256, reason=reason)))

    async def _serve(self, outgoing: OutgoingTransfer) -> None:
        want = outgoing.want
        sha256, size = want.blob.sha256, want.blob.size
        while (path := await self.depot.ready(sha256, self._source(want.run))) is None:
            if not self._may_read(want.run, want.blob):
                self._deny(sha256, "it is gone")
                return
        if want.place and await self._lent(sha256, Path(want.place)):
            self.connection.post(m.Message(linked=m.Linked(sha256=sha256)))
            return
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                self._deny(sha256, "it has another size")
                return
            if await self._sent_beside(want, file.fileno()):
                return
            offset = want.offset
            while offset < size:
                length = await outgoing.take(min(size - offset, self.connection.limits.chunk_bytes))
                data = await self.depot.aside(os.pread, file.fileno(), length, offset)
                if not data:
                    self._deny(sha256, "its file has changed")
                    return
                outgoing.credit += length - len(data)
                await self.connection.send(frames.chunk(sha256, offset, data))
                offset += len(data)
                self._moved(sha256, offset)

    async def _sent_beside(self, want: m.Want, file: int) -> bool:
        """Whether a blob goes by a side stream: if that breaks, the peer wants the rest once more."""
        sha256, size = want.blob.sha256, want.blob.size
        with self._claim(size - want.offset if want.dials else 0) as claim:
            stream = None
            if want.ticket and self._dialer is not None and self._dialer.works:
                stream = await self._dialer.dial(want.ticket)
            elif claim is not None:
                self.connection.post(m.Message(linked=m.Linked(sha256=sha256, ticket=claim.ticket)))
                await asyncio.wait({claim.came})
                stream = claim.stream
            if stream is not None:
                with closing(stream), self._base(want.base, self._source(want.run)) as base, suppress(ConnectionLost):
                    await stream.send(file, want.offset, size, partial(self._moved, sha256), base)
            return stream is not None or claim is not None

    @contextmanager
    def _base(self, sha256: bytes, giver: str) -> Iterator[int | None]:
        """The open file of a blob that this `giver` has brought to both sides, if it is here."""
        file = None
        if sha256 and giver and (path := self.depot.blobs.path(sha256, giver)) is not None:
            with suppress(OSError):
                file = os.open(path, os.O_RDONLY)
        try:
            yield file
        finally:
            if file is not None:
                os.close(file)

    @contextmanager
    def _claim(self, left: int) -> Iterator[Claim | None]:
        """A ticket for a blob of which so much is left, if there is one to be had, while in the block."""
        claim = None
        if self._streams is not None and left >= LARGE_BLOB and self._claims < PEER_SIDE_STREAMS:
            claim = self._streams.claim()
        if claim is None:
            yield None
            return
        self._claims += 1
        try:
            yield claim
        finally:
            self._claims -= 1
            claim.close()

    def _moved(self, sha256: bytes, offset: int) -> None:
        incoming = self._incoming.get(sha256)
        for watcher in incoming.watchers if incoming is not None else ():
            watcher(offset)
        if self._progress is not None:
            self._progress(sha256, offset)

    async def _lent(self, sha256: bytes, place: Path) -> bool:
        if not self.depot.may_lend(place, self._given) or self._given not in (None, place.parent):
            return False
        return await self.depot.aside(self.depot.blobs.lend, sha256, place)

    # What is wanted of the peer.

    def _fetched(self, sha256: bytes, task: asyncio.Task[Path]) -> None:
        if self._fetching.get(sha256) is task:
            del self._fetching[sha256], self._givers[sha256]
        incoming = self._incoming.pop(sha256, None)
        failed = task.cancelled() or task.exception() is not None
        if failed and incoming is not None and incoming.asked and not self.connection.closed:
            self._abandoned[sha256] = asyncio.Event()
            self._deny(sha256, "it is no longer wanted")
        self.depot.settled(sha256)  # also where it was given up as it became complete
        if failed:
            self.depot.freed()  # what was kept free for the rest of it

    async def _fetch(self, blob: m.Blob, run: str) -> Path:
        incoming, giver = self._incoming[blob.sha256], self._giver(run)
        async with self._places.setdefault(giver, asyncio.Semaphore(AT_ONCE)), self._all_places:
            if (abandoned := self._abandoned.get(blob.sha256)) is not None:
                await abandoned.wait()
            part = await self.depot.begun(blob, self._room, run, giver)
            try:
                return await self._received(incoming, part, run)
            finally:
                await self.depot.aside(part.close)

    async def _received(self, incoming: IncomingTransfer, part: IncomingBlob, run: str) -> Path:
        blob = incoming.blob
        place = self.depot.blobs.place(blob, self._handed) if self.same_machine else None
        beside = True
        while part.offset < blob.size:
            with self._claim(blob.size - part.offset if beside and place is None else 0) as claim:
                self._ask(incoming, run, part.offset, place, beside, claim)
                while not incoming.is_linked and not incoming.streams and part.offset < blob.size:
                    await self._consumed(incoming, part, await incoming.next())
                if incoming.streams:
                    await self._received_beside(incoming, part)
                    beside = False
            if not beside and part.offset < blob.size:
                await self._quiet(incoming)
            if incoming.is_linked:
                if place is not None and (path := await self._linked(place, blob, run)) is not None:
                    incoming.asked = False
                    return path
                place = None
        incoming.asked = False
        return await self.depot.aside(part.finish)

    async def _consumed(self, incoming: IncomingTransfer, part: IncomingBlob, chunks: Sequence[bytes]) -> None:
        """Write what has come over the connection, and let as much come again."""
        if not chunks:
            return
        if incoming.claim is not None:
            incoming.claim.close()
        sha256 = incoming.blob.sha256
        await self.depot.aside(_write, part, chunks)
        credit = incoming.consumed(sum(map(len, chunks)), part.offset)
        if part.offset < incoming.blob.size:
            self.connection.post(m.Message(credit=m.Credit(sha256=sha256, bytes=credit)))
        self._moved(sha256, part.offset)

    async def _received_beside(self, incoming: IncomingTransfer, part: IncomingBlob) -> None:
        """Receive what is left of a blob by a side stream, or as much as comes."""
        stream = incoming.claim.stream if incoming.claim is not None else None
        if stream is None and self._dialer is not None and self._dialer.works:
            stream = await self._dialer.dial(incoming.ticket)
        if stream is not None:
            giver, moved = self._givers[incoming.blob.sha256], partial(self._moved, incoming.blob.sha256)
            with closing(stream), self._base(incoming.want.base, giver) as base, suppress(ConnectionLost):
                await stream.receive(part, incoming.blob.size, moved, base)

    async def _quiet(self, incoming: IncomingTransfer) -> None:
        """Have no more of a blob sent, and wait until nothing of it is under way: a peer whose side stream was taken
        and which has not heard of that sends chunks.
        """
        incoming.check()
        incoming.asked = False
        self._abandoned[incoming.blob.sha256] = quiet = asyncio.Event()
        self._deny(incoming.blob.sha256, "its side stream has broken")
        await quiet.wait()

    async def _linked(self, place: Path, blob: m.Blob, run: str) -> Path | None:
        try:
            handed = self._handed is not None
            return await self.depot.aside(self.depot.blobs.linked, place, blob, self._giver(run), handed)
        except StorageError:  # for example not the same machine after all
            return None

    def _ask(
        self, incoming: IncomingTransfer, run: str, offset: int, place: Path | None, beside: bool, claim: Claim | None
    ) -> None:
        want = m.Want(blob=incoming.blob, run=run, offset=offset, credit=incoming.window)
        giver, blobs = self._giver(run), self.depot.blobs
        base = blobs.alike.find(incoming.blob, giver)
        want.base = base if offset == 0 and blobs.path(base, giver) is not None else b""
        if place is not None:
            want.place = str(place)
        elif beside and self._dialer is not None and self._dialer.works:
            want.dials = incoming.blob.size - offset >= LARGE_BLOB
        if claim is not None:
            want.ticket = claim.ticket
        incoming.ask(want, claim)
        self.connection.post(m.Message(want=want))

    def _arrived(self, chunk: m.Chunk) -> bool:
        data, most = chunk.data, self.connection.limits.chunk_bytes
        if len(data) > most:
            raise ProtocolError(f"a chunk of {len(data)} bytes; the limit is {most}", m.CODE_TOO_LARGE)
        incoming = self._incoming.get(chunk.sha256)
        if incoming is None or not incoming.asked:
            if chunk.sha256 not in self._abandoned:  # else it was under way when it was given up
                raise ProtocolError("a chunk of a blob that is not wanted", m.CODE_OUT_OF_ORDER)
            return False
        incoming.take(chunk.offset, data)
        return True


async def _finished(work: asyncio.Future[Any]) -> None:
    """Wait until work is done, however often whoever waits is cancelled: by a connection's end, and by its owner."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})


def _write(part: IncomingBlob, chunks: Sequence[bytes]) -> None:
    for data in chunks:
        part.write(data)
