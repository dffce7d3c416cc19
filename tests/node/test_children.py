"""Children of a node: started, kept warm, stopped, killed, and what is told of them."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import PATIENCE, some

from umbel import Arrays, Free, Like
from umbel.core import encoding
from umbel.core.randomness import Key
from umbel.errors import AppError
from umbel.node.children import Children
from umbel.node.limits import Limits
from umbel.node.run_host import ChildSettings, Program, RunHost, holder
from umbel.node.signals import HostDied, HostReady, HostRefused, Start, Stepped, Stop, TaskDone, TaskFailed
from umbel.store.blobs import Blobs
from umbel.wire import messages as m
from umbel.wire.blobs import run_giver
from umbel.wire.limits import PRINTED_BYTES
from umbel.work import contents

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a guard on Linux alone")
MODEL = Arrays({"w": np.arange(4, dtype=np.float32)})
CLIENT = """
import os, signal, sys, threading
import umbel
import numpy as np

client = umbel.Client()

@client.data
def data(source):
    return [source["x"]]

@client.train
def train(model, data, ctx):
    data.append(0)
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    print("trained", ctx.client)
    return umbel.Update({n: a + ctx.config["by"] for n, a in model.items()},
                        metrics={"x": data[0], "loads": len(data), "pid": os.getpid(), "n": ctx.state["n"]})

@client.query("environment")
def environment(model, data, ctx):
    return umbel.Update({n: np.zeros(1) for n in os.environ})

@client.query("large")
def large(model, data, ctx):
    ctx.state["much"] = np.zeros(10000)
    ctx.account({"mechanism": "gaussian", "noise": 2.0, "norm": 1.0, "unit": "example", "denominator": 8.0,
                 "neighbours": "add or remove one", "sampling": {"kind": "poisson", "rate": 0.1}, "steps": None}, 3)
    return umbel.Update({"big": np.arange(10000.0)})

@client.query("fail")
def fail(model, data, ctx):
    raise RuntimeError("it broke")

@client.query("die")
def die(model, data, ctx):
    print("last words")
    os.kill(os.getpid(), signal.SIGKILL)

@client.query("quit")
def quit(model, data, ctx):
    os._exit(7)

@client.query("steps")
def steps(model, data, ctx):
    while True:
        ctx.step()

@client.query("hang")
def hang(model, data, ctx):
    threading.Event().wait(0.21)
    ctx.step()  # of which the node is told
    threading.Event().wait()

@client.query("leave")
def leave(model, data, ctx):
    told, tells = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(tells, str(os.getpid()).encode())
            signal.pause()
        os._exit(0)
    return umbel.Update({}, metrics={"pid": int(os.read(told, 20))})

@client.query("share")
def share(model, data, ctx):
    import mmap
    with mmap.mmap(-1, 1 << 28) as taken:
        for _ in range(256):
            taken.write(bytes(1 << 20))
        threading.Event().wait()

@client.query("spin")
def spin(model, data, ctx):
    while True:
        pass
"""


GRACE = 0.01
"""For clients that never end by themselves."""


class Bench:
    """Children, and the events that they tell."""

    def __init__(self, folder: Path, *, code=CLIENT, fault=None, **settings):
        self.folder, self.code, self.fault = folder, code, fault
        self.blobs = Blobs(folder / "blobs")
        self.events = asyncio.Queue()
        sources = {str(i): {"x": i} for i in range(4)}
        self.children = Children(
            ChildSettings(folder=folder, sources=sources, **settings), self.blobs, self.unpack, self.events.put_nowait
        )

    def unpack(self, archive, folder):
        if self.fault:
            raise self.fault if isinstance(self.fault, Exception) else AppError(self.fault)
        folder.mkdir()
        (folder / "held.py").write_text(self.code)
        return Program(folder, "held", "client")

    async def ready(self, run="r"):
        self.children.prepare(run, m.RunSpec(run=run, config='{"by": 2.0}'), self.folder / "archive")
        return await self.next()

    def ask(self, ask=1, kind="train", *, blob=False):
        expects = Like() if kind == "train" else Free()
        tree = {"config": {}, "inbox": None, "correction": None, "expects": expects, "params": None}
        data = MODEL.to_bytes()
        model = m.Payload(blob=self.blobs.put(data, "test")) if blob else m.Payload(inline=data)
        shared = m.Payload(inline=encoding.encode(tree))
        return m.AskSpec(run="r", ask=ask, round=1, kind=kind, lane=kind, model=model, shared=shared)

    def start(self, ask, client=0, *, attempt=1, base=None):
        key = Key.from_seed(0).raw
        task = m.Task(run=ask.run, task=f"{ask.ask}.{client}", ask=ask.ask, client=str(client), attempt=attempt,
                      key=key, data_key=key)  # fmt: skip
        self.children.start(Start(ask.run, task, ask, base))

    async def next(self):
        """The next event that is not about progress."""
        while isinstance(event := await asyncio.wait_for(self.events.get(), PATIENCE), Stepped):
            pass
        return event

    async def done(self, ask, client=0, **more):
        self.start(ask, client, **more)
        return await self.next()


@asynccontextmanager
async def bench(folder, **settings):
    made = Bench(folder, **settings)
    try:
        yield made
    finally:
        await made.children.close()


def on_loop(test):
    """Run a test's coroutine to its end."""

    def run(tmp_path):
        asyncio.run(test(tmp_path))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def running(pid):
    return os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc/self")


@on_loop
async def test_a_warm_child_does_task_after_task(tmp_path):
    async with bench(tmp_path) as b:
        ready = await b.ready()
        assert isinstance(ready, HostReady)
        assert ready.run == "r"
        assert {"train", "query:die"} <= ready.handlers
        assert ("clip_by_norm", 1) in ready.transforms
        first = await b.done(b.ask(1), 3)
        assert isinstance(first, TaskDone)
        assert (first.run, first.task, first.attempt) == ("r", "1.3", 1)
        receipt = first.result.receipt
        assert (receipt.task, receipt.client, receipt.weight, receipt.kept) == ("1.3", "3", 1.0, True)
        assert contents.answer(first.result.update).arrays["w"].tolist() == [2, 2, 2, 2]
        for ask in range(2, 8):
            again = await b.done(b.ask(ask, blob=True), 3, base=first.state)
            assert dict(again.result.receipt.metrics) == {"x": 3, "loads": ask + 1, "pid": receipt.metrics["pid"],
                                                          "n": 2}  # fmt: skip
        assert (await b.done(b.ask(1), 3)).result.receipt.metrics["n"] == 1
        assert "trained 3" in b.children.log_of("r").read_text()
    assert not running(int(receipt.metrics["pid"]))
    assert list((tmp_path / "runs").iterdir()) == []


@on_loop
async def test_an_ask_that_comes_again_with_other_steps_is_done_by_these(tmp_path):
    """As its own node has judged it, and not by those of the ask that had its number before."""
    async with bench(tmp_path) as b:
        await b.ready()
        bare, clipped = b.ask(1), b.ask(1)
        clipped.transforms = '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": 1.0}}]'
        clipped.shared.inline = encoding.encode({**encoding.decode(bare.shared.inline), "params": (None,)})
        first, second = await b.done(bare, 0), await b.done(clipped, 1)
        norms = [np.linalg.norm(contents.answer(each.result.update).arrays["w"]) for each in (first, second)]
        assert norms == [4.0, pytest.approx(1.0)]


@on_loop
async def test_several_tasks_at_once_have_children_of_their_own(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        ask = b.ask()
        for client in range(2):
            b.start(ask, client)
        pids = {e.result.receipt.client: e.result.receipt.metrics["pid"] for e in (await b.next(), await b.next())}
        assert len(set(pids.values())) == 2
        for client in (1, 0):  # each again where its data are
            receipt = (await b.done(b.ask(2), client)).result.receipt
            assert (receipt.metrics["pid"], receipt.metrics["loads"]) == (pids[str(client)], 3)


@on_loop
async def test_what_is_large_becomes_a_blob(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        done = await b.done(b.ask(1, "query:large"))
        blob = done.result.update.blob
        assert encoding.load_file(b.blobs.path(blob.sha256, run_giver("r"))).arrays["big"][9] == 9
        assert encoding.decode(done.state)["user"]["much"].shape == (10000,)
        ((release, times),) = done.accounted
        assert (release["noise"], release["sampling"], times) == (2.0, {"kind": "poisson", "rate": 0.1}, 3)
        b.blobs.collect()
        assert b.blobs.path(blob.sha256, run_giver("r")) is not None
        again = await b.done(b.ask(2, "query:large"), base=done.state)  # the same bytes
        assert again.result.update.blob == blob
        b.blobs.release(holder("r", blob.sha256))
        b.blobs.collect()
        assert not b.blobs.has(blob.sha256)


@on_loop
async def test_a_failure_of_the_client_is_told(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        failed = await b.done(b.ask(1, "query:fail"), attempt=2)
        assert failed.reason.startswith("its query:fail handler raised RuntimeError: it broke")
        assert (failed.task, failed.attempt, failed.retry) == ("1.0", 2, False)


LIAR = """
import hashlib, json, os, sys, threading
import umbel
import numpy as np

client = umbel.Client()

@client.data
def data(source):
    return 0

def liar(model, data, ctx):
    frame = sys._getframe()
    while "pipes" not in frame.f_locals:
        frame = frame.f_back
        if frame.f_code.co_name == "_do":
            order = frame.f_locals["message"]
    result, names = order["result"], {name: order[name] for name in ("task", "attempt")}
    done = {**names, "weight": 1.0, "metrics": {}, "seconds": 0.0, "update": {"base64": "GgA="}, "state": None}
    file = {"file": result, "sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    {does}
    os.write(frame.f_locals["pipes"]._answers, json.dumps({says}).encode() + b"\\n")
    threading.Event().wait()

client.query("lie")(liar)
client.train(lambda model, data, ctx: umbel.Update(model))
"""
LIES = {
    "no_object": "'x'",
    "no_type": "{}",
    "odd_type": '{**names, "type": []}',
    "odd_reason": '{**names, "type": "failed", "reason": 5, "retry": False}',
    "odd_retry": '{**names, "type": "failed", "reason": "x", "retry": "x"}',
    "odd_weight": '{**done, "type": "done", "weight": "x"}',
    "odd_metric": '{**done, "type": "done", "metrics": {"x": []}}',
    "many_metrics": '{**done, "type": "done", "metrics": {str(i): 0.0 for i in range(100000)}}',
    "long_name": '{**done, "type": "done", "metrics": {"x" * 257: 0.0}}',
    "large_inline": '{**done, "type": "done", "update": {"base64": "GrDqAQ==" + "A" * 40000}}',
    "blob": '{**done, "type": "done", "update": {"base64": "EgA="}}',
    "no_update": '{**done, "type": "done", "update": {}}',
    "odd_hash": '{**done, "type": "done", "update": {**file, "sha256": 5}}',
    "odd_size": '{**done, "type": "done", "update": {**file, "size": -1}}',
    "odd_state": '{**done, "type": "done", "state": {"base64": "A"}}',
    "odd_account": '{**done, "type": "done", "accounted": [[{"unit": "example"}, 1]]}',
    "long_line": '{**done, "type": "done", "besides": "x" * (1 << 20)}',
    "another_task": '{**done, "type": "done", "task": "1.1"}',
}


@pytest.mark.parametrize("lie", some(LIES, 3))
def test_a_child_that_says_what_it_may_not_costs_its_task_and_is_ended(tmp_path, lie):
    async def run():
        code = LIAR.replace("{does}", "").replace("{says}", LIES[lie])
        async with bench(tmp_path, code=code, grace=GRACE) as b:
            await b.ready()
            b.start(b.ask(1, "query:lie"))
            failed = await b.next()
            said = "the process of the client said what this node cannot understand"
            assert failed == TaskFailed("r", "1.0", 1, said, False)

    asyncio.run(run())


@on_loop
async def test_what_a_child_says_beside_its_task_is_not_told(tmp_path):
    says = '{"type": "stepped", "task": []}).encode() + b"\\n" + json.dumps({**done, "type": "done"}'
    async with bench(tmp_path, code=LIAR.replace("{does}", "").replace("{says}", says), grace=GRACE) as b:
        await b.ready()
        b.start(b.ask(1, "query:lie"))
        assert isinstance(await b.events.get(), TaskDone)


@on_loop
async def test_a_reason_that_is_no_text_of_a_file_can_be_sent(tmp_path):
    code = CLIENT.replace('RuntimeError("it broke")', 'FileNotFoundError(2, "gone", os.fsdecode(b"\\xff"))')
    async with bench(tmp_path, code=code) as b:
        await b.ready()
        assert "\\udcff" in (await b.done(b.ask(1, "query:fail"))).reason
    async with bench(tmp_path, code="raise ValueError('\\udcff')") as b:
        assert "\\udcff" in (await b.ready()).reason


FILES = {
    "none": "",
    "longer": "open(result, 'wb').truncate(1 << 40)",
    "pipe": "os.mkfifo(result)",
    "link": "open(result + 'x', 'wb').write(b'x'), os.symlink(result + 'x', result)",
    "state": "open(result, 'wb').write(b'x'), open(result + '.state', 'wb').truncate(1 << 40)",
}


@linux
@pytest.mark.parametrize("does", FILES.values(), ids=FILES)
def test_a_file_that_a_child_leaves_is_read_as_far_as_it_says_and_followed_nowhere(tmp_path, does):
    says = '{**done, "type": "done", "update": file, "state": file if os.path.exists(result + ".state") else None}'

    async def run():
        async with bench(tmp_path, code=LIAR.replace("{does}", does).replace("{says}", says), grace=GRACE) as b:
            b.blobs.put(b"x", "another run")  # of which the child knows the hash
            await b.ready()
            failed = await b.done(b.ask(1, "query:lie"))
            assert failed == TaskFailed("r", "1.0", 1, failed.reason, True)
            assert failed.reason.startswith("the node cannot keep the result: ")

    asyncio.run(run())


@linux
@on_loop
async def test_what_a_child_changes_of_its_answer_is_its_own_runs_alone(tmp_path):
    """Its file is not copied, and whoever gets it compares the hash. What others bring is not mixed up with it."""
    does = "kept = open(result, 'wb', buffering=0); kept.write(b'x'); os.link(result, result + 'x')"
    says = '{**done, "type": "done", "update": file}'
    wait = "threading.Event().wait()"
    again = "while os.path.exists(result): pass\n    kept.seek(0), kept.write(b'y')\n    "
    code = LIAR.replace("{does}", does).replace("{says}", says).replace(wait, again + wait)
    async with bench(tmp_path, code=code, grace=GRACE) as b:
        await b.ready()
        blob = (await b.done(b.ask(1, "query:lie"))).result.update.blob
        (left,) = await asyncio.to_thread(lambda: list(tmp_path.glob("runs/*/results/*x")))
        while left.read_bytes() != b"y":
            await asyncio.sleep(0.01)
        assert b.blobs.path(blob.sha256, run_giver("r")).read_bytes() == b"y"
        with b.blobs.part(blob, giver=run_giver("another")) as part:
            part.write(b"x")
            part.finish()
        assert b.blobs.path(blob.sha256, run_giver("another")).read_bytes() == b"x"
        assert b.blobs.path(blob.sha256).read_bytes() == b"x"


@on_loop
async def test_a_traceback_stays_on_the_node(tmp_path):
    noted = []
    handler = logging.Handler()
    handler.emit = noted.append
    logger = logging.getLogger("umbel.node")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        async with bench(tmp_path) as b:
            await b.ready()
            failed = await b.done(b.ask(1, "query:fail"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert "Traceback" not in repr(failed)
    assert "raise RuntimeError" not in repr(failed)
    assert "Traceback" not in b.children.log_of("r").read_text()  # its end is told where a process dies
    (record,) = [record for record in noted if "failed" in record.getMessage()]
    assert record.levelno == logging.DEBUG  # printed with --debug only
    for said in ("run r, task 1.0 failed:", "Traceback (most recent call last)", "raise RuntimeError"):
        assert said in record.getMessage()


@on_loop
async def test_a_child_that_dies_fails_its_task_and_another_takes_its_place(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        failed = await b.done(b.ask(1, "query:die"))
        assert failed == TaskFailed("r", "1.0", 1, failed.reason, True)
        assert "was killed by SIGKILL, perhaps because memory ran out; its log ends: last words" in failed.reason
        failed = await b.done(b.ask(2, "query:quit"))
        assert "the process of the client ended with exit code 7" in failed.reason
        assert isinstance(await b.done(b.ask(3)), TaskDone)


@on_loop
async def test_a_stop_ends_a_task_at_its_next_step(tmp_path):
    async with bench(tmp_path, grace=PATIENCE) as b:
        await b.ready()
        pid = (await b.done(b.ask(1))).result.receipt.metrics["pid"]
        b.start(b.ask(2, "query:steps"))
        assert await b.events.get() == Stepped("r", "2.0")
        b.children.stop(Stop("r", "2.0", 2))  # another attempt
        b.children.stop(Stop("r", "2.0", 1))
        assert await b.next() == TaskFailed("r", "2.0", 1, "it was not wanted any more", True)
        assert (await b.done(b.ask(3))).result.receipt.metrics["pid"] == pid


@on_loop
async def test_a_task_that_does_not_stop_is_killed_with_its_child(tmp_path):
    async with bench(tmp_path, grace=GRACE) as b:
        await b.ready()
        pid = (await b.done(b.ask(1))).result.receipt.metrics["pid"]
        b.start(b.ask(2, "query:hang"))
        assert await asyncio.wait_for(b.events.get(), PATIENCE) == Stepped("r", "2.0")
        b.children.stop(Stop("r", "2.0", 1))
        assert await b.next() == TaskFailed("r", "2.0", 1, "it was not wanted any more", True)
        assert (await b.done(b.ask(3))).result.receipt.metrics["pid"] != pid


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell of processor time")
def test_processor_time_is_progress(tmp_path):
    async def run():
        async with bench(tmp_path, look_every=0.02) as b:
            await b.ready()
            b.start(b.ask(1, "query:spin"))
            assert await asyncio.wait_for(b.events.get(), PATIENCE) == Stepped("r", "1.0")

    asyncio.run(run())


@on_loop
async def test_nothing_more_is_told_of_a_run_that_is_ended(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        pid = (await b.done(b.ask(1))).result.receipt.metrics["pid"]
        b.start(b.ask(2, "query:spin"))
        b.children.end_run("r")
        b.children.stop(Stop("r", "2.0", 1))
        assert isinstance(await b.ready(), HostReady)  # of the same name, anew
        assert (await b.done(b.ask(3))).result.receipt.metrics["pid"] != pid
        b.children.end_run("r")
    assert all(isinstance(b.events.get_nowait(), Stepped) for _ in range(b.events.qsize()))
    assert not running(int(pid))


def test_a_result_that_is_taken_in_as_its_run_ends_is_kept_for_nobody(tmp_path, monkeypatch):
    begun, may, taken_in, taken = threading.Event(), threading.Event(), RunHost._taken_in, []

    def later(self, result, message):
        begun.set()
        assert may.wait(PATIENCE)
        taken.append(taken_in(self, result, message))
        return taken[0]

    async def run():
        async with bench(tmp_path) as b:
            await b.ready()
            b.start(b.ask(1, "query:large"))
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            b.children.end_run("r")
            may.set()
        return b.blobs

    monkeypatch.setattr(RunHost, "_taken_in", later)
    assert not asyncio.run(run()).held(taken[0][0].blob.sha256)


@on_loop
async def test_secrets_of_the_environment_stay_with_the_node(tmp_path):
    os.environ["UMBEL_TOKEN"] = os.environ["LC_TEST"] = "x"
    try:
        async with bench(tmp_path, environment={"GIVEN": "y"}) as b:
            await b.ready()
            update = contents.answer((await b.done(b.ask(1, "query:environment"))).result.update)
    finally:
        del os.environ["UMBEL_TOKEN"], os.environ["LC_TEST"]
    assert {"GIVEN", "LC_TEST", "PATH", "OMP_NUM_THREADS"} <= set(update.arrays)
    assert "UMBEL_TOKEN" not in update.arrays


# Runs that cannot be hosted


@on_loop
async def test_a_client_that_cannot_be_imported_is_refused(tmp_path):
    async with bench(tmp_path, code="import unheard_of") as b:
        refused = await b.ready()
        assert isinstance(refused, HostRefused)
        assert "No module named 'unheard_of'" in refused.reason
        b.code = "raise SystemExit(3)"
        assert isinstance(await b.ready(), HostRefused)


@on_loop
async def test_a_child_that_dies_while_it_prepares_is_no_refusal(tmp_path):
    async with bench(tmp_path, code="print('before')\nimport os\nos.abort()") as b:
        died = await b.ready()
        assert isinstance(died, HostDied)
        assert "was killed by SIGABRT; its log ends: " in died.reason
        b.code = "import os\nos._exit(9)"
        died = await b.ready()
        assert isinstance(died, HostDied)
        assert "ended with exit code 9" in died.reason
        b.code = CLIENT
        assert isinstance(await b.ready(), HostReady)


@on_loop
async def test_a_disk_that_fails_while_it_prepares_is_no_refusal(tmp_path):
    async with bench(tmp_path, fault=OSError(5, "Input/output error")) as b:
        died = await b.ready()
        assert isinstance(died, HostDied)
        assert "Input/output" in died.reason


@on_loop
async def test_a_child_that_is_killed_between_tasks_is_replaced(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        pid = int((await b.done(b.ask(1))).result.receipt.metrics["pid"])
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0)
        done = await b.done(b.ask(2))
        if isinstance(done, TaskFailed):  # it was given the task before it was known to be dead
            assert done.retry
            done = await b.done(b.ask(2), attempt=2)
        assert done.result.receipt.metrics["pid"] != pid
        assert b.events.empty()


@on_loop
async def test_an_archive_that_cannot_be_opened_is_refused(tmp_path):
    async with bench(tmp_path, fault="it is no archive") as b:
        assert "it is no archive" in (await b.ready()).reason
        b.children.prepare("q", m.RunSpec(run="q", config="{"), tmp_path)
        assert (await b.next()).run == "q"


# What the owner allows


@on_loop
async def test_a_task_that_takes_too_long_is_ended_and_not_tried_again(tmp_path):
    async with bench(tmp_path, limits=Limits(task_time=20.0)) as b:
        await b.ready()
        (child,) = b.children._runs["r"]._children
        b.start(b.ask(1, "query:spin"))
        assert child._limit.when() > asyncio.get_running_loop().time()
        child.kill(*child._limit._args)  # as if the time had come
        failed = await b.next()
        assert (type(failed), failed.retry) == (TaskFailed, False)
        assert "took longer than the 20.0 seconds that this node's owner allows" in failed.reason
        assert type(await b.done(b.ask(2))) is TaskDone
        assert all(child._limit is None for child in b.children._runs["r"]._children)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell of processor time")
@on_loop
async def test_who_goes_on_after_its_task_is_ended_as_if_it_were_at_it(tmp_path):
    left = "threading.Thread(target=spin, args=(0, 0, 0), daemon=True).start()\n    return umbel.Update({})"
    code = CLIENT.replace('raise RuntimeError("it broke")', left)
    async with bench(tmp_path, code=code, limits=Limits(task_time=20.0), look_every=0.01) as b:
        await b.ready()
        (child,) = b.children._runs["r"]._children
        assert type(await b.done(b.ask(1, "query:fail"))) is TaskDone
        child._rested -= 20 * os.sysconf("SC_CLK_TCK")  # as if it had used all that it may
        while b.children._runs["r"]._children:
            await asyncio.sleep(0.01)
        assert child.fault == "used the 20.0 seconds that this node's owner allows a task when it had none"
        assert type(await b.done(b.ask(2))) is TaskDone


@on_loop
async def test_a_client_that_is_about_to_be_ended_gets_no_task(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        (child,) = b.children._runs["r"]._children
        child.kill("went on")
        assert type(await b.done(b.ask(1))) is TaskDone


@on_loop
async def test_of_a_long_log_the_end_stays(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        await b.done(b.ask(1))  # its process has the log open from now on
        log = b.children.log_of("r")
        with open(log, "a") as printed:
            printed.write("x" * PRINTED_BYTES)
        b.children._runs["r"].look()
        assert log.stat().st_size == PRINTED_BYTES // 2
        await b.done(b.ask(2))
        assert log.read_text().endswith("xxxtrained 0\n")


@on_loop
async def test_a_client_that_takes_too_long_to_load_is_refused(tmp_path):
    async with bench(tmp_path, code="while True: pass", limits=Limits(task_time=0.1)) as b:
        refused = await b.ready()
        assert type(refused) is HostRefused
        assert "took longer to load" in refused.reason


@linux
@on_loop
async def test_memory_counts_while_a_client_is_loaded_and_between_its_tasks(tmp_path):
    limits = Limits(memory=1 << 28)
    async with bench(tmp_path, limits=limits, look_every=0.01, code=f"{CLIENT}\nshare(0, 0, 0)") as b:
        refused = await b.ready()
        assert isinstance(refused, HostRefused)
        assert "took more than the 268,435,456 bytes of memory" in refused.reason
    left = "if os.fork() == 0:\n        share(0, 0, 0)\n    return umbel.Update({}, metrics={'pid': os.getpid()})"
    code = CLIENT.replace('raise RuntimeError("it broke")', left)
    async with bench(tmp_path, limits=limits, look_every=0.01, code=code) as b:
        await b.ready()
        pid = int((await b.done(b.ask(1, "query:fail"))).result.receipt.metrics["pid"])
        while running(pid):
            await asyncio.sleep(0.01)


@on_loop
async def test_memory_that_is_shared_counts_too(tmp_path):
    async with bench(tmp_path, limits=Limits(memory=1 << 28), look_every=0.01) as b:
        await b.ready()
        failed = await b.done(b.ask(1, "query:share"))
        assert (type(failed), failed.retry) == (TaskFailed, False)
        assert "took more than the 268,435,456 bytes" in failed.reason


@linux
@on_loop
async def test_who_left_its_session_does_not_outlive_its_run(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        pid = int((await b.done(b.ask(1, "query:leave"))).result.receipt.metrics["pid"])
        assert running(pid)
        watched = os.pidfd_open(pid)
        b.children.end_run("r")
        try:
            assert (await asyncio.to_thread(select.select, [watched], [], [], PATIENCE))[0]
        finally:
            os.close(watched)


@linux
@on_loop
async def test_a_link_in_place_of_a_result_is_not_followed(tmp_path):
    code = CLIENT.replace(
        'ctx.state["much"] = np.zeros(10000)',
        """ctx.state["much"] = np.zeros(10000)
    folder = os.environ["TMPDIR"] + "/../results/"
    from pathlib import Path
    write = Path.write_bytes
    def planted(path, data):
        path.symlink_to(folder + "../../../secret")
    Path.write_bytes = planted""",
    )
    (tmp_path / "secret").write_text("x")
    async with bench(tmp_path, code=code) as b:
        await b.ready()
        failed = await b.done(b.ask(1, "query:large"))
        assert type(failed) is TaskFailed
        assert "cannot keep the result" in failed.reason


@on_loop
async def test_a_result_that_is_not_what_it_is_said_to_be_is_not_kept(tmp_path):
    another_size = "(real(*given)[0], 9)"
    elsewhere = "(os.symlink(f'{given[0]}.y', given[0]), real(f'{given[0]}.y', given[1]))[1]"
    for number, lie in enumerate((another_size, elsewhere)):
        code = CLIENT.replace("import os, signal", "import os, umbel.core.encoding as e\nreal = e.save_file\n"
                              f"e.save_file = lambda *given: {lie}\nimport os, signal")  # fmt: skip
        async with bench(tmp_path / str(number), code=code) as b:
            await b.ready()
            failed = await b.done(b.ask(1, "query:large"))
            assert type(failed) is TaskFailed
            assert list(b.blobs.folder.glob("??/*")) == []


@on_loop
async def test_what_a_child_was_given_is_gone_once_it_has_it(tmp_path):
    async with bench(tmp_path) as b:
        await b.ready()
        first = await b.done(b.ask(1, "query:large"))
        assert len(first.state) > 50_000
        blob = b.ask(2, blob=True)
        assert type(await b.done(blob, base=first.state)) is TaskDone
        assert list((tmp_path / "runs").glob("*/given/*")) == []
        assert b.blobs.path(blob.model.blob.sha256).exists()
