"""What the machine of a relay says above and below; and whole lives of deployments with relays in them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tests.conftest import some
from tests.server.relays import CLIENTS, OFFLINE, SPEC, World, ask_of, done_of, members_of, task_of, world_of

import umbel
from umbel.errors import ProtocolError
from umbel.privacy import secure
from umbel.server.relayed import OWNER
from umbel.server.relaying import Relaying
from umbel.server.signals import Connected, Hosting, Reached, SayAbove
from umbel.store.records import MemoryStore
from umbel.testing.deployment import Deployment, Faults
from umbel.wire import messages as m

SEEDS = int(os.environ.get("UMBEL_SOAK", "40"))


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
    row = {"run": "r", "ask": 1, "node": "n", "attempt": 1}
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


def app_of(strategy=None):
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

    return umbel.App(client, model={"w": np.zeros(40)}, strategy=strategy or umbel.FedAvg(cohort=5), rounds=2)


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


@pytest.mark.parametrize("batch", some(range(SEEDS // 20), 1))
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


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_relays_add_up_what_is_masked(tmp_path, place):
    sealed = secure(umbel.FedAvg(cohort=5, fold=umbel.mean(), transforms=umbel.clip_by_norm(1.0)))
    there = umbel.run(app_of(sealed), on=umbel.Simulation(clients=6), seed=5, folder=None)
    world = Deployment(app_of(sealed), NODES, relays=SHAPES[place], seed=place, scratch=tmp_path, faults=Faults(most=0))
    assert world.run(tmp_path, seed=5).model_sha256 == there.model_sha256
