"""What a relay says above and below, one rule at a time; and whole lives of deployments with relays in them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import umbel
from umbel.core.task import Ticked
from umbel.errors import ProtocolError
from umbel.server.relayed import LARGE, LINGER, OWNER
from umbel.server.relaying import Relaying
from umbel.server.signals import (
    Asked,
    Connected,
    FoldAnswers,
    Folded,
    Forget,
    Hosting,
    MovedAbove,
    Parted,
    Reached,
    RouterSaid,
    SayAbove,
    TellRouter,
    Unfetched,
)
from umbel.store.records import MemoryStore
from umbel.testing.deployment import Deployment, Faults
from umbel.wire import messages as m
from umbel.work.retries import HOST_TRIES

CLIENTS = frozenset("01234567")
SPEC = m.RunSpec(run="r", name="a run", archive=m.Payload(inline=b"archive"))
FOLDED = m.Payload(inline=b"folded")
MEAN, COLLECT = json.dumps(umbel.mean().spec()), json.dumps(umbel.collect().spec())
SEEDS = int(os.environ.get("UMBEL_SOAK", "40"))
READY, OFFLINE, REFUSED = m.STANDING_READY, m.STANDING_OFFLINE, m.STANDING_REFUSED
PREPARING = m.STANDING_PREPARING


def ask_of(id=1, *, whole=True, fold=MEAN, **more):
    return m.AskSpec(run="r", ask=id, kind="train", digest=b"d", whole=whole, fold=fold, transforms="{}", **more)


def task_of(client, ask=1, attempt=1, **more):
    return m.Task(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=attempt, **more)


def done_of(client, ask=1, update=None):
    receipt = m.Receipt(task=f"{ask}.{client}", client=str(client), weight=1.0)
    done = m.Done(receipt=receipt, update=update or m.Payload(inline=b"update"))
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=1, done=done)


def failed_of(client, ask=1, attempt=1):
    failure = m.Failure(reason="no", retry=True)
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=str(client), attempt=attempt, failure=failure)


def partial_of(*clients, ask=1):
    receipts = [m.Receipt(task=f"{ask}.{client}", client=str(client)) for client in clients]
    return m.Partial(run="r", ask=ask, receipts=receipts, partial=m.Payload(inline=b"partial"))


class World:
    """A relay's machine, and all that it has said."""

    def __init__(self, store=None, clients=CLIENTS):
        self.machine = Relaying(store or MemoryStore(), clients)
        self.now = 0.0
        self.up, self.down, self.folds, self.gone, self.durable = [], [], [], [], []

    def put(self, event):
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, SayAbove):
                kind = effect.message.WhichOneof("body")
                self.up.append((kind, getattr(effect.message, kind)))
                self.durable += [kind] * effect.durable
            elif isinstance(effect, FoldAnswers):
                self.folds.append(effect)
            elif isinstance(effect, Forget):
                self.gone.append(effect.number)
            elif isinstance(effect, TellRouter) and hasattr(effect.event, "message"):
                kind = effect.event.message.WhichOneof("body")
                self.down.append((kind, getattr(effect.event.message, kind)))
            else:
                self.down.append((type(effect.event).__name__, effect.event))

    def asked(self, **body):
        self.put(Asked(m.Message(**body)))

    def answered(self, **body):
        self.put(RouterSaid(m.Message(**body)))

    def later(self, seconds=LINGER):
        self.now += seconds
        self.put(Ticked())

    def fold(self, *, refused=(), payload=FOLDED):
        """Do the last fold that was wanted."""
        fold = self.folds[-1]
        tasks = [each.result.done.receipt for each in fold.answers if each.WhichOneof("body") == "result"]
        tasks += [receipt for each in fold.answers for receipt in each.partial.receipts]
        receipts = tuple(receipt for receipt in tasks if receipt.task not in refused)
        self.put(Folded(fold.number, payload, receipts, frozenset(refused)))

    def said(self, *kinds):
        """What was said above since this was last asked, only of these kinds if any are named."""
        found, self.up = [each for each in self.up if not kinds or each[0] in kinds], []
        return found if len(kinds) != 1 else [body for _, body in found]

    def told(self, *kinds):
        """What the router was told since."""
        found, self.down = [each for each in self.down if not kinds or each[0] in kinds], []
        return found if len(kinds) != 1 else [body for _, body in found]


def world_of(*clients, ask=None):
    """A relay that was asked, and has said nothing yet."""
    world = World()
    world.put(Reached(CLIENTS))
    world.asked(run_spec=SPEC)
    world.asked(ask_spec=ask or ask_of())
    for client in clients:
        world.asked(task=task_of(client))
    world.said()
    return world


def tasks_in(partial):
    return [receipt.task for receipt in partial.receipts]


def test_it_is_the_run_to_its_router():
    world = world_of(0)
    assert [kind for kind, _ in world.told()] == ["Connected", "run_spec", "ask_spec", "task"]
    world.asked(cancel=m.Cancel(run="r", tasks=["1.0", "1.9"]))
    assert world.told() == [
        ("cancel", m.Cancel(run="r", tasks=["1.0"])),
        ("close_ask", m.CloseAsk(run="r", ask=1)),  # nobody says that it is open still
    ]
    world.asked(task=task_of(1))
    assert [kind for kind, _ in world.told()] == ["ask_spec", "task"]
    world.asked(close_ask=m.CloseAsk(run="r", ask=1))
    world.asked(close_run=m.CloseRun(run="r", status="finished"))
    assert [kind for kind, _ in world.told()] == ["close_ask", "close_run", "Lost"]
    world.asked(run_spec=SPEC)
    assert world.told()[0] == ("Connected", Connected("relay r", "run", "r", OWNER))


def test_answers_go_up_together_once_none_is_awaited():
    world = world_of(*range(5))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    assert not world.folds
    world.answered(result=done_of(4))
    assert [each.result.task for each in world.folds[0].answers] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    world.fold()
    (partial,) = world.said("partial")
    assert tasks_in(partial) == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    assert partial.partial.inline == b"folded"
    assert world.durable == ["partial"]
    world.asked(task=task_of(0))
    assert world.said() == []  # it was said in this session
    world.put(Parted())
    world.put(Reached(CLIENTS))
    world.asked(run_spec=SPEC)
    world.asked(ask_spec=ask_of())
    for client in range(5):
        world.asked(task=task_of(client))
    assert world.said("partial") == [partial]
    world.asked(ack=m.Ack(run="r", tasks=[f"1.{client}" for client in range(5)]))
    assert world.gone == [1]
    world.told()
    world.asked(task=task_of(0))  # it was dropped above: the router has the answer
    assert world.told("task") == [task_of(0)]


def test_tasks_that_may_be_on_their_way_are_waited_for():
    world = world_of(*range(4))
    for client in range(4):
        world.answered(result=done_of(client))
    assert not world.folds
    assert world.machine.next_tick == LINGER
    world.later()
    assert len(world.folds) == 1


def test_few_answers_go_up_as_they_came():
    world = world_of(0, 1, 2)
    for client in range(3):
        world.answered(result=done_of(client))
    world.later()
    assert world.said("result") == [done_of(client) for client in range(3)]
    assert world.durable == ["result"] * 3


@pytest.mark.parametrize(
    "ask",
    [
        ask_of(whole=False),
        ask_of(fold=COLLECT),
        ask_of(fold='["of my own", {}]'),
        ask_of(fold="{"),
        ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=LARGE + 1))),
    ],
)
def test_what_cannot_be_folded_goes_up_at_once(ask):
    world = world_of(*range(5), ask=ask)
    world.answered(result=done_of(0))
    assert world.said("result") == [done_of(0)]


def test_a_failure_goes_up_at_once_and_the_others_do_not_wait_for_it():
    world = world_of(*range(5))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    world.answered(result=failed_of(4))
    assert world.said("result") == [failed_of(4)]
    assert len(world.folds) == 1
    world.asked(task=task_of(4, attempt=2))
    world.answered(result=failed_of(4))  # the first one, again
    assert world.said("result") == []
    world.answered(result=done_of(4))
    world.later()
    assert world.said("result") == [done_of(4)]


def test_what_is_not_wanted_is_left_out():
    world = world_of(*range(6))
    world.now = 1.0
    for client in range(6):
        world.answered(result=done_of(client))
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.5"]))  # while it is folded
    assert world.gone == [1]
    assert [each.result.client for each in world.folds[1].answers] == ["0", "1", "2", "3", "4"]
    world.put(Folded(1, m.Payload(inline=b"late"), ()))
    assert world.said() == []
    assert world.gone == [1, 1]
    world.fold()
    world.asked(cancel=m.Cancel(run="r", tasks=["1.4"]))
    world.fold()
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.3"]))
    said = world.said()
    assert [tasks_in(body) for kind, body in said if kind == "partial"] == [
        ["1.0", "1.1", "1.2", "1.3", "1.4"],
        ["1.0", "1.1", "1.2", "1.3"],
    ]
    assert [body.task for kind, body in said if kind == "result"] == ["1.0", "1.1", "1.2"]


def test_answers_that_cannot_be_folded_go_up_as_they_came():
    world = world_of(*range(6))
    world.now = 1.0
    for client in range(6):
        world.answered(result=done_of(client))
    world.fold(refused=["1.2"])
    said = world.said()
    assert ("result", done_of(2)) in said
    assert tasks_in(next(body for kind, body in said if kind == "partial")) == ["1.0", "1.1", "1.3", "1.4", "1.5"]
    world = world_of(*range(4))
    world.now = 1.0
    for client in range(4):
        world.answered(result=done_of(client))
    world.fold(payload=None)
    assert len(world.said("result")) == 4


def test_partials_of_relays_below_are_folded_too():
    world = world_of(*range(6))
    world.now = 1.0
    world.answered(result=done_of(0))
    world.answered(partial=partial_of(1, 2, 3, 4))
    world.answered(result=done_of(5))
    (fold,) = world.folds
    assert [each.WhichOneof("body") for each in fold.answers] == ["result", "partial", "result"]
    world.fold()
    world.told()
    world.asked(refold=m.Refold(run="r", ask=1, without=["1.2"]))
    assert world.told("refold") == [m.Refold(run="r", ask=1, without=["1.2"])]
    assert len(world.folds) == 1
    world.answered(partial=partial_of(1, 3, 4))
    assert len(world.folds) == 2
    world.asked(cancel=m.Cancel(run="r", tasks=["1.1"]))
    world.answered(partial=partial_of(3, 4))
    assert len(world.folds) == 3


def test_a_partial_of_which_only_some_is_asked_is_folded_again_below():
    world = world_of(0, 1)
    world.answered(partial=partial_of(0, 1, 2))
    world.told()
    world.later()
    assert world.told("refold") == [m.Refold(run="r", ask=1, without=["1.2"])]
    world = world_of(0)
    world.answered(partial=partial_of(0, 1))
    world.told()
    world.asked(task=task_of(1))  # the others were still to be asked for again
    world.later()
    assert world.told("refold") == []
    assert world.said("partial") == [partial_of(0, 1)]


def members_of(**standings):
    found = [m.Member(client=name[1:], standing=standing, reason="why") for name, standing in standings.items()]
    return m.Members(run="r", members=found)


def test_it_says_which_of_its_clients_take_part():
    world = World()
    world.put(Reached(CLIENTS))
    world.answered(members=members_of(c0=READY))
    assert world.said() == []  # of a run that was not told of in this session, or not at all
    world.asked(run_spec=SPEC)
    world.answered(members=members_of(c0=READY, c1=OFFLINE, c2=REFUSED))
    assert world.said("run_answer") == [
        m.RunAnswer(run="r", ready=True, clients=["0"]),
        m.RunAnswer(run="r", reason="why", clients=["2"]),
    ]
    world.answered(members=members_of(c0=READY, c2=REFUSED))
    world.answered(members=members_of(c0=OFFLINE))  # its tasks wait here
    assert world.said() == []
    world.asked(run_spec=SPEC)
    world.answered(members=members_of(c0=OFFLINE, c2=READY))
    assert world.said("run_answer") == [m.RunAnswer(run="r", ready=True, clients=["0", "2"])]
    world.answered(members=members_of(c0=PREPARING, c1=PREPARING))  # died, and is tried again; client 0 was ready once
    assert world.said("run_answer") == [m.RunAnswer(run="r", retry=True, reason="why", clients=["1"])]


def test_it_says_whom_it_hosts_when_that_changes():
    world = World(clients="ab")
    world.put(Reached(frozenset("ab")))
    world.put(Hosting(frozenset("ab")))
    assert world.said() == []
    world.put(Hosting(frozenset("bc")))
    assert world.said("hosted") == [m.Hosted(clients=["b", "c"])]
    world.put(Reached(frozenset("b")))  # it changed meanwhile
    assert world.said("hosted") == [m.Hosted(clients=["b", "c"])]


def test_after_a_restart_it_asks_about_all_that_its_router_has():
    store = MemoryStore()
    store.put("runs", {"id": "r", "status": "running", "owner": OWNER, "spec": SPEC.SerializeToString()})
    store.put("runs", {"id": "own", "status": "running", "owner": "an operator", "spec": SPEC.SerializeToString()})
    store.put("asks", {"run": "r", "ask": 1, "spec": ask_of().SerializeToString()})
    row = {"run": "r", "ask": 1, "node": "n", "attempt": 1, "answer": None}
    for client in "01":
        task = task_of(client)
        store.put("tasks", {**row, "task": task.task, "client": client, "message": task.SerializeToString()})
    store.commit()
    world = World(store)
    world.put(Reached(CLIENTS))
    assert world.said("alive") == [m.Alive(run="r", tasks=["1.0", "1.1"])]
    world.asked(cancel=m.Cancel(run="r", tasks=["1.0", "1.1"]))  # it was closed meanwhile
    assert [kind for kind, _ in world.told()] == ["Connected", "cancel", "close_ask"]
    world.asked(run_spec=SPEC)
    world.answered(members=members_of(c0=OFFLINE, c1=OFFLINE, c2=OFFLINE))
    assert world.said("run_answer") == [m.RunAnswer(run="r", ready=True, clients=["0", "1"])]


def test_signs_of_life_are_passed_on_every_few_seconds():
    world = world_of(*range(5), ask=ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=9))))
    world.answered(result=done_of(0))
    world.now = 5.0
    world.answered(alive=m.Alive(run="r", tasks=["1.3"]))
    assert world.said("alive") == [m.Alive(run="r", tasks=["1.0", "1.3"])]  # one waits here for the others
    world.answered(alive=m.Alive(run="r", tasks=["1.4"]))
    assert world.said("alive") == []
    assert world.machine.next_tick == 10.0
    world.put(MovedAbove(b"m" * 32))  # the model is on its way
    world.later(5.0)
    assert world.said("alive") == [m.Alive(run="r", tasks=[f"1.{client}" for client in range(5)])]


def test_only_what_was_named_to_the_server_above_may_be_read():
    world = world_of(0, 1, ask=ask_of(whole=False))
    update = m.Payload(blob=m.Blob(sha256=b"u" * 32, size=99))
    assert not world.machine.may_read("r", b"u" * 32)
    world.answered(result=done_of(0, update=update))
    assert world.machine.may_read("r", b"u" * 32)
    assert not world.machine.may_read("s", b"u" * 32)
    world.asked(close_ask=m.CloseAsk(run="r", ask=1))
    assert not world.machine.may_read("r", b"u" * 32)


def test_what_cannot_be_fetched_fails_what_needs_it():
    world = world_of(0, 1, ask=ask_of(model=m.Payload(blob=m.Blob(sha256=b"m" * 32, size=9))))
    world.told()
    world.put(Unfetched("r", b"m" * 32, "it is gone"))
    assert [(each.task, each.failure.retry) for each in world.said("result")] == [("1.0", True), ("1.1", True)]
    assert world.told("cancel") == [m.Cancel(run="r", tasks=["1.0", "1.1"])]


def test_what_a_server_may_not_say():
    world = World()
    for body in ({"result": done_of(0)}, {"ask_spec": ask_of()}, {"task": task_of(0)}):
        with pytest.raises(ProtocolError):
            world.asked(**body)
    world.asked(run_spec=SPEC)
    with pytest.raises(ProtocolError, match="before its AskSpec"):
        world.asked(task=task_of(0))
    world.asked(cancel=m.Cancel(run="of another", tasks=["1.0"]))
    world.asked(close_run=m.CloseRun(run="of another", status="finished"))


# Whole lives

NODES = {
    "a": {"0": {"index": 0}, "1": {"index": 1}},
    "b": {"2": {"index": 2}, "3": {"index": 3}},
    "c": {"4": {"index": 4}},
    "d": {"5": {"index": 5}},
}
SHAPES = (
    {"east": ["a", "b", "c"]},
    {"east": ["a", "b"], "west": ["c", "d"]},
    {"east": ["a", "west"], "west": ["b", "c", "d"]},
    {"east": ["west"], "west": ["a", "far"], "far": ["b", "c", "d"]},
)


def app_of():
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        count = ctx.state.get("count", 0) + 1
        ctx.state["count"] = count
        noise = ctx.rng.normal(size=40) * 1e-3
        return umbel.Update({"w": 0.5 * model["w"] + data["index"] + 0.1 * count + noise}, metrics={"count": count})

    @client.data
    def data(source):
        return source

    return umbel.App(client, model={"w": np.zeros(40)}, strategy=umbel.FedAvg(cohort=5), rounds=2)


@pytest.fixture(scope="module")
def undisturbed():
    result = umbel.run(app_of(), on=umbel.Simulation(clients=6), seed=5, folder=None)
    return result.model_sha256, result.history.series("train.count")


def live(tmp_path, seed, undisturbed, **settings):
    folder = tmp_path / str(seed)
    folder.mkdir()
    shape = SHAPES[seed % len(SHAPES)]
    world = Deployment(app_of(), NODES, relays=shape, seed=seed, scratch=folder, **settings)
    result = world.run(folder, seed=5)
    assert (result.model_sha256, result.history.series("train.count")) == undisturbed, f"{seed}: {world.happened}"
    world.settle()
    return world


@pytest.mark.parametrize("batch", range(SEEDS // 20))
def test_whatever_happens_the_bits_are_those_of_the_simulation(tmp_path, batch, undisturbed):
    for seed in range(20 * batch, 20 * batch + 20):
        live(tmp_path, seed, undisturbed, faults=Faults(relay=10, most=16))


def test_without_faults_a_relay_sends_partials_alone(tmp_path, undisturbed, monkeypatch):
    said = []
    handle = Relaying.handle

    def watch(self, event, now):
        effects = handle(self, event, now)
        said.extend(each.message.WhichOneof("body") for each in effects if isinstance(each, SayAbove))
        return effects

    monkeypatch.setattr(Relaying, "handle", watch)
    world = Deployment(app_of(), NODES, relays={"east": list(NODES)}, seed=1, scratch=tmp_path, faults=Faults(most=0))
    assert world.run(tmp_path, seed=5).model_sha256 == undisturbed[0]
    assert said.count("partial") == 2
    assert "result" not in said


def test_what_is_said_of_many_clients_fits_into_frames():
    names = [f"{number}-{'x' * 245}" for number in range(17_500)]
    world = World(clients=frozenset(names))
    world.put(Reached(frozenset()))
    world.asked(run_spec=SPEC)
    world.answered(members=m.Members(run="r", members=[m.Member(client=c, standing=READY) for c in names]))
    world.asked(ask_spec=ask_of())
    for name in names:
        world.asked(task=task_of(name))
    world.put(Parted())
    world.put(Reached(frozenset(names)))
    world.asked(run_spec=SPEC)
    refused = [m.Member(client=c, standing=REFUSED, reason="no") for c in names]
    world.answered(members=m.Members(run="r", members=refused))
    sizes = [m.Message(**{kind: body}).ByteSize() for kind, body in world.up]
    assert max(sizes) < 4 << 20
    answers = [body for kind, body in world.up if kind == "run_answer"]
    for ready in (True, False):
        assert sorted(c for body in answers if body.ready == ready for c in body.clients) == sorted(names)
    alive = [task for kind, body in world.up if kind == "alive" for task in body.tasks]
    assert sorted(alive) == sorted(f"1.{name}" for name in names)


def test_an_archive_that_cannot_be_fetched_is_fetched_again():
    world = World()
    world.put(Reached(CLIENTS))
    spec = m.RunSpec(run="r", archive=m.Payload(blob=m.Blob(sha256=b"a" * 32, size=9)))
    world.asked(run_spec=spec)
    world.told()
    reasons = []
    for tries in range(HOST_TRIES):
        world.put(Unfetched("r", b"a" * 32, "the disk is full"))
        (answer,) = world.said("run_answer")
        reasons.append((answer.retry, answer.reason))
        if tries < HOST_TRIES - 1:
            world.now = world.machine.next_tick
            world.put(Ticked())
            assert world.told("run_spec") == [spec]
    assert reasons[:-1] == [(True, "the relay cannot fetch its archive: the disk is full")] * (HOST_TRIES - 1)
    assert reasons[-1] == (False, f"the relay cannot fetch its archive: the disk is full ({HOST_TRIES} times in a row)")
