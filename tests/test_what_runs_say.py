"""What a run says while it goes on: nothing that outgrows a frame, nothing that is lost, and nobody's error is the
run's.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

import umbel
from umbel import App, Client, FedAvg, Metrics, Simulation, Update, Window
from umbel.errors import RunInterrupted
from umbel.runs.events import LARGEST, AskClosed, RoundCommitted, Warned
from umbel.runs.journal import LOG, read_log
from umbel.runs.publisher import MOST_WARNINGS

ZEROS = {"w": np.zeros(3, np.float32)}


def step(model, data, ctx):
    return Update({"w": model["w"] + 1 + ctx.client}, weight=1 + ctx.client, metrics={"loss": float(ctx.client)})


def score(model, data, ctx):
    return Metrics({"accuracy": ctx.client / 10}, weight=2.0)


def app_of(train=step, evaluate=None, **settings):
    client = Client()
    client.train(train)
    if evaluate is not None:
        client.evaluate(evaluate)
    defaults = {"model": ZEROS, "strategy": FedAvg(cohort="all"), "rounds": 2, "evaluate_every": 0}
    return App(client, **{**defaults, **settings})


def run(app, clients=4, **settings):
    return umbel.run(app, on=Simulation(clients), **{"folder": None, "seed": 1, **settings})


def events_of(app, clients=4, **settings):
    seen = []
    result = run(app, clients, observers=[seen.append], **settings)
    return result, seen


def only(folder):
    (place,) = folder.iterdir()
    return place


def row(found):
    return found.round, found.kind, found.client, found.status, found.weight, dict(found.metrics)


# However many clients there are, and whatever they say


@pytest.mark.slow
def test_thousands_of_failures_with_long_reasons_fit_into_a_frame_and_a_resume(tmp_path):
    def train(model, data, ctx):
        if ctx.client >= 2:
            raise ValueError(f"client {ctx.client} says: " + "no data here " * 400)
        return step(model, data, ctx)

    class Killed(BaseException):
        pass

    def kill(event):
        if isinstance(event, AskClosed) and event.round == 2:
            raise Killed

    app = app_of(train)
    whole = run(app, 3000)
    with pytest.raises(Killed):
        run(app, 3000, folder=tmp_path, observers=[kill])
    resumed = umbel.resume(app, only(tmp_path), on=Simulation(3000))
    assert resumed.model_sha256 == whole.model_sha256
    assert [r.failures for r in resumed.history] == [{"train": 2998}] * 2
    lines = (only(tmp_path) / LOG).read_bytes().splitlines()
    assert max(map(len, lines)) < LARGEST / 4
    (closed, _) = [event for event in read_log(only(tmp_path)).events if isinstance(event, AskClosed)]
    ((reason, count, clients),) = closed.failed
    assert (count, closed.failures, closed.asked, clients) == (2998, 2998, 3000, [2, 3, 4, 5, 6])
    assert "client 2 says: no data here" in reason
    assert len(reason) <= 500


@pytest.mark.parametrize(
    "window", [Window(), Window(in_flight=4000, close_after=100, late="keep")], ids=["all", "late"]
)
def test_a_log_grows_by_rounds_and_not_by_clients(window, tmp_path):
    for clients in (1100, 2200):
        app = app_of(strategy=FedAvg(cohort="all", window=window))
        run(app, clients, folder=tmp_path / str(clients))
    small, large = (only(tmp_path / str(clients)) / LOG for clients in (1100, 2200))
    assert abs(large.stat().st_size - small.stat().st_size) < 1000
    assert max(map(len, large.read_bytes().splitlines())) < 10_000


def test_late_tasks_are_gone_on_with_after_a_resume_though_no_ask_had_an_answer(tmp_path):
    """An ask that closes without an answer leaves its late tasks in a file of their own."""

    def train(model, data, ctx):
        return Update({"w": model["w"] + ctx.client}, weight=0 if ctx.round == 1 else 1, metrics={"of": ctx.client})

    def kill(event):
        if isinstance(event, AskClosed):
            assert event.reason is not None
            raise KeyboardInterrupt

    app = app_of(train, strategy=FedAvg(cohort="all", window=Window(in_flight=4, close_after=2, late="keep")), rounds=3)
    whole = run(app, 6)
    assert [r.failed is None for r in whole.history] == [False, False, True]
    assert any(each.status == "late" for each in whole.clients)
    with pytest.raises(RunInterrupted):
        run(app, 6, folder=tmp_path, observers=[kill])
    resumed = umbel.resume(app, only(tmp_path), on=Simulation(6))
    assert resumed.model_sha256 == whole.model_sha256
    assert list(map(row, resumed.clients)) == list(map(row, whole.clients))


@pytest.mark.slow
def test_a_cohort_of_a_million(tmp_path):
    def train(model, data, ctx):
        return Update(model, metrics={"loss": 1.0})

    result = run(app_of(train, rounds=1), 1_000_000, folder=tmp_path)
    assert result.history[0].clients == 1_000_000
    assert (result.folder / LOG).stat().st_size < 20_000
    loss = next(spread for spread in result.clients.spreads if spread.name == "metrics.loss")
    assert (loss.count, loss.least, loss.greatest) == (1_000_000, 1.0, 1.0)


# Metrics


def test_a_metric_that_is_not_finite_is_left_out_counted_and_named():
    def train(model, data, ctx):
        loss = math.nan if ctx.client in (1, 3) else 2.0
        return Update(model, metrics={"loss": loss, "steps": math.inf if ctx.client == 2 else 1.0})

    result, seen = events_of(app_of(train))
    assert [r.train for r in result.history] == [{"loss": 2.0, "steps": 1.0}] * 2
    assert [event.skipped for event in seen if isinstance(event, AskClosed)] == [
        {"loss": [2, [1, 3]], "steps": [1, [2]]}
    ] * 2
    assert [event.text for event in seen if isinstance(event, Warned)] == [  # said once, not in every round
        "metric 'loss' of 2 clients (1, 3) is not finite: it is left out of the mean",
        "metric 'steps' of client 2 is not finite: it is left out of the mean",
    ]


def test_a_metric_that_is_finite_for_nobody_is_still_a_metric():
    result = run(app_of(lambda model, data, ctx: Update(model, metrics={"loss": math.nan})))
    assert math.isnan(result.history[0].train["loss"])


def test_a_client_with_too_many_metrics_fails_alone():
    def train(model, data, ctx):
        return Update(model, metrics={f"m{i}": 1.0 for i in range(1000 if ctx.client == 2 else 3)})

    _result, seen = events_of(app_of(train, rounds=1))
    (closed,) = [event for event in seen if isinstance(event, AskClosed)]
    assert (closed.count, closed.failed[0][1:]) == (3, [1, [2]])
    assert "the update's metrics are 1000; 200 are the most" in closed.failed[0][0]


def test_as_many_metrics_as_clients_are_bounded():
    def train(model, data, ctx):
        return Update(model, metrics={"loss": 1.0, **{f"of {ctx.client}, {i}": 1.0 for i in range(5)}})

    result = run(app_of(train, rounds=1), 100)
    assert len(result.history[0].train) == 200
    assert result.history[0].train["loss"] == 1.0


# Clients


ROWS = [(1, "train", i, "counted", 1.0 + i, {"loss": float(i)}) for i in range(3)]
ROWS += [(1, "train", 3, "failed", None, {}), (1, "evaluate", 0, "failed", None, {})]
ROWS.insert(4, (1, "evaluate", 1, "counted", 2.0, {"accuracy": 0.1}))
ROWS.insert(5, (1, "evaluate", 2, "counted", 2.0, {"accuracy": 0.2}))
ROWS.insert(6, (1, "evaluate", 3, "counted", 2.0, {"accuracy": 0.3}))


def sometimes():
    def train(model, data, ctx):
        if ctx.client == 3:
            raise ValueError("no data")
        return step(model, data, ctx)

    def evaluate(model, data, ctx):
        if ctx.client == 0:
            raise ValueError("no labels")
        return score(model, data, ctx)

    return app_of(train, evaluate, evaluate_every=1)


@pytest.mark.parametrize("kept", [True, False])
def test_what_became_of_each_client_is_in_the_result(kept, tmp_path):
    result = run(sometimes(), folder=tmp_path if kept else None)
    assert list(map(row, result.clients.of(1))) == ROWS
    assert list(map(row, result.clients)) == ROWS + [(2, *each[1:]) for each in ROWS]
    assert all(each.seconds >= 0 for each in result.clients if each.status == "counted")
    failed = [each for each in result.clients.of(1) if each.status == "failed"]
    assert ["no data" in failed[0].reason, "no labels" in failed[1].reason] == [True, True]


def test_a_resumed_run_knows_what_became_of_all(tmp_path):
    def kill(event):
        if isinstance(event, AskClosed) and event.ask == 2:
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted):
        run(sometimes(), folder=tmp_path, observers=[kill])
    result = umbel.resume(sometimes(), only(tmp_path), on=Simulation(4))
    assert list(map(row, result.clients)) == ROWS + [(2, *each[1:]) for each in ROWS]
    assert [r.failures for r in result.history] == [{"train": 1, "evaluate": 1}] * 2


def test_who_was_asked_and_not_waited_for_is_told():
    app = app_of(strategy=FedAvg(cohort="all", window=Window(close_after=2)), rounds=1)
    assert sorted(each.status for each in run(app).clients) == ["counted", "counted", "dropped", "dropped"]


def test_a_run_that_is_kept_nowhere_keeps_the_clients_of_its_last_rounds(monkeypatch):
    monkeypatch.setattr("umbel.runs.publisher.MOST_ROWS", 10)
    assert [each.round for each in run(app_of(rounds=5)).clients] == [4] * 4 + [5] * 4


def test_failures_in_training_and_in_evaluation_are_counted_apart():
    result, seen = events_of(sometimes())
    assert [r.failures for r in result.history] == [{"train": 1, "evaluate": 1}] * 2
    assert [(event.kind, event.failures) for event in seen if isinstance(event, AskClosed)] == [
        ("train", 1),
        ("evaluate", 1),
    ] * 2


# Observers


def test_an_observer_that_raises_does_not_end_the_run(tmp_path, caplog):
    calls, seen = [], []

    def tracker(event):
        calls.append(event)
        raise OSError("no route to host")

    with caplog.at_level(logging.WARNING, "umbel"):
        result = run(app_of(), folder=tmp_path, observers=[tracker, seen.append])
    assert result.model_sha256 == run(app_of()).model_sha256
    assert len(calls) == len(seen) > 10
    warned = [event for event in read_log(result.folder).events if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "tracker raised OSError: no route to host; the run goes on" in warned[0].text
    assert warned[0] in seen
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_all_observers_may_raise():
    def one(event):
        raise ValueError("one")

    def two(event):
        if isinstance(event, RoundCommitted | Warned):
            raise ValueError("two")

    assert run(app_of(), observers=[one, two]).rounds == 2


def test_an_observer_may_interrupt_a_run(tmp_path):
    def interrupt(event):
        if isinstance(event, RoundCommitted):
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted):
        run(app_of(), folder=tmp_path, observers=[interrupt])
    assert len(read_log(only(tmp_path)).rounds) == 1


def test_many_warnings_of_one_kind_are_counted(monkeypatch):
    class Anxious:
        told = [(i, f"no sign of life for {i} s") for i in range(MOST_WARNINGS + 30)]

        def observe(self, event):
            pass

        def warnings(self):
            told, self.told = self.told, []
            return told

    monkeypatch.setattr("umbel.simulation.session.SimulationSession.reporting", Anxious())
    _, seen = events_of(app_of(rounds=1))
    warned = [event for event in seen if isinstance(event, Warned)]
    assert [event.client for event in warned] == [*range(MOST_WARNINGS), None]
    assert warned[-1].text == "30 further warnings like this: no sign of life for # s"
