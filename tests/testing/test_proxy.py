"""The proxy lets through what it is told to."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from tests.conftest import PATIENCE

from umbel.testing import Proxy


def with_echo(test: Callable[[Proxy], Awaitable[None]]) -> None:
    """Run a test against a proxy before a server that echoes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with Proxy(f"127.0.0.1:{port}") as proxy:
            await test(proxy)
        server.close()
        await server.wait_closed()

    asyncio.run(main())


async def opened(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = proxy.address.split(":")
    return await asyncio.open_connection(host, int(port))


def test_it_passes_everything_on_both_ways() -> None:
    async def test(proxy: Proxy) -> None:
        reader, writer = await opened(proxy)
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        await proxy.reached(200_000)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    with_echo(test)


def test_it_lets_through_what_it_is_allowed_to() -> None:
    async def test(proxy: Proxy) -> None:
        reader, writer = await opened(proxy)
        proxy.allow(10)
        writer.write(b"x" * 8)
        assert await reader.readexactly(2) == b"xx"
        assert proxy.passed == 10
        proxy.allow(3)
        assert await reader.readexactly(3) == b"xxx"
        proxy.allow(None)
        assert await reader.readexactly(3) == b"xxx"
        assert proxy.passed == 16
        writer.close()

    with_echo(test)


def test_it_cuts_after_so_many_bytes_once() -> None:
    async def test(proxy: Proxy) -> None:
        reader, writer = await opened(proxy)
        proxy.cut_after(150)
        writer.write(b"x" * 100)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(100)
        writer.close()
        assert (proxy.passed, proxy.cuts) == (150, 1)
        reader, writer = await opened(proxy)
        writer.write(b"x" * 1000)
        assert len(await reader.readexactly(1000)) == 1000
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        proxy.refuse(True)
        reader, writer = await opened(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()

    with_echo(test)


def test_a_reset_at_its_far_end_is_one_at_its_near_end() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with asyncio.timeout(PATIENCE), Proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
            reader, writer = await opened(proxy)
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())
