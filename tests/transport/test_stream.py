"""What every stream promises, whatever is underneath."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from umbel.errors import ConnectionLost
from umbel.transport import grpc
from umbel.transport.stream import Listener, MemoryListener, OnStream, Stream
from umbel.trust.authority import Authority

Connect = Callable[[], Awaitable[Stream]]
Binding = Callable[[OnStream], AbstractAsyncContextManager[tuple[Connect, Listener]]]


@asynccontextmanager
async def memory(on_stream: OnStream) -> AsyncIterator[tuple[Connect, Listener]]:
    listener = MemoryListener(on_stream)
    try:
        yield listener.connect, listener
    finally:
        await listener.close()


@asynccontextmanager
async def over_grpc(folder: Path, on_stream: OnStream) -> AsyncIterator[tuple[Connect, Listener]]:
    authority = Authority(folder)
    serving = authority.serving()
    listener = await grpc.serve("127.0.0.1:0", serving.certificate, serving.key, on_stream)
    try:
        yield lambda: grpc.connect(listener.address, authority.root()), listener
    finally:
        await listener.close()


@pytest.fixture(params=["memory", "grpc"])
def binding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Binding:
    if request.param == "memory":
        return memory
    return functools.partial(over_grpc, tmp_path_factory.getbasetemp() / "authority")


async def echo(stream: Stream) -> None:
    while (data := await stream.receive()) is not None:
        await stream.send(data)


async def send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(b"x" * 100_000)


def test_what_is_sent_arrives_whole_and_in_order(binding: Binding) -> None:
    async def main() -> None:
        async with binding(echo) as (connect, _):
            stream = await connect()
            items = [b"", b"one", bytes(range(256)), *(str(i).encode() for i in range(300))]

            async def send() -> None:
                for item in items:
                    await stream.send(item)

            sending = asyncio.create_task(send())
            assert [await stream.receive() for _ in items] == items
            await sending
            await stream.close()

    asyncio.run(main())


def test_large_items(binding: Binding) -> None:
    async def main() -> None:
        async with binding(echo) as (connect, _):
            stream = await connect()
            for size in (1, 256 << 10, 1 << 20, (4 << 20) + 1):  # the first two as those of a handshake
                data = bytes([size % 251]) * size
                await stream.send(data)
                assert await stream.receive() == data
            await stream.close()

    asyncio.run(main())


def test_after_finish_what_was_sent_still_arrives_and_answers_come_back(binding: Binding) -> None:
    async def main() -> None:
        async def count(stream: Stream) -> None:
            n = 0
            while await stream.receive() is not None:
                n += 1
            await stream.send(b"%d" % n)
            await stream.finish()

        async with binding(count) as (connect, _):
            stream = await connect()
            for _ in range(5):
                await stream.send(b"x")
            await stream.finish()
            assert await stream.receive() == b"5"
            assert await stream.receive() is None
            await stream.close(grace=5)
            with pytest.raises(ConnectionLost):
                await stream.send(b"late")

    asyncio.run(main())


def test_the_server_s_last_words_arrive(binding: Binding) -> None:
    async def main() -> None:
        async def last_words(stream: Stream) -> None:
            await stream.receive()
            await stream.send(b"go away")
            await stream.finish()
            await stream.close(grace=5)

        async with binding(last_words) as (connect, _):
            stream = await connect()
            await stream.send(b"hello")
            assert await stream.receive() == b"go away"
            assert await stream.receive() is None
            await stream.close()

    asyncio.run(main())


def test_a_peer_that_closes_is_noticed_on_both_sides(binding: Binding) -> None:
    async def main() -> None:
        noticed = asyncio.Event()

        async def serve(stream: Stream) -> None:
            assert await stream.receive() == b"hello"
            await stream.send(b"hello")
            assert await stream.receive() is None
            with pytest.raises(ConnectionLost):
                await send_for_ever(stream)
            noticed.set()

        async with binding(serve) as (connect, _):
            stream = await connect()
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            await stream.close()
            assert await stream.receive() is None
            await noticed.wait()

        async def leave(stream: Stream) -> None:
            await stream.receive()

        async with binding(leave) as (connect, _):
            stream = await connect()
            await stream.send(b"hello")
            assert await stream.receive() is None
            with pytest.raises(ConnectionLost):
                await send_for_ever(stream)
            await stream.close()

    asyncio.run(main())


def test_closing_here_ends_a_receive_that_waits(binding: Binding) -> None:
    async def main() -> None:
        started, over = asyncio.Event(), asyncio.Event()

        async def serve(stream: Stream) -> None:
            receiving = asyncio.create_task(stream.receive())
            await started.wait()
            await stream.close()
            assert await receiving is None
            over.set()

        async with binding(serve) as (connect, _):
            stream = await connect()
            receiving = asyncio.create_task(stream.receive())
            started.set()
            await over.wait()
            assert await receiving is None
            await stream.close()

            other = await connect()
            receiving = asyncio.create_task(other.receive())
            await asyncio.sleep(0)
            await other.close()
            assert await receiving is None

    asyncio.run(main())


def test_a_sender_waits_for_a_receiver_that_does_not_read(binding: Binding) -> None:
    async def main() -> None:
        go = asyncio.Event()
        count, size = 1024, 64 << 10

        async def slow(stream: Stream) -> None:
            await go.wait()
            sizes = [len(await stream.receive() or b"") for _ in range(grpc.FIRST_FRAMES + count)]
            assert sizes == [*[1] * grpc.FIRST_FRAMES, *[size] * count]
            await stream.send(b"all")
            await stream.finish()

        async with binding(slow) as (connect, _):
            stream = await connect()
            sent, begun = 0, asyncio.Event()

            async def send() -> None:
                nonlocal sent
                for _ in range(grpc.FIRST_FRAMES):  # which may not be large
                    await stream.send(b"1")
                for _ in range(count):
                    await stream.send(bytes(size))
                    sent += 1
                    begun.set()

            sending = asyncio.create_task(send())
            await begun.wait()
            await asyncio.wait({sending}, timeout=0.2)  # there is no event for what does not happen
            assert sent < count // 2
            go.set()
            await sending
            assert await stream.receive() == b"all"
            await stream.close()

    asyncio.run(main())


def test_many_at_once(binding: Binding) -> None:
    async def main() -> None:
        async with binding(echo) as (connect, _):

            async def one(i: int) -> None:
                stream = await connect()
                for j in range(5):
                    data = b"%d/%d" % (i, j)
                    await stream.send(data)
                    assert await stream.receive() == data
                await stream.close()

            await asyncio.gather(*(one(i) for i in range(50)))

    asyncio.run(main())


def test_closing_the_listener_ends_what_it_serves(binding: Binding) -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def serve(stream: Stream) -> None:
            await stream.send(b"here")
            assert await stream.receive() is None
            over.set()

        async with binding(serve) as (connect, listener):
            stream = await connect()
            assert await stream.receive() == b"here"
            await listener.close()
            assert over.is_set()
            assert await stream.receive() is None
            await stream.close()

    asyncio.run(main())
