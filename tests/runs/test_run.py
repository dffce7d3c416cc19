"""Runs from beginning to end: the same bits from the same seed, what a result holds, and what is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import time
from dataclasses import replace

import numpy as np
import pytest

import umbel
from umbel import (
    App,
    Arrays,
    Ask,
    Client,
    EarlyStop,
    FedAdam,
    FedAvg,
    Fixed,
    Free,
    KeepBest,
    Like,
    Metrics,
    Simulation,
    State,
    Strategy,
    Update,
    Window,
    clip_by_norm,
    collect,
    files,
    mean,
    top_k,
)
from umbel.core import encoding
from umbel.core.optimizers import adam
from umbel.errors import AppError, CallerError, CorruptFile, RunFailed, SettingError, StorageError, StrategyError
from umbel.runs.events import AskClosed, AskOpened, RoundCommitted, RoundStarted, RunFinished, RunStarted, TaskEnded
from umbel.runs.journal import LOG, read_log
from umbel.runs.past import find, is_over
from umbel.runs.run import load_model
from umbel.testing import VirtualClock

ZEROS = {"w": np.zeros(3, np.float32)}


def client_of(train=None, evaluate=None, data=None) -> Client:
    client = Client()
    if data is not None:
        client.data(data)
    client.train(train or random_step)
    if evaluate is not None:
        client.evaluate(evaluate)
    return client


def random_step(model, data, ctx):
    """Draws from everything that a handler may draw from."""
    step = [ctx.rng.normal(), random.random(), np.random.random()]
    return Update({"w": model["w"] + np.array(step, np.float32)}, weight=1 + ctx.client % 3, metrics={"step": step[0]})


def app_of(client=None, **settings) -> App:
    settings = {"model": ZEROS, "strategy": FedAvg(cohort=3), "rounds": 3, "evaluate_every": 0, **settings}
    return App(client or client_of(), **settings)


def run(app, clients=8, **settings):
    on = clients if isinstance(clients, Simulation) else Simulation(clients)
    return umbel.run(app, on=on, **{"folder": None, **settings})


def facts(result):
    return result.model_sha256, [replace(r, seconds=0.0, checkpoint=None) for r in result.history]


# The same bits


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first = run(app_of(), seed=1)
    assert facts(run(app_of(), seed=1)) == facts(first)
    assert run(app_of(), seed=2).model_sha256 != first.model_sha256
    assert run(app_of(), seed=-1).model_sha256 not in {first.model_sha256, run(app_of(), seed=2).model_sha256}


def test_writing_it_down_watching_it_and_the_clock_change_nothing(tmp_path):
    whole = facts(run(app_of()))
    assert facts(run(app_of(), folder=tmp_path, observers=[lambda event: None])) == whole
    assert facts(run(app_of(), clock=VirtualClock(99.0))) == whole


def test_evaluating_changes_nothing_of_what_is_learned():
    client = client_of(evaluate=lambda model, data, ctx: Metrics({"x": random.random()}))
    models = {run(app_of(client, evaluate_every=every)).model_sha256 for every in (0, 1, 2)}
    assert len(models) == 1


def loaded(source):
    return source["index"] * random.random() + np.random.random()


def test_how_much_data_is_kept_in_memory_changes_nothing():
    def train(model, data, ctx):
        return Update({"w": model["w"] + np.float32(data + random.random())})

    results = {
        run(app_of(client_of(train, data=loaded)), Simulation(8, data_cache=size)).model_sha256 for size in (0, 1, 8)
    }
    assert len(results) == 1


def test_the_order_in_which_clients_are_asked_changes_nothing():
    def model(clients):
        return run(app_of(strategy=FedAvg(cohort=Fixed(tuple(clients))), rounds=2)).model_sha256

    assert model([5, 1, 4]) == model([4, 5, 1])
    assert model([5, 1, 4]) != model([5, 1, 3])


def test_the_order_of_named_clients_changes_nothing_where_all_are_asked():
    names = {f"site {i}": {"index": i} for i in range(5)}

    def train(model, data, ctx):
        return Update({"w": model["w"] + ctx.rng.normal() + data["index"]}, weight=data["index"] + 1)

    app = app_of(client_of(train), model={"w": np.zeros(3)}, strategy=FedAvg(cohort="all"))
    there = run(app, names)
    back = run(app, dict(reversed(names.items())))
    assert there.model_sha256 == back.model_sha256
    assert [r.train for r in there.history] == [r.train for r in back.history]


def test_global_generators_are_given_back_as_they_were_found():
    random.seed(11)
    np.random.seed(12)
    kept = random.getstate(), np.random.get_state()[1].tolist()
    run(app_of(client_of(data=loaded), model=lambda: {"w": np.full(3, random.random(), np.float32)}))

    def broken(model, data, ctx):
        raise KeyboardInterrupt

    with pytest.raises(umbel.UmbelError):
        run(app_of(client_of(broken)))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == kept


def test_the_model_is_made_from_the_seed_too():
    app = app_of(model=lambda: {"w": np.array([random.random()] * 3, np.float32)})
    random.seed(1)
    first = run(app, seed=4)
    random.seed(2)
    assert run(app, seed=4).model_sha256 == first.model_sha256
    assert run(app, seed=5).model_sha256 != first.model_sha256


# What a result holds


def test_a_result_says_how_it_went(tmp_path):
    app = app_of(evaluate_every=1)
    app.test(lambda model: {"size": float(np.abs(model["w"]).sum())})
    result = run(app, folder=tmp_path, name="demo")
    assert result.rounds == len(result.history) == 3
    assert result.reason == "rounds"
    assert result.best_round is None
    assert result.seconds > 0
    assert result.run.startswith("demo-")
    assert result.folder == tmp_path / result.run
    assert result.metrics == {
        "train.step": result.history.last("train.step"),
        "test.size": float(np.abs(result.model["w"]).sum()),
    }
    assert [r.clients for r in result.history] == [3, 3, 3]
    assert [r.dropped for r in result.history] == [0, 0, 0]


def test_metrics_are_means_by_weight():
    def train(model, data, ctx):
        return Update(model, weight=[1, 3, 0][ctx.client], metrics={"loss": [8.0, 4.0, 1e9][ctx.client]})

    def evaluate(model, data, ctx):
        return Metrics(
            {"accuracy": [0.5, 1.0, 0.25][ctx.client], **({"rare": 7} if ctx.client else {})}, weight=ctx.client
        )

    app = app_of(client_of(train, evaluate), strategy=FedAvg(cohort="all"), rounds=1, evaluate_every=1)
    only = run(app, 3).history[0]
    assert only.train == {"loss": (8.0 + 3 * 4.0) / 4}
    assert only.evaluate == {"accuracy": (1.0 + 2 * 0.25) / 3, "rare": 7.0}


def test_a_folder_holds_the_log_the_checkpoints_and_nothing_else(tmp_path):
    result = run(app_of(rounds=5), folder=tmp_path)
    files = sorted(str(p.relative_to(result.folder)) for p in result.folder.rglob("*") if p.is_file())
    assert files == [
        *(f"checkpoints/round-000{r}.safetensors" for r in (3, 4, 5)),
        "client-states.db",
        "events.jsonl",
        "initial.safetensors",
        "summary.json",
    ]
    log = read_log(result.folder)
    assert [type(e) for e in log.events] == [RunStarted, *[AskClosed, RoundCommitted] * 5, RunFinished]
    assert log.started.seed == 0
    assert log.started.clients == 8
    assert log.started.strategy == "FedAvg"
    assert {"python", "system", "umbel", "numpy", "instructions", "threads", "plan"} <= log.started.software.keys()
    assert log.finished.model_sha256 == result.model_sha256


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(app_of())
    assert result.folder is None
    assert os.listdir(tmp_path) == []


def test_by_default_runs_are_kept_where_one_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = umbel.run(app_of(rounds=1), on=Simulation(3))
    assert (tmp_path / "umbel-runs" / result.run / LOG).is_file()


def test_two_runs_of_one_second_never_share_a_folder(tmp_path, monkeypatch):
    letters = iter(["ab12", "ab12", "ab12", "cd34"])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(letters))
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    ids = [run(app_of(rounds=1), folder=tmp_path).run for _ in range(2)]
    assert ids == ["run-20260102-030405-ab12", "run-20260102-030405-cd34"]
    assert all(read_log(tmp_path / id).started.run == id for id in ids)


def test_observers_see_every_event_in_order():
    def train(model, data, ctx):
        if ctx.client == 1:
            raise ValueError("bad day")
        return Update(model)

    seen = []
    run(app_of(client_of(train), strategy=FedAvg(cohort=Fixed((0, 1))), rounds=1), observers=[seen.append])
    assert [type(e) for e in seen] == [
        RunStarted, RoundStarted, AskOpened, TaskEnded, TaskEnded, AskClosed, RoundCommitted, RunFinished,
    ]  # fmt: skip
    assert [(e.task, e.reason and e.reason[:40]) for e in seen if isinstance(e, TaskEnded)] == [
        ("0.0", None),
        ("0.1", "its train handler raised ValueError: bad"),
    ]


def test_settings_of_the_run_are_laid_over_those_of_the_app(tmp_path):
    seen = []

    def train(model, data, ctx):
        seen.append(dict(ctx.config))
        return Update(model)

    app = app_of(
        client_of(train), config={"lr": 0.1, "steps": 2}, strategy=FedAvg(cohort=1, config={"mu": 1}), rounds=1
    )
    run(app, config={"lr": 0.5}, rounds=2)
    assert seen == [{"lr": 0.5, "steps": 2, "mu": 1}] * 2


# What to begin with


@pytest.fixture
def earlier(tmp_path):
    return run(app_of(), folder=tmp_path / "runs", seed=3)


def test_a_run_begins_with_arrays_an_exported_file_or_a_checkpoint(earlier, tmp_path):
    exported = tmp_path / "model.safetensors"
    exported.write_bytes(earlier.model.to_bytes())
    checkpoint = earlier.folder / "checkpoints" / "round-0003.safetensors"
    results = [run(app_of(), init=init, seed=1) for init in (earlier.model, exported, str(checkpoint))]
    assert len({r.model_sha256 for r in results}) == 1
    assert results[0].model_sha256 != run(app_of(), seed=1).model_sha256


def test_what_a_checkpoint_a_first_model_and_an_exported_file_hold(earlier, tmp_path):
    assert load_model(earlier.folder / "checkpoints" / "round-0003.safetensors") == earlier.model
    assert load_model(earlier.folder / "initial.safetensors") == Arrays(ZEROS)
    (tmp_path / "plain").write_bytes(earlier.model.to_bytes())
    assert load_model(tmp_path / "plain") == earlier.model


@pytest.mark.parametrize("strategy", [FedAvg(cohort=3), FedAdam(cohort=3)], ids=["fedavg", "fedadam"])
def test_a_run_whose_states_are_mapped_learns_and_keeps_the_same(tmp_path, monkeypatch, strategy):
    plain = run(app_of(strategy=strategy), folder=tmp_path / "plain")
    monkeypatch.setattr(files, "LARGE", 1)
    mapped = run(app_of(strategy=strategy), folder=tmp_path / "mapped")
    assert facts(mapped) == facts(plain)
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped.model["w"].flags.writeable = True
    for name in ("initial.safetensors", "checkpoints/round-0003.safetensors"):
        assert load_model(mapped.folder / name) == load_model(plain.folder / name)
    kept = {path.stem for path in (mapped.folder / "arrays").iterdir()}
    assert all(
        hashlib.sha256((mapped.folder / "arrays" / f"{sha}.safetensors").read_bytes()).hexdigest() == sha
        for sha in kept
    )
    named = [mapped.folder / "initial.safetensors", *(mapped.folder / "checkpoints").iterdir()]
    assert kept == set().union(*map(encoding.named_files, named))  # what no checkpoint names any more is gone
    assert mapped.model.stored.sha256 in kept
    app = app_of(strategy=strategy)
    resumed = [umbel.resume(app, r.folder, on=Simulation(8), rounds=5).model_sha256 for r in (mapped, plain)]
    assert resumed[0] == resumed[1] == run(app_of(strategy=strategy), rounds=5).model_sha256


def test_a_model_that_does_not_fit_is_refused(earlier, tmp_path):
    other = Arrays({"w": np.zeros(4, np.float32), "v": np.zeros(1)})
    with pytest.raises(AppError, match=r"does not fit the app's: they differ in v, w\n.*same app"):
        run(app_of(), init=other, folder=tmp_path / "none")
    with pytest.raises(AppError, match="they differ in w"):
        run(app_of(), init=Arrays({"w": np.zeros(3, np.float64)}))
    assert not (tmp_path / "none").exists()


def test_a_file_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"nothing\.safetensors cannot be read: No such file"):
        run(app_of(), init=tmp_path / "nothing.safetensors")
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(CorruptFile, match=r"text holds no model: .* not in the safetensors format.*\n.*umbel export"):
        run(app_of(), init=tmp_path / "text")


# When to evaluate, when to stop, what to keep


def measured(values, **settings):
    """An app whose test gives these values, one a round."""
    left = iter(values)
    app = app_of(rounds=len(values), evaluate_every=1, **settings)
    app.test(lambda model: {"accuracy": next(left)})
    return app


@pytest.mark.parametrize(("every", "rounds"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_evaluation_is_every_so_often_and_at_the_end(every, rounds):
    client = client_of(evaluate=lambda model, data, ctx: {"x": 1})
    app = app_of(client, rounds=5, evaluate_every=every)
    app.test(lambda model: Metrics({"y": 2}))
    history = run(app).history
    assert [r.round for r in history if r.evaluate] == [r.round for r in history if r.test] == rounds


@pytest.mark.parametrize(("every", "rounds"), [(0, [0]), (2, [0, 2, 3])])
def test_evaluation_before_the_first_round_is_round_0(every, rounds, tmp_path):
    """It is a round like others for the history, and changes nothing of what is learned."""
    client = client_of(evaluate=lambda model, data, ctx: {"x": float(model["w"].sum())})
    app = app_of(client, evaluate_every=every, evaluate_at_start=True)
    app.test(lambda model: Metrics({"y": float(model["w"].sum())}))
    result = run(app, folder=tmp_path)
    assert [r.round for r in result.history] == [0, 1, 2, 3]
    assert [r.round for r in result.history if r.evaluate] == [r.round for r in result.history if r.test] == rounds
    assert (result.history[0].test, result.history[0].evaluate, result.history[0].clients) == ({"y": 0}, {"x": 0}, 0)
    assert result.model == run(app_of()).model
    assert (result.rounds, result.history.round) == (3, 3)
    past = find(result.run, tmp_path)
    assert (past.rounds_asked, past.log.round, is_over(past.log, None)) == (3, 3, True)
    assert past.log.finished.rounds == 3
    again = umbel.resume(app, result.folder, on=Simulation(8), rounds=4)
    assert [r.round for r in again.history] == [0, 1, 2, 3, 4]


def test_the_initial_model_may_be_the_best():
    result = run(measured([9, 1, 2], evaluate_at_start=True, keep_best="test.accuracy"), rounds=2)
    assert result.best_round == 0
    assert result.model == Arrays(ZEROS)
    assert result.metrics == {"test.accuracy": 9}


def test_every_so_often_a_checkpoint_is_kept(tmp_path):
    result = run(app_of(rounds=9, checkpoint_every=3), folder=tmp_path)
    left = {int(p.stem[-4:]) for p in (result.folder / "checkpoints").iterdir()}
    assert left == {3, 6, 7, 8, 9}
    assert find(result.run, tmp_path).model(3)[0] == run(app_of(rounds=3)).model
    assert result.model == run(app_of(rounds=9)).model


@pytest.mark.parametrize("kept", [True, False])
def test_a_function_is_called_after_each_round_and_may_end_the_run(kept, tmp_path):
    seen = []

    def look(event, model):
        seen.append((event.round, model))
        return event.round == 2

    folder = tmp_path if kept else None
    result = run(app_of(rounds=5), on_round=look, folder=folder)
    assert (result.rounds, result.reason) == (2, "early stop")
    assert [r for r, _ in seen] == [1, 2]
    assert [model for _, model in seen] == [run(app_of(rounds=r)).model for r in (1, 2)]
    if kept:
        again = umbel.resume(app_of(rounds=5), result.folder, on=Simulation(8), on_round=lambda event, model: None)
        assert (again.rounds, again.reason) == (5, "rounds")
        assert again.model == run(app_of(rounds=5)).model


def test_what_is_no_true_does_not_end_a_run():
    for said in (lambda model: model, lambda model: 1, lambda model: "", lambda model: np.False_):
        assert run(app_of(), on_round=lambda event, model, said=said: said(model)).rounds == 3


def test_a_function_may_say_why_the_run_ends_and_a_number_of_numpy_is_true_as_well():
    ended = run(app_of(), on_round=lambda event, model: "close enough" if event.round == 2 else None)
    assert (ended.rounds, ended.reason) == (2, "close enough")
    assert run(app_of(), on_round=lambda event, model: np.mean(model["w"]) < np.inf).reason == "early stop"


def test_what_a_function_raises_ends_the_run_which_can_be_resumed(tmp_path):
    def look(event, model):
        raise ValueError("no more room")

    with pytest.raises(AppError, match="on_round raised ValueError: no more room") as raised:
        run(app_of(), on_round=look, folder=tmp_path)
    assert raised.value.round == 1
    again = umbel.resume(app_of(), tmp_path / raised.value.run, on=Simulation(8))
    assert again.model == run(app_of()).model


def test_settings_of_rounds_are_checked():
    for wrong in ({"checkpoint_every": -1}, {"checkpoint_every": 1.5}, {"evaluate_at_start": 1}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            app_of(**wrong)
    with pytest.raises(SettingError, match="on_round is a function"):
        run(app_of(), on_round=3)


def test_observers_that_can_be_closed_are_closed_however_a_run_ends(tmp_path):
    class Watching:
        def __init__(self, fails=False):
            self.closed, self.past, self.fails = 0, [], fails

        def __call__(self, event):
            pass

        def catch_up(self, events, times):
            self.past += zip(events, times, strict=True)

        def close(self):
            self.closed += 1
            if self.fails:
                raise OSError("its disk is full")

    good, bad = Watching(), Watching(fails=True)
    result = run(app_of(), observers=[bad, good], folder=tmp_path)
    assert (good.closed, bad.closed, good.past) == (1, 1, [])
    umbel.resume(app_of(), result.folder, on=Simulation(8), rounds=4, observers=[good])
    assert good.closed == 2
    log = read_log(result.folder)
    assert good.past == list(zip(log.events, log.times, strict=True))[: len(good.past)]
    assert sum(isinstance(event, RoundCommitted) for event, _ in good.past) == 3
    assert all(abs(at - time.time()) < 3600 for at in log.times)
    with pytest.raises(AppError):
        run(app_of(), observers=[good], on_round=lambda event, model: 1 / 0)
    assert good.closed == 3


def test_who_evaluates():
    seen = []

    def evaluate(model, data, ctx):
        seen.append(ctx.client)
        return {"x": 1.0}

    client = client_of(evaluate=evaluate)
    run(app_of(client, rounds=1, evaluate_every=1), 120)
    assert len(set(seen)) == 100
    seen.clear()
    run(app_of(client, rounds=1, evaluate_every=1, evaluate_clients=[2, 5]))
    assert seen == [2, 5]


def test_it_stops_once_nothing_has_improved():
    result = run(measured([1, 3, 2, 3, 9, 9], early_stop=EarlyStop("test.accuracy", patience=2)))
    assert result.rounds == 4
    assert result.reason == "early stop"
    result = run(measured([5, 4, 3.95, 3.8, 1], early_stop=EarlyStop("test.accuracy", 2, "min", min_change=0.5)))
    assert result.rounds == 4
    assert run(measured([5, 4, 3, 2, 1], early_stop=EarlyStop("test.accuracy", 1, "min"))).reason == "rounds"


def test_it_stops_at_the_target():
    result = run(measured([1, 3, 2, 4, 9, 9], early_stop=EarlyStop("test.accuracy", None, target=4)))
    assert (result.rounds, result.reason) == (4, "early stop")
    result = run(measured([5, 4, 3, 2, 1], early_stop=EarlyStop("test.accuracy", None, "min", target=2.5)))
    assert (result.rounds, result.reason) == (4, "early stop")
    result = run(measured([1, 1, 1, 4], early_stop=EarlyStop("test.accuracy", 2, target=4)))
    assert result.rounds == 3  # patience comes first
    assert run(measured([1, 1, 1], early_stop=EarlyStop("test.accuracy", None, target=4))).reason == "rounds"


def test_a_function_of_the_history_stops_it_and_says_why(tmp_path):
    seen = []

    def enough(history):
        seen.append(history.last("test.accuracy"))
        return "enough is enough" if seen[-1] > 2 else None

    result = run(measured([1, 2, 3, 4], early_stop=enough), folder=tmp_path)
    assert (result.rounds, result.reason, seen) == (3, "enough is enough", [1, 2, 3])
    assert umbel.open(result.folder).reason == "enough is enough"
    again = umbel.resume(measured([9], early_stop=enough), result.folder, on=Simulation(8), rounds=4)
    assert (again.rounds, again.reason, again.model_sha256) == (3, "enough is enough", result.model_sha256)
    assert run(measured([1, 2, 3], early_stop=lambda history: len(history) == 2)).reason == "early stop"
    assert run(measured([1, 2], early_stop=lambda history: False)).reason == "rounds"
    with pytest.raises(AppError, match="the app's early_stop raised ZeroDivisionError"):
        run(measured([1, 2], early_stop=lambda history: 1 / 0))
    with pytest.raises(SettingError, match=r"an EarlyStop\(...\) or a function, not 3"):
        measured([1, 2], early_stop=3)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([1, 9, 3, 4, 5, 6], "max", 2),
        ([3, 9, 1, 4, 1, 6], "min", 3),
        ([1, 2, 3, 4, 5, 6], "max", 6),
        ([np.nan, 2, 3, np.nan, 1, 0], "max", 3),
        ([np.nan] * 6, "max", None),
    ],
)
def test_the_best_model_is_kept(values, mode, best, kept, tmp_path):
    keep = KeepBest("test.accuracy", mode)
    result = run(measured(values, keep_best=keep), folder=tmp_path if kept else None)
    assert result.best_round == best
    assert result.model == run(app_of(rounds=best or 6)).model
    assert result.rounds == 6
    if best:
        assert result.metrics["test.accuracy"] == values[best - 1]
        assert result.metrics == result.history.metrics(best)
    if kept:
        left = {int(p.stem[-4:]) for p in (result.folder / "checkpoints").iterdir()}
        assert left == {4, 5, 6} | ({best} if best else set())
        again = umbel.resume(
            measured(values, keep_best=KeepBest("test.accuracy", mode)), result.folder, on=Simulation(8)
        )
        assert again.model == result.model
        if best:
            assert again.metrics == result.metrics
            assert json.loads((result.folder / "summary.json").read_text())["metrics"] == result.metrics


def test_a_metric_that_is_named_alone_is_to_be_high():
    assert run(measured([1, 5, 2], keep_best="test.accuracy")).best_round == 2


# Clients that fail


def failing(model, data, ctx):
    if ctx.client == 0:
        raise ValueError("no data today")
    if ctx.client == 1:
        return Update({"w": np.zeros(4, np.float32)})
    if ctx.client == 2:
        return {"w": model["w"]}
    return Update({"w": model["w"] + 1}, metrics={"x": ctx.client})


def test_a_client_that_fails_is_left_out_and_named(tmp_path):
    events = []
    app = app_of(client_of(failing), strategy=FedAvg(cohort="all"), rounds=1)
    result = run(app, 5, folder=tmp_path, observers=[events.append])
    assert result.model["w"].tolist() == [1, 1, 1]
    (only,) = result.history
    assert (only.clients, only.dropped, only.failed) == (2, 3, None)
    assert only.train == {"x": 3.5}
    (closed,) = [e for e in events if isinstance(e, AskClosed)]
    reasons = {client: reason for reason, _, (client,) in closed.failed}
    assert reasons.keys() == {0, 1, 2}
    assert reasons[0].startswith("its train handler raised ValueError: no data today (test_run.py:")
    assert reasons[1] == "array 'w' has shape [4], expected [3]"
    assert reasons[2].startswith("the train handler returned a dict, not umbel.Update(...)")


def test_data_that_cannot_be_loaded_fails_the_client_alone():
    def data(source):
        return {0: 1.0}[source["index"]]

    def train(model, data, ctx):
        return Update({"w": model["w"] + np.float32(data)})

    events = []
    result = run(app_of(client_of(train, data=data), strategy=FedAvg(cohort=2), rounds=1), 2, observers=[events.append])
    assert result.model["w"].tolist() == [1, 1, 1]
    (closed,) = [e for e in events if isinstance(e, AskClosed)]
    assert closed.failed[0][1:] == [1, [1]]
    assert closed.failed[0][0].startswith("loading its data raised KeyError: 1 (test_run.py:")


def test_a_client_that_fails_keeps_its_old_state():
    seen = []

    def train(model, data, ctx):
        seen.append(ctx.state.get("n", 0))
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        if ctx.round == 2:
            raise ValueError
        return Update(model)

    run(app_of(client_of(train), strategy=FedAvg(cohort=1), rounds=4, max_failed_rounds=9), 1)
    assert seen == [0, 1, 1, 2]


def test_rounds_that_bring_nothing_keep_the_model_and_say_why():
    def train(model, data, ctx):
        if ctx.round == 2:
            raise OSError("gone")
        return Update({"w": model["w"] + 1})

    result = run(app_of(client_of(train)))
    assert result.model["w"].tolist() == [2, 2, 2]
    assert [r.failed and r.failed[:49] for r in result.history] == [
        None,
        "0 of 3 clients gave an update, 1 are needed; 3 fa",
        None,
    ]


# Strategies of one's own


def test_arrays_that_are_personal_never_leave():
    got = []

    def train(model, data, ctx):
        got.append(sorted(model))
        own = ctx.state.get("head", np.zeros(2))
        ctx.state["head"] = own + 1 + ctx.client
        return Update({"body": model["body"] + own.mean(), "head": own})

    model = Arrays({"body": np.zeros(2), "head": np.zeros(2)}, {"head": "personal"})
    result = run(app_of(client_of(train), model=model, strategy=FedAvg(cohort="all"), rounds=3), 2)
    assert got == [["body"]] * 6
    assert result.model["body"].tolist() == [4.5, 4.5]  # 0, then the mean of 1 and 2, then that of 2 and 4
    assert result.model["head"].tolist() == [0.0, 0.0]


class Statistics(Strategy):
    """Asks for each client's facts, trains on what it was told, and sends everyone a letter of their own."""

    def round(self, state, r):
        facts = yield Ask(kind="query:facts", clients="all", expects=Free(aux=Free()), fold=collect())
        assert facts.clients == (0, 1, 2)
        letters = {c: {"mean": u.arrays["sum"] / u.arrays["n"]} for c, u in facts.value.items()}
        answer = yield Ask(
            clients="all", model=state.model, inbox=letters.__getitem__, config=lambda c: {"sign": -1 if c else 1},
            expects=Like(names=("w*",)), fold=mean(),
        )  # fmt: skip
        return State(state.model.replace({"w": state.model["w"] + answer.value["w"]}))


def test_a_strategy_of_ones_own_queries_and_writes_to_each_client():
    client = Client()

    @client.data
    def data(source):
        return np.arange(1.0 + source["index"])

    @client.query("facts")
    def facts(model, data, ctx):
        assert model is None
        return Update({"sum": data.sum(), "n": np.int64(len(data))}, aux={"most": data.max()}, metrics={"n": len(data)})

    @client.train
    def train(model, data, ctx):
        return Update({"w": model["w"] + ctx.config["sign"] * ctx.inbox["mean"], "other": model["other"]})

    app = app_of(client, model={"w": np.zeros(()), "other": np.ones(1)}, strategy=Statistics(), rounds=1)
    result = run(app, 3)
    assert result.model["w"] == (0 - 0.5 - 1.0) / 3
    assert result.model["other"].tolist() == [1.0]
    assert result.history[0].train == {"n": 2.0}


def test_asks_of_one_lane_at_once_are_lanes_of_their_own(tmp_path):
    """What top-k leaves out of one ask is not sent with the other."""

    class Both(Strategy):
        def round(self, state, r):
            ask = Ask(clients=1, model=state.model, transforms=top_k(0.5), fold=mean())
            first, second = yield [
                replace(ask, config={"step": [1.0, 3.0]}),
                replace(ask, config={"step": [10.0, 30.0]}),
            ]
            values.append((first.value["w"].tolist(), second.value["w"].tolist()))
            return state

    def train(model, data, ctx):
        return Update({"w": model["w"] + ctx.config["step"]})

    values = []
    run(app_of(client_of(train), model={"w": np.zeros(2)}, strategy=Both(), rounds=3), 1, folder=tmp_path)
    assert values == [([0.0, 3.0], [0.0, 30.0]), ([0.0, 3.0], [0.0, 30.0]), ([3.0, 0.0], [30.0, 0.0])]


def test_a_deadline_in_virtual_time_closes_with_what_there_is():
    clock = VirtualClock()

    def train(model, data, ctx):
        clock.advance(2.0)
        return Update({"w": model["w"] + 1}, metrics={"client": ctx.client})

    app = app_of(client_of(train), strategy=FedAvg(cohort=Fixed((3, 1, 4, 2)), window=Window(deadline=5.0)), rounds=2)
    result = run(app, clock=clock)
    assert [(r.clients, r.dropped, r.seconds) for r in result.history] == [(3, 1, 6.0), (3, 1, 6.0)]
    assert result.history[0].train == {"client": (3 + 1 + 4) / 3}
    assert result.seconds == 12.0


def test_below_the_quorum_a_round_brings_nothing():
    clock = VirtualClock()

    def train(model, data, ctx):
        clock.advance(2.0)
        return Update({"w": model["w"] + 1})

    window = Window(deadline=3.0, quorum=3)
    app = app_of(client_of(train), strategy=FedAvg(cohort=4, window=window), rounds=1)
    with pytest.raises(RunFailed, match="round 1 brought no update: 2 of 4 clients gave an update, 3 are") as caught:
        run(app, clock=clock)
    result = caught.value.result
    assert result.model == Arrays(ZEROS)
    assert result.history[0].failed == "2 of 4 clients gave an update, 3 are needed"
    assert (result.history[0].clients, result.history[0].dropped) == (2, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "settings", [{}, {"transforms": top_k(0.5)}, {"transforms": clip_by_norm(9.0), "fold": mean()}, {"server": adam()}]
)
def test_arrays_without_a_dimension_and_without_an_element_are_trained_like_others(settings, dtype):
    def train(model, data, ctx):
        return Update({n: (a + np.ones((), a.dtype)).astype(a.dtype) for n, a in model.items()})

    model = {"s": np.array(1, dtype), "v": np.ones(1, dtype), "e": np.zeros((0, 3), dtype), "n": np.array(3)}
    result = run(app_of(client_of(train), model=model, strategy=FedAvg(cohort=2, **settings)))
    assert result.model.schema == Arrays(model).schema
    assert result.model["s"] == result.model["v"][0] != 1
    assert result.model["n"] == 6


# What run itself is given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1.5}, "the seed is a whole number, not 1.5"),
        ({"seed": True}, "the seed is a whole number, not True"),
        ({"rounds": 0}, "rounds is a whole number of at least 1, not 0"),
        ({"rounds": 2.0}, "rounds is a whole number of at least 1, not 2.0"),
    ],
)
def test_wrong_settings_are_named(settings, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        run(app_of(), folder=tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()


def test_a_longer_run_is_one_of_so_many_rounds(tmp_path):
    place = run(app_of(), folder=tmp_path).folder
    before = (place / "events.jsonl").read_bytes()
    for rounds in ("5", 2.5, 0, True):
        with pytest.raises(SettingError, match="rounds is a whole number of at least 1"):
            umbel.resume(app_of(), place, on=Simulation(8), rounds=rounds)
    assert (place / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("settings", [{"id": "one"}, {"id": "two", "place": "one"}])
def test_a_folder_that_has_a_run_takes_no_other(settings, tmp_path):
    first = run(app_of(), folder=tmp_path, id="one")
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(SettingError, match=r"there is a run in .*one already\n.*umbel resume .*one") as caught:
        run(app_of(), folder=tmp_path, **settings)
    assert "another id" in caught.value.hint
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    assert umbel.resume(app_of(), first.folder, on=Simulation(8)).model == first.model


def test_nobody_hears_of_a_run_whose_folder_is_taken(tmp_path):
    class Telling(Simulation):
        def enlist(self, app, **run):
            raise AssertionError("it was enlisted")

    run(app_of(), folder=tmp_path, id="one")
    with pytest.raises(SettingError, match="there is a run in"):
        umbel.run(app_of(), on=Telling(8), folder=tmp_path, id="one")


def test_of_two_runs_that_take_a_folder_at_once_one_has_it(tmp_path):
    class Slow(Simulation):
        def enlist(self, app, **settings):
            run(app_of(), folder=tmp_path, id="one")
            return self

        def close(self):
            pass

    with pytest.raises(SettingError, match="there is a run in"):
        umbel.run(app_of(), on=Slow(8), folder=tmp_path, id="one")
    assert len([e for e in read_log(tmp_path / "one").events if isinstance(e, RunStarted)]) == 1


def test_it_runs_on_the_apps_own_federation_unless_told_otherwise():
    sources = [{"n": 1}, {"n": 2}]

    def train(model, data, ctx):
        return Update({"w": model["w"] + data["n"]})

    app = app_of(client_of(train), strategy=FedAvg(cohort="all"), federation=Simulation(sources), rounds=1)
    assert umbel.run(app, folder=None).model["w"].tolist() == [1.5] * 3
    with pytest.raises(SettingError, match=r"nobody said where to run\nPass on=umbel\.Simulation\(clients=100\)"):
        umbel.run(app_of(), folder=None)


class NoStart(FedAvg):
    def start(self, model):
        raise StrategyError("it needs another model")


class Unwilling(Simulation):
    """Makes no client ready for any run."""

    def connect(self, *args):
        raise self.error


@pytest.mark.parametrize("error", [SettingError("these clients cannot be pickled"), StorageError("there is no room")])
def test_a_run_whose_clients_cannot_be_made_ready_has_begun(error, tmp_path):
    on, seen = Unwilling(8), []
    on.error = error
    with pytest.raises(type(error), match=error.message):
        umbel.run(app_of(), on=on, folder=tmp_path, id="run", observers=[seen.append])
    log = read_log(tmp_path / "run")
    assert log.events == seen
    assert [event.name for event in seen] == ["run_started", "run_finished"][: 1 + isinstance(error, CallerError)]
    if log.finished is not None:
        assert (log.finished.reason, log.finished.error) == ("refused", error.message)
    with pytest.raises(type(error), match=error.message):
        umbel.resume(app_of(), tmp_path / "run", on=on)
    again = umbel.resume(app_of(), tmp_path / "run", on=Simulation(8))
    assert again.model == run(app_of()).model


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: app_of(strategy=NoStart(cohort=1)), "it needs another model"),
        (lambda: app_of(strategy=FedAvg(cohort=100)), "asks for 100 clients"),
    ],
)
def test_a_run_that_could_not_begin_is_not_unfinished(made, why, tmp_path):
    with pytest.raises(CallerError, match=why):
        run(made(), folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    log = read_log(folder)
    assert (log.finished.reason, log.finished.rounds, log.finished.model_sha256) == ("refused", 0, "")
    assert why in log.finished.error
    assert json.loads((folder / "summary.json").read_text())["error"] == log.finished.error
    again = umbel.resume(app_of(), folder, on=Simulation(8))
    assert again.model == run(app_of()).model
    assert read_log(folder).finished.reason == "rounds"
