"""Whole deployments on a virtual clock: whatever is cut, said twice or killed, the run ends with the simulation's bits.

`make soak` runs any number of further seeds: UMBEL_SOAK=100000 makes it as many.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from tests.conftest import some

import umbel
from umbel.errors import RunFailed
from umbel.node.spool import Spool
from umbel.privacy import secure
from umbel.store.sql import SqlStore
from umbel.testing.deployment import Deployment, Faults

QUIET = Faults.none()
BATCH = 50
SEEDS = int(os.environ.get("UMBEL_SOAK", "2000"))
FIRST = int(os.environ.get("UMBEL_SOAK_FROM", "0"))


def app_of(kind):
    client = umbel.Client()

    @client.data
    def data(source):
        return np.random.default_rng(source["index"]).normal(3.0, 1.0, 5)

    @client.train
    def train(model, data, ctx):
        count = ctx.state.get("count", 0) + 1
        ctx.state["count"] = count
        noise = ctx.rng.normal(size=40) * 1e-3
        if kind == "alike":
            return umbel.Update({"w": model["w"] + 1.0}, weight=5, metrics={"count": count})
        w = model["w"] - ctx.config.get("lr", 0.5) * (model["w"] - data.mean()) + 0.01 * count + noise
        return umbel.Update({"w": w}, weight=len(data), metrics={"count": count})

    @client.evaluate
    def evaluate(model, data, ctx):
        return umbel.Metrics({"error": float(((model["w"] - data.mean()) ** 2).mean())}, weight=len(data))

    settings = {"transforms": (umbel.top_k(0.3),)} if kind == "top_k" else {}
    strategy = Twice() if kind == "twice" else umbel.FedAvg(cohort=3, **settings)
    if kind == "sums":
        strategy = secure(umbel.FedAvg(cohort=4), weight=5.0, metrics=["count"])
    return umbel.App(client, model={"w": np.zeros(40)}, strategy=strategy, rounds=2)


class Twice(umbel.Strategy):
    """Asks the same clients twice a round; the second time they go on from what the first has left with them."""

    def round(self, state, r):
        for _ in range(2):
            answer = yield umbel.Ask(clients="all", model=state.model)
            state = state.replace(model=umbel.Arrays({"w": state.model["w"] + answer.value["w"]}))
        return state


SOURCES = {str(i): {"index": i, "count": 4} for i in range(4)}
NODES = {"a": {"0": SOURCES["0"], "1": SOURCES["1"]}, "b": {"2": SOURCES["2"]}, "c": {"3": SOURCES["3"]}}


@pytest.fixture(scope="module")
def undisturbed():
    """What simulations of the same clients end with."""
    found = {}
    for kind in ("plain", "top_k", "twice", "alike", "sums"):
        result = umbel.run(app_of(kind), on=umbel.Simulation(clients=4), seed=5, folder=None)
        found[kind] = (result.model_sha256, {name: result.history.series(name) for name in result.history.names})
    return found


def live(tmp_path, seed, undisturbed, kind="", **settings):
    kind = kind or ("plain", "twice", "plain", "top_k")[seed % 4]
    folder = tmp_path / str(seed)
    folder.mkdir()
    world = Deployment(app_of(kind), NODES, seed=seed, scratch=folder, **settings)
    result = world.run(folder, seed=5)
    sha, series = undisturbed[kind]
    assert result.model_sha256 == sha, f"seed {seed}: {world.happened}"
    assert {name: result.history.series(name) for name in result.history.names} == series, f"seed {seed}"
    world.settle()
    return world


BATCHES = some(range(FIRST // BATCH, (FIRST + SEEDS) // BATCH), 1)


@pytest.mark.parametrize("batch", BATCHES)
def test_whatever_happens_the_bits_are_those_of_the_simulation(tmp_path, batch, undisturbed):
    for seed in range(batch * BATCH, batch * BATCH + BATCH):
        live(tmp_path, seed, undisturbed)


@pytest.mark.slow
def test_so_are_they_where_all_clients_answer_alike(tmp_path, undisturbed):
    for seed in range(40):
        live(tmp_path, seed, undisturbed, "alike")


@pytest.mark.parametrize("batch", some(range(20), 1))
def test_so_are_those_of_sums_that_show_no_single_update(tmp_path, batch, undisturbed):
    for seed in range(20_000 + 5 * batch, 20_005 + 5 * batch):
        live(tmp_path, seed, undisturbed, "sums")


@pytest.mark.parametrize("batch", some(range(5), 1))
def test_so_are_they_with_everything_in_sqlite(tmp_path, batch, undisturbed):
    for seed in range(10_000 + 10 * batch, 10_010 + 10 * batch):
        world = live(
            tmp_path,
            seed,
            undisturbed,
            store=lambda seed=seed: SqlStore(tmp_path / f"{seed}.db"),
            spool=lambda name, seed=seed: Spool(tmp_path / f"{seed}-{name}.db"),
        )
        world.close()


def test_the_same_seed_gives_the_same_life(tmp_path, undisturbed):
    lives = [live(tmp_path / name, 7, undisturbed) for name in ("one", "two") if not (tmp_path / name).mkdir()]
    assert lives[0].happened == lives[1].happened
    assert lives[0].time == lives[1].time


def test_nothing_happens_without_faults(tmp_path, undisturbed):
    world = live(tmp_path, 0, undisturbed, faults=QUIET)
    assert world.happened == []


def test_an_outage_of_the_server_expires_no_deadline(tmp_path):
    app = app_of("plain")
    app.strategy = umbel.FedAvg(cohort=4, window=umbel.Window(deadline=60.0))
    world = Deployment(app, NODES, seed=1, faults=QUIET, scratch=tmp_path)
    away = iter([True])

    def watch(event):
        if event.name == "ask_opened" and next(away, False):
            world.keep_away("server", 100_000.0)

    result = world.run(tmp_path, seed=5, observers=(watch,))
    assert world.time > 100_000.0
    assert [r for r in rounds_of(result) if r["dropped"]] == []


def test_a_hospital_that_vanishes_does_not_hang_a_run(tmp_path):
    world = Deployment(app_of("plain"), NODES, seed=2, faults=QUIET, stall=600.0, scratch=tmp_path)
    told = []

    def watch(event):
        if event.name == "round_started" and event.round == 1:
            world.keep_away("c", 10**6)
        elif event.name in ("warned", "round_committed"):
            told.append(event)

    world.run(tmp_path, seed=5, observers=(watch,))
    warned = [event for event in told if event.name == "warned"]
    assert warned[0].client == 3
    assert "no sign of life for 300 s (its node is not connected)" in warned[0].text
    rounds = [event for event in told if event.name == "round_committed"]
    assert len(rounds) == 2
    assert rounds[0].dropped == 1
    assert 600 <= world.time < 10**6


def test_too_few_for_the_quorum_keeps_the_model(tmp_path):
    app = app_of("plain")
    app.strategy = umbel.FedAvg(cohort=4, window=umbel.Window(quorum=4))
    app.max_failed_rounds = 2
    world = Deployment(app, NODES, seed=3, faults=QUIET, stall=60.0, scratch=tmp_path)

    def watch(event):
        if event.name == "round_started":
            world.keep_away("c", 10**6)

    with pytest.raises(umbel.UmbelError, match="2 rounds in a row brought no update"):
        world.run(tmp_path, seed=5, observers=(watch,))


@pytest.mark.slow
def test_asynchronous_rounds_survive_everything(tmp_path):
    """Which answers come late is chance here; that nothing hangs, is lost or counted twice is not."""
    for seed in range(60):
        app = app_of("plain")
        window = umbel.Window(in_flight=3, close_after=2, late="keep")
        app.strategy = umbel.FedAvg(cohort=4, window=window, fold=umbel.mean())
        folder = tmp_path / str(seed)
        folder.mkdir()
        world = Deployment(app, NODES, seed=seed, scratch=folder)
        result = world.run(folder, seed=5)
        assert result.rounds == 2
        for r in rounds_of(result):
            assert r["failed"] is None
            assert r["clients"] >= 2


def rounds_of(result):
    lines = (result.folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "round_committed"]


def test_a_run_whose_clients_all_fail_has_failed_and_goes_on_once_they_are_mended(tmp_path):
    app, broken = app_of("plain"), [True]
    train = app.client.handlers["train"]

    def handler(model, data, ctx):
        if broken:
            raise OSError("the table is locked")
        return train(model, data, ctx)

    app.client.handlers["train"] = handler
    world = Deployment(app, NODES, seed=4, faults=QUIET, scratch=tmp_path)
    with pytest.raises(RunFailed, match=r"round 1 brought no update: 0 of 3 .*the table is locked") as caught:
        world.run(tmp_path, seed=5)
    assert caught.value.result.rounds == 1
    broken.clear()
    result = world.run(tmp_path, seed=5)
    assert (result.failed, result.reason) == (None, "rounds")
    assert [r["failed"] is None for r in rounds_of(result)] == [False, True, True]


@pytest.mark.parametrize("relays", [None, {"x": ["a", "b", "c"]}], ids=["nodes", "a relay"])
def test_what_became_of_each_client_is_known_as_in_a_simulation(tmp_path, relays):
    """Also through relays, and whatever was killed and resumed meanwhile."""

    def made():
        app = app_of("plain")
        app.strategy = umbel.FedAvg(cohort="all")
        train = app.client.handlers.pop("train")

        @app.client.train
        def with_metrics(model, data, ctx):
            made = train(model, data, ctx)
            if ctx.client == 3 and ctx.round == 2:
                raise ValueError("no data")
            return replace(made, metrics={**made.metrics, "loss": np.nan if ctx.client == 1 else 1.0})

        return app

    def rows(result):
        return [replace(row, seconds=None) for row in result.clients]

    whole = umbel.run(made(), on=umbel.Simulation(clients=4), seed=5, folder=None)
    assert [row.status for row in whole.clients].count("failed") == 1
    assert [r.train["loss"] for r in whole.history] == [1.0, 1.0]
    killed = 0
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        world = Deployment(made(), NODES, seed=seed, relays=relays, scratch=folder)
        result = world.run(folder, seed=5)
        assert repr(rows(result)) == repr(rows(whole)), seed  # as text, since NaN differs from NaN
        assert [r.failures for r in result.history] == [r.failures for r in whole.history]
        events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
        killed += any(event["event"] == "run_resumed" for event in events)
        assert next(event["skipped"] for event in events if event["event"] == "ask_closed") == {"loss": [1, [1]]}
    assert killed
