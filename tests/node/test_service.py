"""A node as a process, over streams in memory, with a server that says what the test wants."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from tests.conftest import PATIENCE

from umbel import Arrays, Like
from umbel.core import encoding
from umbel.core.randomness import Key
from umbel.errors import ConnectionLost, Refused, StorageError
from umbel.node.gate import PolicyGate, Verdict
from umbel.node.run_host import holder
from umbel.node.service import NodeSettings, run_node
from umbel.node.signals import HostReady, TaskDone
from umbel.node.spool import Spool
from umbel.store.blobs import Blobs, PartialBlob
from umbel.transport.connection import Connection
from umbel.transport.exchange import Exchange
from umbel.transport.handshake import Identity, accept
from umbel.transport.stream import pair
from umbel.trust.archive import build
from umbel.trust.identity import SigningKey, check_node, check_seal, node_id
from umbel.trust.policy import Policy
from umbel.trust.statement import Statement
from umbel.trust.tokens import Token
from umbel.wire import messages as m
from umbel.wire.blobs import run_giver
from umbel.work import contents

MODEL = Arrays({"w": np.arange(4, dtype=np.float32)})
CLIENT = b"""
import umbel, numpy as np
client = umbel.Client()
@client.train
def train(model, data, ctx):
    return umbel.Update({n: a + data["x"] for n, a in model.items()})
@client.query("large")
def large(model, data, ctx):
    return umbel.Update({"big": np.arange(10000.0)})
"""
ARCHIVE = build(
    {"format": 1, "kind": "client", "module": "held", "attribute": "client", "handlers": ["query:large", "train"],
     "requirements": [], "imports": [], "python": ""},
    {"held.py": CLIENT},
)  # fmt: skip
TOKEN = Token.new()


class Server:
    """Takes a node in, one session after the other, and keeps what it says."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(folder / "server")
        self.sessions: asyncio.Queue[Connection] = asyncio.Queue()
        self.heard: asyncio.Queue[m.Message] = asyncio.Queue()
        self.connection: Connection | None = None
        self.refusal: Refused | None = None
        self.refusals: asyncio.Queue[Refused] = asyncio.Queue()
        self.unreachable = 0
        self.attempts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def verify(self, hello, challenge, transcript, proof):
        if self.refusal is not None:
            raise self.refusal
        assert check_node(hello.key, transcript, proof.signature)
        assert check_seal(TOKEN.key.public, transcript, proof.seal)
        self.hello = hello
        return Identity(m.ROLE_NODE, node_id(hello.key), hello.name, hello)

    def may_read(self, run, blob):
        return True

    async def connect(self):
        self.attempts += 1
        if self.unreachable:
            self.unreachable -= 1
            raise ConnectionLost("nobody is there")
        ours, theirs = pair()
        task = asyncio.create_task(self.serve(ours))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return theirs

    async def serve(self, stream):
        connection = Connection(stream)
        try:
            await accept(connection, self)
            self.connection = connection
            self.exchange = Exchange(connection, self.blobs, lambda run, blob: self.may_read(run, blob))
            await self.sessions.put(connection)
            async for message in connection.messages():
                await self.heard.put(message)
        except (ConnectionLost, Refused) as error:
            if isinstance(error, Refused) and error.code != m.CODE_SHUTTING_DOWN:
                self.refusals.put_nowait(error)
        finally:
            await connection.close()

    def post(self, **body):
        self.connection.post(m.Message(**body))

    async def hear(self, name):
        """The next message of this kind; `passed` are the kinds of those before it."""
        self.passed = []
        while True:
            message = await asyncio.wait_for(self.heard.get(), PATIENCE)
            if message.WhichOneof("body") == name:
                return getattr(message, name)
            self.passed.append(message.WhichOneof("body"))

    async def session(self):
        return await asyncio.wait_for(self.sessions.get(), PATIENCE)

    async def close(self):
        while self._tasks:
            await asyncio.wait(self._tasks)


class Gate:
    """Says what it is told to."""

    def __init__(self, verdict=None, *, judges_tasks=False):
        self.verdict, self.judges_tasks = verdict or Verdict("allow"), judges_tasks
        self.seen = []

    def against_run(self, spec):
        return ""

    def check(self, spec, archive):
        self.seen.append(archive.read_bytes())
        return self.verdict

    def against_ask(self, spec, ask):
        return "not here" if ask.kind == "query:secret" else ""

    def against_task(self, ask, sent):
        self.sent = sent
        return "" if sent["config"]["lr"] < 1 else f"the lr is {sent['config']['lr']}"


class FakeHosts:
    """Hosts at whose tasks nothing is computed."""

    def __init__(self, blobs, tell):
        self.blobs, self.tell = blobs, tell
        self.started, self.stopped, self.ended = [], [], []
        self.loop = asyncio.get_running_loop()

    def prepare(self, run, spec, archive):
        handlers = frozenset({"train", "query:secret"})
        self.loop.call_soon(self.tell, HostReady(run, handlers, frozenset({("central_gaussian", 1)})))

    def start(self, effect):
        self.started.append(effect)
        done = m.Done(receipt=m.Receipt(weight=1.0), update=m.Payload(inline=b"update"))
        if effect.task.client == "1":
            blob = self.blobs.put(b"x" * 100_000)
            self.blobs.gave(blob.sha256, run_giver("r"))
            self.blobs.hold(blob.sha256, holder(effect.run, blob.sha256))
            done.update.blob.CopyFrom(blob)
        event = TaskDone(effect.run, effect.task.task, effect.task.attempt, done, b"state")
        if effect.task.client != "2":
            self.loop.call_soon(self.tell, event)

    def stop(self, effect):
        self.stopped.append(effect)

    def end_run(self, run):
        self.ended.append(run)

    async def close(self):
        pass


@asynccontextmanager
async def node(server, folder, **settings):
    """A node that runs meanwhile; gives what hosts its runs, if that is a fake."""
    made = []

    def hosts(blobs, tell):
        made.append(FakeHosts(blobs, tell))
        return made[0]

    stopping = asyncio.Event()
    given = {
        "folder": folder / "node", "connect": server.connect, "key": SigningKey.kept(folder / "key"), "token": TOKEN,
        "clients": {str(i): {"x": i} for i in range(3)}, "gate": Gate(), "name": "here", "hosts": hosts,
        "first_wait": 0.001, "longest_wait": 0.002, **settings,
    }  # fmt: skip
    running = asyncio.create_task(run_node(NodeSettings(**given), stopping))
    try:
        yield made
        stopping.set()
        await asyncio.wait_for(running, PATIENCE)
        await server.close()
    finally:
        running.cancel()


def on_loop(test):
    def run(tmp_path):
        asyncio.run(test(tmp_path))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def spec(archive=None, **more):
    return m.RunSpec(run="r", name="run", archive=archive or m.Payload(inline=b"archive"), **more)


def ask(id=1, kind="train", model=None, config=None):
    tree = {"config": config or {}, "inbox": None, "correction": None, "expects": Like(), "params": None}
    transforms = "[]"
    model = model or m.Payload(inline=MODEL.to_bytes())
    return m.AskSpec(run="r", ask=id, round=1, kind=kind, lane=kind, digest=b"d", cohort=3, transforms=transforms,
                     model=model, shared=m.Payload(inline=encoding.encode(tree)))  # fmt: skip


def task(id=1, client=0, attempt=1):
    key = Key.from_seed(0).raw
    return m.Task(run="r", task=f"{id}.{client}", ask=id, client=str(client), attempt=attempt, key=key, data_key=key)


@on_loop
async def test_a_node_introduces_itself_and_does_what_it_is_asked(tmp_path):
    server = Server(tmp_path)
    gate = Gate()
    async with node(server, tmp_path, gate=gate) as made:
        await server.session()
        hello = server.hello
        assert (hello.name, list(hello.clients), hello.token) == ("here", ["0", "1", "2"], TOKEN.id)
        assert hello.capabilities.archives
        assert m.Step(name="clip_by_norm", version=1) in hello.capabilities.transforms
        blob = server.blobs.put(b"the archive" * 9999)
        server.post(run_spec=spec(m.Payload(blob=blob)))
        assert (await server.hear("run_answer")).ready
        assert gate.seen == [b"the archive" * 9999]
        model = server.blobs.put(b"model" * 9999)
        server.post(ask_spec=ask(model=m.Payload(blob=model)))
        server.post(task=task())
        result = await server.hear("result")
        assert (result.task, result.done.update.inline, result.done.receipt.kept) == ("1.0", b"update", True)
        assert made[0].blobs.path(model.sha256).read_bytes() == b"model" * 9999
        server.post(task=task(client=1))
        update = (await server.hear("result")).done.update.blob
        assert (await server.exchange.fetch(update, "r")).read_bytes() == b"x" * 100_000
        server.post(ask_spec=ask(2, "query:secret"))
        server.post(task=task(2))
        assert (await server.hear("result")).failure.reason == "not here"
        server.post(close_run=m.CloseRun(run="r", status="finished"))
        server.post(run_spec=spec())
        assert (await server.hear("run_answer")).ready  # for further rounds
        assert "r" in made[0].ended


@on_loop
async def test_results_are_kept_until_they_are_acknowledged_also_across_a_restart(tmp_path):
    server = Server(tmp_path)
    async with node(server, tmp_path):
        await server.session()
        server.post(run_spec=spec())
        server.post(ask_spec=ask())
        server.post(task=task(client=1))
        first = await server.hear("result")
        await server.connection.close()
        await server.session()
        assert await server.hear("result") == first
    async with node(server, tmp_path):
        await server.session()
        assert await server.hear("result") == first
        blob = first.done.update.blob
        assert (await server.exchange.fetch(blob, "r")).stat().st_size == blob.size
        server.post(ack=m.Ack(run="r", tasks=["1.1"], attempt=first.attempt))
        await server.connection.close()
        await server.session()
        server.post(run_spec=spec())
        await server.hear("run_answer")
        assert "result" not in server.passed


@on_loop
async def test_what_waits_for_the_disk_is_not_said_in_a_later_session(tmp_path):
    """The machine says it there itself."""
    server, writing, may, write = Server(tmp_path), threading.Event(), threading.Event(), Spool.write

    def gated(spool, batch):
        writing.set()
        assert may.wait(PATIENCE)
        write(spool, batch)

    with patch.object(Spool, "write", gated):
        async with node(server, tmp_path):
            await server.session()
            server.post(run_spec=spec())
            server.post(ask_spec=ask())
            server.post(task=task())
            assert await asyncio.to_thread(writing.wait, PATIENCE)
            await server.connection.close()
            await server.session()
            may.set()
            await server.hear("result")
            server.post(run_spec=spec())
            await server.hear("run_answer")
            assert "result" not in server.passed


@on_loop
async def test_a_run_gets_nothing_by_a_hash_from_what_the_node_has_for_another(tmp_path):
    server = Server(tmp_path)
    async with node(server, tmp_path) as made:
        await server.session()
        for run in ("r", "q"):
            told = spec()
            told.run = run
            server.post(run_spec=told)
            assert (await server.hear("run_answer")).ready
        blob = server.blobs.put(b"model" * 9999)
        model = m.Payload(blob=blob)
        server.post(ask_spec=ask(model=model))
        server.post(task=task())
        assert (await server.hear("result")).HasField("done")
        asked = []
        server.may_read = lambda run, blob: asked.append(run) or run == "r"
        hers = ask(model=model)
        hers.run = "q"
        server.post(ask_spec=hers)
        hers = task()
        hers.run = "q"
        server.post(task=hers)
        result = await server.hear("result")
        assert (result.run, asked) == ("q", ["q"])
        assert "not to be had" in result.failure.reason
        assert [effect.run for effect in made[0].started] == ["r"]


@on_loop
async def test_it_connects_again_for_ever(tmp_path):
    server = Server(tmp_path)
    server.unreachable = 5
    async with node(server, tmp_path):
        await server.session()
        assert server.attempts == 6
        await server.connection.close(Refused("restarting", m.CODE_SHUTTING_DOWN, retry=True))
        await server.session()
        server.post(task=task())  # of a run that nobody has told of: the node says so, and begins anew
        await server.session()
        refusal = await asyncio.wait_for(server.refusals.get(), PATIENCE)
        assert refusal.code == m.CODE_UNKNOWN


def test_it_waits_for_approval(tmp_path, caplog):
    caplog.set_level(logging.INFO, "umbel.node")

    async def run():
        server = Server(tmp_path)
        server.refusal = Refused("ask the operator", m.CODE_NOT_APPROVED)
        async with node(server, tmp_path):
            while server.attempts < 4:
                await asyncio.sleep(0)
            server.refusal = None
            await server.session()

    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("this node waits for approval: ")
    assert TOKEN.secret not in caplog.text


@on_loop
async def test_it_ends_while_it_connects(tmp_path):
    server = Server(tmp_path)
    began = asyncio.Event()

    async def connect():
        began.set()
        await asyncio.Event().wait()

    async with node(server, tmp_path, connect=connect):
        await began.wait()


# What is let in


@on_loop
async def test_what_the_gate_denies_is_refused(tmp_path):
    server = Server(tmp_path)
    async with node(server, tmp_path, gate=Gate(Verdict("deny", "not that author"))):
        await server.session()
        server.post(run_spec=spec())
        answer = await server.hear("run_answer")
        assert (answer.ready, answer.reason) == (False, "not that author")


@on_loop
async def test_a_run_that_its_description_speaks_against_is_refused_before_its_archive_is_fetched(tmp_path):
    server, author = Server(tmp_path), SigningKey.new()
    asked = []
    server.may_read = lambda run, blob: asked.append(blob.sha256) or True
    policy = Policy(allow=(f"author:{author.public.hex()}",), kinds=("train",), largest_archive=100_000)
    async with node(server, tmp_path, gate=PolicyGate(policy)):
        await server.session()
        blob = server.blobs.put(b"x" * 50_000)
        large = m.Blob(sha256=blob.sha256, size=100_001)
        said = Statement("run", blob.sha256.hex())
        signature = said.signed(author)
        signed = {"author": author.public, "statement": said.text(), "signature": signature}
        for reason, told in (
            ("at most 100,000", spec(m.Payload(blob=large), **signed)),
            ("not signed by the author", spec(m.Payload(blob=blob), **{**signed, "signature": bytes(64)})),
            ("not signed by the author", spec(m.Payload(blob=blob), **{**signed, "author": b"none"})),
            ("not signed by the author", spec(m.Payload(blob=blob), author=author.public)),
            ("another archive", spec(m.Payload(blob=server.blobs.put(b"y" * 50_000)), **signed)),
            ("has not approved", spec(m.Payload(blob=blob))),
            ("evaluate is not answered", spec(m.Payload(blob=blob), contract='{"kinds": ["evaluate"]}', **signed)),
        ):
            server.post(run_spec=told)
            answer = await server.hear("run_answer")
            assert reason in answer.reason
            assert not answer.ready
        assert asked == []
        server.post(run_spec=spec(m.Payload(blob=blob), **signed))
        assert "damaged" in (await server.hear("run_answer")).reason
        assert asked == [blob.sha256]


@on_loop
async def test_what_a_node_could_never_keep_is_not_fetched(tmp_path):
    server = Server(tmp_path)
    asked = []
    server.may_read = lambda run, blob: asked.append(blob.size) or True
    async with node(server, tmp_path, quota=70_000):
        await server.session()
        server.post(run_spec=spec())
        assert (await server.hear("run_answer")).ready
        server.post(ask_spec=ask(1, model=m.Payload(blob=server.blobs.put(b"x" * 70_001))))
        server.post(task=task(1))
        assert "at most 70,000" in (await server.hear("result")).failure.reason
        assert asked == []
        server.post(ask_spec=ask(2, model=m.Payload(blob=server.blobs.put(b"x" * 60_000))))
        server.post(task=task(2))
        assert (await server.hear("result")).HasField("done")
        assert asked == [60_000]


@on_loop
async def test_a_full_disk_costs_no_task_and_no_run(tmp_path):
    server = Server(tmp_path)
    pauses, real = [], PartialBlob.write

    async def rest(seconds):
        pauses.append(seconds)
        if len(pauses) % 3 == 0:
            PartialBlob.write = real

    def full(self, data):
        if self._blobs.folder.parent.name == "node":
            raise StorageError("it cannot be written") from OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    try:
        async with node(server, tmp_path, rest=rest):
            await server.session()
            PartialBlob.write = full
            server.post(run_spec=spec())  # whose archive is put by the node itself
            assert "it cannot be written; it goes on where there is room" in (await server.hear("notice")).text
            assert not (await server.hear("notice")).text
            assert (await server.hear("run_answer")).ready
            PartialBlob.write = full
            server.post(ask_spec=ask(model=m.Payload(blob=server.blobs.put(b"model" * 9999))))
            server.post(task=task())
            assert (await server.hear("result")).HasField("done")
    finally:
        PartialBlob.write = real
    assert pauses == [1, 2, 4, 1, 2, 4]


@on_loop
async def test_the_owner_is_asked(tmp_path):
    server = Server(tmp_path)
    asked, said = [], asyncio.Queue()

    async def owner(spec, archive):
        asked.append(spec.run)
        return await said.get()

    async with node(server, tmp_path, gate=Gate(Verdict("ask")), ask_owner=owner):
        await server.session()
        server.post(run_spec=spec())
        said.put_nowait(True)
        assert (await server.hear("run_answer")).ready
        server.post(run_spec=spec(config='{"n": 2}'))
        said.put_nowait(False)
        assert "owner" in (await server.hear("run_answer")).reason
    assert asked == ["r", "r"]


@on_loop
async def test_settings_are_judged_where_they_are_known(tmp_path):
    server = Server(tmp_path)
    async with node(server, tmp_path, gate=Gate(judges_tasks=True)) as made:
        await server.session()
        server.post(run_spec=spec(config='{"lr": 0.1}'))
        server.post(ask_spec=ask(1))
        server.post(task=task(1))
        assert (await server.hear("result")).HasField("done")
        server.post(ask_spec=ask(2, config={"lr": 5.0}))
        server.post(task=task(2))
        failure = (await server.hear("result")).failure
        assert (failure.reason, failure.retry) == ("the lr is 5.0", False)
        assert [start.task.task for start in made[0].started] == ["1.0"]


@on_loop
async def test_what_is_judged_is_what_the_client_would_get(tmp_path):
    """Also where a run says one thing to all, and another with the task: the child takes the first."""
    server, gate = Server(tmp_path), Gate(judges_tasks=True)
    async with node(server, tmp_path, gate=gate):
        await server.session()
        server.post(run_spec=spec(config='{"lr": 0.1, "n": 1}'))
        said = ask(1, config={"lr": 5.0})
        server.post(ask_spec=said)
        sweet = {"config": {"lr": 0.2}, "expects": Like(names=("none",)), "model": Arrays({"other": np.zeros(1)})}
        told = task(1)
        told.own.inline = encoding.encode(sweet)
        server.post(task=told)
        assert (await server.hear("result")).failure.reason == "the lr is 5.0"
        assert gate.sent["config"] == {"lr": 5.0, "n": 1}
        assert gate.sent["expects"] == Like()
        assert gate.sent["model"] == MODEL
        routed = ask(2)
        routed.ClearField("model")
        routed.shared.inline = encoding.encode({"inbox": None, "correction": None, "params": None})
        server.post(ask_spec=routed)
        told = task(2)
        told.own.inline = encoding.encode(sweet)
        server.post(task=told)
        assert (await server.hear("result")).HasField("done")
        assert (gate.sent["config"], gate.sent["expects"]) == ({"lr": 0.2, "n": 1}, sweet["expects"])
        assert gate.sent["model"] == sweet["model"]


@on_loop
async def test_a_client_that_does_not_fit_the_contract_is_refused(tmp_path):
    server = Server(tmp_path)
    async with node(server, tmp_path) as made:
        await server.session()
        contract = {"version": 1, "kinds": ["evaluate"], "transforms": [], "model": {}}
        server.post(run_spec=spec(contract=json.dumps(contract)))
        assert "the app asks evaluate" in (await server.hear("run_answer")).reason
        assert made[0].ended == ["r"]


# With children


@on_loop
async def test_a_signed_archive_trains_in_a_child(tmp_path):
    server = Server(tmp_path)
    author = SigningKey.new()
    policy = Policy(allow=(f"author:{author.public.hex()}",), kinds=("train", "query:large"))
    async with node(server, tmp_path, gate=PolicyGate(policy), hosts=None):
        await server.session()
        blob = server.blobs.put(ARCHIVE)
        said = Statement("run", blob.sha256.hex())
        unsigned = m.RunSpec(run="q", archive=m.Payload(blob=blob))
        server.post(run_spec=unsigned)
        assert "has not approved the archive" in (await server.hear("run_answer")).reason
        signed = {"author": author.public, "statement": said.text(), "signature": said.signed(author)}
        server.post(run_spec=spec(m.Payload(blob=blob), **signed))
        answer = await server.hear("run_answer")
        assert (answer.ready, answer.reason) == (True, "")
        server.post(ask_spec=ask())
        server.post(task=task(client=2))
        result = await server.hear("result")
        assert contents.answer(result.done.update).arrays["w"].tolist() == [2, 2, 2, 2]
        large = ask(2, "query:large")
        server.post(ask_spec=large)
        server.post(task=task(2))
        result = await server.hear("result")
        assert "unexpected array 'big'" in result.failure.reason or "lacks array" in result.failure.reason
        server.post(close_run=m.CloseRun(run="r", status="finished"))
