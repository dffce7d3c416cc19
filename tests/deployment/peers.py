"""Peers that speak the protocol by hand, over real streams: what the test says, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.conftest import PATIENCE as SECONDS

from umbel.errors import PeerError
from umbel.testing.machines import Machines
from umbel.transport import frames, grpc
from umbel.transport.connection import Connection
from umbel.transport.handshake import introduce
from umbel.trust.authority import JoinText
from umbel.trust.proofs import NodeProof
from umbel.trust.tokens import Token
from umbel.wire import messages as m

GONE = (PeerError, asyncio.CancelledError)
"""The latter is gRPC's word for a stream that the other side has reset."""


def token_of(line: str) -> Token:
    """The token in a line that lets somebody in."""
    found = JoinText.parse(line).token
    assert found is not None
    return found


def node_hello(prover: NodeProof, *clients: str) -> m.Hello:
    """How a node introduces itself."""
    token = prover.token.id if prover.token is not None else ""
    return m.Hello(role=m.ROLE_NODE, name="peer", key=prover.key.public, token=token, clients=clients)


async def reach(machines: Machines) -> Any:
    """A stream to the server, with nothing said yet."""
    return await grpc.connect(machines.address, JoinText.parse(machines.token).root())


async def connected(machines: Machines, prover: Any, hello: m.Hello) -> Connection:
    """A connection that is let in."""
    connection = Connection(await reach(machines))
    await introduce(connection, prover, hello)
    return connection


class Listened:
    """All that comes over a connection, until it ends."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: list[m.Message] = []
        self.end: PeerError | None = None
        self._news = asyncio.Condition()
        connection.on_blob = self._take
        self._task = asyncio.create_task(self._listen())

    def names(self) -> list[str]:
        """The kinds of messages that have come."""
        return [message.WhichOneof("body") or "" for message in self.heard]

    def post(self, **body: Any) -> None:
        """Say something."""
        self.connection.post(m.Message(**body))

    async def hear(self, name: str, count: int = 1) -> list[Any]:
        """Wait until so many messages of a kind have come, and return them."""

        def found() -> bool:
            return self.names().count(name) >= count or self.end is not None

        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(found)
        chosen = [getattr(message, name) for message in self.heard if message.WhichOneof("body") == name]
        assert len(chosen) >= count, (self.names(), self.end)
        return chosen

    async def over(self) -> PeerError:
        """Wait for the end, and say how it came."""
        async with asyncio.timeout(SECONDS):
            await self._task
        assert self.end is not None
        return self.end

    async def close(self) -> None:
        """End it."""
        await self.connection.close()
        await self._task

    def _take(self, message: m.Message) -> None:
        self.heard.append(message)
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _listen(self) -> None:
        try:
            while True:
                self.heard += await self.connection.receive()
                await self._tell()
        except PeerError as error:
            self.end = error
        await self._tell()


class Raw:
    """Frames as bytes, one by one, whatever is in them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.number = 0
        self.sent: list[bytes] = []
        self._heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())  # gRPC loses what nobody waits for when the stream ends

    async def send(self, data: bytes) -> bool:
        """Send bytes as a frame; whether that was possible."""
        self.sent.append(data)
        try:
            await self._stream.send(data)
        except GONE:
            return False
        return True

    async def say(self, *messages: m.Message, number: int | None = None) -> bool:
        """Send messages in a frame, of the number that is due or another one."""
        self.number += 1
        parts = [(message.SerializeToString(),) for message in messages]
        return await self.send(frames.frame(self.number if number is None else number, parts))

    async def hear(self) -> list[m.Message] | None:
        """The messages of the next frame; None at the end."""
        async with asyncio.timeout(SECONDS):
            data = await self._heard.get()
        return None if data is None else list(m.Frame.FromString(data).messages)

    async def close(self) -> None:
        """End the stream."""
        await self._stream.close()
        await self._reader

    async def _read(self) -> None:
        data: bytes | None = b""
        while data is not None:
            try:
                data = await self._stream.receive()
            except GONE:
                data = None
            await self._heard.put(data)
