"""Resuming: wherever a run dies, it ends with the bits and the metrics of the run that nobody disturbed."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tests.conftest import some

import umbel
from umbel import (
    App,
    Ask,
    Client,
    EarlyStop,
    FedAdam,
    FedAvg,
    FedAvgM,
    Free,
    KeepBest,
    Metrics,
    Poisson,
    Simulation,
    State,
    Strategy,
    Transform,
    Update,
    Window,
    collect,
    mean,
    top_k,
    total,
)
from umbel.core import encoding
from umbel.core.transform import register_transform
from umbel.errors import CorruptFile, NondeterministicStrategy, RunInterrupted, SettingError, StrategyError
from umbel.runs import conductor as conduct_module
from umbel.runs.events import AskClosed, RoundCommitted, RunFinished, RunResumed
from umbel.runs.journal import FORMAT, LOG, Journal, read_log
from umbel.work import state

CLIENTS = 6
RAGGED = np.asfortranarray(np.random.default_rng(1).normal(size=(40, 40)))
"""An array whose sum has other last bits by columns, as it is in memory, than by rows."""


def toy_client() -> Client:
    """Its updates depend on everything that has to survive: model, round, its own draws, its state."""
    client = Client()

    @client.data
    def data(source):
        return np.random.default_rng(source["index"]).normal(loc=source["index"], size=4)

    @client.train
    def train(model, data, ctx):
        seen = ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        if "fail" in ctx.config and ctx.client in ctx.config["fail"].get(ctx.round, ()):
            raise OSError("no such table")
        target = data + 0.1 * ctx.rng.normal(size=4) + ctx.state.get("drift", np.zeros(4))
        ctx.state["drift"] = 0.1 * target
        return Update(
            {"w": model["w"] + (target - model["w"]) / (1 + seen)}, weight=1 + ctx.client, metrics={"seen": seen}
        )

    @client.evaluate
    def evaluate(model, data, ctx):
        ctx.state["evaluated"] = ctx.state.get("evaluated", 0) + 1
        return Metrics({"loss": float(np.abs(model["w"] - data).mean()), "times": ctx.state["evaluated"]})

    @client.query("mean")
    def query(model, data, ctx):
        ctx.state["asked"] = ctx.state.get("asked", 0) + 1
        return Update({"sum": data + ctx.state["asked"], "n": np.int64(1)}, metrics={"asked": ctx.state["asked"]})

    return client


class TwoInARow(Strategy):
    """Asks for statistics first, then trains; the second ask depends on the first answer."""

    def round(self, state, r):
        facts = yield Ask(kind="query:mean", clients=4, expects=Free(), fold=total())
        average = facts.value["sum"] / facts.value["n"]
        model = state.model.replace({"w": state.model["w"] + 0.1 * average})
        answer = yield Ask(clients=3, model=model, fold=mean())
        return state.replace(model=model.replace({"w": model["w"] + answer.value["w"]}))


class TwoAtOnce(Strategy):
    """Two asks of overlapping clients that keep state; the first has one task in flight, and a third asks nobody."""

    def round(self, state, r):
        a, b, nobody = yield [
            Ask(clients=4, model=state.model, fold=mean(), transforms=top_k(0.5), window=Window(in_flight=1)),
            Ask(clients=4, model=state.model, fold=mean(), transforms=top_k(0.5), lane="other"),
            Ask(clients=Poisson(1e-9), kind="query:mean", expects=Free(), fold=collect(), window=Window(quorum=0)),
        ]
        assert nobody.count == 0
        return state.replace(model=state.model.replace({"w": state.model["w"] + a.value["w"] - 0.5 * b.value["w"]}))


@register_transform
@dataclass(frozen=True)
class fading(Transform):
    """Scales updates by what it counted so far and adds what it drew: a transform whose state has to survive."""

    name: ClassVar[str] = "fading"

    def init(self, schema):
        return {"answers": 0, "drawn": 0.0}

    def send(self, state):
        return {"scale": 1 / (1 + state["answers"])}

    def encode(self, update, params, local, key, own):
        return replace(update, arrays=update.arrays.map(lambda n, a: params["scale"] * a)), (local or 0) + 1

    def finish(self, answer, state, key, own):
        drawn = state["drawn"] + float(key.draws().uniform(1)[0])
        value = answer.value.map(lambda n, a: a + drawn)
        return replace(answer, value=value), {"answers": state["answers"] + 1, "drawn": drawn}


class Transposed(Strategy):
    """Adds up arrays that are not in the order of files, which gives other last bits: of the model, the state, the
    answer, of what is sent and kept.
    """

    def round(self, state, r):
        kept = sum(part.sum() for part in state.parts().get("kept", {}).values())
        config = {"by": state.model["v"].T[::-1], "kept": float(kept)}
        answer = yield Ask(clients=3, model=state.model, config=config, transforms=turning())
        moved = state.model["v"] + answer.value["v"] * (1 + 1e-3 * answer.value["v"].sum())
        kept = {"a": np.asfortranarray(moved) / 3, "b": moved.T / 7}
        return state.replace(model=state.model.replace({"v": np.asfortranarray(moved)}), kept=kept)


@register_transform
@dataclass(frozen=True)
class turning(Transform):
    """Keeps and sends arrays whose order in memory is not that of files."""

    name: ClassVar[str] = "turning"

    def init(self, schema):
        return RAGGED

    def send(self, state):
        return state.T

    def encode(self, update, params, local, key, own):
        local = RAGGED if local is None else local
        moved = {"v": update.arrays["v"] * (1 + 1e-3 * (params.sum() + local.sum()))}
        return replace(update, arrays=moved), (local * 1.1).T

    def finish(self, answer, state, key, own):
        drift = 1e-3 * state.sum()
        return replace(answer, value=answer.value.map(lambda n, a: (a + drift).T)), np.asfortranarray(state * 1.01)


def transposed_app(**settings) -> App:
    client = Client()

    @client.train
    def train(model, data, ctx):
        kept = ctx.state.get("kept", RAGGED)
        ctx.state["kept"] = (kept * 1.1).T
        total = model["v"].sum() + ctx.config["by"].sum() + kept.sum() + ctx.config["kept"]
        return Update({"v": (model["v"] * 0.9 + 1e-4 * total).T}, metrics={"total": total})

    return App(client, model={"v": RAGGED}, strategy=Transposed(), **{"rounds": 3, **settings})


class Twice(Strategy):
    """Trains twice a round in one lane."""

    def round(self, state, r):
        for _ in range(2):
            answer = yield Ask(clients=3, model=state.model, transforms=fading())
            state = state.replace(model=state.model.replace({"w": state.model["w"] + answer.value["w"]}))
        return state


ASYNC = Window(in_flight=4, close_after=2, late="keep")
MAKE = {
    "server state": lambda **s: app(FedAdam(cohort=3, lr=0.3), **s),
    "client state": lambda **s: app(FedAvgM(cohort=3, transforms=top_k(0.25)), **s),
    "transform state": lambda **s: app(Twice(), **s),
    "two in a row": lambda **s: app(TwoInARow(), **s),
    "two at once": lambda **s: app(TwoAtOnce(), **s),
    "asynchronous": lambda **s: app(
        FedAvg(cohort=4, fold=mean(), window=ASYNC), **{"evaluate_every": 1, "rounds": 4, **s}
    ),
    "order of memory": lambda **s: transposed_app(**s),
    "evaluation": lambda **s: app(
        FedAvg(cohort=3, config={"fail": {2: range(CLIENTS)}}), rounds=8, evaluate_every=2,
        keep_best=KeepBest("evaluate.loss", "min"), early_stop=EarlyStop("test.size", patience=1, mode="min"), **s,
    ),
    "evaluated first": lambda **s: app(
        FedAvg(cohort=3), evaluate_at_start=True, keep_best=KeepBest("test.size", "max"), checkpoint_every=2, **s
    ),
}  # fmt: skip


def app(strategy, **settings) -> App:
    settings = {"rounds": 3, "evaluate_every": 0, **settings}
    made = App(toy_client(), model={"w": np.zeros(4)}, strategy=strategy, **settings)

    @made.test
    def test(model):
        return {"size": float(np.abs(model["w"]).sum())}

    return made


def run(app, folder=None, **settings):
    return umbel.run(app, on=Simulation(clients=CLIENTS), seed=5, folder=folder, **settings)


def resume(app, folder, **settings):
    return umbel.resume(app, folder, on=Simulation(clients=CLIENTS), **settings)


def learned(result):
    """All of a result that must not depend on whether, when and how often the run died."""
    rounds = [replace(r, seconds=0.0, checkpoint=None) for r in result.history]
    return result.model_sha256, rounds, result.reason, result.best_round


class Unsynced(sqlite3.Connection):
    def execute(self, sql, *parameters):
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), *parameters)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A process that is killed loses nothing that it has written: only a power cut does, and here is none."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Unsynced))


@contextmanager
def moments(function):
    """Call a function before and after everything that a run writes down."""

    def wrapped(kind, name):
        original = getattr(kind, name)

        def around(self, *args, **kwargs):
            function(f"before {name}")
            result = original(self, *args, **kwargs)
            function(f"after {name}")
            return result

        patch.setattr(kind, name, around)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("append", "save", "summarise", "clear_answers", "keep_checkpoints"):
            wrapped(Journal, name)
        wrapped(state.ClientStates, "advance")
        yield


def snapshots(app, tmp_path):
    """Run an app undisturbed, and keep what the disk held at every moment at which the run could have died."""
    taken, seen, home = [], [], tmp_path / "runs"

    def keep(moment):
        for folder in home.iterdir():
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            held = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
            if (folder / LOG).stat().st_size and held not in seen[-1:]:
                seen.append(held)
                taken.append(tmp_path / f"{len(taken):03d} {moment}")
                shutil.copytree(folder, taken[-1])

    with moments(keep):
        whole = run(app, home)
    return whole, taken


@pytest.mark.parametrize("name", some(MAKE, 3))
def test_a_run_that_dies_at_any_moment_ends_like_one_that_does_not(name, tmp_path):
    whole, taken = snapshots(MAKE[name](), tmp_path)
    assert learned(whole) == learned(run(MAKE[name]()))
    assert len(taken) > 15
    for folder in taken:
        assert learned(resume(MAKE[name](), folder)) == learned(whole), folder.name


def test_the_scenarios_hold_what_they_are_for(tmp_path):
    assert RAGGED.sum() != np.ascontiguousarray(RAGGED).sum()
    assert [len(r.train) for r in run(MAKE["server state"]()).history] == [1, 1, 1]
    asynchronous = run(MAKE["asynchronous"](), tmp_path)
    assert any(row.staleness > 1 for row in asynchronous.clients)
    evaluated = run(MAKE["evaluation"]())
    assert evaluated.reason == "early stop"
    assert evaluated.rounds == 6
    assert evaluated.best_round is not None
    assert [bool(r.evaluate) for r in evaluated.history] == [False, False, False, True, False, True]
    assert evaluated.history[1].failed is not None
    assert max(r.train["seen"] for r in run(MAKE["two at once"]()).history) > 3


@pytest.mark.parametrize("name", ["client state", "asynchronous"])
def test_a_run_whose_last_line_is_torn_at_any_byte_loses_only_that_line(name, tmp_path):
    whole, taken = snapshots(MAKE[name](rounds=1), tmp_path)
    lines, torn = set(), tmp_path / "torn"
    for folder in (f for f in taken if f.name.endswith("after append")):
        data = (folder / LOG).read_bytes()
        start = data.rindex(b"\n", 0, -1) + 1 if data.count(b"\n") > 1 else len(data)
        lines.add(data[start:].partition(b",")[0])
        for size in range(start, len(data), 23 if b"round_committed" in data[start:] else 61):
            _copy(folder, torn, data[:size])
            assert learned(resume(MAKE[name](rounds=1), torn)) == learned(whole), (folder.name, size)
            assert read_log(torn).finished is not None
    assert {b'{"event":"ask_closed"', b'{"event":"round_committed"', b'{"event":"run_finished"'} <= lines


def test_the_last_line_torn_at_every_byte(tmp_path):
    small = MAKE["server state"](rounds=1)
    whole = run(small, tmp_path / "runs")
    data = (whole.folder / LOG).read_bytes()
    lines = data.splitlines(keepends=True)
    events = [type(e) for e in read_log(whole.folder).events]
    assert events[-2:] == [RoundCommitted, RunFinished]
    ends = [len(b"".join(lines[:-1])), len(data)]
    for size in range(*ends):
        (whole.folder / LOG).write_bytes(data[:size])
        resumed = resume(MAKE["server state"](rounds=1), whole.folder)
        assert learned(resumed) == learned(whole), size
        assert (whole.folder / LOG).read_bytes().startswith(data[: ends[0]])
        assert read_log(whole.folder).finished is not None


def _copy(folder: Path, to: Path, log: bytes) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    (to / LOG).write_bytes(log)


@pytest.mark.parametrize("name", ["two in a row", "two at once", "transform state"])
def test_a_power_cut_may_lose_records_of_what_is_on_the_disk(name, tmp_path):
    """Records since the last commit are not waited for; client states and answers may have outlived them."""
    whole, taken = snapshots(MAKE[name](), tmp_path)
    (before,) = [f for f in taken if len(read_log(f).rounds) == 1 and f.name.endswith("after save")][-1:]
    lines = (before / LOG).read_bytes().splitlines(keepends=True)
    commit = next(i for i, line in enumerate(lines) if b"round_committed" in line)
    assert len(lines) - commit > 2
    for left in range(commit + 1, len(lines)):
        _copy(before, tmp_path / "cut", b"".join(lines[:left]))
        assert learned(resume(MAKE[name](), tmp_path / "cut")) == learned(whole), left


class Killed(BaseException):
    """Ends a run on the spot, as a kill does."""


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("apart", [23, 31])
def test_a_run_that_dies_again_and_again_gets_there(name, apart, tmp_path):
    whole = run(MAKE[name]())
    countdown = itertools.count(1)

    def kill(moment):
        if next(countdown) % apart == 0:
            raise Killed(moment)

    deaths, result = 0, None
    while result is None:
        folders = [f for f in tmp_path.iterdir() if (f / LOG).exists() and (f / LOG).stat().st_size]
        try:
            with moments(kill):
                result = resume(MAKE[name](), folders[0]) if folders else run(MAKE[name](), tmp_path)
        except Killed:
            deaths += 1
            assert deaths < 50
    assert deaths > 1
    assert learned(result) == learned(whole)


# Going on after the end


@pytest.mark.parametrize("name", MAKE)
def test_a_run_that_was_over_gives_its_result_again(name, tmp_path):
    whole = run(MAKE[name](), tmp_path)
    for _ in range(2):
        again = resume(MAKE[name](), whole.folder)
        assert learned(again) == learned(whole)
        assert again.run == whole.run
        assert again.folder == whole.folder


@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["server state", "client state", "two in a row", "asynchronous"])
def test_more_rounds_are_a_longer_run(name, every, tmp_path):
    def made(rounds):
        app = MAKE[name]()
        app.rounds, app.evaluate_every = rounds, every
        return app

    longer = run(made(5))
    resumed = resume(made(3), run(made(3), tmp_path).folder, rounds=5)
    assert resumed.model_sha256 == longer.model_sha256
    assert [r.train for r in resumed.history] == [r.train for r in longer.history]


def test_the_evaluation_of_a_last_round_that_is_not_the_last_any_more_is_not_lost(tmp_path):
    tested = []

    def test(model):
        tested.append(model)
        if len(tested) == 1:
            raise KeyboardInterrupt
        return {"w": float(model["w"].sum())}

    made = app(FedAvg(cohort=3), rounds=2, evaluate_every=3)
    made.test(test)
    with pytest.raises(RunInterrupted):
        run(made, tmp_path, id="run")
    longer = resume(made, tmp_path / "run", rounds=4)
    assert [r for r, _ in longer.history.series("evaluate.times")] == [2, 3, 4]
    assert [r for r, _ in longer.history.series("test.w")] == [2, 3, 4]
    assert longer.model_sha256 == run(app(FedAvg(cohort=3), rounds=4, evaluate_every=3)).model_sha256
    (once,) = [e for e in read_log(tmp_path / "run").events if isinstance(e, AskClosed) and e.ask == 2]
    assert once.kind == "evaluate"


def test_a_longer_run_that_dies_remembers_how_long_it_was_to_be(tmp_path, monkeypatch):
    name = "server state"
    folder = run(MAKE[name](), tmp_path).folder
    commit = conduct_module.Conductor._commit

    def dying(self, event):
        commit(self, event)
        if event.round == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(conduct_module.Conductor, "_commit", dying)
        with pytest.raises(Killed):
            resume(MAKE[name](), folder, rounds=6)
    resumed = resume(MAKE[name](), folder)
    assert resumed.rounds == 6
    assert resumed.model_sha256 == run(MAKE[name](rounds=6)).model_sha256


def test_fewer_rounds_than_there_are_change_nothing(tmp_path):
    whole = run(MAKE["server state"](), tmp_path)
    assert learned(resume(MAKE["server state"](), whole.folder, rounds=1)) == learned(whole)


# Answers that did not reach the disk


def cut(folder, name, damaged):
    """The folder of a run that died after both asks of its second round were recorded, of which one is lost."""

    def watch(event):
        if isinstance(event, AskClosed) and event.ask == 3:
            raise Killed

    with pytest.raises(Killed):
        run(MAKE[name](), folder, observers=[watch])
    (place,) = folder.iterdir()
    (place / "answers" / f"ask-{damaged:06d}.safetensors").write_bytes(b"")
    return place


@pytest.mark.parametrize("damaged", [2, 3])
@pytest.mark.parametrize("name", ["two in a row", "asynchronous"])
def test_an_answer_that_a_power_cut_took_is_asked_for_again(name, damaged, tmp_path):
    place = cut(tmp_path, name, damaged)
    asked = []
    again = resume(MAKE[name](), place, observers=[lambda e: asked.append(e.ask) if isinstance(e, AskClosed) else None])
    assert asked == list(range(damaged, max(asked) + 1))
    assert learned(again) == learned(run(MAKE[name]()))


def test_what_was_recorded_after_an_answer_that_was_asked_for_again_counts_no_more(tmp_path):
    def watch(event):
        if isinstance(event, AskClosed) and event.ask == 2:
            raise Killed

    place = cut(tmp_path, "two in a row", 2)
    with pytest.raises(Killed):
        resume(MAKE["two in a row"](), place, observers=[watch])
    assert learned(resume(MAKE["two in a row"](), place)) == learned(run(MAKE["two in a row"]()))


@pytest.mark.parametrize("damaged", [2, 3])
@pytest.mark.parametrize("first", [(), fading()], ids=["mixed", "all"])
def test_an_answer_is_not_asked_for_again_where_a_transform_had_a_hand_in_what_came_of_it(first, damaged, tmp_path):
    class Mixed(Strategy):
        def round(self, state, r):
            for transforms in (first, fading()):
                answer = yield Ask(clients=3, model=state.model, transforms=transforms)
                state = state.replace(model=state.model.replace({"w": state.model["w"] + answer.value["w"]}))
            return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MAKE, "mixed", lambda: app(Mixed()))
        place = cut(tmp_path, "mixed", damaged)
    for _ in range(2):
        with pytest.raises(CorruptFile, match=f"ask-{damaged:06d}.safetensors is not what the run wrote"):
            resume(app(Mixed()), place)


# Tasks that outlive the process


@register_transform
@dataclass(frozen=True)
class needs_total(Transform):
    """Goes together with one fold alone."""

    name: ClassVar[str] = "needs_total"

    def check(self, fold, expects):
        if not isinstance(fold, total):
            raise StrategyError("it needs total")


def stopped(app, folder, kind, **at):
    """The folder of a run that was stopped at an event of this kind and these facts."""

    def watch(event):
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in at.items()):
            raise Killed

    with pytest.raises(Killed):
        run(app, folder, observers=[watch])
    (place,) = folder.iterdir()
    return place


def test_what_late_tasks_go_through_was_judged_when_they_were_asked(tmp_path):
    def made():
        return app(FedAvg(cohort=4, fold=total(), transforms=needs_total(), window=ASYNC))

    place = stopped(made(), tmp_path, RoundCommitted, round=1)
    assert learned(resume(made(), place)) == learned(run(made()))


class Moving(Strategy):
    """What its clients are sent is a function of where the strategy stands when it asks."""

    def round(self, state, r):
        model = state.model
        for step in range(3):
            answer = yield Ask(
                clients=4,
                model=lambda client: model.replace({"w": model["w"] + step}),  # noqa: B023
                fold=mean(),
                window=ASYNC,
            )
            model = model.replace({"w": model["w"] + answer.value["w"]})
        return state.replace(model=model)


@pytest.mark.parametrize("ask", [3, 4])
def test_late_tasks_are_sent_again_what_they_were_sent_first(ask, tmp_path):
    place = stopped(app(Moving()), tmp_path, AskClosed, ask=ask)
    assert learned(resume(app(Moving()), place)) == learned(run(app(Moving())))


# What is stored


def shape(tree):
    """A tree with types for values."""
    if isinstance(tree, dict):
        return {name: shape(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(shape(value) for value in tree)
    return type(tree).__name__


def test_what_is_stored_changes_with_its_format_alone(tmp_path):
    """Where this fails, `FORMAT` has to rise: a run of before must not be gone on with as if it were one of today."""
    window = Window(in_flight=2, close_after=1, late="keep")
    made = app(FedAvg(cohort=4, fold=mean(), transforms=fading(), window=window))
    place = stopped(made, tmp_path, AskClosed, round=2)
    (round,) = (place / "checkpoints").iterdir()
    stored = encoding.load_file(round)
    ((lane, late),) = stored.pop("late").items()
    ((_, kept),) = stored.pop("transforms").items()
    row, each = ["str", "int", "int", "int", "float", "int"], ["int", {}]
    fold, step = ["str", {}], {"name": "str", "version": "int", "settings": {}}
    sent = {"model": "Arrays", "config": {}, "inbox": "NoneType", "correction": "NoneType", "expects": "Like"}
    ask = {"kind": "str", "lane": "str", "transforms": [step], "fold": fold, "shared": sent, "each": [each]}
    state = ({"answers": "int", "drawn": "float"},)
    assert (FORMAT, lane) == (5, "train")
    assert shape(stored) == {"state": "State", "ask": "int", "clock": "NoneType"}
    assert shape(late) == {"tasks": [row], "asks": [["int", "int", "int", ({"scale": "float"},), ask]]}
    assert shape(kept) == state
    (answer,) = (place / "answers").iterdir()
    reply, left, rows = encoding.load_file(answer)
    assert (shape(reply), shape(left), shape(rows)) == ("Answer", state, [row])


# What cannot be resumed


def half(folder, strategy=None, **settings):
    """The folder of a run that died after the first ask of its second round was recorded."""
    events = []

    def watch(event):
        events.append(event)
        if isinstance(event, AskClosed) and event.round == 2:
            raise Killed

    with pytest.raises(Killed):
        run(app(strategy or FedAvg(cohort=3), **settings), folder, observers=[watch])
    (place,) = folder.iterdir()
    return place


class Moody(Strategy):
    """Asks something else each time it is made: what a strategy must not do."""

    def __init__(self, **asked):
        self.asked = asked

    def round(self, state, r):
        answer = yield Ask(**{"clients": 3, "model": state.model, **self.asked})
        return state.replace(model=state.model.replace({"w": state.model["w"] + answer.value["w"]}))


@pytest.mark.parametrize(
    "other",
    [
        Moody(clients=4),
        Moody(clients=[0, 1, 2]),
        Moody(config={"lr": 2.0}),
        Moody(model=umbel.Arrays({"w": np.ones(4)})),
        Moody(fold=mean()),
        Moody(transforms=top_k(0.5)),
        Moody(window=Window(close_after=2)),
        Moody(inbox={"x": np.zeros(1)}),
        Moody(lane="elsewhere"),
    ],
)
def test_a_strategy_that_asks_something_else_is_found_out(other, tmp_path):
    place = half(tmp_path, Moody())
    before = (place / LOG).read_bytes()
    with pytest.raises(NondeterministicStrategy) as caught:
        resume(app(other), place)
    message = str(caught.value)
    assert "ask 1 is not what it was before the run stopped" in message
    assert f"run {place.name}" in message
    assert "round 2" in message
    assert "its state, the round and the answers" in message
    assert (place / LOG).read_bytes().startswith(before)
    assert resume(app(Moody()), place).model_sha256 == run(app(Moody())).model_sha256


def test_a_strategy_that_asks_less_is_found_out(tmp_path):
    class Quiet(Strategy):
        def round(self, state, r):
            return state
            yield

    place = half(tmp_path)
    with pytest.raises(NondeterministicStrategy, match="round 2 was over without ask 1, which the log has"):
        resume(app(Quiet()), place)
    assert resume(app(FedAvg(cohort=3)), place).model_sha256 == run(app(FedAvg(cohort=3))).model_sha256


def test_another_federation_is_refused(tmp_path):
    place = half(tmp_path)
    with pytest.raises(SettingError, match=r"the run has 6 clients, the federation has 7\n.*it was started on"):
        umbel.resume(app(FedAvg(cohort=3)), place, on=Simulation(clients=7))


def test_software_that_changed_is_recorded(tmp_path, monkeypatch):
    place = half(tmp_path)
    now = conduct_module.software(Simulation(1).plan())
    monkeypatch.setattr(
        conduct_module, "software", lambda plan: {**now, "numpy": "99.0", "threads": "7", "other": "1.0"}
    )
    resume(app(FedAvg(cohort=3)), place)
    (event,) = [e for e in read_log(place).events if isinstance(e, RunResumed)]
    assert event.changed == {
        "numpy": [now["numpy"], "99.0"],
        "other": ["", "1.0"],
        "threads": [now["threads"], "7"],
    }
    assert event.round == 1


def test_the_state_before_a_round_is_not_touched_by_what_comes_after(tmp_path):
    """A state that a client writes counts only with the ask that it came with."""
    place = half(tmp_path)
    states = state.ClientStates(place / "client-states.db")
    before = [states.get(client) for client in range(CLIENTS)]
    states.advance(99, {0: b"not even a state"}, since=1)
    states.close()
    done = resume(app(FedAvg(cohort=3)), place)
    assert done.model_sha256 == run(app(FedAvg(cohort=3))).model_sha256
    assert any(before)


def test_a_state_is_what_the_strategy_says(tmp_path):
    class Counting(Strategy):
        def start(self, model):
            return State(model, rounds=0, names=("a", "b"), seen=[1, 2.5, None, b"x", {"y": np.arange(3)}])

        def round(self, state, r):
            assert state.rounds == r - 1
            assert state.names == ("a", "b")
            assert state.seen[:4] == [1, 2.5, None, b"x"]
            assert state.seen[4]["y"].tolist() == [0, 1, 2]
            yield Ask(clients=2, model=state.model)
            return state.replace(rounds=r)

    place = half(tmp_path, Counting())
    assert resume(app(Counting()), place).rounds == 3


def test_a_resumed_round_took_as_long_as_all_that_was_done_for_it(tmp_path):
    """Else what its clients did would be more than its time, and training more than all of it."""
    now, stopping = [0.0], [True]
    client = Client()

    @client.query("mean")
    def query(model, data, ctx):
        now[0] += 1.0
        return Update({"sum": np.ones(4), "n": np.int64(1)})

    @client.train
    def train(model, data, ctx):
        if stopping[0]:
            raise KeyboardInterrupt
        now[0] += 1.0
        return Update(model)

    made = App(client, model={"w": np.zeros(4)}, strategy=TwoInARow(), rounds=1, evaluate_every=0)
    how = {"on": Simulation(clients=CLIENTS, workers=0), "clock": lambda: now[0]}
    with pytest.raises(RunInterrupted):
        umbel.run(made, folder=tmp_path, **how)
    stopping[0] = False
    (folder,) = tmp_path.iterdir()
    (event,) = umbel.resume(made, folder, **how).history
    assert event.seconds == 4.0 + 3.0
    assert event.account["processes"] == 1


def test_a_folder_that_was_moved_and_an_app_that_changed_are_told_once(tmp_path):
    made, source = app(FedAvg(cohort=2)), {"path": "/a/app.py", "sha256": "11"}
    first = run(made, tmp_path, rounds=1, id="r", source=source).folder
    there = first.rename(tmp_path / "elsewhere")
    other = {"path": "/b/app.py", "sha256": "22"}

    def told(rounds, folder, source):
        umbel.resume(made, folder, on=Simulation(clients=CLIENTS), rounds=rounds, source=source)
        changed = [event.changed for event in read_log(folder).events if event.name == "run_resumed"][-1]
        return {name: changed[name] for name in ("folder", "app", "code") if name in changed}

    assert told(2, there, other) == {
        "folder": [str(first), str(there)], "app": ["/a/app.py", "/b/app.py"], "code": ["11", "22"],
    }  # fmt: skip
    assert told(3, there, other) == {}
    assert told(4, there, None) == {}
    assert told(5, there.rename(first), {"path": "/b/app.py"}) == {"folder": [str(there), str(first)]}
