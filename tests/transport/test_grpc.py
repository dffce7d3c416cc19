"""What is particular to gRPC: certificates, addresses, and what is no call of the one method."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from grpc import StatusCode, aio
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, SettingError
from umbel.transport import grpc
from umbel.transport.stream import Stream
from umbel.trust.authority import Authority
from umbel.wire.limits import WINDOW_BYTES

T = TypeVar("T")


async def echo(stream: Stream) -> None:
    while (data := await stream.receive()) is not None:
        await stream.send(data)


async def said(stream: Stream, data: bytes) -> bytes | None:
    await stream.send(data)
    answer = await stream.receive()
    await stream.close()
    return answer


def test_only_the_pinned_authority_is_trusted(tmp_path: Path) -> None:
    async def main() -> None:
        own, other = Authority(tmp_path / "own"), Authority(tmp_path / "other")
        serving = own.serving()
        listener = await grpc.serve("127.0.0.1:0", serving.certificate, serving.key, echo)
        assert await said(await grpc.connect(listener.address, own.root()), b"x") == b"x"
        with pytest.raises(ConnectionLost, match="another certificate"):
            await grpc.connect(listener.address, other.root())
        with pytest.raises(ConnectionLost):
            await grpc.connect(listener.address, None)  # plaintext
        reader, writer = await asyncio.open_connection(*listener.address.split(":"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
        with suppress(OSError):
            await reader.read()
        writer.transport.abort()
        assert await said(await grpc.connect(listener.address, own.root()), b"y") == b"y"
        await listener.close()

    asyncio.run(main())


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        own = Authority(tmp_path / "own")
        serving = own.serving()
        listener = await grpc.serve("127.0.0.1:0", serving.certificate, serving.key, echo)
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        monkeypatch.delenv("no_proxy", raising=False)
        assert await said(await grpc.connect(listener.address, own.root()), b"x") == b"x"
        await listener.close()

    asyncio.run(main())


def test_plaintext_where_there_is_no_certificate() -> None:
    async def main() -> None:
        listener = await grpc.serve("127.0.0.1:0", None, None, echo)
        assert await said(await grpc.connect(listener.address, None), b"x") == b"x"
        await listener.close()
        with pytest.raises(ConnectionLost, match="no connection to 127"):
            await grpc.connect(listener.address, None)

    asyncio.run(main())


def test_an_address_in_use_is_an_error() -> None:
    async def main() -> None:
        listener = await grpc.serve("127.0.0.1:0", None, None, echo)
        with pytest.raises(SettingError, match="cannot listen"):
            await grpc.serve(listener.address, None, None, echo)
        await listener.close()

    asyncio.run(main())


def test_other_methods_and_too_large_messages_are_refused_and_others_served() -> None:
    async def main() -> None:
        listener = await grpc.serve("127.0.0.1:0", None, None, echo)
        async with aio.insecure_channel(listener.address) as channel:
            call = channel.unary_unary("/umbel.v1alpha.Umbel/Other")
            with pytest.raises(aio.AioRpcError) as refused:
                await call(b"")
            assert refused.value.code() is StatusCode.UNIMPLEMENTED
            big = channel.stream_stream(grpc.METHOD)()
            await big.write(bytes(grpc.MESSAGE_BYTES + 1))
            with pytest.raises(aio.AioRpcError) as refused:
                await big.read()
            assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert await said(await grpc.connect(listener.address, None), b"x") == b"x"
        await listener.close()

    asyncio.run(main())


def test_frames_are_cut_into_pieces_and_the_first_ones_are_short() -> None:
    async def main() -> None:
        listener = await grpc.serve("127.0.0.1:0", None, None, echo)
        stream = await grpc.connect(listener.address, None)
        sizes = [
            0,
            grpc.FIRST_BYTES,
            *(n * grpc.PIECE_BYTES + d for n in (1, 2, 9) for d in (-1, 0, 1)),
            grpc.FRAME_BYTES,
        ]
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            await stream.send(data)
            assert await stream.receive() == data
        await stream.close()
        stream = await grpc.connect(listener.address, None)
        first = await said(stream, bytes(grpc.FRAME_BYTES))
        assert first is not None
        assert grpc.FIRST_BYTES < len(first) <= grpc.FIRST_BYTES + grpc.PIECE_BYTES, (
            "enough to see that it is too large"
        )
        await stream.close()
        await listener.close()

    asyncio.run(main())


def test_no_more_is_taken_unread_than_the_window() -> None:
    async def main(window: int, wanted: int) -> int:
        go = asyncio.Event()

        async def slow(stream: Stream) -> None:
            await go.wait()

        listener = await grpc.serve("127.0.0.1:0", None, None, slow, window=window)
        stream, sent, enough = await grpc.connect(listener.address, None), 0, asyncio.Event()

        async def send() -> None:
            nonlocal sent
            while True:
                await stream.send(bytes(32 << 10))
                sent += 32 << 10
                if sent >= wanted:
                    enough.set()

        sending = asyncio.create_task(send())
        if wanted:
            await enough.wait()
        else:
            await asyncio.wait({sending}, timeout=0.3)  # there is no event for what does not happen
        go.set()
        sending.cancel()
        await stream.close()
        await listener.close()
        return sent

    assert asyncio.run(main(WINDOW_BYTES, 0)) < 8 * WINDOW_BYTES
    assert asyncio.run(main(16 * WINDOW_BYTES, 12 * WINDOW_BYTES))


def test_no_more_streams_than_were_asked_for() -> None:
    async def answered(stream: Stream) -> bytes | None:
        await stream.send(b"x")
        return await stream.receive()

    async def main() -> None:
        listener = await grpc.serve("127.0.0.1:0", None, None, echo, most=2)
        streams = []
        for _ in range(2):
            streams.append(await grpc.connect(listener.address, None))
            assert await answered(streams[-1]) == b"x"  # only now it is certain that the listener has it
        with pytest.raises(ConnectionLost, match="2 others are connected"):
            await (await grpc.connect(listener.address, None)).receive()
        for stream in streams:
            assert await answered(stream) == b"x"
            await stream.close()
        await listener.close()

    asyncio.run(main())


async def persistently(connect: Callable[[], Awaitable[T]]) -> T:
    """Connect, again and again: whoever is slow to do so is put out as well."""
    while True:
        try:
            return await connect()
        except (ConnectionLost, OSError):
            pass


async def staying_at(address: str, root: bytes) -> Stream:
    """A stream that the listener has."""
    stream = await grpc.connect(address, root)
    with suppress(ConnectionLost):
        await stream.send(b"here")
        if await stream.receive() == b"here":
            return stream
    await stream.close()
    raise ConnectionLost("it was too late")


def test_whoever_connects_and_opens_no_stream_is_put_out(tmp_path: Path) -> None:
    async def main() -> None:
        own = Authority(tmp_path / "own")
        serving = own.serving()
        listener = await grpc.serve("127.0.0.1:0", serving.certificate, serving.key, echo, seconds=0.5)
        staying = await persistently(lambda: staying_at(listener.address, own.root()))
        trusting = ssl.create_default_context(cadata=own.root().decode())
        trusting.set_alpn_protocols(["h2"])
        host, port = listener.address.split(":")
        silent, quiet = await asyncio.open_connection(host, port)
        secret, writer = await persistently(
            lambda: asyncio.open_connection(host, port, ssl=trusting, server_hostname=grpc.SERVER_NAME)
        )
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # and empty settings
        async with asyncio.timeout(PATIENCE):
            for reader in (silent, secret):
                with suppress(OSError):  # it may be told in several ways
                    await reader.read(-1)
        quiet.transport.abort()
        writer.transport.abort()
        assert await said(staying, b"x") == b"x"
        await listener.close()

    asyncio.run(main())


def test_a_peer_that_never_reads_does_not_hold_up_the_end() -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def serve(stream: Stream) -> None:
            receiving = asyncio.create_task(stream.receive())

            async def send() -> None:
                while True:
                    await stream.send(bytes(1 << 20))

            sending = asyncio.create_task(send())
            await asyncio.wait({sending}, timeout=0.2)
            sending.cancel()
            await stream.close()
            assert await receiving is None
            over.set()

        listener = await grpc.serve("127.0.0.1:0", None, None, serve)
        stream = await grpc.connect(listener.address, None)
        await over.wait()
        await listener.close()
        await stream.close()

    asyncio.run(main())
