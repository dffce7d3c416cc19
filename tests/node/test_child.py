"""A child of a node as a process: what it is told and what it answers, through its pipes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import PATIENCE

import umbel
from umbel import Arrays, Ask, FedAvg, Like, Simulation, Update, mean, top_k
from umbel.core import encoding
from umbel.core.ask import SENT
from umbel.core.randomness import Key
from umbel.core.task import Admit, Finished, Task
from umbel.core.transform import Chain
from umbel.core.update import Receipt
from umbel.node.child import ChildProgram
from umbel.wire import messages as m
from umbel.work import contents
from umbel.work.contents import in_message
from umbel.work.executor import RunKeys
from umbel.work.intake import Intake

SOURCE = Path(umbel.__file__).parents[1]
KEYS = RunKeys(Key.from_seed(7).derive("task"))
"""Those of the run that the child of this file is in, whose tests share what it has loaded."""
MODEL = Arrays({"w": np.arange(3, dtype=np.float32), "b": np.zeros(2)})
CLIENT = """
import os, random, signal, sys, time
import numpy as np
import umbel

client = umbel.Client()

@client.data
def data(source):
    return np.arange(4.0) + source["index"], float(np.random.random())

@client.train
def train(model, data, ctx):
    print("training", ctx.client, flush=True)
    kept = ctx.state.setdefault("seen", [])
    kept.append(ctx.round)
    noise = ctx.rng.normal() + random.random() + data[1] + np.random.random() + len(kept)
    step = ctx.config["lr"] * (data[0].sum() + noise)
    return umbel.Update({n: (a - step).astype(a.dtype) for n, a in model.items()}, weight=1 + ctx.client,
                        metrics={"seen": len(kept), "nan": float("nan")})

@client.evaluate
def evaluate(model, data, ctx):
    return umbel.Metrics({"sum": float(sum(a.sum() for a in model.values())), "inbox": float(len(ctx.inbox))}, 2.0)

@client.query("fail")
def fail(model, data, ctx):
    raise ValueError("no such thing")

@client.query("endless")
def endless(model, data, ctx):
    while True:
        try:
            ctx.step()
        except Exception:
            pass

@client.query("hang")
def hang(model, data, ctx):
    print("hanging", flush=True)
    while True:
        pass

@client.query("die")
def die(model, data, ctx):
    os.kill(os.getpid(), signal.SIGKILL)

@client.query("large")
def large(model, data, ctx):
    ctx.state["much"] = np.arange(5000.0)
    return umbel.Update({"big": np.arange(10000.0)})

@client.query("place")
def place(model, data, ctx):
    threads = int(os.environ["OMP_NUM_THREADS"])
    return umbel.Update({"t": np.array(threads)}, metrics={"argv": len(sys.argv)})

@client.query("fork")
def fork(model, data, ctx):
    held, _ = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(held, 1)  # for ever, but for the test: it has the other end itself
        os._exit(0)
    return umbel.Update({}, metrics={"pid": pid})
"""


class Process:
    """A child, and the node's end of its pipes."""

    def __init__(self, folder: Path, **beginning):
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self.folder = folder
        path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "umbel.node.child", str(orders), str(answers)],
                pass_fds=(orders, answers),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        os.close(orders)
        os.close(answers)
        self._lines = os.fdopen(self._answers, "rb")
        self._count, self.over = 0, False
        self.send(
            "begin",
            **{
                "folder": str(folder / "archive"), "module": "held", "attribute": "client", "config": {"lr": 0.5},
                "sources": {str(i): {"index": i, "count": 4} for i in range(4)}, "device": "auto", "slot": 0,
                "data_cache": 10, **beginning,
            },
        )  # fmt: skip

    def send(self, type, **message):
        os.write(self._orders, json.dumps({"type": type, **message}).encode() + b"\n")

    def next(self):
        line = self._lines.readline()
        found = json.loads(line) if line else None
        self.over = found is None or found["type"] == "refused"
        return found

    def open(self, id, ask, round=1, number=0, params=None, own=()):
        """Tell of an ask; fields named in `own` come with the tasks."""
        shared = {n: getattr(ask, n) for n in SENT if n not in own and n != "model"}
        inline = ask.model is None or "model" in own
        if ask.model is None:
            shared["model"] = None
        model = None if inline else self.part("model", ask.model, ask.model.to_bytes())
        self.send(
            "ask", id=id, round=round, number=number, kind=ask.kind, lane=ask.lane, model=model,
            transforms=json.dumps(ask.transform.spec()),
            shared=self.part("shared", {**shared, "params": params, "own": own}),
        )  # fmt: skip

    def part(self, name, value, data=None):
        """A value as a part: some in files, some in the message."""
        self._count += 1
        if self._count % 2:
            return inline(value)
        path = self.folder / f"{name}-{self._count}"
        path.write_bytes(data or encoding.encode(value))
        return {"file": str(path)}

    def task(self, id, client, *, attempt=1, key=None, base=None, own=None):
        self.send(
            "task", ask=id, task=f"{id}.{client}", client=str(client), attempt=attempt,
            key=(key or Key.from_seed(5)).hex(), data_key=KEYS.of_data(client).hex(),
            base={"base64": base64.b64encode(base).decode()} if base else None,
            own=self.part("own", own) if own else None,
            result=str(self.folder / f"result-{id}.{client}"),
        )  # fmt: skip

    def done(self, id, client, **more):
        """Do a task; what came of it."""
        self.task(id, client, **more)
        while (found := self.next())["type"] == "stepped":
            pass
        return found

    def close(self):
        """End it, unless it has ended, and say how."""
        if self.over:
            self.process.wait(PATIENCE)
        os.close(self._orders)
        code = self.process.wait(PATIENCE)
        self._lines.close()
        return code


def update_of(told):
    part = told["update"]
    if "file" in part:
        return encoding.load_file(part["file"])
    return contents.answer(m.Payload.FromString(base64.b64decode(part["base64"])))


def bytes_of(part):
    return base64.b64decode(part["base64"]) if "base64" in part else Path(part["file"]).read_bytes()


def archive(folder: Path, code: str = CLIENT, name: str = "held") -> Path:
    (folder / "archive").mkdir(parents=True)
    (folder / "archive" / f"{name}.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    process = Process(archive(tmp_path_factory.mktemp("child")))
    process.ready = process.next()
    yield process
    process.close()


def question(name, **asked):
    return Ask(clients=(), kind=f"query:{name}", model=None, expects=umbel.Free(), **asked)


# What a child does


def test_it_says_what_it_can(child):
    assert child.ready["type"] == "ready"
    assert child.ready["umbel"] == umbel.__version__
    assert {"train", "evaluate", "query:fail"} <= set(child.ready["handlers"])
    assert ["clip_by_norm", 1] in child.ready["transforms"]


class Remote:
    """Rounds of a strategy whose clients are in a child, folded here."""

    def __init__(self, child, first):
        self.child, self.id, self.states = child, first, {}

    def round(self, strategy, state, r):
        asks = strategy.round(state, r)
        ask = next(asks)
        steps: Chain = ask.transform
        kept = steps.init(ask.model.schema)
        params = steps.send(kept)
        self.id += 1
        intake = Intake()
        intake.open(self.id, ask, r, 0, params)
        self.child.open(self.id, ask, r, 0, params)
        for client in reversed(range(4)):
            key = KEYS.of_task("train", r, 0, client)
            told = self.child.done(self.id, client, key=key, base=self.states.get(client))
            assert told["type"] == "done", told
            task = Task(told["task"], self.id, client)
            update = update_of(told)
            receipt = Receipt(task.id, client, told["weight"], told["metrics"], told["seconds"])
            assert intake.arrived(task, update, receipt, None) == Finished([task.id])
            intake.admit(Admit([task.id], self.id))
            self.states[client] = bytes_of(told["state"])
            assert told["metrics"]["seen"] == r
        answer, _ = steps.finish(intake.close(self.id).partial.finish({}, 4), kept, Key.from_seed(0))
        with pytest.raises(StopIteration) as end:
            asks.send(answer)
        return end.value.value


@pytest.mark.parametrize("transforms", [(), (top_k(0.5),)])
def test_results_have_the_bits_of_a_simulation(child, transforms):
    namespace = {}
    exec(CLIENT, namespace)
    strategy = FedAvg(cohort=4, transforms=transforms)
    app = umbel.App(namespace["client"], model=MODEL, strategy=strategy, rounds=3, config={"lr": 0.5}, evaluate_every=0)
    expected = umbel.run(app, on=Simulation(clients=4), seed=7, folder=None).model
    remote = Remote(child, 1000 + 100 * len(transforms))
    state = strategy.start(MODEL)
    for r in (1, 2, 3):
        state = remote.round(strategy, state, r)
    assert state.model.sha256 == expected.sha256


def test_evaluation_and_what_only_one_client_gets(child):
    ask = Ask(clients=(), kind="evaluate", model=MODEL, fold=mean())
    child.open(1, ask, own=("model", "inbox"))
    own = {"model": MODEL, "inbox": Arrays({"letter": np.ones(3)})}
    told = child.done(1, 2, own=own)
    assert (told["type"], told["weight"], told["metrics"]) == ("done", 2.0, {"sum": 3.0, "inbox": 1.0})
    assert told["state"] is None
    update = update_of(told)
    assert isinstance(update, Update)
    assert len(update.arrays) == 0
    told = child.done(1, 2)
    assert told["type"] == "failed"


def test_what_is_large_goes_into_files(child):
    child.open(2, question("large"))
    told = child.done(2, 0)
    part = told["update"]
    assert part["file"] == str(child.folder / "result-2.0")
    data = Path(part["file"]).read_bytes()
    assert (part["sha256"], part["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert encoding.decode(data).arrays["big"].tolist() == list(range(10000))
    assert told["state"] == {"file": str(child.folder / "result-2.0.state")}
    assert encoding.decode(bytes_of(told["state"]))["user"]["much"].shape == (5000,)


def test_a_handler_that_raises_fails_its_task_alone(child):
    child.open(3, question("fail"))
    told = child.done(3, 1, attempt=4)
    assert told["reason"].startswith("its query:fail handler raised ValueError: no such thing (held.py:")
    assert (told["type"], told["task"], told["attempt"], told["retry"]) == ("failed", "3.1", 4, False)
    child.open(4, question("place"))
    told = child.done(4, 1)
    assert told["metrics"] == {"argv": 1.0}
    assert update_of(told).arrays["t"] == 1


def test_an_ask_that_cannot_be_done_fails_its_tasks(child):
    child.open(5, question("unheard"))
    assert "has no handler for that" in child.done(5, 0)["reason"]
    child.send("ask", id=6, round=1, number=0, kind="train", lane="train", model=None,
               transforms='[{"name": "unheard", "version": 1, "settings": {}}]',
               shared=child.part("shared", {"params": None}))  # fmt: skip
    assert "the transform 'unheard' version 1 is not known here" in child.done(6, 0)["reason"]
    child.open(7, Ask(clients=(), model=MODEL, correction=umbel.Correction(proximal=1.0), expects=Like()))
    assert "the training loop never took it" in child.done(7, 0)["reason"]
    child.send("forget", asks=[5, 6, 7])


def test_a_cancel_ends_a_task_at_its_next_step(child):
    child.open(8, question("endless"))
    child.task(8, 0)
    assert child.next() == {"type": "stepped", "task": "8.0"}
    assert child.next() == {"type": "stepped", "task": "8.0"}
    child.send("cancel", task="8.0")
    while (told := child.next())["type"] == "stepped":
        pass
    assert told == {"type": "cancelled", "task": "8.0", "attempt": 1}
    child.open(9, question("place"))
    child.send("cancel", task="9.0")  # of an earlier attempt: what comes now is wanted
    assert child.done(9, 0, attempt=2)["type"] == "done"


def test_prints_go_to_the_log(child):
    child.open(10, Ask(clients=(), model=MODEL))
    assert child.done(10, 3)["type"] == "done"
    assert "training 3" in (child.folder / "log").read_text()


def test_what_a_client_forks_does_not_hold_the_pipes(tmp_path):
    process = Process(archive(tmp_path))
    process.next()
    process.open(1, question("fork"))
    pid = int(process.done(1, 0)["metrics"]["pid"])
    try:
        process.send("end")
        assert process.next() is None
        assert process.close() == 0
    finally:
        os.kill(pid, signal.SIGKILL)


# The program without its process


def local(client, unwanted=()):
    """The program of a client that is here, and all that it says."""
    said = []
    beginning = {"config": {}, "sources": {"0": 1.5}, "device": "cpu", "slot": 0, "data_cache": 0}
    program = ChildProgram(client, beginning, say=lambda type, **more: said.append((type, more)), unwanted=unwanted)
    return program, said


def told_of(program, ask, folder):
    shared = {name: getattr(ask, name) for name in SENT}
    program.hear(
        {"type": "ask", "id": 1, "round": 1, "number": 0, "kind": ask.kind, "lane": ask.lane, "model": None,
         "transforms": "", "shared": inline({**shared, "params": None})}
    )  # fmt: skip
    key = Key.from_seed(5).hex()
    program.hear(
        {"type": "task", "ask": 1, "task": "1.0", "client": "0", "attempt": 1, "key": key, "data_key": key,
         "base": None, "own": None, "result": str(folder / "result")}
    )  # fmt: skip


def inline(value):
    payload = m.Payload(message=in_message(value))
    return {"base64": base64.b64encode(payload.SerializeToString()).decode()}


def test_the_program_of_a_child_needs_no_process(tmp_path):
    client = umbel.Client()

    @client.query("double")
    def double(model, data, ctx):
        return Update({"x": np.array(2 * data)})

    program, said = local(client)
    program.ready()
    assert said[-1][1]["handlers"] == ["query:double"]
    told_of(program, question("double"), tmp_path)
    kind, told = said[-1]
    assert (kind, told["task"], told["state"]) == ("done", "1.0", None)
    assert update_of(told).arrays["x"] == 3.0


def test_a_task_that_is_unwanted_is_not_begun(tmp_path):
    client, begun = umbel.Client(), []
    client.query("note")(lambda model, data, ctx: begun.append(1))
    program, said = local(client, {"1.0"})
    told_of(program, question("note"), tmp_path)
    assert said == [("cancelled", {"task": "1.0", "attempt": 1})]
    assert begun == []


# How a child ends


def test_it_ends_with_its_node_even_while_a_handler_hangs(tmp_path):
    process = Process(archive(tmp_path))
    process.next()
    process.open(1, question("hang"))
    process.task(1, 0)
    process.send("cancel", task="1.0")  # without a step nobody looks
    assert process.close() == 1


def test_its_death_is_the_end_of_its_pipe(tmp_path):
    process = Process(archive(tmp_path))
    process.next()
    process.open(1, question("die"))
    process.task(1, 0)
    assert process.next() is None
    assert process.close() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "name", "reason"),
    [
        ("import unheard_of", "held", "No module named 'unheard_of' (held.py:1) (Install 'unheard_of' where the node"),
        ("raise SystemExit(3)", "held", "SystemExit: 3 (held.py:1)"),
        ("client = 3", "held", "'client' in the client's module 'held' is no umbel.Client, but 3"),
        ("", "colorsys", "cannot be imported: ModuleNotFoundError: No module named 'held'"),
    ],
)
def test_a_client_that_cannot_be_had_is_refused(tmp_path, code, name, reason):
    process = Process(archive(tmp_path, code, name))
    told = process.next()
    assert told["type"] == "refused"
    assert reason in told["reason"]
    assert process.close() == 0


def test_a_client_must_come_from_its_archive(tmp_path):
    process = Process(archive(tmp_path, CLIENT, "json"), module="json")
    assert "is not in its archive" in process.next()["reason"]
    assert process.close() == 0
