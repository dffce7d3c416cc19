"""The executor: what a handler gets, what becomes of what it returns, and what its client keeps."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import make_dataclass, replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel import (
    Arrays,
    Ask,
    Client,
    Correction,
    Free,
    Like,
    Metrics,
    Update,
    clip_by_norm,
    collect,
    files,
    mean,
    top_k,
    total,
    weighted_mean,
)
from umbel.core import arrays as core_arrays
from umbel.core import encoding
from umbel.core.randomness import Key
from umbel.core.task import Admit, Failed, Finished, Task
from umbel.core.update import Receipt, Stack
from umbel.errors import AppError, SettingError, UnusedCorrection
from umbel.work import executor
from umbel.work import intake as intakes
from umbel.work.executor import DataCache, Executor, RunKeys
from umbel.work.intake import LONGEST_REASON, LONGEST_TRACE, ClosedAsk, Intake
from umbel.work.late import load_ask, save_ask
from umbel.work.state import ClientStates

MODEL = Arrays({"w": np.zeros(2), "n": np.array(5), "own": np.ones(1)}, {"own": "personal"})

ARRAYS = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]),
    st.integers(0, 3),
)
NAMES = st.sampled_from(["w", "n", "own", "w:shape", "w:indices", "w:values", "n:values", ""])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
TREES = st.recursive(
    PLAIN | ARRAYS | st.dictionaries(NAMES, ARRAYS, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def states():
    found = ClientStates()
    yield found
    found.close()


class Bench:
    """An executor, and the steps that a session takes with it."""

    def __init__(self, states, *, config=None, load=None, key=0, **handlers):
        client = Client()
        if load is not None:
            client.data(load)
        for kind, handler in handlers.items():
            (client.query("facts") if kind == "facts" else getattr(client, kind))(handler)
        self.executor = Executor(
            client, lambda c: {"index": c}, config=config or {}, keys=RunKeys(Key.from_seed(key)), states=states
        )
        self.states = states
        self.asks = 0

    def open(self, round=1, number=0, **asked):
        id, self.asks = self.asks, self.asks + 1
        ask = Ask(**{"clients": 3, "model": MODEL, "fold": mean(), **asked})
        self.executor.open(id, ask, round, number, ask.transform.send(ask.transform.init(MODEL.schema)))
        return id

    def run(self, id, client):
        return self.executor.run_all(id, [client])[0] or Finished([f"{id}.{client}"])

    def round(self, *clients, round=1, number=0, **asked):
        """Ask these clients, admit whoever finished, commit their states and return what was closed."""
        id = self.open(round, number, **asked)
        for client in clients:
            event = self.run(id, client)
            if isinstance(event, Finished):
                self.executor.admit(Admit(event.tasks, id))
        closed = self.executor.close(id)
        self.states.advance(id, closed.states, since=id)
        return closed


def add_one(model, data, ctx):
    return Update({n: a + 1 for n, a in model.items()}, weight=1 + ctx.client, metrics={"client": ctx.client})


# What a handler gets


def test_a_handler_gets_the_model_its_data_and_its_context(states):
    seen = []

    def train(model, data, ctx):
        seen.append((model, data, ctx))
        return Update(model)

    bench = Bench(states, train=train, config={"lr": 0.1, "steps": 2}, load=lambda source: source["index"] * 10)
    bench.round(7, round=3, config={"lr": 0.5}, inbox={"letter": np.arange(2)}, correction=None)
    ((model, data, ctx),) = seen
    assert model == MODEL.as_given()
    assert "own" not in model
    assert data == 70
    assert (ctx.client, ctx.round, ctx.kind, ctx.device) == (7, 3, "train", "cpu")
    assert ctx.config == {"lr": 0.5, "steps": 2}
    assert ctx.inbox == Arrays({"letter": np.arange(2)})
    assert ctx.state == {}
    assert ctx.correction is None
    ctx.step()


def test_a_model_is_read_only(states):
    def train(model, data, ctx):
        model["w"] += 1

    bench = Bench(states, train=train)
    failed = bench.run(bench.open(), 0)
    assert "its train handler raised ValueError: output array is read-only" in failed.reason


def test_each_client_gets_its_own_where_the_strategy_says_so(states):
    seen = {}

    def train(model, data, ctx):
        seen[ctx.client] = (
            model["w"].tolist(),
            ctx.config["lr"],
            float(ctx.inbox["x"]),
            ctx.correction.take().proximal,
        )
        return Update({"w": model["w"]})

    Bench(states, train=train).round(
        1, 2,
        model=lambda c: Arrays({"w": np.full(1, float(c))}), config=lambda c: {"lr": c / 10},
        inbox=lambda c: {"x": np.float64(-c)}, correction=lambda c: Correction(proximal=float(c)),
        expects=lambda c: Like(names=("w",)),
    )  # fmt: skip
    assert seen == {1: ([1.0], 0.1, -1.0, 1.0), 2: ([2.0], 0.2, -2.0, 2.0)}


def test_draws_depend_on_the_run_the_kind_the_round_its_ask_and_the_client_and_on_nothing_else(states):
    def draws(model, data, ctx):
        ctx.state["drawn"] = [float(ctx.rng.random()), random.random(), float(np.random.random()), ctx.key.hex()]
        return Update({}) if ctx.kind == "query:facts" else Update(MODEL)

    def drawn(key=0, client=0, kind="train", first=False, **asked):
        bench = Bench(states, key=key, train=draws, facts=draws)
        if first:
            bench.round(5, round=9)
        free = {} if kind == "train" else {"expects": Free(), "fold": collect()}
        bench.round(client, kind=kind, **free, **asked)
        return tuple(states.get(client)["user"]["drawn"])

    found = [
        drawn(), drawn(key=1), drawn(client=1), drawn(kind="query:facts"), drawn(round=2), drawn(number=1),
        drawn(round=1, number=2),
    ]  # fmt: skip
    assert drawn(first=True) == found[0]
    for place in range(4):
        assert len({f[place] for f in found}) == len(found)


# Data


def test_data_are_loaded_once_while_there_is_room():
    loaded = []
    client = Client()
    client.data(lambda source: loaded.append(source) or len(loaded))
    cache = DataCache(client, lambda c: f"source {c}", 2, RunKeys(Key.from_seed(0)))
    assert [cache.get(c) for c in (0, 1, 0, 2, 0, 1)] == [1, 2, 1, 3, 1, 4]
    assert loaded == ["source 0", "source 1", "source 2", "source 1"]
    assert (cache.hits, cache.misses) == (2, 4)


def test_without_a_data_handler_data_are_the_source_and_without_room_nothing_is_kept():
    assert DataCache(Client(), lambda c: f"source {c}", 2, RunKeys(Key.from_seed(0))).get(4) == "source 4"
    client = Client()
    client.data(lambda source: [source])
    cache = DataCache(client, lambda c: c, 0, RunKeys(Key.from_seed(0)))
    assert cache.get(1) is not cache.get(1)


def test_data_that_draw_do_not_depend_on_who_loads_them():
    client = Client()
    client.data(lambda source: (random.random(), np.random.random()))
    random.seed(1)
    cache = DataCache(client, lambda c: c, 9, RunKeys(Key.from_seed(3)))
    first = cache.get(1)
    assert cache.get(2) != first
    assert DataCache(client, lambda c: c, 9, RunKeys(Key.from_seed(3))).get(1) == first
    assert DataCache(client, lambda c: c, 9, RunKeys(Key.from_seed(4))).get(1) != first


# What becomes of what a handler returns


def test_what_is_folded_are_differences_values_of_buffers_and_nothing_personal(states):
    closed = Bench(states, train=add_one).round(0, 1, 2)
    answer = closed.partial.finish()
    assert answer.value == Arrays({"w": np.ones(2), "n": np.array(6.0).astype(answer.value["n"].dtype)})
    assert answer.clients == (0, 1, 2)
    assert answer.weight == 6.0
    assert answer.metrics == {"client": (0 * 1 + 1 * 2 + 2 * 3) / 6}
    assert all(r.seconds >= 0 and r.staleness == 0 for r in answer.receipts)


def test_transforms_are_applied_and_what_they_leave_is_kept_by_lane(states):
    def train(model, data, ctx):
        return Update({"w": model["w"] + [1.0, 3.0], "n": model["n"]})

    bench = Bench(states, train=train)
    values = [
        bench.round(0, transforms=top_k(0.5), lane=lane).partial.finish().value["w"].tolist()
        for lane in ("a", "a", "a", "b", "a")
    ]
    assert values == [[0.0, 3.0], [0.0, 3.0], [3.0, 0.0], [0.0, 3.0], [0.0, 6.0]]
    assert sorted(where.split("/")[0] for where in states.get(0)["local"]) == ["a", "b"]


def test_a_bound_is_kept(states):
    def train(model, data, ctx):
        return Update({"w": model["w"] + [3.0, 4.0], "n": model["n"]})

    closed = Bench(states, train=train).round(0, transforms=clip_by_norm(1.0))
    np.testing.assert_allclose(closed.partial.finish().value["w"], [0.6, 0.8], rtol=1e-6)


def test_evaluation_returns_metrics_by_name(states):
    def evaluate(model, data, ctx):
        return {"x": 1.0} if ctx.client else Metrics({"x": 4.0}, weight=3)

    closed = Bench(states, evaluate=evaluate).round(0, 1, kind="evaluate", expects=Free(), fold=total())
    assert closed.partial.finish().metrics == {"x": (3 * 4 + 1) / 4}


def test_a_query_returns_whatever_it_likes(states):
    def facts(model, data, ctx):
        return Update({f"client {ctx.client}": np.arange(ctx.client)}, aux={"seen": np.ones(1)})

    closed = Bench(states, facts=facts).round(
        1, 2, kind="query:facts", model=None, expects=Free(aux=Free()), fold=collect()
    )
    found = closed.partial.finish().value
    assert {c: {n: a.tolist() for n, a in u.arrays.items()} for c, u in found.items()} == {
        1: {"client 1": [0]},
        2: {"client 2": [0, 1]},
    }
    assert all(u.aux["seen"].tolist() == [1.0] for u in found.values())


@pytest.mark.parametrize(
    ("kind", "returned", "reason"),
    [
        ("train", None, "the train handler returned a NoneType, not umbel.Update(...) (Return umbel.Update(...).)"),
        ("train", {"w": np.zeros(2)}, "the train handler returned a dict, not umbel.Update(...)"),
        ("train", Metrics({}), "the train handler returned Metrics; training has to return an Update"),
        ("evaluate", Update(), "the evaluate handler returned a Update, not umbel.Metrics(...)"),
        ("evaluate", 0.5, "the evaluate handler returned a float, not umbel.Metrics(...)"),
        ("evaluate", {"x": "high"}, "metric 'x' is a str, not a number"),
        ("evaluate", Metrics({"x": 1}, weight=-1), "the update's weight is -1.0"),
        ("facts", 7, "the query:facts handler returned a int, not umbel.Update(...)"),
        ("facts", Update({"x": np.zeros(1)}, delta=True), None),
    ],
)
def test_what_a_handler_returns_is_checked(states, kind, returned, reason):
    bench = Bench(states, **{kind: lambda model, data, ctx: returned})
    free = {} if kind == "train" else {"expects": Free(), "fold": collect()}
    event = bench.run(bench.open(kind="query:facts" if kind == "facts" else kind, **free), 0)
    if reason is None:
        assert isinstance(event, Finished)
    else:
        assert isinstance(event, Failed)
        assert event.reason.startswith(reason)
        assert not event.retry


def test_an_error_of_the_client_says_in_which_step_and_where(states):
    def load(source):
        return open(f"/nowhere/{source['index']}.csv")

    def train(model, data, ctx):
        raise KeyError("lr")

    bench = Bench(states, train=train, load=load)
    event = bench.run(bench.open(), 4)
    assert event.task == "0.4"
    assert event.reason.startswith(
        "loading its data raised FileNotFoundError: [Errno 2] No such file or directory: '/nowh"
    )
    assert "(test_executor.py:" in event.reason
    bench = Bench(states, train=train)
    assert bench.run(bench.open(), 4).reason.startswith("its train handler raised KeyError: 'lr' (test_executor.py:")


def test_what_it_is_not_asked_to_survive_it_does_not_catch(states):
    def train(model, data, ctx):
        raise KeyboardInterrupt

    bench = Bench(states, train=train)
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.open(), 0)


# Errors of whoever runs the federation


def test_an_ask_that_the_client_has_no_handler_for(states):
    bench = Bench(states, train=add_one)
    with pytest.raises(AppError) as caught:
        bench.open(kind="query:facts")
    assert "the strategy asks clients to query:facts, but the client has no handler for that (it has: train)" in str(
        caught.value
    )
    assert caught.value.hint == 'Write one and decorate it with @client.query("facts").'
    with pytest.raises(AppError, match=r"decorate it with @client\.evaluate\."):
        bench.open(kind="evaluate")


def test_a_loop_over_no_examples_takes_no_correction(states):
    bench = Bench(states, train=lambda model, data, ctx: Update(model, weight=0))
    assert bench.run(bench.open(correction=Correction(proximal=0.1)), 3)


def test_a_correction_has_to_be_taken(states):
    bench = Bench(states, train=add_one)
    with pytest.raises(UnusedCorrection) as caught:
        bench.run(bench.open(round=4, correction=Correction(proximal=0.1)), 3)
    assert (caught.value.round, caught.value.client) == (4, 3)

    def train(model, data, ctx):
        assert ctx.correction.anchor is model
        gradient = ctx.correction.gradient({"w": model["w"] + 2})
        assert gradient["w"].tolist() == [0.2, 0.2]
        return Update(model)

    bench = Bench(states, train=train)
    assert isinstance(bench.run(bench.open(correction=Correction(proximal=0.1)), 3), Finished)


def test_an_error_of_the_caller_inside_a_handler_ends_the_run_and_is_located(states):
    def train(model, data, ctx):
        raise SettingError("no such optimiser")

    bench = Bench(states, train=train)
    with pytest.raises(SettingError) as caught:
        bench.run(bench.open(round=2), 6)
    assert (caught.value.round, caught.value.client) == (2, 6)


# Admission


def test_only_an_admitted_result_counts_and_advances_the_clients_state(states):
    def train(model, data, ctx):
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return Update(model)

    bench = Bench(states, train=train)
    id = bench.open()
    for client in (0, 1):
        bench.run(id, client)
    bench.executor.admit(Admit(["0.0"], id))
    bench.executor.cancel("0.1")
    bench.executor.cancel("0.1")
    closed = bench.executor.close(id)
    assert closed.partial.receipts.keys() == {"0.0"}
    assert closed.states.keys() == {0}
    states.advance(id, closed.states, since=id)
    assert states.get(0)["user"] == {"n": 1}
    assert states.get(1) == {}


def test_done_again_a_task_gives_the_same_from_the_same_state(states):
    def train(model, data, ctx):
        ctx.state["x"] = ctx.state.get("x", 0.0) + ctx.rng.random()
        return Update({"w": model["w"] + ctx.state["x"], "n": model["n"]})

    bench = Bench(states, train=train)
    bench.round(0, round=1)
    id = bench.open(round=2)
    answers = []
    for _ in range(3):
        bench.run(id, 0)
        answers.append(bench.executor._results[f"{id}.0"].items.arrays["w"].tolist())
    assert answers[0] == answers[1] == answers[2]


def test_a_state_that_is_emptied_stays_empty(states):
    def train(model, data, ctx):
        ctx.state.clear() if ctx.round == 2 else ctx.state.update(n=ctx.round)
        return Update(model)

    bench = Bench(states, train=train)
    found = []
    for round in (1, 2, 3):
        found.append(states.get(0).get("user", {}))
        bench.round(0, round=round)
    assert found == [{}, {"n": 1}, {}]


def test_an_update_that_does_not_go_with_the_others_is_refused_when_its_ask_closes(states):
    def facts(model, data, ctx):
        ctx.state["n"] = 1
        return Update({"x": np.zeros(1 + (ctx.client == 1))})

    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        opened = Bench(states, facts=facts).round(*order, kind="query:facts", expects=Free())
        closed = ClosedAsk(opened.partial, opened.states, opened.refused)
        closed.agree()
        assert closed.refused == {1: "array 'x' has shape [2], but [1] in other updates"}
        assert closed.partial.finish().clients == (0, 2)
        assert closed.states.keys() == {0, 2}


def test_a_stale_update_is_discounted_and_its_receipt_says_so(states):
    bench = Bench(states, train=add_one)
    old = bench.open()
    bench.run(old, 0), bench.run(old, 1)
    bench.executor.close(old)
    new = bench.open(round=2)
    bench.executor.admit(Admit(["0.0"], new, staleness=1, factor=0.5))
    bench.executor.admit(Admit(["0.1"], new, staleness=0, factor=1.0))
    answer = bench.executor.close(new).partial.finish()
    assert answer.value["w"].tolist() == [0.75, 0.75]
    assert [r.staleness for r in answer.receipts] == [1, 0]


# Asks whose tasks outlive them


def test_asks_are_forgotten_unless_their_tasks_may_still_come(states):
    bench = Bench(states, train=add_one)
    first, second, third = (bench.open() for _ in range(3))
    bench.executor.close(first), bench.executor.close(second)
    bench.executor.forget({second, third})
    with pytest.raises(KeyError):
        bench.run(first, 0)
    assert isinstance(bench.run(second, 0), Finished)
    assert isinstance(bench.run(third, 0), Finished)


def test_after_a_restart_a_late_task_gives_the_same_bits(states):
    def train(model, data, ctx):
        step = (
            ctx.correction.gradient({"w": model["w"] + 1})["w"] + ctx.inbox["x"] + ctx.rng.random() + ctx.config["lr"]
        )
        return Update({"w": model["w"] + step, "n": model["n"]}, aux={"round": np.array(ctx.round)})

    linear = Arrays({"w": np.ones(2)})
    asked = {
        "model": lambda c: MODEL.replace({"w": np.full(2, float(c))}),
        "inbox": lambda c: {"x": np.arange(2) * c},
        "config": {"lr": 0.5},
        "correction": Correction(proximal=0.1, linear=linear),
        "expects": Like(names=("w", "n"), aux=Like(Arrays({"round": np.array(1)}))),
        "transforms": top_k(0.5),
    }

    def outcome(bench, id):
        bench.run(id, 4)
        result = bench.executor._results[f"{id}.4"]
        return result.items.arrays, result.items.aux, result.states

    bench = Bench(states, train=train)
    id = bench.open(round=6, number=2, **asked)
    saved = save_ask(Ask(clients=(4, 2), **asked), (4, 2))
    again = Bench(states, train=train)
    transform = load_ask(saved).transform
    again.executor.open(id, load_ask(saved), 6, 2, transform.send(transform.init(MODEL.schema)))
    assert outcome(again, id) == outcome(bench, id)
    assert isinstance(again.run(id, 2), Finished)


# Where it failed


Made = make_dataclass("Made", [("size", int)], namespace={"__post_init__": lambda self: json.loads("{")})


def test_a_failure_names_the_deepest_line_of_the_clients_own_code(states):
    for handler in (
        lambda model, data, ctx: np.ones(2).reshape(3),
        lambda model, data, ctx: json.loads("{"),
        lambda model, data, ctx: Made(),
    ):
        bench = Bench(states, train=handler)
        event = bench.run(bench.open(), 0)
        assert event.reason.endswith(f"(test_executor.py:{handler.__code__.co_firstlineno})")
        assert event.trace.startswith("Traceback")


def test_a_traceback_is_kept_once_for_a_reason_and_not_for_all(states):
    def train(model, data, ctx):
        raise ValueError(f"no data {0 if ctx.client < 3 else ctx.client}")

    bench = Bench(states, train=train)
    id = bench.open()
    traces = [bench.run(id, client).trace for client in range(30)]
    assert [bool(trace) for trace in traces] == [True, False, False, *[True] * 9, *[False] * 18]
    assert 'raise ValueError(f"no data' in traces[0]


def test_a_reason_is_cut_where_it_comes_to_be(states):
    def train(model, data, ctx):
        raise ValueError("no data " * 10**6)

    bench = Bench(states, train=train)
    failed = bench.run(bench.open(), 0)
    assert len(failed.reason) == LONGEST_REASON
    assert failed.reason.endswith("…")
    assert len(failed.trace) <= LONGEST_TRACE


# What other processes send


LIKE = Update(Arrays({"w": np.ones(2), "n": np.array(5)}), 1.0, delta=True)
SPARSE = {"n": np.array(5), "w:shape": np.array([2]), "w:indices": np.array([1]), "w:values": np.ones(1)}


def arrived(update, **asked):
    intake = Intake()
    ask = Ask(**{"clients": 3, "model": MODEL, "fold": mean(), **asked})
    intake.open(1, ask, 1, 0, ask.transform.send(ask.transform.init(None)))
    return intake.arrived(Task("1.0", 1, 0), update, Receipt("1.0", 0, 1.0, {}), None)


@pytest.mark.parametrize("steps", [(), (clip_by_norm(9.0),), (top_k(0.5),), (top_k(0.5), clip_by_norm(9.0))], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"arrays": {"w": np.ones(2, np.int64), "n": np.array(5)}},
        {"arrays": {**SPARSE, "w:values": np.ones(1, np.int64)}},
        {"arrays": {**SPARSE, "w:shape": np.array(["2"])}},
        {"arrays": {**SPARSE, "w:indices": np.array([[1]])}},
        {"arrays": {**SPARSE, "w:indices": np.array([-1])}},
        {"arrays": {**SPARSE, "w:shape": np.zeros(0, np.int64)}},
        {"arrays": {"w": {"w": 1}}},
        {"arrays": {1: np.ones(2)}},
        {"arrays": "w"},
        {"arrays": None},
        {"aux": 7},
        {"aux": {"a": "text"}},
        {"delta": np.array([True, False])},
        {"delta": None},
        {"delta": [True]},
        {"weight": np.ones(2)},
        {"weight": "many"},
        {"weight": None},
        {"weight": {}},
        {"weight": 10**400},
    ],
    ids=str,
)
def test_whatever_another_process_sends_costs_its_clients_update_at_most(changes, steps):
    assert isinstance(arrived(replace(LIKE, **changes), transforms=steps), Failed)


@given(tree=TREES, name=st.sampled_from(["arrays", "aux", "weight", "delta", "metrics"]), steps=st.integers(0, 2))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_no_tree_in_an_updates_place_ends_a_run(tree, name, steps):
    transforms = [(), (clip_by_norm(9.0),), (top_k(0.5), clip_by_norm(9.0))][steps]
    outcome = arrived(replace(LIKE, **{name: tree}), transforms=transforms)
    assert isinstance(outcome, Failed | Finished)


def test_a_state_too_large_to_be_kept_costs_its_clients_update_and_says_so(states, monkeypatch):
    def train(model, data, ctx):
        ctx.state["cache"] = np.zeros(1000 if ctx.client == 1 else 10)
        return Update(model)

    monkeypatch.setattr(executor, "LARGEST_STATE", 4000)
    bench = Bench(states, train=train)
    id = bench.open()
    failed = bench.run(id, 1)
    assert isinstance(failed, Failed)
    assert not failed.retry
    for told in ("client 1", "ctx.state", "bytes", "4,000"):
        assert told in failed.reason
    assert isinstance(bench.run(id, 2), Finished)
    task = Task(f"{id}.1", id, 1)
    assert bench.executor.answer(task) == failed


def test_a_state_that_could_not_be_read_again_costs_its_clients_update_when_it_is_written(states, monkeypatch):
    def train(model, data, ctx):
        ctx.state["log"] = "x" * (5000 if ctx.client == 1 else 500)
        return Update(model)

    monkeypatch.setattr(core_arrays, "_LONGEST_HEADER", 4000)
    bench = Bench(states, train=train)
    id = bench.open()
    failed = bench.run(id, 1)
    assert isinstance(failed, Failed)
    for told in ("ctx.state", "bytes, of at most 4,000", "uint8"):
        assert told in failed.reason
    assert isinstance(bench.run(id, 2), Finished)


def test_what_transforms_keep_counts_too(states, monkeypatch):
    monkeypatch.setattr(executor, "LARGEST_STATE", 400)
    bench = Bench(states, train=lambda model, data, ctx: Update({"w": np.ones(100)}))
    failed = bench.run(bench.open(model=Arrays({"w": np.zeros(100)}), transforms=top_k(0.5)), 3)
    assert "client 3" in failed.reason
    assert "transforms" in failed.reason


def test_the_limit_is_one_that_sqlite_keeps():
    connection = sqlite3.connect(":memory:")
    limit = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    connection.close()
    assert limit > executor.LARGEST_STATE + 10_000


# Several at once

RETURNED = {
    "arrays": lambda new, client: Update(new, weight=client, metrics={"client": client}),
    "the same arrays again": lambda new, client: Update(SHARED.replace(new), weight=2.0),
    "a dictionary": lambda new, client: Update(dict(new)),
    "a difference": lambda new, client: Update(new, delta=True),
    "another dtype": lambda new, client: Update({"w": new["w"].astype(np.float32), "n": new["n"]}),
    "no weight": lambda new, client: Update(new, weight=0.0),
    "a wrong weight": lambda new, client: Update(new, weight=-1.0),
    "NaN": lambda new, client: Update({"w": new["w"] * np.nan, "n": new["n"]}),
    "too large": lambda new, client: Update({"w": new["w"] + 1e300, "n": new["n"]}, weight=1e9),
    "aux": lambda new, client: Update(new, aux={"more": np.ones(1)}),
    "another shape": lambda new, client: Update({"w": np.zeros(3), "n": new["n"]}),
    "lists": lambda new, client: Update({"w": new["w"].tolist(), "n": new["n"]}),
    "a masked array": lambda new, client: Update({"w": np.ma.masked_less(new["w"], 0.5), "n": new["n"]}),
    "steps in memory": lambda new, client: Update({"w": np.repeat(new["w"], 2)[::2], "n": new["n"]}),
    "another byte order": lambda new, client: Update({"w": new["w"].astype(">f8"), "n": new["n"]}),
    "a name more": lambda new, client: Update({**new, "more": np.ones(1)}),
    "a name less": lambda new, client: Update({"w": new["w"]}),
    "another name": lambda new, client: Update({"w": new["w"], "m": new["n"]}),
    "personal": lambda new, client: Update(Arrays(new, {"w": "personal"})),
    "another mapping": lambda new, client: Update(MappingProxyType(dict(new))),
    "nothing": lambda new, client: None,
    "an error": lambda new, client: 1 / 0,
}
SHARED = Arrays({"w": np.zeros(2), "n": np.array(5)})


def done(kinds, fold, expects, left, *, one_by_one):
    """All that comes of tasks whose handlers return these kinds of things, of which so many are begun."""

    def train(model, data, ctx):
        if ctx.client == 3:
            ctx.state["seen"] = ctx.round
        new = Arrays({"w": model["w"] + ctx.rng.random(2), "n": model["n"] + ctx.client})
        return RETURNED[kinds[ctx.client]](new, ctx.client)

    states = ClientStates()
    bench = Bench(states, train=train)
    id, clients = bench.open(fold=fold, expects=expects), range(len(kinds))
    begun = iter([True] * left)
    if one_by_one:
        failed = [bench.run(id, client) for client in clients[:left]]
        for outcome in failed:
            if isinstance(outcome, Finished):
                bench.executor.admit(Admit(outcome.tasks, id))
    else:
        failed = bench.executor.run_all(id, clients, lambda: next(begun, False), fold=True)
    closed = bench.executor.close(id)
    states.close()
    rows = [(r.task, r.client, r.weight, r.metrics, r.staleness) for r in closed.partial.in_order()]
    reasons = [replace(f, trace="") if isinstance(f, Failed) else None for f in failed]
    answer = closed.partial.finish() if any(r[2] for r in rows) else None
    value = None if answer is None else encoding.encode([answer.value, answer.aux, answer.failed])
    return reasons, rows, closed.states, closed.refused, value


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(sorted(RETURNED)) | st.just("arrays"), min_size=1, max_size=9),
    st.sampled_from([mean(), weighted_mean(), total(), collect()]),
    st.sampled_from([Like(), Like(delta=False), Like(aux=Free()), Free()]),
    st.integers(0, 9),
)
def test_done_together_tasks_come_to_the_same_as_one_by_one(kinds, fold, expects, left):
    assert done(kinds, fold, expects, left, one_by_one=True) == done(kinds, fold, expects, left, one_by_one=False)


@pytest.mark.parametrize("kind", RETURNED)
def test_whatever_comes_between_plain_updates_comes_to_the_same(kind):
    asked = (["arrays", kind, "a dictionary"], weighted_mean(), Like(), 3)
    assert done(*asked, one_by_one=True) == done(*asked, one_by_one=False)


def test_what_handlers_return_is_kept_as_it_was_then(states):
    own = Arrays.trusted({"w": (memory := np.zeros(2)), "n": np.array(5)}, SHARED.roles)

    def train(model, data, ctx):
        memory.flags.writeable = True
        memory[...] = ctx.client
        return Update(own)

    bench = Bench(states, train=train)
    id = bench.open(fold=mean())
    assert bench.executor.run_all(id, [1, 2, 6], fold=True) == [None] * 3
    assert bench.executor.close(id).partial.finish().value["w"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("large", [0, files.LARGE])
def test_an_answer_that_is_computed_where_it_is_written_has_the_same_bytes(states, monkeypatch, large):
    monkeypatch.setattr(files, "LARGE", large)
    monkeypatch.setattr(core_arrays, "STRETCH", 100)
    start = {"a": np.ones((300, 3), np.float32), "b": np.ones(7), "c": np.ones(5, np.float16), "n": np.arange(3)}

    def train(model, data, ctx):
        a = np.full((300, 3), np.inf, np.float32) if ctx.client else model["a"] * 2
        return Update({**{n: a * 2 for n, a in model.items()}, "a": a}, weight=3)

    bench = Bench(states, train=train)
    id = bench.open(model=Arrays(start))
    update = bench.executor.answer(Task(f"{id}.0", id, 0)).update
    assert update.arrays.is_computed == (large == 0)
    told = {"a": start["a"], "b": start["b"], "c": start["c"].astype(np.float32), "n": start["n"] * 2}
    assert update.arrays.to_bytes() == Arrays(told).to_bytes()
    assert "'a' holds infinity" in bench.executor.answer(Task(f"{id}.1", id, 1)).reason


@pytest.mark.parametrize("fold", [mean(), weighted_mean(), total(), collect()], ids=lambda fold: fold.name)
def test_what_is_admitted_as_one_block_is_folded_as_if_one_by_one(monkeypatch, fold):
    monkeypatch.setattr(intakes, "JOINED", 4)
    stacked = []
    monkeypatch.setattr(Stack, "joined", lambda stacks, real=Stack.joined: stacked.append(len(stacks)) or real(stacks))
    found = []
    for together in (True, False):
        intake = Intake()
        for id, aux in ((1, Free()), (2, None)):  # the second ask of the lane wants less
            model = Arrays({"w": np.zeros(3, np.float32)})
            intake.open(id, Ask(clients=9, model=model, expects=Like(aux=aux), fold=fold), id, 0, ())
        for id, clients in ((1, [42, 43]), (2, range(9))):
            for client in clients:
                values = np.random.default_rng(10 * id + client).normal(size=3).astype(np.float32)
                update = Update({"w": values}, 1.0 + client, aux={"a": values} if id == 1 else {}, delta=True)
                receipt = Receipt(f"{id}.{client}", client, 1.0, {"m": float(client)})
                state = b"kept" if client == 3 else None
                assert isinstance(intake.arrived(Task(receipt.task, id, client), update, receipt, state), Finished)
        tasks = [f"2.{client}" for client in range(9)]
        for some in [tasks] if together else [[task] for task in tasks]:
            intake.admit(Admit(some, 2))
        late = ["1.42", "1.43"]
        for some in [late] if together else [[task] for task in late]:
            intake.admit(Admit(some, 2, staleness=1, factor=0.5))
        opened = intake.close(2)
        opened.partial.agree()
        found.append((opened.states, encoding.encode(opened.partial.to_tree()) if fold.name != "collect" else None))
        assert {*tasks} <= opened.partial.receipts.keys()
    assert found[0] == found[1]
    assert found[0][0] == {3: b"kept"}
    assert stacked == ([4, 4] if fold.stacks else [])
