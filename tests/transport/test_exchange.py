"""Blobs over connections: resumed, shared fairly, within credit and quota, and only for those they are due to."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE

from umbel.core.randomness import Key
from umbel.errors import ConnectionLost, CorruptFile, PeerError, ProtocolError, Refused, StorageError
from umbel.store.blobs import Blobs
from umbel.testing import FaultPlan, Proxy
from umbel.transport import frames, grpc
from umbel.transport.connection import Connection
from umbel.transport.exchange import AT_ONCE, Depot, Exchange
from umbel.transport.stream import Stream, pair
from umbel.wire import messages as m


def data_of(size: int, seed: int = 0) -> bytes:
    return Key.from_seed(seed).draws().words(size // 8 + 1).tobytes()[:size]


def everything(run: str, blob: m.Blob) -> bool:
    return True


class Side:
    """One end: its connection, blobs and exchange, and a task that reads for ever."""

    def __init__(self, stream: Stream, blobs: Blobs | Depot, limits: m.Limits | None = None, **settings: Any) -> None:
        self.connection = Connection(stream, grace=PATIENCE, limits=limits)
        may_read = settings.pop("may_read", everything)
        self.exchange = Exchange(self.connection, blobs, may_read, **settings)
        self.seen: list[m.Message] = []
        self.end: PeerError | None = None
        self.reading = asyncio.create_task(self.read())

    async def read(self) -> None:
        try:
            async for message in self.connection.messages():
                self.seen.append(message)
        except PeerError as error:
            self.end = error

    async def close(self) -> None:
        await self.connection.close()
        await self.reading
        await self.exchange.close()


class AtOnce(Executor):
    """Does work when it is told to, so that no thread is ahead of another."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args, **named))
        return done


def small(chunk: int) -> m.Limits:
    limits = frames.standard_limits()
    limits.chunk_bytes = chunk
    return limits


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "here", tmp_path / "there"


async def sides(here: Any, there: Any, **settings: Any) -> tuple[Side, Side]:
    one, other = pair()
    return Side(one, here, **settings), Side(other, there, **settings)


def test_blobs_of_all_sizes_arrive(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        a, b = await sides(here, there)
        steps: list[int] = []
        for size in (0, 1, 65_536, 100_001, 3 << 20):
            data = data_of(size, size)
            blob = there.put(data)
            path = await a.exchange.fetch(blob, "run", progress=steps.append)
            assert path.read_bytes() == data
            assert await a.exchange.fetch(blob) == path
        assert steps[-1] == 3 << 20
        assert a.seen == b.seen == []
        await a.close()
        await b.close()

    asyncio.run(main())


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12_000), max_size=4), st.integers(0, 3))
def test_a_cut_at_any_byte_and_it_goes_on_where_it_was(cuts: list[int], seed: int) -> None:
    async def main(folder: Path) -> None:
        here, there = Blobs(folder / "here"), Blobs(folder / "there")
        data = data_of(10_000, seed)
        blob = there.put(data)
        had = 0
        for cut in cuts:
            one, other = pair()
            plan = FaultPlan(seed, cut_after=cut)
            a, b = Side(one, here), Side(plan.wrap(other), there, small(500))
            first: list[int] = []
            with suppress(ConnectionLost):
                await a.exchange.fetch(blob, progress=first.append)
            assert not first or first[0] > had  # what was there is not sent again
            await a.close()
            await b.close()
            had = here.used
        a, b = await sides(here, there)
        path = await a.exchange.fetch(blob)
        assert path.read_bytes() == data
        assert b.connection.sent.bytes <= 10_000 - had + 500
        await a.close()
        await b.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


def test_several_at_once_get_their_share_and_small_messages_pass(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blobs = [there.put(data_of(400_000, i)) for i in range(4)]
        depots = (Depot(blobs, executor=AtOnce()) for blobs in (here, there))
        a, b = await sides(*depots, limits=small(4000))
        order: list[int] = []
        asked = asyncio.Event()

        def watch(place: int) -> Callable[[int], None]:
            def step(offset: int) -> None:
                order.append(place)
                if len(order) == 20:
                    b.connection.post(m.Message(log_event=m.LogEvent(number=1)))
                    asked.set()

            return step

        fetches = [asyncio.create_task(a.exchange.fetch(x, progress=watch(i))) for i, x in enumerate(blobs)]
        await asked.wait()
        while not a.seen:
            await asyncio.sleep(0)
        assert len(order) < 200  # of more than 400
        await asyncio.gather(*fetches)
        assert set(order[:60]) == {0, 1, 2, 3}
        await a.close()
        await b.close()

    asyncio.run(main())


def test_what_never_comes_in_one_name_takes_no_place_of_what_comes_in_another(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(b"x")
        one, two = pair()
        a, b = Side(one, here, giver=lambda run: run), Side(two, there)
        never = [m.Blob(sha256=bytes([number]) * 32, size=1) for number in range(AT_ONCE + 1)]
        lost = [asyncio.create_task(a.exchange.fetch(each, "eve")) for each in never]
        while len(b.exchange._serving) < AT_ONCE:
            await asyncio.sleep(0)
        assert (await a.exchange.fetch(blob, "ann")).read_bytes() == b"x"
        assert len(b.exchange._serving) == AT_ONCE
        for each in lost:
            each.cancel()
        await asyncio.gather(*lost, return_exceptions=True)
        await a.close()
        await b.close()

    asyncio.run(main())


def test_those_who_want_the_same_blob_share_it(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(data_of(200_000))
        a, b = await sides(here, there)
        paths = await asyncio.gather(*(a.exchange.fetch(blob) for _ in range(5)))
        assert len(set(paths)) == 1
        assert b.connection.sent.bytes < 201_000
        await a.close()
        await b.close()

    asyncio.run(main())


def test_what_is_fetched_in_another_name_is_sent_again_and_written_once(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(data_of(3 << 20))
        asked = []

        def may_read(run: str, blob: m.Blob) -> bool:
            asked.append(run)
            return run != "eve"

        one, two = pair()
        a, b = Side(one, here, giver=lambda run: f"run {run}"), Side(two, there, may_read=may_read)
        paths = await asyncio.gather(*(a.exchange.fetch(blob, run) for run in ("p", "q", "p")))
        assert (len(set(paths)), sorted(asked)) == (1, ["p", "q"])
        assert here.used == blob.size
        with pytest.raises(Refused, match="not given"):
            await a.exchange.fetch(blob, "eve")
        await a.exchange.fetch(blob, "q")
        assert sorted(asked) == ["eve", "p", "q"]
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_blob_waits_until_who_has_to_bring_it_has(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        depot = Depot(there)
        blob = there.put(b"known", "all")
        one, two = pair()
        a, b = Side(one, here), Side(two, depot, source=lambda run: f"run {run}")
        fetching = asyncio.create_task(a.exchange.fetch(blob, "r"))
        there.gave(blob.sha256, "run q")
        depot.settled(blob.sha256)
        a.connection.post(m.Message(ping=m.Ping(id=1)))
        while not b.connection.received.frames:
            await asyncio.sleep(0)
        depot.settled(blob.sha256)
        assert not fetching.done()
        there.gave(blob.sha256, "run r")
        depot.settled(blob.sha256)
        assert (await fetching).read_bytes() == b"known"
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_peer_may_have_files_linked_in_its_own_folder_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    depot = Depot(Blobs(folders[0]), lends_below=tmp_path)
    for name in ("r", "q"):
        (tmp_path / "runs" / name / "partial").mkdir(parents=True)
    place = tmp_path / "runs" / "q" / "partial" / "x"
    assert depot.may_lend(place)
    assert depot.may_lend(place, tmp_path / "runs" / "q")
    assert not depot.may_lend(place, tmp_path / "runs" / "r")


def test_what_was_not_granted_or_is_gone_is_not_to_be_had(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(b"secret")
        one, two = pair()
        a = Side(one, here)
        b = Side(two, there, may_read=lambda run, blob: run == "mine")
        with pytest.raises(Refused, match="not given"):
            await a.exchange.fetch(blob, "other")
        assert (await a.exchange.fetch(blob, "mine")).read_bytes() == b"secret"
        lying = m.Blob(sha256=blob.sha256, size=7)
        (folders[0] / blob.sha256.hex()[:2] / blob.sha256.hex()).unlink()
        with pytest.raises(Refused, match="another size"):
            await a.exchange.fetch(lying, "mine")
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_want_waits_for_what_is_still_to_come(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        depot = Depot(there)
        data = data_of(100_000)
        blob = Blobs(folders[0] / "elsewhere").put(data)
        a, b = await sides(here, depot)
        fetch = asyncio.create_task(a.exchange.fetch(blob))
        while not depot._waiting:
            await asyncio.sleep(0)
        there.put(data)
        depot.settled(blob.sha256)
        assert (await fetch).read_bytes() == data
        await a.close()
        await b.close()

    asyncio.run(main())


class Held(Blobs):
    """Blobs whose last step waits until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reached, self.go = threading.Event(), threading.Event()

    def adopt(self, *what: Any, **how: Any) -> Path:
        self.reached.set()
        assert self.go.wait(PATIENCE)
        return super().adopt(*what, **how)


def test_a_want_is_served_where_the_fetch_that_completes_the_blob_is_cut_off_as_it_does(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """As where a run names a model and is stopped in the same moment: whoever wants it has waited since."""

    async def main() -> None:
        middle = Held(folders[0])
        depot = Depot(middle)
        blob = (source := Blobs(folders[1])).put(data_of(100_000))
        lends = Depot(source, lends_below=folders[0])
        run, other = await sides(depot, lends, same_machine=True)
        reader, served = await sides(Blobs(tmp_path / "reader"), depot)
        wanted = asyncio.create_task(reader.exchange.fetch(blob))
        while not depot._waiting:
            await asyncio.sleep(0)
        fetch = asyncio.create_task(run.exchange.fetch(blob))
        assert await asyncio.to_thread(middle.reached.wait, PATIENCE)
        closing = asyncio.create_task(run.close())
        while not run.connection.closed:
            await asyncio.sleep(0)
        middle.go.set()
        with pytest.raises(ConnectionLost):
            await fetch
        await closing
        assert (await asyncio.wait_for(wanted, PATIENCE)).stat().st_size == blob.size
        for side in (other, reader, served):
            await side.close()

    asyncio.run(main())


def test_whoever_wants_a_blob_that_another_has_just_given_up_gets_it(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = Blobs(folders[0]), Depot(Blobs(folders[1]))
        blob = Blobs(folders[0] / "elsewhere").put(data_of(100_000))
        a, b = await sides(here, there)
        first = asyncio.create_task(a.exchange.fetch(blob, "r"))
        while not there._waiting:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)  # the transfer is cancelled, and puts its file away
        second = asyncio.create_task(a.exchange.fetch(blob, "r"))
        there.blobs.put(data_of(100_000))  # type: ignore[attr-defined]
        there.settled(blob.sha256)
        assert (await asyncio.wait_for(second, PATIENCE)).stat().st_size == blob.size
        assert first.cancelled()
        await a.close()
        await b.close()

    asyncio.run(main())


def test_the_room_of_a_transfer_that_was_cut_is_anothers(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here = Depot(Blobs(folders[0], quota=150_000))
        cut, whole = Depot(Blobs(folders[1])), Blobs(folders[1] / "other")
        one, two = await sides(here, cut)
        three, four = await sides(here, whole)
        lost = asyncio.create_task(one.exchange.fetch(m.Blob(sha256=bytes(32), size=100_000)))
        while not cut._waiting:
            await asyncio.sleep(0)
        fetch = asyncio.create_task(three.exchange.fetch(whole.put(data_of(100_000))))
        while not here._freed._waiters:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        await two.close()
        with pytest.raises(ConnectionLost):
            await lost
        assert (await asyncio.wait_for(fetch, PATIENCE)).stat().st_size == 100_000
        for side in (one, three, four):
            await side.close()

    asyncio.run(main())


def test_a_want_ends_once_what_it_waits_for_will_not_come(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, depot = Blobs(folders[0]), Depot(Blobs(folders[1]))
        granted = {"r"}
        a, b = await sides(here, depot, may_read=lambda run, blob: run in granted)
        blob = m.Blob(sha256=bytes(32), size=5)
        fetch = asyncio.create_task(a.exchange.fetch(blob, "r"))
        while not depot._waiting:
            await asyncio.sleep(0)
        depot.freed()  # of another run
        while not depot._waiting:
            await asyncio.sleep(0)
        assert not fetch.done()
        granted.clear()
        depot.freed()
        with pytest.raises(Refused, match="it is gone"):
            await fetch
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_full_quota_waits_and_goes_on_when_there_is_room(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = Blobs(folders[0], quota=150_000), Blobs(folders[1])
        depot = Depot(here)
        old = here.put(data_of(100_000, 1))
        here.hold(old.sha256, "somebody")
        blobs = [there.put(data_of(100_000, i)) for i in (2, 3)]
        little = there.put(data_of(10_000, 4))
        a, b = await sides(depot, there)
        fetches = [asyncio.create_task(a.exchange.fetch(blob)) for blob in blobs]
        here.hold(blobs[0].sha256, "somebody")
        await a.exchange.fetch(little)  # there is room for this one
        assert not any(fetch.done() for fetch in fetches)
        assert here.used <= 150_000
        here.release("somebody")
        here.collect()
        depot.freed()
        await asyncio.wait(fetches, return_when=asyncio.FIRST_COMPLETED)
        assert sum(fetch.done() for fetch in fetches) == 1
        assert here.used <= 150_000
        here.collect()
        depot.freed()
        await asyncio.gather(*fetches)
        blob = there.put(data_of(140_000, 5))
        never = asyncio.create_task(a.exchange.fetch(blob))
        await asyncio.sleep(0)
        await b.close()
        with pytest.raises(ConnectionLost):
            await never
        await a.close()

    asyncio.run(main())


def test_a_fetch_that_is_given_up_stops_and_can_be_begun_again(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        data = data_of(1_000_000)
        blob = there.put(data)
        a, b = await sides(here, there, limits=small(5000), window=20_000)
        started = asyncio.Event()
        fetch = asyncio.create_task(a.exchange.fetch(blob, progress=lambda offset: started.set()))
        await started.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert (await a.exchange.fetch(blob)).read_bytes() == data
        assert not b.exchange._serving
        assert a.end is None
        assert b.end is None
        await a.close()
        await b.close()

    asyncio.run(main())


class Slow:
    """A line on which chunks take their time."""

    def __init__(self, stream: Stream) -> None:
        self.peer, self.receive, self.finish, self.close = stream.peer, stream.receive, stream.finish, stream.close
        self.beside = stream.beside
        self._stream = stream

    async def send(self, data: bytes) -> None:
        for _ in range(50 * (len(data) > 1000)):
            await asyncio.sleep(0)
        await self._stream.send(data)


def test_chunks_of_a_fetch_that_was_given_up_are_not_taken_for_those_of_the_next(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = (Depot(Blobs(folder), executor=AtOnce()) for folder in folders)
        data = data_of(200_000)
        blob = there.blobs.put(data)  # type: ignore[attr-defined]
        one, other = pair()
        a, b = (Side(stream, depot, small(5000)) for stream, depot in ((one, here), (Slow(other), there)))
        for _ in range(5):
            started = asyncio.Event()
            fetch = asyncio.create_task(a.exchange.fetch(blob, progress=lambda offset, begun=started: begun.set()))
            await started.wait()
            fetch.cancel()
            await asyncio.wait({fetch})
        assert (await a.exchange.fetch(blob)).read_bytes() == data
        assert a.end is b.end is None
        await a.close()
        await b.close()

    asyncio.run(main())


def test_what_came_is_checked(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(data_of(50_000))
        path = there.path(blob.sha256)
        assert path is not None
        path.chmod(0o600)
        path.write_bytes(data_of(50_000, 9))
        a, b = await sides(here, there)
        with pytest.raises(CorruptFile):
            await a.exchange.fetch(blob)
        assert here.path(blob.sha256) is None
        assert here.used == 0
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_full_disk_is_told_to_whoever_fetches(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        blob = there.put(data_of(50_000))

        def part(*args: object, **more: object) -> Any:
            raise StorageError("no space left")

        a, b = await sides(here, there)
        monkeypatch.setattr(here, "part", part)
        with pytest.raises(StorageError):
            await a.exchange.fetch(blob)
        monkeypatch.undo()
        assert (await a.exchange.fetch(blob)).exists()
        await a.close()
        await b.close()

    asyncio.run(main())


@pytest.mark.parametrize("lends", [True, False])
def test_on_one_machine_files_are_linked_where_that_is_allowed(folders: tuple[Path, Path], lends: bool) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        data = data_of(300_000)
        blob = there.put(data)
        one, other = pair()
        a = Side(one, here, same_machine=True)
        b = Side(other, Depot(there, lends_below=folders[0] if lends else folders[1]))
        path = await a.exchange.fetch(blob)
        assert path.read_bytes() == data
        there_path = there.path(blob.sha256)
        assert there_path is not None
        assert (b.connection.sent.bytes < 1000) == lends
        assert path.samefile(there_path) == lends
        assert list((folders[0] / "partial").iterdir()) == []
        await a.close()
        await b.close()

    asyncio.run(main())


def test_a_link_that_is_something_else_is_fetched_instead(folders: tuple[Path, Path]) -> None:
    class Liar(Blobs):
        def lend(self, sha256: bytes, place: Any) -> bool:
            Path(place).write_bytes(b"something else")
            return True

    async def main() -> None:
        here, there = Blobs(folders[0]), Liar(folders[1])
        data = data_of(30_000)
        blob = there.put(data)
        one, other = pair()
        a, b = Side(one, here, same_machine=True), Side(other, Depot(there, lends_below=folders[0]))
        assert (await a.exchange.fetch(blob)).read_bytes() == data
        await a.close()
        await b.close()

    asyncio.run(main())


BLOB = m.Blob(sha256=bytes(range(32)), size=1000)


def chunk(offset: int, size: int, sha256: bytes = BLOB.sha256) -> m.Message:
    return m.Message(chunk=m.Chunk(sha256=sha256, offset=offset, data=bytes(size)))


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([chunk(1, 10)], m.CODE_OUT_OF_ORDER),
        ([chunk(0, 10), chunk(0, 10)], m.CODE_OUT_OF_ORDER),
        ([chunk(0, 1001)], m.CODE_TOO_LARGE),
        ([chunk(0, 0)], m.CODE_TOO_LARGE),
        ([chunk(0, frames.CHUNK_BYTES + 1, bytes(32))], m.CODE_TOO_LARGE),
        ([chunk(0, 101)], m.CODE_TOO_LARGE),  # beyond its credit
        ([m.Message(want=m.Want(blob=BLOB, offset=1001))], m.CODE_MALFORMED),
        ([m.Message(want=m.Want())], m.CODE_MALFORMED),
    ],
)
def test_a_sender_that_breaks_the_rules(folders: tuple[Path, Path], answers: list[m.Message], code: int) -> None:
    async def main() -> None:
        one, other = pair()
        a = Side(one, Blobs(folders[0]), window=100)
        fetch = asyncio.create_task(a.exchange.fetch(BLOB))
        assert await other.receive() is not None
        for number, answer in enumerate(answers, 1):
            await other.send(frames.frame(number, [(answer.SerializeToString(),)]))
        with pytest.raises(ConnectionLost):
            await fetch
        await a.reading
        assert isinstance(a.end, ProtocolError)
        assert a.end.code == code
        await other.close()
        await a.close()

    asyncio.run(main())


def test_a_chunk_that_nobody_wants_ends_the_connection(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        a, b = await sides(*map(Blobs, folders))
        a.connection.post(chunk(0, 100, bytes(32)))
        while a.end is None:
            await asyncio.sleep(0)
        assert isinstance(a.end, Refused)
        assert a.end.code == m.CODE_OUT_OF_ORDER
        await a.close()
        await b.close()

    asyncio.run(main())


messages = st.one_of(
    st.builds(chunk, st.integers(0, 300), st.integers(0, 200), st.sampled_from([BLOB.sha256, bytes(32), b""])),
    st.builds(
        lambda sha, size: m.Message(credit=m.Credit(sha256=sha, bytes=size)),
        st.sampled_from([BLOB.sha256, bytes(32)]),
        st.integers(0, (1 << 64) - 1),
    ),
    st.builds(lambda r: m.Message(unwanted=m.Unwanted(sha256=BLOB.sha256, reason=r)), st.sampled_from(["", "no"])),
    st.just(m.Message(linked=m.Linked(sha256=BLOB.sha256))),
    st.builds(
        lambda o, c, p: m.Message(want=m.Want(blob=BLOB, offset=o, credit=c, place=p)),
        st.integers(0, 1100),
        st.sampled_from([0, 1, 5000, (1 << 64) - 1]),
        st.sampled_from(["", "/etc/passwd", "\0", "x" * 5000]),
    ),
)


@given(st.lists(messages, max_size=8))
def test_whatever_a_peer_says_about_blobs_it_ends_well(sequence: list[m.Message]) -> None:
    async def main(folder: Path) -> None:
        blobs = Blobs(folder)
        one, other = pair()
        a = Side(one, Depot(blobs, lends_below=folder))
        fetch = asyncio.create_task(a.exchange.fetch(BLOB))
        await other.receive()
        with suppress(ConnectionLost):
            for number, message in enumerate(sequence, 1):
                await other.send(frames.frame(number, [(message.SerializeToString(),)]))
        await other.finish()
        while await other.receive() is not None:
            pass
        with suppress(PeerError, CorruptFile):
            await fetch
        await other.close()
        await a.close()
        assert isinstance(a.end, PeerError)
        assert not a.exchange._serving
        assert not a.exchange._fetching
        assert not blobs._open

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


def test_over_grpc_through_a_proxy_that_throttles_and_cuts(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        here, there = map(Blobs, folders)
        size = 3 << 20
        blob = there.put(data_of(size))
        servers: list[Side] = []

        async def serve(stream: Stream) -> None:
            side = Side(stream, there)
            servers.append(side)
            await side.reading
            await side.close()

        listener = await grpc.serve("127.0.0.1:0", None, None, serve)
        async with Proxy(listener.address) as proxy:
            offsets: list[int] = []
            for cut in (100_000, 1_000_000, 1_500_000):
                a = Side(await grpc.connect(proxy.address, None), here)
                proxy.cut_after(cut)
                with pytest.raises(ConnectionLost):
                    await a.exchange.fetch(blob, progress=offsets.append)
                await a.close()
            a = Side(await grpc.connect(proxy.address, None), here)
            proxy.allow(10_000)
            fetch = asyncio.create_task(a.exchange.fetch(blob, progress=offsets.append))
            for _ in range(10):
                reached = proxy.passed + 10_000
                proxy.allow(10_000)
                await proxy.reached(reached - 5_000)
                assert not fetch.done()
            proxy.allow(None)
            assert (await fetch).read_bytes() == data_of(size)
            await a.close()
        await listener.close(grace=PATIENCE)
        assert offsets == sorted(offsets)  # never again what was there
        assert sum(side.connection.sent.bytes for side in servers) < 3 * size

    asyncio.run(main())
