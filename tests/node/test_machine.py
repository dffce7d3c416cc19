"""The state machine of a node: what ends runs, and random schedules of losses, repeats, cancels and crashes."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import pytest
from tests.conftest import some
from tests.effort import lines
from tests.node.bench import KINDS, PLAIN, STEPS, Bench, blob_of, of, payload, refused, said, started

from umbel.errors import ProtocolError
from umbel.node import machine
from umbel.node.machine import NodeMachine
from umbel.node.signals import (
    EndRun,
    FetchBlob,
    HostReady,
    Prepare,
    ReleaseBlob,
    SayToServer,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Start,
    Stepped,
    Stop,
    TaskDone,
    TaskFailed,
)
from umbel.node.spool import Spool
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched


def test_a_cancelled_task_never_starts_and_one_that_runs_is_stopped(hosted):
    for client in "abc":
        hosted.task(client)
    effects = hosted.get(cancel=m.Cancel(run="r", tasks=["1.a", "1.c", "1.z", "nonsense"]))
    assert of(effects, Stop) == [Stop("r", "1.a", 1)]
    effects = hosted.done("a", state=b"s", update=payload("u"))
    assert effects == [ReleaseBlob("r", blob_of("u").sha256)]
    hosted.spool.commit()
    assert hosted.spool.answers() == []
    assert hosted.spool.state("r", "1.a") is None
    assert started(hosted.task("a")) == [("r", "1.a")], "asked for again"
    assert hosted.get(cancel=m.Cancel(run="unknown", tasks=["1.a"])) == []


def test_a_stopped_task_keeps_its_slot_until_it_has_ended(hosted):
    hosted.task("a")
    hosted.task("b")
    hosted.get(cancel=m.Cancel(run="r", tasks=["1.a", "1.b"]))
    assert hosted.task("c") == hosted.task("a") == []
    assert started(hosted.failed("b", retry=False)) == [("r", "1.c")]
    assert started(hosted.failed("a")) == [("r", "1.a")]


def test_a_closed_ask_drops_tasks_answers_and_blobs(bench):
    bench.host()
    bench.ask(model=payload("w"))
    bench.task("a")
    bench(Fetched("r", blob_of("w").sha256))
    bench.done("a", update=payload("u"))
    bench.task("b")
    effects = bench.get(close_ask=m.CloseAsk(run="r", ask=1))
    assert of(effects, Stop) == [Stop("r", "1.b", 1)]
    assert {effect.sha for effect in of(effects, ReleaseBlob)} == {blob_of("w").sha256, blob_of("u").sha256}
    assert said(bench.reconnect(), "result") == []
    with pytest.raises(ProtocolError):
        bench.task("c")


@pytest.fixture(autouse=True)
def nothing_finished_is_kept(monkeypatch):
    monkeypatch.setattr(machine, "FINISHED", 0)


def test_a_run_that_finished_can_get_further_rounds(hosted, monkeypatch):
    monkeypatch.setattr(machine, "FINISHED", 1)
    hosted.task("a")
    hosted.done("a", state=b"s")
    assert of(hosted.get(close_run=m.CloseRun(run="r", status="finished")), EndRun)
    hosted.spool.commit()
    assert hosted.spool.runs() == {"r"}
    (answer,) = said(hosted.host(), "run_answer")
    assert answer.ready


def test_a_run_that_finished_is_forgotten_and_never_done_again(hosted):
    for client in "abc":
        hosted.task(client)
    hosted.done("a", state=b"s")
    assert of(hosted.get(close_run=m.CloseRun(run="r", status="finished")), EndRun)
    assert said(hosted.reconnect(), "result") == said(hosted.reconnect(), "alive") == []
    for _ in range(2):
        (answer,) = said(hosted.run(), "run_answer")
        assert (answer.ready, answer.reason) == (False, "the run was finished before")
        assert hosted.ask() == []
        assert refused(hosted.task()) == "the run was finished before"
        hosted.spool.commit()
        assert hosted.spool.runs() == set()
        hosted.restart()


def test_a_run_that_was_stopped_can_go_on(hosted):
    hosted.task("a")
    (result,) = said(hosted.done("a", state=b"s", update=payload("u")), "result")
    hosted.task("b")
    effects = hosted.get(close_run=m.CloseRun(run="r", status="stopped"))
    assert of(effects, EndRun)
    assert not of(effects, ReleaseBlob)
    assert said(hosted.reconnect(), "result") == [result]
    hosted.host()
    hosted.ask()
    assert said(hosted.task("a"), "result") == [result]
    hosted.ask(2)
    assert started(hosted.task("b")) == [("r", "1.b")]
    (start,) = of(hosted.task("a", 2, base="1.a"), Start)
    assert start.base == b"s"


def test_a_new_session_tells_what_the_node_has_so_that_the_server_can_end_it(hosted):
    hosted.task("a")
    hosted.done("a")
    for client in "bc":
        hosted.task(client)
    hosted.host("q")
    hosted.spool.commit()
    held = {alive.run: list(alive.tasks) for alive in said(hosted.reconnect(), "alive")}
    assert {run: sorted(tasks) for run, tasks in held.items()} == {"q": [], "r": ["1.b", "1.c"]}
    hosted.ack("1.a")
    hosted.spool.commit()
    assert {alive.run: list(alive.tasks) for alive in said(hosted.restart(), "alive")} == {"r": []}


class World:
    """A model of the server and of the glue around a machine, driven by one random generator."""

    CLIENTS, SLOTS, ASKS = "abc", 2, 12

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.spool = Spool()
        self.machine = NodeMachine(self.spool, self.CLIENTS, slots=self.SLOTS)
        self.connected = False
        self.down, self.up = deque(), deque()
        self.held, self.batch = [], None
        self.fetching, self.preparing = set(), set()
        self.running = {}
        self.count, self.made = 0, {}
        # the server's side
        self.open = {run: {} for run in ("r", "q")}  # ask -> its tasks that are wanted: task -> attempt
        self.bases = {(run, client): "" for run in self.open for client in self.CLIENTS}
        self.based = {}
        self.accepted, self.ever_said, self.states = {}, defaultdict(set), {}
        self.cancelled, self.over, self.acks = set(), set(), []
        self.ready, self.next_ask, self.failures = set(), dict.fromkeys(self.open, 1), 60

    # the glue

    def tell(self, event):
        for effect in self.machine.handle(event, self.now):
            match effect:
                case SayToServer(message, durable):
                    (self.held if durable else self.up).append(message)
                case FetchBlob(run, blob):
                    self.fetching.add((run, blob.sha256))
                case ReleaseBlob(run, sha):
                    self.fetching.discard((run, sha))
                    self.released(run, sha)
                case Prepare(run):
                    self.preparing.add(run)
                case EndRun(run):
                    self.preparing.discard(run)
                    self.running = {key: start for key, start in self.running.items() if key[0] != run}
                case Start(run, task, _, base):
                    self.started(run, task, base)
        assert len(self.running) <= self.SLOTS

    def started(self, run, task, base):
        key = (run, task.task)
        assert key not in self.running
        assert all((of, id.partition(".")[2]) != (run, task.client) for of, id in self.running)
        assert base == (self.states[run, task.base] if task.base else None), "the state that was admitted"
        assert (run != "q") or (run, blob_of("q").sha256) not in self.fetching
        self.running[key] = task.attempt

    def released(self, run, sha):
        key = self.made.get(sha.rstrip(b".").decode())
        if key is not None and key in {(of, task) for of, task, _ in self.wanted()}:
            kept = map(m.Result.FromString, self.spool.answers())
            assert (run, sha) not in {(result.run, result.done.update.blob.sha256) for result in kept}, "still owed"

    def commit(self):
        """Begin a group commit, or end the one that has begun."""
        if self.batch is None:
            self.batch = (self.spool.take(), len(self.held))
            return
        batch, ready = self.batch
        self.spool.write(batch)
        self.up.extend(self.held[:ready])
        self.held, self.batch = self.held[ready:], None

    def lose_session(self):
        self.connected = False
        self.down.clear()
        self.up.clear()
        self.ready.clear()
        self.held.clear()
        if self.batch is not None:
            self.batch = (self.batch[0], 0)

    def connect(self):
        if self.connected:
            self.lose_session()
            self.tell(SessionEnded())
            return
        self.connected = True
        self.tell(SessionBegun(m.Welcome()))
        for run in self.random.sample(sorted(self.open), 2):
            if run not in self.over:
                self.down.append(m.Message(run_spec=m.RunSpec(run=run)))

    def crash(self):
        self.lose_session()
        self.spool.crash()
        self.batch = None
        self.fetching.clear()
        self.preparing.clear()
        self.running.clear()
        self.machine = NodeMachine(self.spool, self.CLIENTS, slots=self.SLOTS)

    def child(self):
        if not self.running:
            return
        (run, task), attempt = self.random.choice(sorted(self.running.items()))
        chance = self.random.random()
        if chance < 0.2:
            self.tell(Stepped(run, task))
            return
        del self.running[run, task]
        if chance < 0.4 and self.failures > 0:
            self.failures -= 1
            self.tell(TaskFailed(run, task, attempt, "it died", True))
            return
        self.count += 1
        text = f"update {self.count}"  # doing a task again makes another answer
        self.made[text] = (run, task)
        update = payload(text) if self.random.random() < 0.3 else m.Payload(inline=text.encode())
        self.tell(TaskDone(run, task, attempt, m.Done(update=update), f"state of {text}".encode()))

    def host(self):
        if self.preparing:
            run = self.random.choice(sorted(self.preparing))
            self.preparing.remove(run)
            self.tell(HostReady(run, KINDS, STEPS))

    def fetch(self):
        if self.fetching and self.connected:
            run, sha = self.random.choice(sorted(self.fetching))
            self.fetching.remove((run, sha))
            self.tell(Fetched(run, sha))

    # the server

    def push(self, run, task, attempt):
        if run in self.ready:
            ask, _, client = task.partition(".")
            base = self.based[run, task]
            self.down.append(
                m.Message(task=m.Task(run=run, task=task, ask=int(ask), client=client, attempt=attempt, key=bytes(32),
                                      data_key=bytes(32), base=base))
            )  # fmt: skip

    def push_ask(self, run, ask):
        if run in self.ready:
            model = payload("q") if run == "q" else None
            spec = m.AskSpec(run=run, ask=ask, kind="train", digest=b"%d" % ask, transforms=PLAIN, model=model)
            self.down.append(m.Message(ask_spec=spec))

    def new_ask(self):
        run = self.random.choice(sorted(self.open))
        if len(self.open[run]) < 2 and self.next_ask[run] <= self.ASKS and run not in self.over:
            ask = self.next_ask[run]
            self.next_ask[run] += 1
            self.open[run][ask] = {f"{ask}.{client}": 1 for client in self.CLIENTS}
            self.push_ask(run, ask)
            for task in self.open[run][ask]:
                self.based[run, task] = self.bases[run, task.partition(".")[2]]
                self.push(run, task, 1)

    def close(self):
        """Close an ask that has nothing to wait for, or the run after its last one."""
        for run, asks in self.open.items():
            for ask, tasks in list(asks.items()):
                if all((run, task) in self.accepted or (run, task) in self.cancelled for task in tasks):
                    del asks[ask]
                    self.send(m.Message(close_ask=m.CloseAsk(run=run, ask=ask)))
                    return

    def send(self, message):
        if self.connected:
            self.down.append(message)

    def wanted(self):
        return sorted(
            (run, task, attempt)
            for run, asks in self.open.items()
            for tasks in asks.values()
            for task, attempt in tasks.items()
            if (run, task) not in self.accepted and (run, task) not in self.cancelled
        )

    def cancel(self):
        if wanted := self.wanted():
            run, task, _ = self.random.choice(wanted)
            self.cancelled.add((run, task))
            self.send(m.Message(cancel=m.Cancel(run=run, tasks=[task])))

    def repeat(self):
        """Send a task once more, now and then as a further attempt."""
        if wanted := self.wanted():
            run, task, attempt = self.random.choice(wanted)
            if self.random.random() < 0.2:
                attempt += 1
                self.open[run][int(task.partition(".")[0])][task] = attempt
            self.push(run, task, attempt)

    def listen(self):
        if self.up:
            message = self.up.popleft()
            kind = message.WhichOneof("body")
            if kind == "run_answer":
                self.answered_run(message.run_answer)
            elif kind == "alive":
                wanted = {(run, task) for run, task, _ in self.wanted()}
                gone = [task for task in message.alive.tasks if (message.alive.run, task) not in wanted]
                self.send(m.Message(cancel=m.Cancel(run=message.alive.run, tasks=gone)))
            elif kind == "result":
                self.result(message.result)

    def answered_run(self, answer):
        assert answer.ready
        self.ready.add(answer.run)
        asks = sorted(self.open[answer.run])
        for ask in asks:
            self.push_ask(answer.run, ask)
        pending = [each for each in self.wanted() if each[0] == answer.run]
        for each in self.random.sample(pending, len(pending)):
            self.push(*each)

    def result(self, result):
        key = (result.run, result.task)
        failed = result.HasField("failure")
        self.acks.append(m.Ack(run=result.run, tasks=[result.task], attempt=result.attempt, failed=failed))
        if result.HasField("done"):
            self.ever_said[key].add(result.done.SerializeToString(deterministic=True))
            assert len(self.ever_said[key]) == 1, f"{key} was answered in two ways"
        if key not in {(run, task) for run, task, _ in self.wanted()}:
            return
        tasks = self.open[result.run][result.ask]
        if result.HasField("done"):
            self.accepted[key] = result
            update = result.done.update
            text = update.inline or update.blob.sha256.rstrip(b".")
            self.states[key] = b"state of " + text
            self.bases[result.run, result.client] = result.task
        else:
            assert result.failure.retry, result.failure.reason
            if result.attempt >= tasks[result.task]:
                tasks[result.task] = result.attempt + 1
                self.push(*key, result.attempt + 1)

    def acknowledge(self):
        """Acknowledge a result, in no order, and now and then twice."""
        if self.acks and self.connected:
            ack = self.random.choice(self.acks)
            if self.random.random() < 0.8:
                self.acks.remove(ack)
            self.down.append(m.Message(ack=ack))

    def deliver(self):
        if self.down:
            self.tell(ServerSaid(self.down.popleft()))

    # all of it

    def play(self, steps=2500):
        often = [self.deliver, self.listen, self.child, self.commit] * 4
        seldom = [self.host, self.fetch, self.new_ask, self.close, self.acknowledge, self.repeat] * 2
        for _ in range(steps):
            self.now += self.random.random()
            chance = self.random.random()
            if chance < 0.008:
                self.crash()
            elif chance < 0.025 or not self.connected:
                self.connect()
            elif chance < 0.032:
                self.cancel()
            else:
                self.random.choice(often + seldom)()
        self.calm()

    def calm(self):
        """No more faults: all that is wanted is answered, and acknowledged in the end."""
        self.failures = 0
        for _ in range(3):
            while not self.connected:
                self.connect()
            for _ in range(200):
                for step in (self.deliver, self.listen, self.child, self.commit, self.host, self.fetch, self.new_ask,
                             self.acknowledge, self.close):  # fmt: skip
                    step()
            self.connect()


@pytest.mark.parametrize("block", some(range(10), 2))
def test_random_schedules(block):
    for seed in range(block * 30, block * 30 + 30):
        world = World(seed)
        world.play()
        where = f"seed {seed}"
        assert world.wanted() == [], where
        assert all(ask > world.ASKS for ask in world.next_ask.values()), where
        asked = {(run, f"{ask}.{c}") for run in world.open for ask in range(1, world.ASKS + 1) for c in world.CLIENTS}
        assert asked - world.cancelled <= world.accepted.keys(), where
        assert world.spool.answers() == [], where
        for run in sorted(world.open):
            world.tell(ServerSaid(m.Message(close_run=m.CloseRun(run=run, status="finished"))))
        world.spool.commit()
        assert world.spool.runs() == set(), where
        assert world.machine.needed() == set(), where
        assert world.running == {}, where


def test_what_is_said_of_one_task_looks_at_no_other():
    def effort(count):
        bench = Bench(clients=[str(client) for client in range(count + 3)])
        bench.host()
        bench.ask(shared=payload("s"))
        for client in range(count):
            bench.task(str(client), own=payload(f"o{client}"))
            bench(Fetched("r", blob_of(f"o{client}").sha256))
        waiting = lines(lambda: bench.task(str(count), own=payload("o")))
        bench(Fetched("r", blob_of("s").sha256))
        for client in range(count // 2):
            bench.done(str(client), update=payload(f"u{client}"), state=b"s")
        last = str(count // 2)
        told = [lines(lambda: bench.done(last, update=payload("u"), state=b"s")), lines(lambda: bench.ack(f"1.{last}"))]
        return [waiting, *told, lines(lambda: bench.task(str(count + 1)))]

    few, many = effort(20), effort(300)
    assert all(b <= 1.2 * a for a, b in zip(few, many, strict=True)), (few, many)
