"""What samplers see of a run: what was so, wherever the clients are, and however often the run died."""

from __future__ import annotations

import math
import os
import sqlite3
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.conftest import some
from tests.test_resume import Unsynced, snapshots

import umbel
from umbel import App, Ask, Client, FedAvg, Simulation, State, Strategy, Uniform, Update, Window, top_k
from umbel.core import encoding
from umbel.core.record import Record
from umbel.errors import NothingToFold, SamplingError
from umbel.runs import cohorts
from umbel.runs.events import AskClosed
from umbel.runs.journal import read_log
from umbel.samplers import AvailabilityAware, ByNorm, Clustered, FairRate, Oort, PowerOfChoice
from umbel.simulation import Fleet, Kind
from umbel.testing.deployment import Deployment, Faults

CLIENTS = 12
FAILING = {2: (1, 4, 7, 10), 3: range(CLIENTS)}
"""Who fails in which round; in the third there is no answer at all."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Unsynced))


def client_of() -> Client:
    client = Client()

    @client.data
    def data(source):
        return source["index"]

    @client.train
    def train(model, data, ctx):
        if data in FAILING.get(ctx.round, ()):
            raise OSError(f"no table {data}")
        moved = ctx.rng.normal(size=4) * (1 + data % 3)
        size = float(np.linalg.norm(moved))
        metrics = {"norm": size, "loss": size * (data + 1)}
        return Update({"w": model["w"] + moved}, weight=1 + data % 4, metrics=metrics)

    @client.evaluate
    def evaluate(model, data, ctx):
        return umbel.Metrics({"loss": float(data)})

    return client


@dataclass(frozen=True)
class Watching:
    """A sampler that takes down what it sees of all clients, and asks by another one."""

    sampler: Any
    seen: list[Any] = field(default_factory=list, compare=False)
    seconds: bool = False

    def choose(self, clients, record, key):
        self.seen.append((record.now, record.asks, facts(record, self.seconds)))
        return self.sampler.choose(clients, record, key)

    def spec(self):
        return {"name": "watching"}


def facts(record, seconds=False):
    """All that a record has, by client; None where it has nothing, and without seconds by the clock."""
    tree = record.saved()
    columns = {**tree["columns"], **tree["metrics"]}
    rows = {
        client: {
            name: None if math.isnan(value := column[row].item()) else value
            for name, column in columns.items()
            if name != "why" and (seconds or name != "seconds")
        }
        for row, client in enumerate(record.clients)
    }
    for client, row in rows.items():
        why = record.why[record.row(client)]
        row["why"] = None if why < 0 else record.reasons[why]
    return rows


class Patient(Strategy):
    """Asks twice a round in one lane, and in others at once; what comes to nothing is let pass."""

    def __init__(self, first, second, lanes=("a", "b"), **ask):
        self.first, self.second, self.lanes, self.more = first, second, lanes, ask

    def round(self, state, r):
        for sampler in (self.first, self.second):
            try:
                answer = yield Ask(clients=sampler, model=state.model, window=Window(quorum=2), **self.more)
                state = State(state.model.replace({"w": state.model["w"] + answer.value["w"]}))
            except NothingToFold:
                pass
        if r != 3 and self.lanes:
            a, b = yield [Ask(clients=self.first, model=state.model, lane=lane) for lane in self.lanes]
            state = State(state.model.replace({"w": state.model["w"] + a.value["w"] - b.value["w"]}))
        return state


ASYNC = Window(in_flight=4, close_after=2, late="keep")
OORT = Oort(4, explore=0.5, explore_least=0.4, penalty=0.0)
SAMPLERS = {
    "AvailabilityAware": AvailabilityAware(4), "ByNorm": ByNorm(4), "Clustered": Clustered(4, by="loss"),
    "FairRate": FairRate(4), "Oort": OORT, "PowerOfChoice": PowerOfChoice(4, 8),
}  # fmt: skip
DEVICES = [Kind("fast", speed=1.0), Kind("slow", speed=0.25), Kind("seldom", opens=0.0, lasts=43200.0)]


def app(strategy, **settings) -> App:
    settings = {"rounds": 4, "evaluate_every": 0, "max_failed_rounds": 9, **settings}
    return App(client_of(), model={"w": np.zeros(4)}, strategy=strategy, **settings)


def simulation(workers=0, virtual=False):
    return Simulation(CLIENTS, workers=workers, devices=Fleet(DEVICES, work=3.0) if virtual else None)


def run(app, folder=None, on=None, **settings):
    return umbel.run(app, on=on or simulation(), seed=5, folder=folder, **settings)


def test_the_record_says_what_the_log_says_of_earlier_asks():
    watching = Watching(FairRate(5))
    made = app(FedAvg(cohort=watching), rounds=5)
    result = run(made)
    for r, asks, found in watching.seen:
        assert asks == r - 1
        rows = [row for row in result.clients if row.round < r]
        assert set(found) == {row.client for row in rows}
        for client, said in found.items():
            mine = [row for row in rows if row.client == client]
            counted, failed = ([row for row in mine if row.status == status] for status in ("counted", "failed"))
            assert (said["asked"], said["answered"], said["failed"]) == (len(mine), len(counted), len(failed))
            assert (said["round"], said["last"]) == (mine[-1].round, mine[-1].round - 1)
            weight, loss = (counted[-1].weight, counted[-1].metrics["loss"]) if counted else (None, None)
            assert (said["weight"], said["loss"]) == (weight, loss)
            assert ("OSError: no table # " in str(said["why"])) == bool(failed)
    assert result.history[2].failed is not None  # of which no answer tells
    assert any(said["failed"] for said in watching.seen[-1][2].values())


def test_each_lane_has_its_own():
    train, evaluate = Watching(FairRate(4)), Watching(FairRate(3))
    run(app(FedAvg(cohort=train), rounds=2, evaluate_every=1, evaluate_clients=evaluate))
    assert [len(found) for _, _, found in train.seen] == [0, 4]
    assert [(asks, len(found)) for _, asks, found in evaluate.seen] == [(0, 0), (1, 3)]
    assert "norm" not in next(iter(evaluate.seen[1][2].values()))
    together = Watching(FairRate(3))
    run(app(Patient(together, together), rounds=2))
    assert [asks for _, asks, _ in together.seen] == [0, 1, 0, 0, 2, 3, 1, 1]


def test_it_begins_with_the_first_ask_that_wants_it():
    watching = Watching(FairRate(3))

    class Later(FedAvg):
        def ask(self, state, r):
            return replace(super().ask(state, r), clients=Uniform(3) if r == 1 else watching)

    run(app(Later()))
    assert [(r, asks) for r, asks, found in watching.seen] == [(2, 0), (3, 1), (4, 2)]
    assert len(watching.seen[1][2]) == 3


def test_nothing_is_kept_where_nobody_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(Record, "__init__", None)
    result = run(app(FedAvg(cohort=4), rounds=2, evaluate_every=1, evaluate_clients=3), tmp_path)
    saved = encoding.load_file(result.folder / "checkpoints" / "round-0002.safetensors")
    assert saved.keys() == {"state", "ask", "transforms", "late", "clock"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_with_workers_the_run_is_the_same(name):
    results = [run(app(Patient(SAMPLERS[name], OORT)), on=simulation(workers)) for workers in (0, 2)]
    assert len({result.model_sha256 for result in results}) == 1
    cohorts = [[(row.round, row.client, row.status) for row in result.clients] for result in results]
    assert cohorts[0] == cohorts[1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_all_have_in_common_is_learned(name):
    client, common = Client(), np.array([1.0, -2.0, 3.0])

    @client.train
    def train(model, data, ctx):
        x = ctx.rng.normal(size=(20, 3))
        residual = x @ (model["w"] - common)
        step = 0.3 * x.T @ residual / 20
        told = {"loss": float((residual**2).mean()), "norm": float(np.linalg.norm(step))}
        return Update({"w": model["w"] - step}, weight=1 + ctx.client % 3, metrics=told)

    made = App(client, model={"w": np.zeros(3)}, strategy=FedAvg(cohort=SAMPLERS[name]), rounds=30, evaluate_every=0)
    np.testing.assert_allclose(run(made).model["w"], common, atol=0.01)


@pytest.mark.slow
def test_in_virtual_time_seconds_are_those_of_devices_and_the_run_is_the_same():
    seconds, results = [], []
    for workers in (0, 2):
        sampler = Oort(4, explore=0.5, explore_decay=0.9)
        spy = Seconds(sampler)
        results.append(run(app(FedAvg(cohort=spy, window=ASYNC), rounds=8), on=simulation(workers, virtual=True)))
        seconds.append(spy.seen)
    assert results[0].model_sha256 == results[1].model_sha256
    assert seconds[0] == seconds[1]
    told = {value for row in seconds[0] for value in row.values() if value is not None}
    assert min(told) > 2.9  # work takes 3 s, and 12 where the device is slow
    assert max(told) > 11.9


def test_in_virtual_time_samplers_know_who_is_online():
    away = []

    @dataclass(frozen=True)
    class Looking(Watching):
        def choose(self, clients, record, key):
            away.append({client for client in clients if not record.online(client)})
            return self.sampler.choose(clients, record, key)

    fleet = Fleet([Kind("seldom", opens=30.0, lasts=60.0), Kind("always")], work=25.0)
    result = run(app(FedAvg(cohort=Looking(FairRate(3))), rounds=6), on=Simulation(CLIENTS, workers=0, devices=fleet))
    assert len({frozenset(each) for each in away}) > 1
    for r, each in enumerate(away, 1):
        assert each.isdisjoint(row.client for row in result.clients.of(r))


@dataclass(frozen=True)
class Seconds(Watching):
    """A sampler that takes down the seconds."""

    def choose(self, clients, record, key):
        told = [None if math.isnan(value) else value for value in record.seconds.tolist()]
        self.seen.append(dict(zip(record.clients, told, strict=True)))
        return self.sampler.choose(clients, record, key)


MAKE = {
    "each in turn": lambda spy: app(Patient(spy(FairRate(4)), spy(PowerOfChoice(4, 8)))),
    "to nothing": lambda spy: app(Patient(spy(OORT), spy(AvailabilityAware(5)), (), transforms=top_k(0.5))),
    "asynchronous": lambda spy: app(FedAvg(cohort=spy(Clustered(5)), window=ASYNC)),
    "virtual": lambda spy: app(FedAvg(cohort=spy(Oort(4, explore=0.5, explore_decay=0.8)), window=ASYNC), rounds=5),
}


def asked(result):
    """Whom was asked, and what they said; without seconds by the clock."""
    return result.model_sha256, [(row.round, row.client, row.status, row.metrics) for row in result.clients]


@pytest.mark.parametrize("name", some(MAKE, 2))
def test_a_run_that_dies_at_any_moment_ends_like_one_that_does_not(name, tmp_path, monkeypatch):
    virtual, told = name == "virtual", []
    monkeypatch.setattr("tests.test_resume.run", partial(run, on=simulation(virtual=virtual)))
    whole, taken = snapshots(MAKE[name](lambda sampler: Watching(sampler, told, seconds=virtual)), tmp_path)
    assert len(taken) > 15
    for folder in taken:
        again = []
        made = MAKE[name](lambda sampler, again=again: Watching(sampler, again, seconds=virtual))
        resumed = umbel.resume(made, folder, on=simulation(virtual=virtual))
        assert asked(resumed) == asked(whole), folder.name
        assert again == told[len(told) - len(again) :], folder.name


def test_seconds_are_those_that_were_recorded_when_a_run_goes_on(tmp_path, monkeypatch):
    """By the clock they differ from run to run: what is seen after a resume is what was seen before."""
    monkeypatch.setattr("tests.test_resume.run", run)
    spy = Seconds(FairRate(4))
    whole, taken = snapshots(app(Patient(spy, spy), rounds=2), tmp_path)
    told = spy.seen
    assert [len(seen) for seen in told] == [0, 4, 0, 0, 8, 12, 4, 4]  # a round's last two are drawn together
    compared = 0
    for folder in taken:
        log = read_log(folder)
        begun, closed = 4 * len(log.rounds), len({e.ask for e in log.events if isinstance(e, AskClosed)})
        again = Seconds(FairRate(4))
        umbel.resume(app(Patient(again, again), rounds=2), folder, on=simulation())
        recorded = told[begun : closed + 1]
        assert again.seen[: len(recorded)] == recorded, folder.name
        compared += sum(map(len, recorded))
    assert compared > 100
    assert asked(whole)[0] == asked(run(app(Patient(FairRate(4), FairRate(4)), rounds=2)))[0]


NODES = {
    "a": {str(i): {"index": i} for i in range(5)},
    "b": {str(i): {"index": i} for i in range(5, 8)},
    "c": {str(i): {"index": i} for i in range(8, CLIENTS)},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("relays", [None, {"r": ["a", "b"]}], ids=["nodes", "relay"])
def test_a_deployment_is_the_simulation_whatever_happens(seed, relays, tmp_path):
    samplers = [*SAMPLERS.values()][seed], [*SAMPLERS.values()][seed + 3]
    made = app(Patient(*samplers))
    world = Deployment(made, NODES, seed=seed, relays=relays, faults=Faults(most=20), scratch=tmp_path)
    there = world.run(tmp_path, seed=5)
    here = run(made)
    assert there.model_sha256 == here.model_sha256, world.happened
    assert asked(here)[0] == asked(there)[0]
    assert {row[:3] for row in asked(here)[1]} == {row[:3] for row in asked(there)[1]}


# Cohorts


def test_those_who_are_away_are_chosen_anew_with_another_key():
    class First:
        """Chooses the first, whoever is online; with another key the next ones."""

        keys: list[Any] = []

        def choose(self, clients, record, key):
            assert record is mine
            self.keys.append(key)
            return clients[len(self.keys) - 1 : len(self.keys) + 1]

        def spec(self):
            return {}

    mine, key = Record(), umbel.core.randomness.Key.from_seed(1)
    cohort, drawn, there = cohorts.draw(First(), range(9), lambda client: client >= 3, key, mine)
    assert (cohort, drawn, there) == ((3, 4), 2, False)
    assert len(set(First.keys)) == len(First.keys) == 4


def test_a_sampler_that_raises_is_told_of():
    class Broken:
        def choose(self, clients, record, key):
            return record.nothing

        def spec(self):
            return {}

    with pytest.raises(SamplingError, match="the sampler Broken raised AttributeError"):
        run(app(FedAvg(cohort=Broken())))


def test_without_the_metric_the_run_ends_and_says_so(tmp_path):
    with pytest.raises(SamplingError, match=r"(?s)ByNorm goes by the metric 'size', .*There are: loss, norm"):
        run(app(FedAvg(cohort=ByNorm(4, metric="size"))), tmp_path)
