"""Connecting a simulation: what its workers are told, and what is refused before any of them starts."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import open_files

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
    (beginning,) = told
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
