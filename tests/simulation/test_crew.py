"""Connecting a simulation: what its workers are told, and what is refused before any of them starts."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import open_files

import umbel
from umbel import App, Arrays, Client, FedAvg, Simulation, Update, run
from umbel.core.randomness import Key
from umbel.errors import AppError, CallerError, SettingError
from umbel.simulation import crew, processes, worker
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2)})


def trains(handler, load=None):
    client = Client()
    client.train(handler)
    if load is not None:
        client.data(load)
    return client


@pytest.fixture
def connect():
    """Connects simulations, and disconnects them in the end."""
    states, sessions = ClientStates(), []

    def connect(simulation, client=None):
        client = client or trains(lambda model, data, ctx: Update(model))
        sessions.append(simulation.connect(client, {}, Key.from_seed(0), states))
        return sessions[-1]

    yield connect
    for session in sessions:
        session.disconnect()
    states.close()


def trained(simulation, handler, rounds=1, **settings):
    app = App(trains(handler), model=lambda: MODEL, strategy=FedAvg(cohort=4), rounds=rounds, **settings)
    return run(app, on=simulation, folder=None)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_starts_no_run_of_its_own(connect, monkeypatch, workers):
    monkeypatch.setattr(worker, "active", True)
    with pytest.raises(CallerError, match="a worker process would start a run of its own") as caught:
        connect(Simulation(3, workers=workers))
    assert '__name__ == "__main__"' in caught.value.hint


@pytest.mark.parametrize("start", [None, "spawn"])
def test_a_run_inside_a_handler_is_refused(start):
    def train(model, data, ctx):
        import umbel

        client = umbel.Client()
        client.train(lambda model, data, ctx: umbel.Update(model))
        app = umbel.App(client, model=lambda: model, strategy=umbel.FedAvg(cohort=1), rounds=1)
        umbel.run(app, on=umbel.Simulation(1, workers=0), folder=None)

    with pytest.raises(CallerError, match="a worker process would start a run of its own"):
        trained(Simulation(4, workers=1, start=start), train)


@pytest.mark.slow
def test_a_client_that_cannot_be_sent(connect):
    processes.prepare(processes.default_start(), [])
    before, lock = open_files(), threading.Lock()

    def train(model, data, ctx):
        with lock:
            return Update(model)

    with pytest.raises(AppError, match=r"the client cannot be sent to worker processes: .*lock") as caught:
        connect(Simulation(3, workers=2), trains(train))
    assert "workers=0" in caught.value.hint
    assert not open_files() - before
    assert trained(Simulation(4, workers=0), train).rounds == 1


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_sources_that_cannot_be_sent(connect, named):
    before = open_files()
    source = threading.Lock()
    sources = {"a": source} if named else [source]
    with pytest.raises(SettingError, match="the clients' sources cannot be sent to worker processes: ") as caught:
        connect(Simulation(sources, workers=2))
    assert "workers=0" in caught.value.hint
    assert len(open_files() - before) <= 1  # the forkserver's, should it have started
    connect(Simulation(sources, workers=0))


def test_a_client_that_workers_cannot_load(monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    raise ImportError('the licence is missing')\n"
        "def load(source):\n    return source\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    client = trains(lambda model, data, ctx: Update(model), load=only_here.load)
    app = App(client, model=lambda: MODEL, strategy=FedAvg(cohort=2), rounds=1)
    with pytest.raises(AppError, match="cannot load the client: ImportError: the licence is missing") as caught:
        run(app, on=Simulation(3, workers=2), folder=None)
    assert "importable" in caught.value.hint
    sys.modules.pop("only_here")


def test_workers_that_end_before_they_do_anything(monkeypatch, tmp_path):
    (tmp_path / "ends_it.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n    os._exit(3)\ndef load(source):\n    return source\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import ends_it

    client = trains(lambda model, data, ctx: Update(model), load=ends_it.load)
    app = App(client, model=lambda: MODEL, strategy=FedAvg(cohort=2), rounds=1)
    with pytest.raises(AppError, match="end before they can do anything; the last ended with exit code 3"):
        run(app, on=Simulation(3, workers=2), folder=None)
    sys.modules.pop("ends_it")


def test_sources_of_a_module_that_was_found_later(monkeypatch, tmp_path):
    processes.prepare(processes.default_start(), [])  # before the module could be found
    (tmp_path / "later.py").write_text("class Source:\n    number = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    import later

    result = trained(
        Simulation([later.Source() for _ in range(4)], workers=2),
        lambda model, data, ctx: Update({"w": model["w"] + data.number}),
    )
    assert result.model["w"].tolist() == [4.0, 4.0]
    sys.modules.pop("later")


@pytest.mark.parametrize("start", [None, "spawn"])
def test_workers_work_where_the_main_process_does(monkeypatch, tmp_path, start):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMBEL_TEST_WORD", "said")

    def train(model, data, ctx):
        facts = {
            "folder": Path.cwd() == Path(ctx.config["folder"]),
            "word": os.environ.get("UMBEL_TEST_WORD") == "said",
            "thread": os.environ["OMP_NUM_THREADS"] == "1",
            "apart": os.getpid() != ctx.config["pid"],
            "path": ctx.config["path"] in sys.path,
            "device": ctx.device == "tpu",
            "count": data["count"],
        }
        return Update(model, metrics=facts)

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    config = {"folder": str(Path.cwd()), "pid": os.getpid(), "path": str(tmp_path / "modules")}
    result = trained(Simulation(4, workers=2, device="tpu", start=start), train, config=config)
    assert result.metrics == {
        **{f"train.{name}": 1.0 for name in ("folder", "word", "thread", "apart", "path", "device")},
        "train.count": 4.0,
    }


def test_the_data_of_so_many_clients_is_kept_by_all_workers_together(connect, monkeypatch):
    told = []
    monkeypatch.setattr(crew, "PackedMessage", lambda beginning: told.append(beginning) or parcel(beginning))
    parcel = sys.modules["umbel.simulation.channel"].PackedMessage
    connect(Simulation(3, workers=2, data_cache=5, memory=10**9))
    beginning = told[0]
    assert (beginning.data_cache, beginning.memory, beginning.sources) == (3, 10**9, 3)


def test_no_worker_is_started_for_this_process(connect, monkeypatch):
    monkeypatch.setattr(processes, "start", None)
    monkeypatch.setattr(crew, "start", None)
    monkeypatch.setattr(crew, "prepare", None)
    assert connect(Simulation(3, workers=0)).next_event() is None


def test_workers_are_gone_when_a_run_is_disconnected():
    before = open_files()
    states = ClientStates()
    session = Simulation(3, workers=2).connect(
        trains(lambda model, data, ctx: Update(model)), {}, Key.from_seed(0), states
    )
    channels = [worker.channel for worker in session._hands.workers]
    assert all(channel.fileno() >= 0 for channel in channels)
    session.disconnect()
    assert all(channel.fileno() == -1 for channel in channels)
    states.close()
    del session
    assert len(open_files() - before) <= 1


def test_a_client_of_the_main_script_and_of_this_function_alike():
    offset = np.arange(2.0)
    results = [
        trained(Simulation(4, workers=workers), lambda model, data, ctx: Update({"w": model["w"] + offset}), rounds=2)
        for workers in (0, 2)
    ]
    assert results[0].model_sha256 == results[1].model_sha256


def loading(notes, drawing=False):
    """A client that notes which process loads whose data, and may draw for it."""
    client = Client()

    @client.data
    def data(source):
        with open(notes, "a") as file:
            print(os.getpid(), source["index"], file=file)
        return np.full(2, source["index"]) + (np.random.normal(size=2) if drawing else 0.0)

    @client.train
    def train(model, data, ctx):
        if ctx.config["fail"]:
            raise umbel.errors.SettingError("not with me")
        step = data + ctx.rng.normal(size=2) + np.random.normal(size=2) * ctx.state.get("times", 0)
        ctx.state["times"] = ctx.state.get("times", 0) + 1
        return Update({"w": model["w"] + ctx.config["lr"] * (step - model["w"])})

    config = {"lr": 0.5, "fail": False, "of": "any"}
    return App(client, model=lambda: MODEL, strategy=FedAvg(cohort=3), rounds=3, config=config)


def who_loaded(notes):
    """The processes that have loaded, and how often anything was, since this was last asked."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    notes.unlink(missing_ok=True)
    return {line.split()[0] for line in lines}, len(lines)


RUNS = [{"seed": seed, "config": {"lr": rate}} for rate in (0.1, 0.5) for seed in (0, 1)]


@pytest.mark.parametrize("drawing", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_runs_that_share_workers_have_the_bits_of_runs_that_do_not(tmp_path, workers, drawing):
    notes, federation = tmp_path / "notes", Simulation(4, workers=workers)
    app = loading(notes, drawing)
    alone = [run(app, on=federation, folder=None, **each).model_sha256 for each in RUNS]
    _, loads = who_loaded(notes)
    with federation.warm() as warm:
        assert warm is federation
        together = [run(app, on=federation, folder=None, **each).model_sha256 for each in RUNS]
    assert together == alone
    assert len(set(alone)) == 4
    processes, warm_loads = who_loaded(notes)
    assert len(processes) <= max(1, workers)
    assert warm_loads <= 4 * max(1, workers) or drawing
    assert loads >= 4 * 3
    assert federation.warmth is None
    assert run(app, on=federation, folder=None, **RUNS[0]).model_sha256 == alone[0]


def test_data_that_was_drawn_is_drawn_again_for_another_seed_alone(tmp_path):
    notes, federation = tmp_path / "notes", Simulation(4, workers=0)
    app = loading(notes, drawing=True)
    with federation.warm():
        for seed, loads in ((3, 4), (3, 0), (4, 4)):
            app.strategy = FedAvg(cohort="all")
            run(app, on=federation, folder=None, seed=seed)
            assert who_loaded(notes)[1] == loads


@pytest.mark.parametrize("workers", [0, 1])
def test_what_has_gone_wrong_or_is_another_clients_is_not_kept(tmp_path, workers):
    notes, federation = tmp_path / "notes", Simulation(4, workers=workers)
    app = loading(notes)
    app.strategy = FedAvg(cohort="all")
    once = {"on": federation, "folder": None}
    before = open_files()
    with federation.warm(), federation.warm():
        run(app, **once)
        first = who_loaded(notes)
        with pytest.raises(SettingError, match="not with me"):
            run(app, config={"fail": True}, **once)
        who_loaded(notes)
        run(app, **once)
        second = who_loaded(notes)
        assert (first[1], second[1]) == (4, 4)
        run(app, **once)
        assert who_loaded(notes)[1] == 0
        with federation.with_workers(workers).warm() as twin:
            run(app, on=twin, folder=None)
        assert who_loaded(notes)[1] == 0
        run(loading(notes, drawing=True), **once)
        assert who_loaded(notes)[1] > 0
    assert len(open_files() - before) <= 1
    with Simulation(4, workers=workers, memory=1 << 34).warm() as limited:
        for _ in range(2):
            run(app, on=limited, folder=None)
            assert who_loaded(notes)[1] == 4


def test_a_run_beside_another_has_workers_of_its_own(tmp_path):
    notes, federation = tmp_path / "notes", Simulation(4, workers=1)
    app, within = loading(notes), []

    @app.test
    def test(model):
        if not within:
            within.append(True)
            within.append(run(app, on=federation, folder=None, seed=1).model_sha256)
        return {"size": len(model)}

    with federation.warm():
        outer = run(app, on=federation, folder=None, seed=0).model_sha256
        assert len(who_loaded(notes)[0]) == 2
        again = [run(app, on=federation, folder=None, seed=seed).model_sha256 for seed in (0, 1)]
    assert again == [outer, within[1]]


def test_a_worker_that_ends_between_two_runs_is_replaced(tmp_path):
    notes, federation = tmp_path / "notes", Simulation(4, workers=1)
    app = loading(notes)
    with federation.warm():
        first = run(app, on=federation, folder=None).model_sha256
        (pid,), _ = who_loaded(notes)
        os.kill(int(pid), 9)
        assert run(app, on=federation, folder=None).model_sha256 == first
        assert who_loaded(notes)[0] not in ({pid}, set())


def test_workers_of_a_run_that_did_not_come_to_its_end_are_ended():
    federation, states = Simulation(3, workers=1), ClientStates()
    client = trains(lambda model, data, ctx: Update(model))
    with federation.warm():
        hosts = []
        for whole in (False, True, True, False):
            session = federation.connect(client, {}, Key.from_seed(0), states)
            hosts.append(session._hands.workers[0].host)
            session.disconnect(whole)
        assert hosts[1] is hosts[2] is hosts[3]
        assert hosts[0] is not hosts[1]
        assert [host.channel.fileno() for host in hosts] == [-1] * 4
    states.close()
