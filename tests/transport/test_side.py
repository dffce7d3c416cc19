"""Side streams: large blobs go by them where they can, and over the connection where they cannot."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import socket
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, CorruptFile, PeerError, SettingError, StorageError
from umbel.store.blobs import Blobs
from umbel.testing import Proxy
from umbel.transport import side
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.side import PIECE, SideDialer, SideStreams
from umbel.transport.stream import Beside, pair
from umbel.trust.authority import SERVER_NAME, Authority
from umbel.wire import messages as m
from umbel.wire.blobs import LARGE_BLOB, run_giver
from umbel.wire.limits import PEER_SIDE_STREAMS, SIDE_PENDING, SIDE_SECONDS, SIDE_STREAMS

SIZE = LARGE_BLOB + 123_457


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes in which nothing is alike; other bytes for another seed."""
    return random.Random(seed).randbytes(size)


class Pair:
    """A node and a server that exchange blobs, and have side streams beside; `chunks` counts what goes without."""

    def __init__(self, folder: Path) -> None:
        self.node, self.server = Blobs(folder / "node"), Blobs(folder / "server")
        self.streams = SideStreams()
        self.chunks = 0

    async def begin(self, beside: Beside | None, port: int | None = None) -> None:
        one, other = pair()
        self.dialer = SideDialer(beside, self.streams.port if port is None else port)
        self.connections = [Connection(stream, grace=PATIENCE) for stream in (one, other)]
        self.at_node = Exchange(self.connections[0], self.node, lambda run, blob: True, side=self.dialer)
        self.at_server = Exchange(self.connections[1], self.server, lambda run, blob: True, side=self.streams)
        self.reading = [asyncio.create_task(self.read(connection)) for connection in self.connections]

    def ends(self, way: str) -> tuple[Blobs, Exchange]:
        """Who has what goes this way, and who fetches it."""
        return (self.node, self.at_server) if way == "up" else (self.server, self.at_node)

    def dial(self, proxy: Proxy) -> None:
        """Have the node's side streams go through a proxy."""
        self.dialer._port = int(proxy.address.rpartition(":")[2])

    async def read(self, connection: Connection) -> None:
        takes = connection.on_blob
        assert takes is not None

        def counted(message: m.Message) -> bool:
            self.chunks += message.HasField("chunk")
            return takes(message)

        connection.on_blob = counted
        try:
            async for _ in connection.messages():
                pass
        except PeerError:
            pass

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()
        await asyncio.gather(*self.reading)
        await self.at_node.close()
        await self.at_server.close()
        await self.streams.close()


@asynccontextmanager
async def exchanging(
    folder: Path, *, tls: bool = True, port: int | None = None, roots: bytes | None = None
) -> AsyncIterator[Pair]:
    own = Authority(folder / "authority")
    serving = own.serving()
    both = Pair(folder)
    both.streams.open("127.0.0.1", (0,), (lambda: (serving.certificate, serving.key)) if tls else None)
    await both.begin(Beside("127.0.0.1", SERVER_NAME, (roots or own.root()) if tls else None), port)
    try:
        yield both
    finally:
        await both.close()


@pytest.mark.parametrize("tls", [True, False])
def test_a_large_blob_goes_by_a_side_stream_either_way(tmp_path: Path, tls: bool) -> None:
    async def main() -> None:
        async with exchanging(tmp_path, tls=tls) as both:
            told: list[int] = []
            up, down = noise(SIZE), noise(SIZE, 2)
            path = await both.at_server.fetch(both.node.put(up), "run", progress=told.append)
            assert path.read_bytes() == up
            path = await both.at_node.fetch(both.server.put(down), "run")
            assert path.read_bytes() == down
            assert both.chunks == 0
            assert told == sorted(told)
            assert both.dialer.works
            assert not both.streams._claims
            small = both.node.put(noise(LARGE_BLOB - 1))
            await both.at_server.fetch(small, "run")
            assert both.chunks > 0

    asyncio.run(main())


def test_what_is_there_already_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    plain = side._sent

    def noted(connection: socket.socket, file: int, offset: int, size: int, *rest: Any) -> None:
        sent.append(size - offset)
        plain(connection, file, offset, size, *rest)

    async def main() -> None:
        monkeypatch.setattr(side, "_sent", noted)
        async with exchanging(tmp_path) as both:
            data = noise(LARGE_BLOB + SIZE)
            blob = both.node.put(data)
            with both.server.part(blob) as part:
                part.write(data[:1000])
            assert (await both.at_server.fetch(blob, "run")).read_bytes() == data
        assert sent == [len(data) - 1000]

    asyncio.run(main())


def patched(base: bytes, kinds: list[int]) -> bytes:
    """Bytes with pieces that are new (0), zero (1), or as in the base (2)."""
    made = bytearray()
    for at, kind in zip(range(0, len(base), PIECE), itertools.cycle(kinds), strict=False):
        own = base[at : at + PIECE]
        made += (bytes(reversed(own)), bytes(len(own)), own)[kind]
    return bytes(made)


@pytest.mark.parametrize("way", ["up", "down"])
@settings(max_examples=max(5, settings.default.max_examples // 10))
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(LARGE_BLOB, SIZE))
def test_pieces_that_are_zero_or_there_already_are_not_sent(way: str, kinds: list[int], size: int) -> None:
    async def main(folder: Path) -> None:
        async with exchanging(folder) as both, Proxy(f"127.0.0.1:{both.streams.port}") as proxy:
            both.dial(proxy)
            both.at_node._giver = both.at_server._giver = both.at_node._source = both.at_server._source = run_giver
            giver, taker = both.ends(way)
            first = noise(size)
            then = patched(first, kinds)
            blobs = [giver.put(first), giver.put(then)]
            for blob in blobs:
                giver.gave(blob.sha256, run_giver("r"))
            await taker.fetch(blobs[0], "r")
            before = proxy.passed
            path = await taker.fetch(blobs[1], "r")
            assert path.read_bytes() == then
            due = [kind for _, kind in zip(range(0, size, PIECE), itertools.cycle(kinds), strict=False)].count(0)
            assert due * PIECE - PIECE < proxy.passed - before < due * PIECE * 1.01 + 20_000
            assert both.chunks == 0

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


def test_what_is_in_another_name_is_no_base(tmp_path: Path) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both:
            both.at_node._giver = both.at_node._source = both.at_server._source = run_giver
            data = noise(SIZE)
            changed = data[:-1] + bytes([data[-1] ^ 1])
            blobs = [both.server.put(data), both.server.put(changed)]
            for blob, run in zip(blobs, ("one", "other"), strict=True):
                both.server.gave(blob.sha256, run_giver(run))
                await both.at_node.fetch(blob, run)
                assert both.node.alike.find(blobs[1], run_giver(run)) == (blobs[0].sha256 if run == "one" else b"")
            for giver in (run_giver("other"), ""):
                with both.at_server._base(blobs[0].sha256, giver) as base:
                    assert base is None
            with both.at_server._base(blobs[0].sha256, run_giver("one")) as base:
                assert base is not None

    asyncio.run(main())


def test_a_base_that_is_not_what_it_was_costs_but_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both:
            both.at_node._giver = both.at_node._source = both.at_server._source = run_giver
            data = noise(SIZE)
            changed = data[:-1] + bytes([data[-1] ^ 1])
            blobs = [both.server.put(data), both.server.put(changed)]
            for blob in blobs:
                both.server.gave(blob.sha256, run_giver("r"))
            path = await both.at_node.fetch(blobs[0], "r")
            path.chmod(0o600)
            path.write_bytes(data[::-1])
            with pytest.raises(CorruptFile):
                await both.at_node.fetch(blobs[1], "r")
            assert (await both.at_node.fetch(blobs[1], "r")).read_bytes() == changed

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_where_no_side_stream_comes_about_it_goes_over_the_connection(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # it listens, and does not accept: as a firewall would
            silent.listen(0)
            port = silent.getsockname()[1]
            silent.close()
            async with exchanging(tmp_path, port=port) as both:
                for seed in range(2):
                    data = noise(SIZE, seed)
                    giver, taker = both.ends(way)
                    assert (await taker.fetch(giver.put(data), "run")).read_bytes() == data
                assert both.chunks > 1
                assert not both.dialer.works
                assert not both.streams._claims

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_who_is_not_the_server_gets_nothing(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        other = Authority(tmp_path / "other").root()
        async with exchanging(tmp_path, roots=other) as both:
            data = noise(SIZE)
            giver, taker = both.ends(way)
            assert (await taker.fetch(giver.put(data), "run")).read_bytes() == data
            assert both.chunks > 1
            assert not both.dialer.works

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_where_a_side_stream_breaks_the_rest_goes_over_the_connection(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both, Proxy(f"127.0.0.1:{both.streams.port}") as proxy:
            both.dial(proxy)
            proxy.cut_after(LARGE_BLOB // 2)
            data = noise(2 * SIZE)
            giver, taker = both.ends(way)
            told: list[int] = []
            assert (await taker.fetch(giver.put(data), "run", progress=told.append)).read_bytes() == data
            assert proxy.cuts == 1
            assert both.chunks > 0
            assert told == sorted(told)
            assert not both.streams._claims
            assert (await taker.fetch(giver.put(data[::-1]), "run")).read_bytes() == data[::-1]

    asyncio.run(main())


def test_who_was_taken_at_its_ticket_and_does_not_know_sends_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a line that stands still for as long as it takes to dial: the server waits for the stream meanwhile."""
    taken, under_way = threading.Event(), threading.Event()
    offered, arrived, received = side._offered, side.Claim.arrived, side._received

    def deaf(connection: socket.socket, ticket: bytes) -> bool:
        assert offered(connection, ticket)
        assert taken.wait(PATIENCE)
        raise TimeoutError

    def noted(self: side.Claim, stream: side.SideStream) -> None:
        arrived(self, stream)
        taken.set()

    def late(*args: Any) -> None:
        assert under_way.wait(PATIENCE)
        received(*args)

    async def main() -> None:
        monkeypatch.setattr(side, "_offered", deaf)
        monkeypatch.setattr(side.Claim, "arrived", noted)
        monkeypatch.setattr(side, "_received", late)
        async with exchanging(tmp_path) as both:
            asked_again = asyncio.Event()
            one, other = both.connections
            send, post, takes = one.send, other.post, other._stream.receive
            sent = 0

            async def sending(pieces: Sequence[bytes]) -> None:
                nonlocal sent
                await send(pieces)
                sent += 1
                if sent == 6:
                    under_way.set()

            def posting(message: m.Message | bytes, **lazy: float) -> None:
                post(message, **lazy)
                if taken.is_set():
                    asked_again.set()

            async def receiving() -> bytes | None:
                if taken.is_set():  # what is under way stays so until the blob is wanted anew
                    await asked_again.wait()
                return await takes()

            monkeypatch.setattr(one, "send", sending)
            monkeypatch.setattr(other, "post", posting)
            monkeypatch.setattr(other._stream, "receive", receiving)
            data = noise(SIZE)
            assert (await both.at_server.fetch(both.node.put(data), "run")).read_bytes() == data
            assert not both.streams._claims

    asyncio.run(main())


def test_who_says_tickets_that_nobody_asked_for_is_not_asked_once_more(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = pair()
        data = noise(1000)
        blob = m.Blob(sha256=hashlib.sha256(data).digest(), size=len(data))
        connection, peer = Connection(one, grace=PATIENCE), Connection(other, grace=PATIENCE)
        exchange = Exchange(connection, Blobs(tmp_path), lambda run, blob: True)
        heard: list[str | None] = []

        def hears(message: m.Message) -> bool:
            heard.append(message.WhichOneof("body"))
            return True

        peer.on_blob = hears
        fetching = asyncio.ensure_future(exchange.fetch(blob))
        reading = [asyncio.ensure_future(connection.receive()), asyncio.ensure_future(peer.receive())]
        while not heard:
            await asyncio.sleep(0)
        for ticket in (bytes(32), b""):
            answers = peer.received.frames
            peer.post(m.Message(linked=m.Linked(sha256=blob.sha256, ticket=ticket)))
            peer.post(m.Message(ping=m.Ping(id=1)))
            while peer.received.frames == answers:
                await asyncio.sleep(0)
        peer.post(m.Message(chunk=m.Chunk(sha256=blob.sha256, data=data)))
        assert (await fetching).read_bytes() == data
        await connection.close()
        await peer.close()
        await asyncio.gather(*reading, return_exceptions=True)
        await exchange.close()
        assert heard == ["want"]

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_who_gives_a_blob_up_ends_its_side_stream(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both, Proxy(f"127.0.0.1:{both.streams.port}") as proxy:
            both.dial(proxy)
            proxy.allow(LARGE_BLOB // 2)
            data = noise(2 * SIZE)
            giver, taker = both.ends(way)
            blob = giver.put(data)
            fetching = asyncio.ensure_future(taker.fetch(blob, "run"))
            await proxy.reached(LARGE_BLOB // 2)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            proxy.allow(None)
            assert (await taker.fetch(blob, "run")).read_bytes() == data
            assert not both.streams._claims

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_the_end_of_the_connection_ends_its_side_streams(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both, Proxy(f"127.0.0.1:{both.streams.port}") as proxy:
            both.dial(proxy)
            proxy.allow(LARGE_BLOB // 2)
            giver, taker = both.ends(way)
            fetching = asyncio.ensure_future(taker.fetch(giver.put(noise(2 * SIZE)), "run"))
            await proxy.reached(LARGE_BLOB // 2)
            await both.connections[0].close()
            with pytest.raises(ConnectionLost):
                await fetching
            await both.at_node.close()
            await both.at_server.close()
            assert not both.streams._claims

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_where_nothing_moves_the_rest_goes_over_the_connection(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        assert SIDE_SECONDS == side.SIDE_SECONDS
        monkeypatch.setattr(side, "SIDE_SECONDS", 0.1)
        async with exchanging(tmp_path) as both, Proxy(f"127.0.0.1:{both.streams.port}") as proxy:
            both.dial(proxy)
            proxy.allow(LARGE_BLOB // 2)
            data = noise(2 * SIZE)
            giver, taker = both.ends(way)
            assert (await taker.fetch(giver.put(data), "run")).read_bytes() == data
            assert proxy.held > 0
            assert both.chunks > 0

    asyncio.run(main())


def test_a_full_disk_is_told_and_the_rest_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both:
            data = noise(2 * SIZE)
            blob = both.node.put(data)
            written: list[int] = []
            plain = os.write

            def full(file: int, view: Any) -> int:
                if len(view) > 1000 and sum(written) > SIZE:
                    raise OSError(28, "No space left on device")
                written.append(count := plain(file, view))
                return count

            with monkeypatch.context() as patched:
                patched.setattr(os, "write", full)
                with pytest.raises(StorageError, match="No space left"):
                    await both.at_server.fetch(blob, "run")
            assert (await both.at_server.fetch(blob, "run")).read_bytes() == data

    asyncio.run(main())


async def knock(streams: SideStreams, roots: bytes, said: bytes) -> bytes:
    """What somebody hears who says this at the port for side streams."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots.decode())
    reader, writer = await asyncio.open_connection("127.0.0.1", streams.port, ssl=context, server_hostname=SERVER_NAME)
    writer.write(said)
    heard = b""
    with suppress(ConnectionError):
        heard = await reader.read(1)
    writer.transport.abort()
    return heard


def test_a_ticket_is_good_once_and_only_while_it_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        own = Authority(tmp_path / "own")
        serving = own.serving()
        streams = SideStreams()
        streams.open("127.0.0.1", (0,), lambda: (serving.certificate, serving.key))
        claim, other = streams.claim(), streams.claim()
        assert claim is not None
        assert other is not None
        assert await knock(streams, own.root(), bytes(32)) == b""
        assert await knock(streams, own.root(), claim.ticket) == b"\1"
        await claim.came
        assert claim.stream is not None
        assert await knock(streams, own.root(), claim.ticket) == b""
        other.close()
        assert await knock(streams, own.root(), other.ticket) == b""
        assert other.stream is None
        claim.close()
        await streams.close()

    asyncio.run(main())


def test_there_are_no_more_side_streams_than_a_server_has(tmp_path: Path) -> None:
    async def main() -> None:
        streams = SideStreams()
        assert streams.claim() is None  # it listens nowhere
        streams.open("127.0.0.1", (0,), None)
        claims = [streams.claim() for _ in range(SIDE_STREAMS)]
        assert all(claims)
        assert streams.claim() is None
        assert claims[0] is not None
        claims[0].close()
        assert streams.claim() is not None
        await streams.close()

    asyncio.run(main())


def test_a_peer_has_no_more_than_its_share(tmp_path: Path) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both:
            exchange = both.at_server
            with exchange._claim(LARGE_BLOB) as first, exchange._claim(LARGE_BLOB), exchange._claim(LARGE_BLOB):
                assert PEER_SIDE_STREAMS == 4
                assert first is not None
                with exchange._claim(LARGE_BLOB) as fourth, exchange._claim(LARGE_BLOB) as fifth:
                    assert fourth is not None
                    assert fifth is None
                with exchange._claim(LARGE_BLOB - 1) as small:
                    assert small is None

    asyncio.run(main())


def test_who_says_no_ticket_keeps_nobody_out_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(side, "CONNECT_SECONDS", 0.05)
        streams = SideStreams()
        streams.open("127.0.0.1", (0,), None)
        silent = [await asyncio.open_connection("127.0.0.1", streams.port) for _ in range(SIDE_PENDING + 5)]
        for reader, writer in silent:  # those beyond at once, the others after their time
            assert await reader.read(1) == b""
            writer.transport.abort()
        claim = streams.claim()
        assert claim is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", streams.port)
        writer.write(claim.ticket)
        assert await reader.read(1) == b"\1"
        writer.transport.abort()
        await claim.came
        claim.close()
        await streams.close()

    asyncio.run(main())


def test_a_server_that_ends_waits_for_nobody_at_its_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(side, "CONNECT_SECONDS", 1000 * PATIENCE)
        streams = SideStreams()
        streams.open("127.0.0.1", (0,), None)
        reader, writer = await asyncio.open_connection("127.0.0.1", streams.port)
        writer.write(b"half a ticket")
        while not streams._pending:
            await asyncio.sleep(0)
        await streams.close()
        assert await reader.read(1) == b""
        writer.transport.abort()

    asyncio.run(main())


def test_who_says_a_ticket_slowly_is_put_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(side, "CONNECT_SECONDS", 0.2)
        streams = SideStreams()
        streams.open("127.0.0.1", (0,), None)
        reader, writer = await asyncio.open_connection("127.0.0.1", streams.port)
        said = 0
        while not reader.at_eof():
            writer.write(b"x")
            said += 1
            with suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(1), 0.05)
        assert said < side.TICKET_BYTES
        writer.transport.abort()
        await streams.close()

    asyncio.run(main())


def test_who_gives_up_as_it_dials_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(side, "CONNECT_SECONDS", 1000 * PATIENCE)
        with socket.create_server(("127.0.0.1", 0)) as silent:  # as a port where no server is
            dialer = SideDialer(Beside("127.0.0.1", SERVER_NAME, None), silent.getsockname()[1])
            dialling = asyncio.ensure_future(dialer.dial(bytes(32)))
            silent.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:
                assert await asyncio.get_running_loop().sock_recv(connection, 32) == bytes(32)
                dialling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dialling
                assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
            assert dialer.works
            dialer.close()

    asyncio.run(main())


def test_a_ticket_that_is_not_taken_says_nothing_of_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with exchanging(tmp_path) as both:
            assert await both.dialer.dial(bytes(32)) is None
            assert both.dialer.works

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error_unless_another_will_do() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            streams = SideStreams()
            with pytest.raises(SettingError, match=f"cannot listen at 127.0.0.1:{port} for blobs"):
                streams.open("127.0.0.1", (port,), None)
            assert streams.port == 0
            streams.open("127.0.0.1", (port, 0), None)
            assert streams.port not in (0, port)
            await streams.close()

    asyncio.run(main())
