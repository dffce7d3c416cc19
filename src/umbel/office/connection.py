"""One conversation of an operator with a server, from the handshake to its end, in an event loop."""

from __future__ import annotations

import asyncio

from ..errors import ConnectionLost, PeerError
from ..store.blobs import Blobs
from ..transport.connection import Connection
from ..transport.exchange import Exchange
from ..transport.handshake import introduce
from ..transport.side import SideDialer
from ..transport.stream import Stream
from ..trust.credentials import SUCCESSORS, Credentials, home
from ..trust.proofs import TokenProof
from ..trust.servers import Successors
from ..wire import messages as m


class Answers:
    """The responses to one request, as they come."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[m.Response | PeerError] = asyncio.Queue()

    def put(self, item: m.Response | PeerError) -> None:
        """Add a response, or how the conversation ended."""
        self._queue.put_nowait(item)

    async def next(self) -> m.Response:
        """The next response. Raises how the conversation ended."""
        item = await self._queue.get()
        if isinstance(item, PeerError):
            raise item
        return item


class OperatorConnection:
    """A conversation; it answers what the server fetches, and is to be closed."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange
        self._waiting: dict[int, Answers] = {}
        self._asked = 0
        self._end: PeerError | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def begun(cls, stream: Stream, credentials: Credentials, blobs: Blobs) -> OperatorConnection:
        """Introduce oneself as an operator. Raises `Refused`, `ConnectionLost` or `ProtocolError`."""
        connection = Connection(stream)
        try:
            token = credentials.token
            hello = m.Hello(role=m.ROLE_OPERATOR, token=token.id)
            welcome = await introduce(connection, TokenProof(token), hello)
            Successors(home() / SUCCESSORS).learn(credentials.join.authority, welcome.endorsements)
            side = SideDialer(connection.beside, welcome.side_port)
            exchange = Exchange(connection, blobs, lambda run, blob: blobs.path(blob.sha256) is not None, side=side)
            return cls(connection, exchange)
        except BaseException:
            await connection.close()
            raise

    @property
    def over(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._end is not None or self._connection.closed

    def ask(self, method: str, body: str) -> Answers:
        """Send a request, and return where its responses come."""
        self._asked += 1
        answers = self._waiting[self._asked] = Answers()
        self._connection.post(m.Message(request=m.Request(id=self._asked, method=method, body=body)))
        if self.over:
            answers.put(self._end or ConnectionLost("the connection is over"))
        return answers

    async def fetch(self, blob: m.Blob) -> None:
        """Have a blob that the server has offered. Raises `ConnectionLost`, and `Refused` where it is not to be had."""
        await self._exchange.fetch(blob)

    async def close(self) -> None:
        """End the conversation."""
        await self._exchange.close()
        await self._connection.close()
        self._reader.cancel()
        await asyncio.wait({self._reader})

    async def _read(self) -> None:
        end: PeerError = ConnectionLost("the connection is over")
        try:
            async for message in self._connection.messages():
                answers = self._waiting.get(message.response.id)
                if answers is None:
                    continue
                answers.put(message.response)
                if not message.response.more:
                    del self._waiting[message.response.id]
        except PeerError as error:
            end = error
        finally:
            self._end = end
            for answers in self._waiting.values():
                answers.put(end)
            self._waiting.clear()
