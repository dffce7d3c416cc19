"""A relay between a real server and real nodes, over gRPC on this machine: whole, killed and started again."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager

import numpy as np
from tests.conftest import PATIENCE as SECONDS

import umbel
from umbel import Arrays, Like, Update
from umbel.core import encoding
from umbel.core.partial import Partial
from umbel.core.update import Receipt, check
from umbel.errors import ConnectionLost, Refused
from umbel.node.gate import Verdict
from umbel.node.run_host import holder
from umbel.node.service import NodeSettings, run_node
from umbel.node.signals import HostReady, TaskDone
from umbel.server.claims import Bounds
from umbel.server.relay import RelaySettings, run_relay
from umbel.server.service import running
from umbel.server.settings import ServerSettings
from umbel.store.blobs import Blobs
from umbel.transport import grpc
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.handshake import introduce
from umbel.trust.authority import Authority, JoinText
from umbel.trust.identity import SigningKey, node_id
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.trust.servers import KnownServer
from umbel.wire import messages as m
from umbel.wire.blobs import run_giver

MODEL = Arrays({"w": np.zeros(20_000, np.float32)})


def update_of(client):
    return Update({"w": np.full(20_000, client + 1.0, np.float32)}, weight=client + 1.0, delta=True)


class Gate:
    """Lets everything in."""

    judges_tasks = False

    def against_run(self, spec):
        return ""

    def check(self, spec, archive):
        return Verdict("allow")

    def against_ask(self, spec, ask):
        return ""

    def against_task(self, ask, sent):
        return ""


class Hosts:
    """Hosts clients that answer at once, with an update as large as the model; `held` ones when they are let go."""

    def __init__(self, blobs, tell):
        self.blobs, self.tell = blobs, tell
        self.loop = asyncio.get_running_loop()
        self.held, self.started = set(), {}

    def prepare(self, run, spec, archive):
        self.loop.call_soon(self.tell, HostReady(run, frozenset({"train"}), frozenset()))

    def start(self, effect):
        self.started[effect.task.client] = effect
        if effect.task.client not in self.held:
            self.answer(effect.task.client)

    def answer(self, client):
        effect = self.started.pop(client)
        assert self.blobs.path(effect.ask.model.blob.sha256) is not None
        blob = self.blobs.put(encoding.encode(update_of(int(client))))
        self.blobs.gave(blob.sha256, run_giver(effect.run))
        self.blobs.hold(blob.sha256, holder(effect.run, blob.sha256))
        done = m.Done(receipt=m.Receipt(weight=int(client) + 1.0), update=m.Payload(blob=blob))
        event = TaskDone(effect.run, effect.task.task, effect.task.attempt, done, b"state")
        self.loop.call_soon(self.tell, event)

    def stop(self, effect):
        pass

    def end_run(self, run):
        pass

    async def close(self):
        pass


def connecting(address):
    return lambda: grpc.connect(address, None)


def serving(folder, listen="127.0.0.1:0"):
    return ServerSettings(folder, listen=listen, http="", insecure=True)


@asynccontextmanager
async def until_stopped(work):
    """Have something run meanwhile that ends when it is told to."""
    stopping = asyncio.Event()
    task = asyncio.create_task(work(stopping))
    try:
        yield task
    finally:
        stopping.set()
        await asyncio.wait_for(task, SECONDS)


@asynccontextmanager
async def relay(folder, server, listen="127.0.0.1:0", **more):
    """A relay below a server; gives what it announced."""
    opened = asyncio.get_running_loop().create_future()
    token = JoinText.parse(server.line(server.registry.invite("test", relay=True))).token
    await server.commit()
    given = {
        "connect": connecting(server.address), "key": SigningKey.kept(folder / "east.key"), "name": "east",
        "token": token, "below": serving(folder / "east", listen), "first_wait": 0.01, "longest_wait": 0.05, **more,
    }  # fmt: skip
    async with until_stopped(lambda stopping: run_relay(RelaySettings(**given), stopping, opened.set_result)):
        yield await asyncio.wait_for(opened, SECONDS)


@asynccontextmanager
async def node(folder, line, address, name, *clients, **more):
    """A node; gives what hosts its clients."""
    made = []
    given = {
        "folder": folder / name, "connect": connecting(address), "key": SigningKey.kept(folder / f"{name}.key"),
        "clients": {str(client): {} for client in clients}, "gate": Gate(), "name": name, "slots": 9,
        "token": JoinText.parse(line).token, "first_wait": 0.01, "longest_wait": 0.05,
        "hosts": lambda blobs, tell: made.append(Hosts(blobs, tell)) or made[0], **more,
    }  # fmt: skip
    async with until_stopped(lambda stopping: run_node(NodeSettings(**given), stopping)):
        while not made:
            await asyncio.sleep(0)
        yield made[0]


class Run:
    """A run, by hand."""

    def __init__(self, folder, server):
        self.blobs = Blobs(folder / "run")
        self.server = server
        self.ready = set()
        self.answers = asyncio.Queue()
        self.changed = asyncio.Event()

    async def connect(self):
        token = self.server.registry.tokens.issue_run("test", "r")
        await self.server.commit()
        self.connection = Connection(await grpc.connect(self.server.address, None))
        await introduce(self.connection, TokenProof(token), m.Hello(role=m.ROLE_RUN, name="r", token=token.id))
        self.exchange = Exchange(self.connection, self.blobs, lambda run, blob: True)
        self.reader = asyncio.create_task(self.read())
        archive = m.Payload(blob=self.blobs.put(b"the archive" * 9999, "run"))
        self.post(run_spec=m.RunSpec(run="r", name="r", archive=archive))

    async def read(self):
        try:
            async for message in self.connection.messages():
                if message.HasField("members"):
                    for member in message.members.members:
                        (self.ready.add if member.standing == m.STANDING_READY else self.ready.discard)(member.client)
                    self.changed.set()
                elif message.WhichOneof("body") in ("result", "partial"):
                    self.answers.put_nowait(message)
        except (ConnectionLost, Refused):
            pass

    def post(self, **body):
        self.connection.post(m.Message(**body))

    async def until_ready(self, *clients):
        while not self.ready >= {str(client) for client in clients}:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), SECONDS)

    def ask(self, *clients):
        tree = {"config": {}, "inbox": None, "correction": None, "expects": Like(), "params": None}
        transforms = "[]"
        spec = m.AskSpec(
            run="r", ask=1, kind="train", digest=b"d", whole=True, fold=json.dumps(umbel.weighted_mean().spec()),
            transforms=transforms, model=m.Payload(blob=self.blobs.put(MODEL.to_bytes(), "run")),
            shared=m.Payload(inline=encoding.encode(tree)),
        )  # fmt: skip
        self.post(ask_spec=spec)
        for client in clients:
            key = b"k" * 32
            task = m.Task(run="r", task=f"1.{client}", ask=1, client=str(client), attempt=1, key=key, data_key=key)
            self.post(task=task)

    async def answer(self):
        return await asyncio.wait_for(self.answers.get(), SECONDS)

    async def fetched(self, payload):
        return encoding.load_file(await self.exchange.fetch(payload.blob, "r"))

    async def close(self):
        await self.connection.close()
        await self.reader


def on_loop(test):
    def run(tmp_path):
        asyncio.run(test(tmp_path))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def folded(*clients):
    """The mean of what these clients answer."""
    partial = Partial(umbel.weighted_mean())
    for client in clients:
        item = check(update_of(client), Like(), MODEL, client)
        partial.add(item, Receipt(f"1.{client}", client, client + 1.0, {}))
    return partial.finish().value["w"][0]


async def mean_of(run, message):
    body = message.partial
    found = Partial.from_tree(umbel.weighted_mean(), await run.fetched(body.partial), Like(), MODEL)
    return sorted(receipt.task for receipt in body.receipts), found.finish().value["w"][0]


@on_loop
async def test_a_relay_sends_one_partial_for_its_nodes(tmp_path):
    async with (
        running(serving(tmp_path / "top")) as server,
        relay(tmp_path, server) as opened,
        node(tmp_path, opened.line.split()[-1], opened.address, "n", 0, 1, 2, 3, 4),
    ):
        run = Run(tmp_path, server)
        await run.connect()
        await run.until_ready(*range(5))
        run.ask(*range(5))
        tasks, mean = await mean_of(run, await run.answer())
        assert tasks == [f"1.{client}" for client in range(5)]
        assert mean == folded(*range(5))
        (known,) = server.registry.nodes()
        assert (known.name, known.clients) == ("east", ("0", "1", "2", "3", "4"))
        run.post(close_run=m.CloseRun(run="r", status="finished"))
        await run.close()


@on_loop
async def test_a_relay_that_starts_again_sends_what_it_has(tmp_path):
    async with running(serving(tmp_path / "top")) as server:
        run = Run(tmp_path, server)
        await run.connect()
        async with relay(tmp_path, server) as opened:
            line, address = opened.line.split()[-1], opened.address
            async with node(tmp_path, line, address, "n", 0, 1, 2, 3, 4) as hosts:
                hosts.held = {"4"}
                await run.until_ready(*range(5))
                run.ask(*range(5))
                while "4" not in hosts.started or len(stored(tmp_path)) < 4:
                    await asyncio.sleep(0)
        async with relay(tmp_path, server, address):  # its node is away, and comes back no more
            while not server.router.nodes.online(server.registry.node("east").id):
                await asyncio.sleep(0)
            run.post(cancel=m.Cancel(run="r", tasks=["1.4"]))
            assert await mean_of(run, await run.answer()) == ([f"1.{client}" for client in range(4)], folded(*range(4)))
        await run.close()


def stored(folder):
    """The answers that the relay has on disk."""
    import sqlite3

    connection = sqlite3.connect(folder / "east" / "server.db")
    try:
        return connection.execute("select id from answers").fetchall()
    finally:
        connection.close()


@on_loop
async def test_a_node_below_it_is_in_the_federation_of_the_server_above(tmp_path):
    known = KnownServer(Authority(tmp_path / "east" / "authority").public)
    async with (
        running(serving(tmp_path / "top")) as server,
        relay(tmp_path, server) as opened,
        node(tmp_path, opened.line.split()[-1], opened.address, "n", 0, server=known),
    ):
        async with asyncio.timeout(SECONDS):
            while server.authority.public.hex() not in known.federations:
                await asyncio.sleep(0)


@on_loop
async def test_a_relay_that_starts_again_says_so_before_it_is_connected(tmp_path):
    known = KnownServer(Authority(tmp_path / "east" / "authority").public)
    async with running(serving(tmp_path / "top")) as server:
        key = server.authority.public.hex()
        async with (
            relay(tmp_path, server) as opened,
            node(tmp_path, opened.line.split()[-1], opened.address, "n", 0, server=known),
        ):
            async with asyncio.timeout(SECONDS):
                while key not in known.federations:
                    await asyncio.sleep(0)

    async def nobody():
        raise ConnectionLost("nobody is there")

    again = KnownServer(Authority(tmp_path / "east" / "authority").public)
    settings = RelaySettings(connect=nobody, key=SigningKey.new(), below=serving(tmp_path / "east"))
    opened = asyncio.get_running_loop().create_future()
    async with until_stopped(lambda stopping: run_relay(settings, stopping, opened.set_result)):
        address = (await asyncio.wait_for(opened, SECONDS)).address
        connection = Connection(await grpc.connect(address, None))
        own = SigningKey.kept(tmp_path / "n.key")
        hello = m.Hello(role=m.ROLE_NODE, name="n", key=own.public, epoch=99, boot="b")
        again.welcomed(await introduce(connection, NodeProof(own, None), hello))
        assert key in again.federations
        await connection.close()


@on_loop
async def test_its_clients_are_those_of_its_nodes(tmp_path):
    async with (
        running(serving(tmp_path / "top")) as server,
        relay(tmp_path, server) as opened,
    ):
        run = Run(tmp_path, server)
        await run.connect()
        async with node(tmp_path, opened.line.split()[-1], opened.address, "n", 7):
            await run.until_ready(7)
        run.ask(8)
        failed = (await run.answer()).result
        assert failed.failure.reason == "client 8 cannot take part: no node of this federation hosts it"
        await run.close()


def test_it_waits_for_approval_and_says_so_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "umbel.relay")

    async def wait():
        async with running(serving(tmp_path / "top")) as server, relay(tmp_path, server, token=None):
            while not list(server.registry.nodes()):
                await asyncio.sleep(0)
            (known,) = server.registry.nodes()
            server.registry.approve("test", known.id, relay=True)
            while not server.router.nodes.online(known.id):
                await asyncio.sleep(0)

    asyncio.run(wait())
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "waits for approval" in said[0]


def test_what_a_relay_may_call_its_clients_bounds_the_nodes_below_it(tmp_path):
    async def main():
        async with asyncio.timeout(SECONDS), running(serving(tmp_path / "server")) as server:
            bounds = Bounds(("1*", "7"), 2)
            token = server.registry.invite("test", relay=True, bounds=bounds)
            await server.commit()
            more = {"token": token}
            async with (
                relay(tmp_path, server, **more) as opened,
                node(tmp_path, opened.line.split()[-1], opened.address, "below", 1, 2, 7, 10),
            ):
                east = node_id(SigningKey.kept(tmp_path / "east.key").public)
                while len(server.denied(east)) < 2:
                    await asyncio.sleep(0)
                assert server.denied(east)["2"] == "this node was let in for clients 1*, 7"
                assert len(server.router.nodes.clients()) == 2
                assert server.router.nodes.clients() < {"1", "7", "10"}
                await server.commit()
                assert "clients.refused" in {row["did"] for row in server.registry.audit.last()}

    asyncio.run(main())
