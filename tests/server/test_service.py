"""A server in this process, and peers that say what the test wants, over gRPC and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
from contextlib import asynccontextmanager

import pytest
from tests.conftest import PATIENCE

from umbel.errors import ConnectionLost, PeerError, Refused, SettingError, StorageError
from umbel.server import commits, programs
from umbel.server import service as services
from umbel.server.service import running
from umbel.server.settings import ServerSettings
from umbel.server.supervision import Exit
from umbel.store.blobs import Blobs
from umbel.transport import frames, grpc
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.handshake import introduce
from umbel.trust import archive
from umbel.trust.authority import JoinText, root_certificate
from umbel.trust.credentials import own_token
from umbel.trust.identity import SigningKey, node_id, sign_archive
from umbel.trust.proofs import NodeProof, TokenProof
from umbel.wire import messages as m

KEY = b"k" * 32
SPEC = m.RunSpec(run="r", name="mnist")
ASK = m.AskSpec(run="r", ask=0, kind="train", digest=b"d", transforms="{}")
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


class Gate:
    """Writes of a store wait here, or fail, as the test says."""

    def __init__(self, service):
        self.open = threading.Event()
        self.failing = False
        self.tried = 0
        self._loop = asyncio.get_running_loop()
        self._write = service.store.write
        self._reached = asyncio.Semaphore(0)
        service.store.write = self.write

    def write(self, batch):
        self.tried += 1
        self._loop.call_soon_threadsafe(self._reached.release)
        if self.failing:
            raise StorageError("the disk is full")
        assert self.open.wait(PATIENCE)
        self._write(batch)

    async def reached(self):
        """Wait for the next write."""
        await self._reached.acquire()


# What crosses a server


def test_a_task_goes_to_its_node_and_its_result_to_the_run(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        assert await node.hears("task") == task_of("0")
        assert node.named("ask_spec") == [ASK]
        node.say(alive=m.Alive(run="r", tasks=["0.0"]))
        await run.hears("alive")
        node.say(result=done_of("0"))
        assert await run.hears("result") == done_of("0")
        assert (await node.hears("ack")).tasks == ["0.0"]
        assert [row["answer"] for row in here.service.store.rows("tasks")] == ["0.0"]
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await node.hears("close_ask")

    play(act, tmp_path)


def test_blobs_cross_both_ways(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        model, update = run.blobs.put(b"m" * 100_000, "test"), node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="{}", model=m.Payload(blob=model)))
        run.say(task=task_of("0"))
        task = await node.hears("ask_spec")
        assert (await node.exchange.fetch(task.model.blob, "r")).read_bytes() == b"m" * 100_000
        node.say(result=done_of("0", update=m.Payload(blob=update)))
        found = (await run.hears("result")).done.update.blob
        assert (await run.exchange.fetch(found, "r")).read_bytes() == b"u" * 100_000
        await node.hears("ack")
        other = await here.node(SigningKey.new(), "5")
        with pytest.raises(Refused, match="not to be had"):
            await other.exchange.fetch(model, "r")
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await node.hears("close_ask")
        assert here.service.blobs.used == 0

    play(act, tmp_path)


def test_a_full_server_lets_finished_work_wait(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        model, update = run.blobs.put(b"m" * 100_000, "test"), node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="{}", model=m.Payload(blob=model)))
        run.say(task=task_of("0"))
        await node.exchange.fetch((await node.hears("ask_spec")).model.blob, "r")
        run.say(ask_spec=m.AskSpec(run="r", ask=1, kind="train", digest=b"e", transforms="{}"))
        run.say(task=task_of("0", 1))
        await node.hears("task", 2)
        node.say(result=done_of("0", 1, m.Payload(blob=update)))
        await node.settled()
        assert run.named("result") == []
        for party in (node, run):
            assert "no room for 100,000 bytes from node lab" in (await party.hears("notice")).text
        facts = here.service.facts()
        assert "100,000 of the quota of 150,000 are used" in facts.problem
        assert here.service.status()["storage"]["waiting"] == 1
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        assert (await run.hears("result")).ask == 1
        await node.hears("ack")
        assert (here.service.facts().problem, here.service.storage.waiting) == ("", 0)

    play(act, tmp_path, quota=150_000)


def test_a_node_that_takes_all_that_it_may_keeps_no_other_waiting(tmp_path):
    async def act(here):
        run = await here.run()
        run.say(run_spec=SPEC)
        nodes = [await here.node(SigningKey.new(), name) for name in ("0", "1", "2")]
        for node in nodes:
            await node.hears("run_spec")
            node.say(run_answer=m.RunAnswer(run="r", ready=True))
        ready = m.STANDING_READY
        for client in ("0", "1", "2"):
            await run.hears("members", where=lambda body, c=client: (c, ready) in told(body))
        for ask in (0, 1):
            run.say(ask_spec=m.AskSpec(run="r", ask=ask, kind="train", digest=b"d", transforms="{}"))
            for client in ("0", "1"):
                run.say(task=task_of(client, ask))
        greedy, modest = nodes[:2]
        for node in (greedy, modest):
            await node.hears("task", 2)
        for ask in (0, 1):
            greedy.say(result=done_of("0", ask, m.Payload(blob=greedy.blobs.put(bytes([ask]) * 60_000, "test"))))
        assert "a node may have 100,000" in (await greedy.hears("notice")).text
        modest.say(result=done_of("1", 0, m.Payload(blob=modest.blobs.put(b"m" * 60_000, "test"))))
        await modest.hears("ack")
        run.say(close_ask=m.CloseAsk(run="r", ask=0))
        await run.hears("result", where=lambda result: (result.client, result.ask) == ("0", 1))

    def told(body):
        return [(member.client, member.standing) for member in body.members]

    play(act, tmp_path, quota=200_000)


def test_how_much_is_here_of_a_node_is_known_after_a_restart(tmp_path):
    key, held = SigningKey.new(), []

    async def act(here):
        node, run = await here.node(key, "0"), await here.run()
        run.say(run_spec=SPEC)
        await node.hears("run_spec")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="{}"))
        await run.hears("members", where=lambda body: body.members[0].standing == m.STANDING_READY)
        run.say(task=task_of("0"))
        await node.hears("task")
        node.say(result=done_of("0", update=m.Payload(blob=node.blobs.put(b"u" * 70_000, "test"))))
        await node.hears("ack")
        held.append(here.service.storage.place(node_id(key.public), "lab", True).used)

    async def again(here):
        held.append(here.service.storage.place(node_id(key.public), "lab", True).used)

    play(act, tmp_path)
    play(again, tmp_path)
    assert held == [70_000, 70_000]


def test_an_update_for_which_the_disk_has_no_room_is_fetched_once_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.01)

    async def act(here):
        node, run = await here.ready("0")
        update = node.blobs.put(b"u" * 100_000, "test")
        run.say(ask_spec=m.AskSpec(run="r", kind="train", digest=b"d", transforms="{}"))
        run.say(task=task_of("0"))
        await node.hears("task")
        part, tries = here.service.blobs.part, []

        def full(blob, **how):
            tries.append(blob)
            if len(tries) < 3:
                raise StorageError("no space left on device")
            return part(blob, **how)

        here.service.blobs.part = full
        node.say(result=done_of("0", update=m.Payload(blob=update)))
        await node.hears("ack")
        assert len(tries) == 3

    play(act, tmp_path)


def test_what_a_run_says_of_itself_reaches_those_who_follow_it(tmp_path):
    async def act(here):
        run, ann = await here.run(), await here.operator()
        run.say(run_spec=SPEC)
        run.say(log_event=m.LogEvent(run="r", number=1, event='{"event": "a"}'))
        assert (await run.hears("log_ack", where=lambda ack: ack.number)).number == 1
        ann.say(request=m.Request(id=7, method="runs.logs", body='{"run": "r", "follow": true}'))
        await ann.hears("response")
        run.say(log_event=m.LogEvent(run="r", event='{"event": "now"}'))
        await ann.hears("response", 2)
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        last = await ann.hears("response", where=lambda found: not found.more)
        told = [json.loads(each.body) for each in ann.named("response")]
        events = [event for each in told for event in each.get("events", [])]
        assert events == [[1, {"event": "a"}], [0, {"event": "now"}]]
        assert json.loads(last.body)["status"] == "finished"

    play(act, tmp_path)


# The store


def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        gate = Gate(here.service)
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await gate.reached()
        await run.settled()
        assert node.named("task") == []
        gate.open.set()
        await node.hears("task")
        gate.open.clear()
        node.say(result=done_of("0"))
        await run.hears("result")
        await gate.reached()
        await node.settled()
        assert node.named("ack") == []
        assert here.service.store.rows("answers") == []
        gate.open.set()
        await node.hears("ack")
        assert len(here.service.store.rows("answers")) == 1

    play(act, tmp_path)


def test_a_store_that_cannot_be_written_is_a_problem_that_may_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(commits, "RETRY_SECONDS", 0.0)

    async def act(here):
        node, run = await here.ready("0")
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        await node.hears("task")
        gate = Gate(here.service)
        gate.failing = True
        node.say(result=done_of("0"))
        for _ in range(3):
            await gate.reached()
        assert here.service.status()["problem"] == "the store cannot be written: the disk is full"
        assert here.service.facts().problem
        await run.hears("result")
        assert node.named("ack") == []
        gate.failing = False
        gate.open.set()
        await node.hears("ack")
        await here.service.commit()
        assert here.service.status()["problem"] == ""
        assert len(here.service.store.rows("answers")) == 1

    play(act, tmp_path)


@pytest.mark.parametrize("mended", [True, False])
def test_a_server_that_ends_tries_once_more_to_write(tmp_path, mended):
    async def main():
        async with office(tmp_path) as here:
            ann = await here.operator()
            gate = Gate(here.service)
            gate.failing = True
            ann.say(request=m.Request(id=1, method="nodes.invite"))
            await gate.reached()
            assert ann.named("response") == []
            gate.failing = not mended
            gate.open.set()
        async with office(tmp_path) as here:
            found = [row["did"] for row in here.service.store.rows("audit") if row["who"] == "ann"]
            assert found == (["nodes.invite"] if mended else [])

    asyncio.run(main())


# Connections that end


def test_a_peer_that_says_what_it_may_not_is_told_and_nobody_else_notices(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        other = await here.node(SigningKey.new(), "1")
        other.say(result=m.Result(run="r", ask=2**63))
        end = await other.over()
        assert isinstance(end, Refused)
        assert end.code == m.CODE_MALFORMED
        run.say(task=task_of("0", 9))
        assert (await run.over()).code == m.CODE_UNKNOWN
        node.say(alive=m.Alive(run="r"))
        await node.settled()
        assert node.end is None

    play(act, tmp_path)


def test_the_newest_connection_of_a_key_wins(tmp_path):
    async def act(here):
        key = SigningKey.new()
        first = await here.node(key, "0")
        second = await here.node(key, "0", join=False)
        end = await first.over()
        assert (end.code, end.retry) == (m.CODE_SUPERSEDED, False)
        await second.settled()
        assert here.service.online(node_id(key.public))

    play(act, tmp_path)


def test_a_message_that_no_frame_can_hold_harms_nobody_else(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        run.connection.limits.frame_bytes += 1000
        spec = m.RunSpec(run="r", name="mnist", config="x")
        spec.config *= (4 << 20) - m.Message(run_spec=spec).ByteSize() - 20
        run.say(run_spec=spec)
        await run.hears("members", where=lambda body: body.members[0].standing == m.STANDING_PREPARING, count=2)
        await here.service.commit()
        run.say(run_spec=SPEC)
        await node.hears("run_spec", 2)
        assert node.end is None

    play(act, tmp_path)


def test_a_server_that_ends_says_so(tmp_path):
    async def main():
        async with office(tmp_path) as here:
            node, ann = await here.node(SigningKey.new(), "0"), await here.operator()
            node.say(result=done_of("0"))
            await here.service.close()
            for party in (node, ann):
                end = await party.over()
                assert isinstance(end, Refused)
                assert (end.code, end.retry) == (m.CODE_SHUTTING_DOWN, True)
            with pytest.raises(ConnectionLost):
                await here.node(SigningKey.new(), "1")

    asyncio.run(main())


def test_nobody_comes_in_before_it_is_said_where_the_server_is(tmp_path):
    knocked, connecting, said = asyncio.Event(), [], []

    class Door(services.Service):
        async def _serve(self, stream):
            knocked.set()
            await super()._serve(stream)

    async def main():
        service = Door(ServerSettings(folder=tmp_path / "server", listen="127.0.0.1:0", http=""))
        door = Office(service, tmp_path)
        try:
            await service.open()
            connecting.append(asyncio.create_task(door.node(SigningKey.new(), "0")))
            await knocked.wait()
            async with office(tmp_path / "other") as other:  # a whole introduction elsewhere in the meantime
                await other.node(SigningKey.new(), "0")
            assert not service.peers
            assert not connecting[0].done()
            await service.begin()
            await connecting[0]
            assert len(service.peers) == 1
            await door.close()
        finally:
            await service.close()

    async def the_command():
        stopping = asyncio.Event()

        def announce(opened):
            said.append(opened.address)
            stopping.set()

        await services.serve_until(
            ServerSettings(folder=tmp_path / "third", listen="127.0.0.1:0", http=""), stopping, announce
        )

    asyncio.run(main())
    asyncio.run(the_command())
    assert len(said) == 1


def test_an_address_in_use_is_an_error_that_leaves_nothing_open(tmp_path):
    async def act(here):
        settings = ServerSettings(folder=tmp_path / "second", listen=here.service.address, http="")
        with pytest.raises(SettingError, match="cannot listen"):
            async with running(settings):
                pass

    play(act, tmp_path)


# Restarts


def test_a_server_that_starts_again_goes_on(tmp_path):
    key = SigningKey.new()

    async def before(here):
        node, run = await here.node(key, "0", "1"), await here.run()
        run.say(run_spec=SPEC)
        await node.hears("run_spec")
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        run.say(task=task_of("1"))
        await node.hears("task", 2)
        node.say(result=done_of("0", update=m.Payload(blob=node.blobs.put(b"u" * 50_000))))
        await node.hears("ack")

    async def after(here):
        assert own_token(tmp_path / "server") == token
        node, run = await here.node(key, "0", "1", join=False), await here.run()
        assert await node.hears("run_spec") == SPEC
        node.say(run_answer=m.RunAnswer(run="r", ready=True))
        assert await node.hears("task") == task_of("1")
        run.say(run_spec=SPEC)
        run.say(ask_spec=ASK)
        run.say(task=task_of("0"))
        update = (await run.hears("result")).done.update
        assert (await run.exchange.fetch(update.blob, "r")).read_bytes() == b"u" * 50_000

    play(before, tmp_path)
    token = own_token(tmp_path / "server")
    play(after, tmp_path)


# Operators


def test_operators_are_answered(tmp_path):
    async def act(here):
        ann, bob = await here.operator(), await here.operator("bob", "read")
        await here.node(SigningKey.new(), "0")
        status = await asked(bob, "server.status")
        assert status["you"] == {"name": "bob", "role": "read"}
        assert status["sessions"] == {"operator": 2, "node": 1}
        assert (await asked(bob, "nodes.invite", 2))[0] == m.CODE_NOT_ALLOWED
        line = (await asked(ann, "nodes.invite"))["line"].split()[-1]
        join = JoinText.parse(line)
        assert join.authority == here.service.authority.public
        assert (await asked(ann, "nodes.list", 2))["nodes"][0]["connected"]
        assert (await asked(bob, "no.such", 3))[0] == m.CODE_UNKNOWN

    play(act, tmp_path)


def test_a_revoked_node_and_a_removed_operator_are_put_out(tmp_path):
    async def act(here):
        key = SigningKey.new()
        ann, bob, node = await here.operator(), await here.operator("bob", "read"), await here.node(key, "0")
        await asked(ann, "nodes.revoke", node=node_id(key.public))
        assert (await node.over()).code == m.CODE_REVOKED
        with pytest.raises(Refused) as caught:
            await here.node(key, "0", join=False)
        assert caught.value.code == m.CODE_REVOKED
        await asked(ann, "operators.remove", 2, name="bob")
        assert (await bob.over()).code == m.CODE_REVOKED

    play(act, tmp_path)


def test_one_operator_does_not_take_all_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "OPERATOR_CONNECTIONS", 2)

    async def act(here):
        token = here.service.registry.tokens.grant("test", "ann", "read")

        async def connect():
            return await here._in(TokenProof(token), m.Hello(role=m.ROLE_OPERATOR, token=token.id))

        first, second, third = [await connect() for _ in range(3)]
        end = await third.over()
        assert (end.code, end.retry) == (m.CODE_BUSY, True)
        assert first.end is second.end is None
        await first.close()
        while len(here.service.peers) > 1:
            await asyncio.sleep(0)
        assert isinstance(await asked(await connect(), "server.status"), dict)

    play(act, tmp_path)


# Run processes


class Supervisors:
    """Stands for the supervisor: notes what it is told."""

    def __init__(self, service):
        self.service = service
        self.started, self.stopped = [], []
        self.running = {}
        service.programs.supervisor = self

    def start(self, run, folder, **how):
        self.started.append((run, how))
        self.running[run] = 1

    async def stop(self, run, grace=None):
        self.stopped.append(run)
        self.running.pop(run, None)

    async def close(self, grace=None):
        pass

    async def ends(self, code):
        """The process of run r has ended for good."""
        self.running.pop("r")
        self.service.programs._exited(Exit("r", code, False))
        while self.service.store.rows("runs", id="r")[0]["ended_at"] is None:
            await asyncio.sleep(0)


async def submitted(here):
    """An operator that has submitted run r, and who starts its process."""
    supervisors, ann, key = Supervisors(here.service), await here.operator(), SigningKey.new()
    sha = hashlib.sha256(CLIENT).digest()
    body = {
        name: {"sha256": blob.sha256.hex(), "size": blob.size}
        for name, blob in (("client", ann.blobs.put(CLIENT, "t")), ("app", ann.blobs.put(APP, "t")))
    }
    body |= {"author": key.public.hex(), "signature": sign_archive(key, sha).hex(), "settings": {"rounds": 3}}
    assert await asked(ann, "runs.submit", run="r", name="mnist", **body) == {"run": "r"}
    return ann, supervisors


def test_a_run_that_is_submitted_finds_what_it_needs(tmp_path):
    async def act(here):
        _, supervisors = await submitted(here)
        ((run, how),) = supervisors.started
        assert (run, how["address"]) == ("r", here.service.address)
        assert JoinText.parse(how["token"]).token is not None
        folder = tmp_path / "server" / "runs" / "r"
        assert (folder / "app" / "app.py").read_text() == "y = 1\n"
        assert (folder / "client.archive").read_bytes() == CLIENT
        found = json.loads((folder / "submission.json").read_text())
        assert (found["run"], found["name"], found["settings"]) == ("r", "mnist", {"rounds": 3})
        assert stat_of(folder) == 0o700

    play(act, tmp_path)


def stat_of(folder):
    return folder.stat().st_mode & 0o777


def test_a_run_whose_process_gave_up_has_failed_and_says_why(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        run = await here.run()
        run.say(run_spec=SPEC)
        await run.settled()
        (tmp_path / "server" / "runs" / "r" / "error.json").write_text('{"error": "no data", "kind": "DataError"}')
        await supervisors.ends(3)
        await here.service.commit()
        found = await asked(ann, "runs.show", 2, run="r")
        assert found["status"] == "failed"
        assert found["exit"] == {"code": 3, "error": "no data", "kind": "DataError"}
        assert (await asked(ann, "runs.resume", 3, run="r", rounds=5)) == {"run": "r"}
        assert [run for run, _ in supervisors.started] == ["r", "r"]
        found = await asked(ann, "runs.show", 4, run="r")
        assert (found["status"], found["exit"], found["settings"]) == ("running", None, {"rounds": 5})

    play(act, tmp_path)


def test_a_run_that_said_how_it_went_has_not_failed(tmp_path):
    async def act(here):
        _, supervisors = await submitted(here)
        run = await here.run()
        run.say(run_spec=SPEC)
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        await run.settled()
        await here.service.commit()
        await supervisors.ends(0)
        await here.service.commit()
        assert here.service.store.rows("runs")[0]["status"] == "finished"

    play(act, tmp_path)


def test_a_run_can_be_stopped(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        assert await asked(ann, "runs.stop", 2, run="r") == {"run": "r"}
        assert supervisors.stopped == ["r"]
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == "stopped"

    play(act, tmp_path)


def test_a_stop_is_seen_to_its_end_though_whoever_asked_is_gone(tmp_path):
    async def act(here):
        ann, _ = await submitted(here)
        ending, kept = asyncio.Event(), here.service.programs.supervisor.stop

        async def stop(run):
            begun.set()
            await ending.wait()
            return await kept(run)

        begun = asyncio.Event()
        here.service.programs.supervisor.stop = stop
        ann.say(request=m.Request(id=2, method="runs.stop", body='{"run": "r"}'))
        await begun.wait()
        await ann.close()
        while any(peer.identity.role == m.ROLE_OPERATOR for peer in here.service.peers.values()):
            await asyncio.sleep(0)
        ending.set()
        while here.service.store.rows("runs", id="r")[0]["ended_at"] is None:
            await asyncio.sleep(0)
        assert here.service.store.rows("runs", id="r")[0]["status"] == "stopped"

    play(act, tmp_path)


async def finishes(here, ann, supervisors, run):
    run.say(close_run=m.CloseRun(run="r", status="finished"))
    await run.settled()


async def is_stopped(here, ann, supervisors, run):
    assert await asked(ann, "runs.stop", 2, run="r") == {"run": "r"}


async def fails(here, ann, supervisors, run):
    await supervisors.ends(3)


@pytest.mark.parametrize(("end", "status"), [(finishes, "finished"), (is_stopped, "stopped"), (fails, "failed")])
def test_the_token_of_a_run_is_worth_nothing_after_its_end(tmp_path, end, status):
    async def act(here):
        ann, supervisors = await submitted(here)
        first = supervisors.started[0][1]["token"]
        run = await here.by(first)
        run.say(run_spec=SPEC)
        await run.settled()
        await end(here, ann, supervisors, run)
        with pytest.raises(Refused) as caught:
            await here.by(first)
        assert caught.value.code == m.CODE_UNAUTHENTICATED
        await here.service.commit()
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == status
        assert await asked(ann, "runs.resume", 4, run="r") == {"run": "r"}
        second = supervisors.started[1][1]["token"]
        await run.over()  # by the first token
        again = await here.by(second)
        again.say(run_spec=SPEC)
        again.say(log_event=m.LogEvent(run="r", number=1, event="{}"))
        await again.hears("log_ack", where=lambda body: body.number == 1)
        with pytest.raises(Refused):
            await here.by(first)
        assert (await asked(ann, "runs.show", 5, run="r"))["status"] == "running"

    play(act, tmp_path)


def test_a_run_that_is_gone_on_with_while_its_last_driver_leaves_is_not_stopped_by_that(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        run = await here.by(supervisors.started[0][1]["token"])
        run.say(run_spec=SPEC)
        await finishes(here, ann, supervisors, run)
        await supervisors.ends(0)
        prepare, preparing, go = here.service.programs._lay_out, asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def held(row):
            loop.call_soon_threadsafe(preparing.set)
            assert go.wait(PATIENCE)
            prepare(row)

        here.service.programs._lay_out = held
        ann.say(request=m.Request(id=2, method="runs.resume", body='{"run": "r"}'))
        await preparing.wait()
        await run.close()
        while any(peer.identity.role == m.ROLE_RUN for peer in here.service.peers.values()):
            await asyncio.sleep(0)
        for _ in range(3):  # as many as it takes for the run to be stopped, if it is
            await here.service.commit()
        go.set()
        await ann.hears("response", where=lambda found: found.id == 2)
        await here.by(supervisors.started[1][1]["token"])
        assert (await asked(ann, "runs.show", 3, run="r"))["status"] == "running"

    play(act, tmp_path)


def test_a_run_of_a_users_own_program_goes_on_by_what_it_does(tmp_path):
    async def act(here):
        ann, token = await here.operator(), here.service.registry.tokens.grant("test", "bea", "run")

        async def program():
            found = await here._in(TokenProof(token), m.Hello(role=m.ROLE_RUN, name="r", token=token.id))
            found.say(run_spec=SPEC)
            await found.settled()
            return found

        run = await program()
        run.say(log_event=m.LogEvent(run="r", number=1, event="{}"))
        run.say(close_run=m.CloseRun(run="r", status="finished"))
        await run.settled()
        await run.close()
        again = await program()
        assert (await asked(ann, "runs.show", 1, run="r"))["status"] == "finished"
        again.say(log_event=m.LogEvent(run="r", number=2, event='{"event": "run_resumed"}'))
        await again.hears("log_ack", where=lambda body: body.number == 2)
        assert (await asked(ann, "runs.show", 2, run="r"))["status"] == "running"
        ann.say(request=m.Request(id=3, method="runs.logs", body='{"run": "r", "from": 2, "follow": true}'))
        again.say(log_event=m.LogEvent(run="r", number=3, event="{}"))
        await ann.hears("response", where=lambda found: found.id == 3 and "[3," in found.body)

    play(act, tmp_path)


def test_a_token_of_a_run_that_was_over_is_swept_when_the_server_starts(tmp_path):
    async def act(here):
        await here.operator()
        here.service.registry.tokens.issue_run("test", "r")
        here.service.store.put("runs", {"id": "r", "status": "stopped", "ended_at": 1.0})

    play(act, tmp_path)

    async def again(here):
        assert [row["kind"] for row in here.service.store.rows("tokens") if row["kind"] == "run"] == []

    play(again, tmp_path)


def test_a_run_that_leaves_half_of_a_reason_has_failed(tmp_path):
    async def act(here):
        ann, supervisors = await submitted(here)
        (tmp_path / "server" / "runs" / "r" / "error.json").write_text("")  # its disk was full
        await supervisors.ends(1)
        found = await asked(ann, "runs.show", 2, run="r")
        assert (found["status"], found["exit"]) == ("failed", {"code": 1, "error": "its process ended with 1"})

    play(act, tmp_path)


def test_a_run_that_cannot_be_started_has_failed_and_keeps_no_server_from_starting(tmp_path, monkeypatch):
    async def act(here):
        await submitted(here)

    play(act, tmp_path)
    shutil.rmtree(tmp_path / "server" / "runs" / "r")
    (tmp_path / "server" / "runs" / "r").write_text("no folder")

    async def again(here):
        (row,) = here.service.store.rows("runs")
        assert (row["status"], "error" in row["exit"]) == ("failed", True)

    play(again, tmp_path)


def test_runs_that_were_going_on_are_started_again_with_the_server(tmp_path, monkeypatch):
    async def act(here):
        await submitted(here)

    play(act, tmp_path)
    started = []
    monkeypatch.setattr(programs.Supervisor, "start", lambda self, run, folder, **how: started.append(run))

    async def again(here):
        assert started == ["r"]

    play(again, tmp_path)
