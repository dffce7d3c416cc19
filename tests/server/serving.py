"""A server in this process, and peers that say what the test wants, over gRPC and TLS."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

from tests.conftest import PATIENCE

from umbel.errors import PeerError
from umbel.server.service import running
from umbel.server.settings import ServerSettings
from umbel.store.blobs import Blobs
from umbel.transport import frames, grpc
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.handshake import introduce
from umbel.trust import archive
from umbel.trust.authority import JoinText, root_certificate
from umbel.trust.identity import SigningKey
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.wire import messages as m

KEY = b"k" * 32
SPEC = m.RunSpec(run="r", name="mnist")
ASK = m.AskSpec(run="r", ask=0, kind="train", digest=b"d", transforms="[]")
CLIENT = archive.build(
    {"kind": "client", "module": "client", "attribute": "client", "handlers": ["train"], "imports": [], "python": "",
     "requirements": []},
    {"client.py": b"x = 1\n"},
)  # fmt: skip
APP = archive.build(
    {"kind": "app", "file": "app.py", "attribute": "", "imports": [], "python": "", "requirements": []},
    {"app.py": b"y = 1\n"},
)


def task_of(client, ask=0):
    return m.Task(run="r", task=f"{ask}.{client}", ask=ask, client=client, attempt=1, key=KEY, data_key=KEY)


def done_of(client, ask=0, update=None):
    receipt = m.Receipt(task=f"{ask}.{client}", client=client, weight=1.0)
    done = m.Done(receipt=receipt, update=update or m.Payload(inline=b"update"))
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=client, attempt=1, done=done)


class Heard(Connection):
    """A connection that counts what answers its pings."""

    pongs = 0

    def _taken(self, data):
        batch = frames.read(data, self.received.frames + 1, self.limits)
        self.pongs += sum(message.WhichOneof("body") == "pong" for message in batch)
        return super()._taken(data)


class Party:
    """A peer of the server: what it has heard, how it ended, and its blobs."""

    def __init__(self, connection, folder):
        self.connection = connection
        self.blobs = Blobs(folder / "blobs")
        self.exchange = Exchange(connection, self.blobs, lambda run, blob: True)
        self.heard, self.end = [], None
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._listen())

    def say(self, **body):
        self.connection.post(m.Message(**body))

    def named(self, kind):
        """What was heard of a kind."""
        return [getattr(each, kind) for each in self.heard if each.WhichOneof("body") == kind]

    async def hears(self, kind, count=1, where=lambda body: True):
        """Wait until so many of a kind have come, and give the last."""

        def found():
            return [body for body in self.named(kind) if where(body)]

        async with self._news:
            await self._news.wait_for(lambda: len(found()) >= count or self.end is not None)
        assert len(found()) >= count, (kind, self.heard, self.end)
        return found()[-1]

    async def over(self):
        """Wait for the end, and give it."""
        await self._reader
        return self.end

    async def settled(self):
        """Everything that was said before has been taken in by the server: it has answered what came with that, and
        then read on.
        """
        for _ in range(2):
            pongs = self.connection.pongs
            self.say(ping=m.Ping(id=1))
            while self.connection.pongs == pongs and self.end is None:
                await asyncio.sleep(0)

    async def close(self):
        await self.exchange.close()
        await self.connection.close()
        await self._reader

    async def _listen(self):
        try:
            while True:
                self.heard += await self.connection.receive()
                async with self._news:
                    self._news.notify_all()
        except PeerError as error:
            self.end = error
        async with self._news:
            self._news.notify_all()


class Office:
    """A server's surroundings: who connects to it, and is closed with it."""

    def __init__(self, service, folder):
        self.service = service
        self.folder = folder
        self.parties = []

    async def _in(self, prover, hello):
        stream = await grpc.connect(self.service.address, root_certificate(self.service.authority.public))
        connection = Heard(stream)
        try:
            await introduce(connection, prover, hello)
        except BaseException:
            await connection.close()
            raise
        self.parties.append(Party(connection, self.folder / f"party-{len(self.parties)}-{id(self)}"))
        return self.parties[-1]

    async def node(self, key, *clients, join=True):
        token = self.service.registry.invite("test") if join else None
        hello = m.Hello(role=m.ROLE_NODE, name="lab", key=key.public, token=token.id if token else "", clients=clients)
        return await self._in(NodeProof(key, token), hello)

    async def run(self, name="r"):
        token = self.service.registry.tokens.issue_run("test", name)
        return await self._in(TokenProof(token), m.Hello(role=m.ROLE_RUN, name=name, token=token.id))

    async def by(self, line, name="r"):
        """A run that connects by the token in a line."""
        token = JoinText.parse(line).token
        return await self._in(TokenProof(token), m.Hello(role=m.ROLE_RUN, name=name, token=token.id))

    async def operator(self, name="ann", role="admin"):
        token = self.service.registry.tokens.grant("test", name, role)
        return await self._in(TokenProof(token), m.Hello(role=m.ROLE_OPERATOR, token=token.id))

    async def ready(self, *clients):
        """A node whose clients are ready for run r, and that run."""
        node, run = await self.node(SigningKey.new(), *clients), await self.run()
        run.say(run_spec=SPEC)
        await node.hears("run_spec")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        await run.hears("members", where=lambda body: body.members[0].standing == m.STANDING_READY)
        return node, run

    async def close(self):
        for party in self.parties:
            await party.close()


async def asked(party, method, id=1, **body):
    """The answer to a request, with its code."""
    party.say(request=m.Request(id=id, method=method, body=json.dumps(body)))
    response = await party.hears("response", where=lambda found: found.id == id and not found.more)
    return (response.code, response.text) if response.code else json.loads(response.body)


@asynccontextmanager
async def office(folder, **settings):
    given = {"listen": "127.0.0.1:0", "http": "", **settings}
    found = None
    try:
        async with running(ServerSettings(folder=folder / "server", **given)) as service:
            found = Office(service, folder)
            yield found
    finally:
        if found is not None:  # last: a run that parts with a server that is up may be over there
            await found.close()


def play(act, folder, **settings):
    """Run a coroutine function with a server of its own."""

    async def main():
        async with asyncio.timeout(PATIENCE), office(folder, **settings) as found:
            await act(found)

    asyncio.run(main())
