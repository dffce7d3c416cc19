"""Peers that mean harm, many of them in one process: they are silent, slow, they flood, or they ask and never read.

What they can do is bounded by what this machine gives to one process at the lowest priority: the server's own work is
what is measured, and not how fast attackers are.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from umbel.errors import UmbelError
from umbel.transport import grpc
from umbel.transport.connection import Connection
from umbel.transport.handshake import introduce
from umbel.trust.credentials import Credentials, find
from umbel.trust.proofs import TokenProof
from umbel.wire import messages as m
from umbel.wire.addresses import host_and_port

from .light_clients import LightNode, invited

PAUSE = 0.2
"""Whoever was put out comes again after so many seconds."""
NAMES = 2_000
LARGE = secrets.token_bytes(64 << 10)


class Attackers:
    """So many connections to the server in a folder, a quarter of each kind; `seen` counts what became of them."""

    def __init__(self, folder: Path, run: str) -> None:
        self.seen: Counter[str] = Counter()
        self._nodes: dict[int, LightNode] = {}
        self._folder, self._run = folder, run
        self._operator: Credentials = find(None, None, folder)

    async def attack(self, count: int, seconds: float) -> None:
        """Do harm for so many seconds."""
        kinds: list[Callable[[int], Awaitable[None]]] = [self._silent, self._slow, self._flooding, self._unread]
        _, self._joins = await invited(str(self._folder), len(range(2, count, len(kinds))))
        tasks = [asyncio.create_task(self._again(kinds[n % len(kinds)], n // len(kinds))) for n in range(count)]
        print("attacking", flush=True)
        await asyncio.sleep(seconds)
        print("said", json.dumps(dict(sorted(self.seen.items()))), flush=True)
        assert not any(task.done() for task in tasks)
        os._exit(0)  # to part with a thousand one by one would take long, and is not what is measured

    async def _again(self, kind: Callable[[int], Awaitable[None]], number: int) -> None:
        name = kind.__name__.strip("_")
        while True:
            self.seen[f"{name}: connections"] += 1
            with suppress(UmbelError, OSError, EOFError):
                await kind(number)
            self.seen[f"{name}: put out"] += 1
            await asyncio.sleep(PAUSE)

    async def _silent(self, number: int) -> None:
        """Open a stream, and say nothing."""
        stream = await grpc.connect(self._operator.address, self._operator.join.root())
        try:
            while await stream.receive() is not None:
                pass
        finally:
            await stream.close()

    async def _slow(self, number: int) -> None:
        """Begin with TLS, or with plain HTTP, a byte a second."""
        host, port = host_and_port(self._operator.address)
        reader, writer = await asyncio.open_connection(host, port)
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if number % 2 else b"GET / HTTP/1.1\r\nX-Long: "
        try:
            for place in range(100_000):
                writer.write(hello[place : place + 1] or b"x")
                await writer.drain()
                with suppress(TimeoutError):
                    if not await asyncio.wait_for(reader.read(1 << 16), 1.0):
                        return
        finally:
            writer.close()

    async def _flooding(self, number: int) -> None:
        """Be a node that was let in, and say one thing as often as the connection takes it."""
        name = f"flood-{number}"
        node = self._nodes.setdefault(number, LightNode(name, [name]))
        await node.join(self._operator.address, self._joins[number])
        hearing = asyncio.create_task(node.live())
        body = (
            {"alive": m.Alive(run=self._run, tasks=[f"{ask}.{name}" for ask in range(NAMES)])},
            {"hosted": m.Hosted(clients=[name, *(f"{number}/{n}" for n in range(NAMES))])},
            {"result": m.Result(run=self._run, task="1.x", client="x", attempt=1)},
            {"chunk": m.Chunk(sha256=bytes(32), data=LARGE)},
        )[number % 4]
        data = [m.Message(**body).SerializeToString()]
        try:
            while not node.connection.closed:
                await node.connection.send(data)
                self.seen["flooding: messages"] += 1
        finally:
            hearing.cancel()
            await node.connection.close()

    async def _unread(self, number: int) -> None:
        """Be an operator who asks for all that there is, and reads nothing of it."""
        connection = Connection(await grpc.connect(self._operator.address, self._operator.join.root()))
        try:
            token = self._operator.token
            await introduce(connection, TokenProof(token), m.Hello(role=m.ROLE_OPERATOR, token=token.id))
            for id in range(1, 100_000):
                method, body = ("runs.logs", {"run": self._run}) if id % 2 else ("nodes.list", {})
                request = m.Request(id=id, method=method, body=json.dumps(body))
                await connection.send([m.Message(request=request).SerializeToString()])
                self.seen["unread: requests"] += 1
                await asyncio.sleep(PAUSE)
        finally:
            await connection.close()


def attack(folder: str, run: str, count: int, seconds: float) -> None:
    """Attack the server in a folder, by so many connections for so many seconds; then print what became of them."""
    os.nice(19)
    asyncio.run(Attackers(Path(folder), run).attack(count, seconds))
