"""Bad input: an error says what happened, where, and what to do, and nothing already learned is lost."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import umbel
from umbel import App, Arrays, Ask, Client, FedAvg, FedProx, Simulation, Strategy, Update, Weighted, top_k
from umbel.core.fold import Fold
from umbel.core.transform import register_transform
from umbel.errors import (
    AppError,
    CallerError,
    CorruptFile,
    RunFailed,
    RunInterrupted,
    SamplingError,
    SettingError,
    StorageError,
    StrategyError,
    UmbelError,
    UnusedCorrection,
)
from umbel.runs.events import AskClosed, RoundCommitted, RunInterruption
from umbel.runs.journal import LOG, LogChain, read_log, sealed

MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32), "n": np.zeros((), np.int64)}


def learn(model, ctx):
    """A good update."""
    ctx.state["seen"] = ctx.state.get("seen", 0) + 1
    return {n: a + ctx.round + (0 if n == "n" else ctx.client + ctx.state["seen"]) for n, a in model.items()}


def app_of(spoil=None, **settings) -> App:
    """An app whose clients learn; `spoil(update, ctx)` may do what it likes with what one of them returns."""
    client = Client()

    @client.train
    def train(model, data, ctx):
        update = Update({n: a.astype(model[n].dtype) for n, a in learn(model, ctx).items()}, metrics={"x": ctx.client})
        return update if spoil is None else spoil(update, ctx)

    settings = {"model": MODEL, "strategy": FedAvg(cohort=4, transforms=top_k(0.5)), "rounds": 4, **settings}
    return App(client, evaluate_every=0, **settings)


def run(app, folder=None, clients=8, **settings):
    return umbel.run(app, on=Simulation(clients), folder=folder, **settings)


def resume(app, folder, clients=8, **settings):
    return umbel.resume(app, folder, on=Simulation(clients), **settings)


def only(folder):
    """The only run in a folder."""
    (place,) = folder.iterdir()
    return place


# Updates that are not what the ask expects


def with_arrays(**changes):
    def spoil(update, ctx):
        arrays = {**update.arrays, **{n: v for n, v in changes.items() if v is not None}}
        return Update({n: v for n, v in arrays.items() if n not in changes or changes[n] is not None}, update.weight)

    return spoil


NAN, INFINITE = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
NAN[1, 2], INFINITE[0, 0] = np.nan, -np.inf

BAD_UPDATES = {
    "a missing name": (with_arrays(b=None), "the update lacks array 'b' (It has 'a', 'n'.)"),
    "an extra name": (
        with_arrays(z=np.zeros(1)),
        "the update has an unexpected array 'z' (Expected are 'a', 'b', 'n'.)",
    ),
    "another name": (
        with_arrays(b=None, c=np.zeros(4, np.float32)),
        "the update lacks array 'b' (It has 'a', 'n', 'c'.)",
    ),
    "a wrong shape": (with_arrays(a=np.zeros((3, 2), np.float32)), "array 'a' has shape [3, 2], expected [2, 3]"),
    "a wrong dtype": (
        with_arrays(b=np.zeros(4)),
        "array 'b' has dtype float64, expected float32 (Convert it before returning it: values.astype('float32').)",
    ),
    "another wrong dtype": (with_arrays(n=np.float32(1)), "array 'n' has dtype float32, expected int64"),
    "no array": (with_arrays(a=np.array(["text"])), "array 'a' has dtype <U4, which cannot travel"),
    "NaN": (with_arrays(a=NAN), "array 'a' holds NaN (Training diverged? Try a smaller learning rate"),
    "infinity": (with_arrays(a=INFINITE), "array 'a' holds infinity (Training diverged?"),
    "a negative weight": (
        lambda u, ctx: Update(u.arrays, -1),
        "the update's weight is -1.0 (A weight is zero or positive",
    ),
    "a weight of NaN": (
        lambda u, ctx: Update(u.arrays, np.nan),
        "the update's weight is nan (A weight is zero or positive",
    ),
    "an infinite weight": (lambda u, ctx: Update(u.arrays, np.inf), "the update's weight is inf"),
    "a weight of text": (lambda u, ctx: Update(u.arrays, "many"), "the update's weight is a str, not a number"),
    "a metric of text": (
        lambda u, ctx: Update(u.arrays, metrics={"loss": "low"}),
        "metric 'loss' is a str, not a number",
    ),
    "metrics that are none": (lambda u, ctx: Update(u.arrays, metrics=7), "the update's metrics are a int, not a dict"),
    "aux arrays nobody wants": (
        lambda u, ctx: Update(u.arrays, aux={"c": np.zeros(1)}),
        "the update holds aux arrays (c), but the ask expects none",
    ),
    "nothing": (
        lambda u, ctx: None,
        "the train handler returned a NoneType, not umbel.Update(...) (Return umbel.Update",
    ),
    "metrics alone": (
        lambda u, ctx: umbel.Metrics({"x": 1}),
        "the train handler returned Metrics; training has to return",
    ),
    "a list of arrays": (
        lambda u, ctx: Update([1, 2]),
        "the update's arrays are a list, not a mapping of names to arrays",
    ),
    "an exception": (
        lambda u, ctx: 1 / 0,
        "its train handler raised ZeroDivisionError: division by zero (test_bad_input",
    ),
}


@pytest.mark.parametrize("transforms", [(), top_k(0.5)], ids=["plain", "top_k"])
@pytest.mark.parametrize("what", BAD_UPDATES)
def test_a_bad_update_is_rejected_by_name_and_the_run_goes_on_without_it(what, transforms):
    spoil, message = BAD_UPDATES[what]
    culprit, log = [], []

    def in_round_two(update, ctx):
        if ctx.round == 2 and (not culprit or culprit[0] == ctx.client):
            culprit[:] = [ctx.client]
            return spoil(update, ctx)
        return update

    app = app_of(in_round_two, strategy=FedAvg(cohort=4, transforms=transforms))
    result = run(app, observers=[log.append])
    closed = [e for e in log if isinstance(e, AskClosed)]
    assert [e.count for e in closed] == [4, 3, 4, 4]
    ((reason, _, (client,)),) = closed[1].failed
    assert (client, closed[1].round) == (culprit[0], 2)
    assert reason.startswith(message)
    assert [(r.clients, r.dropped) for r in result.history] == [(4, 0), (3, 1), (4, 0), (4, 0)]
    assert all(np.isfinite(a).all() for a in result.model.values())


@pytest.mark.parametrize("what", BAD_UPDATES)
def test_when_all_updates_are_bad_the_run_stops_and_says_why(what, tmp_path):
    spoil, message = BAD_UPDATES[what]

    def from_round_two(update, ctx):
        return spoil(update, ctx) if ctx.round >= 2 else update

    with pytest.raises(RunFailed) as caught:
        run(app_of(from_round_two, rounds=9), tmp_path)
    error = caught.value
    place = only(tmp_path)
    assert error.message.startswith(
        "3 rounds in a row brought no update; the last: 0 of 4 clients gave an update, 1 are needed; 4 failed, the f"
    )
    assert message in error.message
    assert re.search(r"the first \(client \d\): ", error.message)
    assert (error.run, error.round) == (place.name, 4)
    assert "umbel resume" in error.hint
    assert f"(run {place.name}, round 4)" in str(error)
    log = read_log(place)
    assert [r.failed is None for r in log.rounds] == [True, False, False, False]
    assert log.finished.error == error.message


def test_a_run_that_failed_goes_on_once_what_was_wrong_is_mended(tmp_path):
    def broken(update, ctx):
        raise OSError("the table is locked")

    whole = run(app_of(), rounds=4)
    with pytest.raises(RunFailed, match=r"2 rounds in a row.*the table is locked"):
        run(app_of(lambda u, ctx: broken(u, ctx) if ctx.round > 2 else u, max_failed_rounds=2), tmp_path)
    resumed = resume(app_of(), only(tmp_path), rounds=6)
    assert [r.failed is None for r in resumed.history] == [True, True, False, False, True, True]
    assert [r.train for r in resumed.history][:2] == [r.train for r in whole.history][:2]
    assert resumed.failed is None


def test_it_gives_up_only_after_failures_in_a_row():
    result = run(app_of(lambda u, ctx: 1 / 0 if (ctx.round - 1) % 3 else u, max_failed_rounds=3), rounds=10)
    assert [r.failed is None for r in result.history] == [True, *[False, False, True] * 3]
    with pytest.raises(RunFailed, match="round 2 brought no update") as caught:
        run(app_of(lambda u, ctx: 1 / 0 if ctx.round == 2 else u, max_failed_rounds=1))
    assert caught.value.result.rounds == 2


def test_when_all_weights_are_zero_the_run_stops_and_says_so():
    with pytest.raises(RunFailed) as caught:
        run(app_of(lambda u, ctx: Update(u.arrays, 0)))
    assert "the weights of all 4 updates are zero" in str(caught.value)
    assert caught.value.round == 3


def test_a_zero_weight_is_legal_and_contributes_nothing():
    def model(clients, weight):
        client = Client()

        @client.train
        def train(model, data, ctx):
            return Update({"w": model["w"] + ctx.client}, weight if ctx.client == 3 else 1)

        app = App(client, model={"w": np.zeros(1)}, strategy=FedAvg(cohort=clients), rounds=1, evaluate_every=0)
        return run(app).model["w"]

    assert model([1, 2, 3], 0) == model([1, 2], 1) == 1.5


# Apps that are incomplete


def wrong_apps():
    client = app_of().client
    good = {"model": MODEL, "strategy": FedAvg(cohort=2)}
    return {
        "no client": (
            lambda: App(None, **good),
            "the app's client is None\nPass the umbel.Client() that your handlers",
        ),
        "a module for a client": (lambda: App(np, **good), "the app's client is <module 'numpy'"),
        "no model": (lambda: App(client, model=None, strategy=FedAvg()), "the app has no model\nPass model=..."),
        "an empty model": (
            lambda: run(App(client, model={}, strategy=FedAvg())),
            "the initial model is {}, not a mapping",
        ),
        "a model of text": (
            lambda: run(App(client, model={"w": "text"}, strategy=FedAvg())),
            "the initial model: array 'w' has dtype <U4, which cannot travel\nUse floating-point, integer or boolean",
        ),
        "a model that cannot be made": (
            lambda: run(App(client, model=lambda: 1 / 0, strategy=FedAvg())),
            "making the initial model raised ZeroDivisionError: division by zero",
        ),
        "a network for a model": (
            lambda: run(App(client, model=lambda: object(), strategy=FedAvg())),
            "not a mapping of names to arrays\nFor a PyTorch module return umbel.torch.arrays(net).",
        ),
        "a class for a strategy": (
            lambda: App(client, model=MODEL, strategy=FedAvg),
            "Pass an instance, such as FedAvg(",
        ),
        "rounds of text": (
            lambda: App(client, **good, rounds="5"),
            "an app's rounds is a whole number of at least 1, not '5'",
        ),
        "no handler for the ask": (
            lambda: run(App(Client(), **good)),
            "the strategy asks clients to train, but the client has no handler for that (it has: none)",
        ),
        "a test that raises": (lambda: run(app_with(lambda model: 1 / 0)), "the app's test raised ZeroDivisionError"),
        "a test without a result": (
            lambda: run(app_with(lambda model: None)),
            "the app's test returned None, not umbel.Metrics",
        ),
        "a test of text": (
            lambda: run(app_with(lambda model: {"x": "high"})),
            "the app's test returned: metric 'x' is a str, not a number",
        ),
        "a test with a wrong signature": (lambda: app_with(lambda: 1), "cannot be called with (model): "),
    }


def app_with(test):
    app = app_of(rounds=1)
    app.evaluate_every = 1
    app.test(test)
    return app


@pytest.mark.parametrize("what", wrong_apps())
def test_an_app_that_is_incomplete_is_told_what_is_missing(what):
    make, message = wrong_apps()[what]
    with pytest.raises(AppError if what != "rounds of text" else SettingError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "handler", "shape"),
    [
        ("train", lambda model, data: None, "(model, data, ctx)"),
        ("train", lambda model, data, ctx, extra: None, "(model, data, ctx)"),
        ("train", lambda *, model, data, ctx: None, "(model, data, ctx)"),
        ("evaluate", lambda: None, "(model, data, ctx)"),
        ("data", lambda: None, "(source)"),
        ("data", lambda index, count: None, "(source)"),
    ],
)
def test_a_handler_with_a_wrong_signature_is_refused_at_once(kind, handler, shape):
    with pytest.raises(AppError) as caught:
        getattr(Client(), kind)(handler)
    assert f"the {kind} handler <lambda>" in caught.value.message
    assert f"cannot be called with {shape}: " in caught.value.message
    assert caught.value.hint == f"Write it as `def <lambda>{shape}`."


def test_other_mistakes_with_handlers():
    client = app_of().client
    with pytest.raises(AppError, match="the train handler is 7, not a function"):
        Client().train(7)
    with pytest.raises(AppError, match="this client has two handlers for train"):
        client.train(lambda model, data, ctx: None)
    with pytest.raises(AppError, match=r'needs a name\nWrite @client\.query\("statistics"\)'):
        client.query(lambda model, data, ctx: None)

    async def slow(model, data, ctx):
        return None

    with pytest.raises(AppError, match="the evaluate handler is async; handlers are plain functions"):
        client.evaluate(slow)


def test_a_correction_that_the_loop_does_not_take_ends_the_run_and_says_where():
    with pytest.raises(UnusedCorrection) as caught:
        run(app_of(strategy=FedProx(cohort=4, mu=0.1)))
    assert caught.value.round == 1
    assert caught.value.client in range(8)
    assert caught.value.run
    assert "the training loop never took it" in str(caught.value)
    assert "ctx.correction.gradient(weights)" in caught.value.hint


# Strategies that ask for the impossible


class Asks(Strategy):
    """Trains well for a round, and then asks for something else."""

    def __init__(self, **asked):
        self.asked = asked

    def round(self, state, r):
        answer = yield Ask(**{"clients": 4, "model": state.model, **(self.asked if r > 1 else {})})
        return state.replace(
            model=state.model.replace({n: state.model[n] + v for n, v in answer.value.items() if n != "n"})
        )


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (9, "Uniform(cohort=9) asks for 9 clients, but the federation has 8"),
        ([1, 2, 77], "Fixed asks for 3 clients, but 1 of them are not among the 8 in the federation: 77"),
        (Weighted(3, [0] * 6 + [1, 1]), "Weighted(cohort=3) asks for 3 clients, but of the 8 in the federation 2 have"),
        (Weighted(3, [1, 1]), "Weighted has 2 weights, but the federation has 8 clients"),
    ],
)
def test_a_strategy_that_asks_for_more_clients_than_exist(clients, message, tmp_path):
    with pytest.raises(SamplingError) as caught:
        run(app_of(strategy=Asks(clients=clients)), tmp_path)
    error, place = caught.value, only(tmp_path)
    assert message in error.message
    assert error.hint
    assert (error.run, error.round) == (place.name, 2)
    assert f"(run {place.name}, round 2)" in str(error)
    mended = resume(app_of(strategy=Asks()), place)
    assert mended.model_sha256 == run(app_of(strategy=Asks())).model_sha256


def rounds_of(function):
    class Made(Strategy):
        def round(self, state, r):
            return function(state, r)

    return Made()


def yields(value):
    def round(state, r):
        yield value
        return state

    return rounds_of(round)


def returns(value):
    def round(state, r):
        return value(state)
        yield

    return rounds_of(round)


def raises(state, r):
    raise KeyError("momentum")
    yield


STRATEGIES = {
    "no generator": (
        rounds_of(lambda state, r: state),
        "Made.round is not a generator\nWrite `answer = yield Ask(...)`",
    ),
    "yields none": (yields(None), "round 1 of Made yielded None, not an Ask or a list of them"),
    "yields a model": (yields(Arrays(MODEL)), "round 1 of Made yielded Arrays("),
    "yields an empty list": (yields([]), "round 1 of Made yielded [], not an Ask or a list of them"),
    "yields a list of others": (yields([Ask(clients=1), 3]), "not an Ask or a list of them"),
    "returns none": (
        returns(lambda state: None),
        "round 1 of Made returned a NoneType, not the next State\nEnd it with",
    ),
    "returns a model": (returns(lambda state: state.model), "round 1 of Made returned a Arrays, not the next State"),
    "raises": (rounds_of(raises), "round 1 of Made raised KeyError: 'momentum'"),
    "keeps what cannot be saved": (
        returns(lambda state: state.replace(net=object())),
        "net is a object, which cannot be saved\nKeep state as arrays, numbers, text",
    ),
}


@pytest.mark.parametrize("what", STRATEGIES)
def test_a_strategy_that_is_wrong_is_told_how_to_write_it(what, tmp_path):
    strategy, message = STRATEGIES[what]
    with pytest.raises(StrategyError) as caught:
        run(app_of(strategy=strategy), tmp_path)
    assert message in str(caught.value).replace(f" ({caught.value.where})", "")
    assert caught.value.round == 1
    assert caught.value.run == only(tmp_path).name


def test_a_start_without_a_state():
    class Made(Strategy):
        def start(self, model):
            return {"model": model}

        def round(self, state, r):
            yield

    with pytest.raises(StrategyError, match=r"Made\.start returned a dict, not a State"):
        run(app_of(strategy=Made()))


# Slips in what the operator writes beside a round


class Draws:
    """A sampler that draws what it is given, or what a function gives."""

    def __init__(self, drawn):
        self.drawn = drawn

    def draw(self, clients, key):
        return self.drawn(clients) if callable(self.drawn) else self.drawn

    def spec(self):
        return {"name": "draws"}


def fails(*args, **more):
    raise ValueError("boom")


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (fails, "the sampler Draws raised ValueError: boom"),
        (None, "the sampler Draws drew None, not clients"),
        ([0, [1]], "the sampler Draws drew [1], which is no client"),
        ([0, True], "the sampler Draws drew True, which is no client"),
        ([0, 77, -1], "the sampler Draws drew clients that are not among the 8 in the federation: 77, -1"),
        (["0"], "the sampler Draws drew clients that are not among the 8 in the federation: '0'"),
    ],
    ids=["raises", "none", "a list", "a truth", "unknown", "text"],
)
def test_a_sampler_that_is_wrong_is_named_and_nothing_is_lost(drawn, message, tmp_path):
    with pytest.raises(SamplingError) as caught:
        run(app_of(strategy=Asks(clients=Draws(drawn))), tmp_path)
    assert message in caught.value.message
    assert (caught.value.run, caught.value.round) == (only(tmp_path).name, 2)
    mended = resume(app_of(strategy=Asks()), only(tmp_path))
    assert mended.model_sha256 == run(app_of(strategy=Asks())).model_sha256


@pytest.mark.parametrize("drawn", [np.array([1, 3]), list(np.array([1, 3])), (i for i in (1, 3))], ids=type)
def test_a_sampler_may_draw_numbers_of_any_kind(drawn, tmp_path):
    result = run(app_of(strategy=FedAvg(cohort=Draws(drawn)), rounds=1), tmp_path)
    assert [(row.client, type(row.client)) for row in result.clients] == [(1, int), (3, int)]


def test_a_start_that_raises_is_named_and_the_run_is_refused(tmp_path):
    class Made(FedAvg):
        start = fails

    with pytest.raises(StrategyError, match=r"Made\.start raised ValueError: boom") as caught:
        run(app_of(strategy=Made()), tmp_path)
    assert caught.value.run == only(tmp_path).name
    assert read_log(only(tmp_path)).finished.reason == "refused"


def test_a_start_that_draws_is_seeded_and_gives_the_generators_back(tmp_path):
    class Made(FedAvg):
        def start(self, model):
            return super().start(model.map(lambda n, a: a + np.random.normal(size=a.shape).astype(a.dtype)))

    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    whole = run(app_of(strategy=Made(cohort=2), rounds=1), seed=1)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(4)
    assert run(app_of(strategy=Made(cohort=2), rounds=1), seed=1).model_sha256 == whole.model_sha256
    assert run(app_of(strategy=Made(cohort=2), rounds=1), seed=2).model_sha256 != whole.model_sha256


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("field", ["model", "config", "expects"])
def test_a_function_of_the_client_that_raises_is_named_with_the_client(field, workers, tmp_path):
    known = {client: {"model": Arrays(MODEL), "config": {}, "expects": umbel.Like()}[field] for client in (0, 1, 3)}

    def of_client(client):
        return known[client]

    with pytest.raises(StrategyError) as caught:
        umbel.run(
            app_of(strategy=Asks(clients=[0, 1, 2, 3], **{field: of_client})),
            on=Simulation(8, workers=workers),
            folder=tmp_path,
        )
    assert "of_client, a function of the client, raised KeyError: 2" in caught.value.message
    assert (caught.value.client, caught.value.round, caught.value.run) == (2, 2, only(tmp_path).name)


@dataclass(frozen=True)
class Slips(Fold):
    """A fold that raises in one of its steps."""

    name: ClassVar[str] = "slips"
    step: str = "add"

    def _slip(self, step):
        if self.step == step:
            raise TypeError("a slip in the fold")

    def zero(self):
        self._slip("zero")
        return [print if self.step == "pickle" else 0, (i for i in ()) if self.step == "pickle" else 0]

    def add(self, acc, item, factor=1.0):
        self._slip("add")
        return acc

    def merge(self, acc, other):
        self._slip("merge")
        return acc

    def settle(self, acc):
        self._slip("settle")

    def finish(self, acc):
        self._slip("finish")
        return Arrays()


@pytest.mark.parametrize(
    ("step", "workers"),
    [("zero", 0), ("add", 0), ("finish", 0), ("zero", 2), ("add", 2), ("merge", 2), ("settle", 2), ("finish", 2)],
)
def test_a_fold_that_raises_is_an_error_of_the_strategy_and_of_no_client(step, workers):
    with pytest.raises(StrategyError) as caught:
        umbel.run(app_of(strategy=Asks(fold=Slips(step))), on=Simulation(8, workers=workers), folder=None, seed=1)
    assert f"the fold slips raised TypeError: a slip in the fold (in {step})" in caught.value.message
    assert caught.value.round == 2


def test_a_fold_whose_accumulator_cannot_cross_to_another_process_is_told_so():
    with pytest.raises(StrategyError, match="what the fold slips has made of updates cannot be sent") as caught:
        umbel.run(app_of(strategy=Asks(fold=Slips("pickle"))), on=Simulation(8, workers=2), folder=None)
    assert caught.value.round == 2


@register_transform
@dataclass(frozen=True)
class slipping(umbel.Transform):
    """A transform that raises in one of its steps on the server."""

    name: ClassVar[str] = "slipping"
    step: str = "init"

    def _slip(self, step):
        if self.step == step:
            raise TypeError("a slip in the transform")

    def init(self, schema):
        self._slip("init")

    def send(self, state):
        self._slip("send")

    def finish(self, answer, state, key, own):
        self._slip("finish")
        return (answer, state) if self.step else answer


@pytest.mark.parametrize("step", ["init", "send", "finish"])
def test_a_transform_that_raises_is_named(step, tmp_path):
    with pytest.raises(StrategyError) as caught:
        run(app_of(strategy=Asks(transforms=slipping(step))), tmp_path)
    assert f"the transform slipping raised TypeError: a slip in the transform (in {step})" in caught.value.message
    assert (caught.value.run, caught.value.round) == (only(tmp_path).name, 2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": 3}, "an ask's model is 3, not Arrays"),
        ({"model": lambda client: 3}, "an ask's model is 3, not Arrays"),
        ({"expects": 3}, "what an ask expects is 3, not Like(...) or Free(...)"),
        ({"expects": lambda client: 3}, "what an ask expects is 3, not Like(...) or Free(...)"),
        ({"config": 3}, "an ask's config is 3, not a dictionary"),
        ({"config": lambda client: 3}, "an ask's config is 3, not a dictionary"),
        ({"correction": 3}, "an ask's correction is 3, not a Correction(...)"),
    ],
)
def test_what_is_sent_has_to_be_of_its_kind(asked, message):
    with pytest.raises(StrategyError) as caught:
        run(app_of(strategy=Asks(**asked)))
    assert message in caught.value.message
    assert caught.value.round == 2


# A disk that is full


def full_at(monkeypatch, name, number):
    """Let the n-th call of ``os.<name>`` find no room, and all after it."""
    original, calls = getattr(os, name), iter(range(1, 10**6))

    def broken(*arguments):
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(os, name, broken)


def storage_error(call):
    try:
        call()
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("name", ["write", "replace", "fsync"])
def test_on_a_full_disk_nothing_learned_is_lost(name, tmp_path, monkeypatch):
    whole = run(app_of())
    for number in range(1, 16):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            full_at(patch, name, number)
            error = storage_error(lambda: run(app_of(), folder))  # noqa: B023
        place = only(folder)
        if error is None:
            assert number > 8
        else:
            assert "No space left on device" in error.message
            assert str(place) in error.message
            assert "Nothing learned before is lost: make room or mend the folder" in error.hint
            assert error.retry
        if (place / LOG).stat().st_size == 0:
            assert number <= 2  # it had not begun
            continue
        log = read_log(place)
        assert [r.round for r in log.rounds] == list(range(1, len(log.rounds) + 1))
        assert not list(place.rglob("*.tmp"))
        assert resume(app_of(), place).model_sha256 == whole.model_sha256, number


def test_when_client_states_find_no_room_nothing_learned_is_lost(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        written = 0

        def execute(self, sql, *parameters):
            if sql.startswith("INSERT"):
                Full.written += 1
                if Full.written > 9:
                    raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *args, **settings: connect(*args, factory=Full, **settings))
        with pytest.raises(StorageError) as caught:
            run(app_of(), tmp_path)
    assert "client-states.db cannot be written: database or disk is full" in str(caught.value)
    assert "make room" in caught.value.hint
    assert (caught.value.round, caught.value.run) == (3, only(tmp_path).name)
    assert resume(app_of(), only(tmp_path)).model_sha256 == run(app_of()).model_sha256


# Damaged folders


@pytest.fixture
def place(tmp_path):
    """A run that was killed when it had recorded, but not committed, round 3."""

    def kill(event):
        if isinstance(event, AskClosed) and event.round == 3:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(app_of(), tmp_path, observers=[kill])
    assert len(read_log(only(tmp_path)).rounds) == 2
    return only(tmp_path)


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGE = {
    "a checkpoint that lost its end": ("checkpoints/round-0002.safetensors", lambda data: data[:-7]),
    "a checkpoint that is empty": ("checkpoints/round-0002.safetensors", lambda data: b""),
    "a checkpoint with a flipped bit": ("checkpoints/round-0002.safetensors", flip),
    "an answer with a flipped bit": ("answers/ask-000002.safetensors", flip),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_found_and_what_is_left_is_named(what, place):
    name, damage = DAMAGE[what]
    whole = (place / name).read_bytes()
    (place / name).write_bytes(damage(whole))
    with pytest.raises(CorruptFile) as caught:
        resume(app_of(), place)
    error = caught.value
    assert f"{place / name} is not what the run wrote: its hash differs from the log's" in error.message
    assert error.run == place.name
    assert error.hint
    if name.startswith("checkpoints"):
        assert f"--init {place / 'checkpoints' / 'round-0001.safetensors'}" in error.hint
    (place / name).write_bytes(whole)
    assert resume(app_of(), place).model_sha256 == run(app_of()).model_sha256


def test_a_missing_checkpoint_is_found(place):
    (place / "checkpoints" / "round-0002.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"round-0002\.safetensors is missing or cannot be read"):
        resume(app_of(), place)
    (place / "checkpoints" / "round-0001.safetensors").unlink()
    with pytest.raises(CorruptFile, match="No older checkpoint is left; start the run again"):
        resume(app_of(), place)


def test_a_damaged_log_is_found_and_its_line_named(place):
    lines = (place / LOG).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"round_committed", b"round_comitted")
    (place / LOG).write_bytes(b"".join(lines))
    with pytest.raises(CorruptFile, match=r"line 3 of .*events\.jsonl is damaged: .*\nThe checkpoints beside it"):
        resume(app_of(), place)
    begun = run(app_of(), init=place / "checkpoints" / "round-0002.safetensors", rounds=1)
    assert begun.rounds == 1


def test_a_log_of_another_release_is_refused(place):
    chain = LogChain()
    first, *rest = map(chain.unseal, (place / LOG).read_bytes().splitlines(keepends=True))
    (place / LOG).write_bytes(sealed([{**first, "format": 99}, *rest]))
    with pytest.raises(CorruptFile, match=r"has format 99; this release reads 3 to 5\n.* --init"):
        resume(app_of(), place)


@pytest.mark.parametrize("content", [b"not a database at all, but long enough" * 50, b"SQLite format 3\0" * 99])
def test_damaged_client_states_are_found(content, place):
    for path in place.glob("client-states.db*"):
        path.unlink()
    (place / "client-states.db").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"the client states in .*client-states\.db cannot be read: .*\n.*--init"):
        resume(app_of(), place)


def test_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(umbel.errors.JournalMissing, match=r"there is no run in .*: it has no events\.jsonl"):
        resume(app_of(), tmp_path / "run-7")


# Ctrl-C


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("nth", [0, 2])
def test_ctrl_c_keeps_what_was_learned_and_the_run_goes_on_to_the_same_bits(when, nth, tmp_path):
    done = []

    def interrupt(update, ctx):
        done.append(ctx.round)
        if ctx.round == when and done.count(when) > nth:
            raise KeyboardInterrupt
        return update

    with pytest.raises(RunInterrupted) as caught:
        run(app_of(interrupt), tmp_path)
    error, place = caught.value, only(tmp_path)
    assert error.message == f"the run was stopped after round {when - 1}; what it learned until then is kept"
    assert error.hint == f"Go on with: umbel resume {place.name}"
    assert error.run == place.name
    assert error.retry
    log = read_log(place)
    assert [r.round for r in log.rounds] == list(range(1, when))
    assert isinstance(log.events[-1], RunInterruption)
    assert resume(app_of(), place).model_sha256 == run(app_of()).model_sha256


@pytest.mark.parametrize("kind", [RoundCommitted, AskClosed])
def test_ctrl_c_between_two_tasks(kind, tmp_path):
    def interrupt(event):
        if isinstance(event, kind) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted):
        run(app_of(), tmp_path, observers=[interrupt])
    assert resume(app_of(), only(tmp_path)).model_sha256 == run(app_of()).model_sha256


def test_ctrl_c_in_a_run_that_is_kept_nowhere():
    def interrupt(update, ctx):
        raise KeyboardInterrupt

    with pytest.raises(RunInterrupted, match=r"It was kept nowhere; pass folder=\.\.\. to run\(\)"):
        run(app_of(interrupt))


# Settings


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (0, "a simulation has at least one client, not 0"),
        ([], "a simulation has at least one client; this list of sources is empty"),
        ("100", "a simulation's clients are a number, a list of sources or a mapping, not '100'"),
        (2.5, "a simulation's clients are a number"),
    ],
)
def test_a_federation_of_nobody(clients, message):
    with pytest.raises(SettingError, match=message):
        Simulation(clients)


def test_every_error_of_the_caller_is_an_umbel_error():
    for kind in (AppError, SettingError, SamplingError, StrategyError):
        assert issubclass(kind, CallerError)
        assert issubclass(kind, UmbelError)
