"""FedAvg by hand: its one ask, and what it makes of the answer."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import some

import umbel
from umbel.core import arrays as arrays_module
from umbel.core.answer import Answer
from umbel.core.arrays import Arrays
from umbel.core.optimizers import sgd
from umbel.core.partial import Partial
from umbel.core.update import Like, Receipt, Update, as_delta, check
from umbel.errors import NothingToFold, SamplingError, StrategyError
from umbel.strategies.fedavg import FedAvg


def one_round(strategy, state, updates, r=1):
    rounds = strategy.round(state, r)
    ask = next(rounds)
    partial = Partial(ask.fold)
    for client, update in enumerate(updates):
        item = check(as_delta(update, ask.expects, ask.model), ask.expects, ask.model, client)
        partial.add(item, Receipt(f"0.{client}", client, item.weight, {}))
    with pytest.raises(StopIteration) as stopped:
        rounds.send(partial.finish())
    return stopped.value.value


def test_the_model_becomes_the_weighted_mean_of_the_clients_models():
    model = Arrays(
        {"w": np.array([1.0, 2.0], np.float32), "seen": np.array(10), "mean": np.array([1.0])}, {"mean": "buffer"}
    )
    strategy = FedAvg(cohort=2)
    updates = [
        Update({"w": np.array([3.0, 0.0], np.float32), "seen": np.array(20), "mean": np.array([3.0])}, weight=1),
        Update({"w": np.array([7.0, 4.0], np.float32), "seen": np.array(40), "mean": np.array([5.0])}, weight=3),
    ]
    state = one_round(strategy, strategy.start(model), updates)
    assert state.model["w"].tolist() == [6.0, 3.0]
    assert state.model["mean"] == 4.5
    assert state.model["seen"] == 35
    assert state.model.roles == model.roles
    assert state.model.schema == model.schema


@given(seed=st.integers(0, 2**32), count=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_it_is_the_textbook_average_within_the_rounding_of_float32(seed, count, scale):
    rng = np.random.default_rng(seed)
    model = Arrays({"w": (rng.normal(size=(3, 4)) * scale).astype(np.float32), "d": rng.normal(size=5)})
    weights = rng.integers(0, 500, count) + np.eye(count, dtype=int)[0]
    updates = [
        Update(model.map(lambda _, a: (a + rng.normal(size=a.shape) * scale).astype(a.dtype)), weight=int(weight))
        for weight in weights
    ]
    state = one_round(FedAvg(), FedAvg().start(model), updates)
    for name, rounding in (("w", 2.0**-22), ("d", 2.0**-50)):
        stack = np.array([u.arrays[name] for u in updates], np.float64)
        expected = np.tensordot(weights / weights.sum(), stack, 1)
        assert np.abs(state.model[name] - expected).max() <= rounding * (
            np.abs(stack).max() + np.abs(model[name]).max()
        )


def test_a_round_without_updates_fails_into_the_generator():
    rounds = FedAvg().round(FedAvg().start(Arrays({"w": np.zeros(1)})), 1)
    next(rounds)
    with pytest.raises(NothingToFold):
        rounds.throw(NothingToFold("nobody answered"))


def test_a_part_of_the_model_may_be_trained_alone_with_momentum():
    class Alternating(FedAvg):
        def ask(self, state, r):
            return replace(super().ask(state, r), expects=Like(names=("head",) if r % 2 else ("body",)))

    model = Arrays({"head": np.zeros(1), "body": np.zeros(1)})
    strategy = Alternating(server=sgd(momentum=0.5))
    state = strategy.start(model)
    for r in (1, 2, 3, 4):
        state = one_round(strategy, state, [Update(state.model.map(lambda _, a: a + 1))], r)
    assert (state.model["head"], state.model["body"]) == (2.5, 2.5)


def test_a_server_learning_rate_steps_parameters_and_not_buffers():
    model = Arrays({"w": np.zeros(1), "mean": np.zeros(1)}, {"mean": "buffer"})
    strategy = FedAvg(cohort=1, server=sgd(lr=0.5))
    state = one_round(strategy, strategy.start(model), [Update({"w": np.ones(1), "mean": np.ones(1)})])
    assert (state.model["w"], state.model["mean"]) == (0.5, 1.0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_masters_keep_steps_that_a_16_bit_model_would_lose(dtype):
    model = Arrays({"w": np.ones(1, dtype)})
    strategy = FedAvg(cohort=1, server=sgd(lr=2.0**-12))
    state = strategy.start(model)
    step = Update({"w": np.full(1, 0.25, np.float32)}, delta=True)
    for _ in range(2**9):
        state = one_round(strategy, state, [step])
    assert state.model["w"].dtype == dtype
    assert state.masters["w"][0] == 1 + 2.0**-5
    assert float(state.model["w"][0]) == 1 + 2.0**-5


def test_personal_arrays_stay_as_they_were():
    model = Arrays({"w": np.zeros(1), "head": np.full(1, 7.0)}, {"head": "personal"})
    strategy = FedAvg(cohort=1)
    state = one_round(strategy, strategy.start(model), [Update({"w": np.ones(1), "head": np.full(1, 9.0)})])
    assert (state.model["w"], state.model["head"]) == (1.0, 7.0)


def test_parts_that_disagree_are_an_error_when_it_is_built():
    with pytest.raises(StrategyError, match="bounds nothing"):
        FedAvg(cohort=2, transforms=umbel.clip_by_norm(1.0))
    with pytest.raises(umbel.UmbelError):
        FedAvg(cohort=0)
    app = umbel.App(client(), model={"w": np.zeros(1)}, strategy=FedAvg(cohort=9), rounds=1)
    with pytest.raises(SamplingError, match=r"(?s)9.*3"):
        umbel.run(app, on=umbel.Simulation(3), folder=None)


def client():
    made = umbel.Client()
    made.train(lambda model, data, ctx: Update(model))
    return made


@pytest.mark.parametrize("server", [sgd(lr=1e30), umbel.FedAdam().server], ids=["sgd", "adam"])
def test_a_step_that_leaves_the_numbers_is_an_error_and_not_a_model(server):
    model = Arrays({"w": np.ones(1, np.float32)})
    strategy = FedAvg(cohort=1, server=server)
    with pytest.raises(StrategyError, match="made 'w' infinite or NaN"):
        one_round(strategy, strategy.start(model), [Update({"w": np.full(1, 1e30, np.float32)}, delta=True)])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_a_model_that_its_own_dtype_cannot_hold_is_an_error_and_not_infinite(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    strategy = FedAvg(cohort=1)
    state = strategy.start(Arrays({"b": np.ones(1, dtype), "w": np.ones(1, dtype)}))
    step = Update({"b": np.ones(1, np.float32), "w": np.full(1, 0.5015 * largest, np.float32)}, delta=True)
    state = one_round(strategy, state, [step])
    with pytest.raises(StrategyError, match=rf"made 'w' larger than {np.dtype(dtype).name} holds"):
        one_round(strategy, state, [step])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"n": np.full(1, 100, np.int8)}, "'n' larger than int8 holds"),
        ({"mean": np.full(1, 3e4, np.float16)}, "'mean' larger than float16 holds"),
        ({"w": np.full(1, 3e38, np.float32)}, "made 'w' infinite"),
    ],
    ids=["integers", "floats", "parameters"],
)
def test_a_total_that_the_model_cannot_hold_is_an_error(values, name):
    model = Arrays(
        {"w": np.zeros(1, np.float32), "n": np.zeros(1, np.int8), "mean": np.zeros(1, np.float16)}, {"mean": "buffer"}
    )
    strategy = FedAvg(cohort=1, fold=umbel.total())
    with pytest.raises(StrategyError, match=name):
        one_round(strategy, strategy.start(model), [Update({**model, **values})] * 3)


def test_a_fold_that_keeps_updates_apart_is_refused_when_it_is_built():
    with pytest.raises(StrategyError, match="collect keeps them apart"):
        umbel.FedAvg(fold=umbel.collect())
    with pytest.raises(StrategyError, match="FedProx steps by what updates come to"):
        umbel.FedProx(fold=umbel.collect(), mu=0.1)


SERVERS = [sgd(lr=0.5), sgd(momentum=0.9, nesterov=True), umbel.FedAdam().server, umbel.FedYogi().server]


@pytest.mark.parametrize("server", some(SERVERS, 2), ids=repr)
@given(seed=st.integers(0, 2**32), stretch=st.sampled_from([1, 3, 1 << 18]), part=st.booleans())
def test_what_is_computed_by_stretches_has_the_same_bits(server, seed, stretch, part):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 2), "b": (), "c": (0, 4), "d": (5,), "mine": (2,)}
    made = {n: rng.normal(size=shape) for n, shape in shapes.items()}
    dtypes = {"a": np.float32, "b": np.float64, "c": np.float32, "d": ml_dtypes.bfloat16, "mine": np.float32}
    model = Arrays({"n": np.arange(4), **{n: np.asarray(a, dtypes[n]) for n, a in made.items()}}, {"mine": "personal"})
    names = ["a", "d"] if part else [n for n in model if n != "mine"]
    strategy = FedAvg(server=server)
    state = strategy.start(model)
    value = {n: np.asarray(rng.normal(size=model[n].shape), np.float64 if n == "b" else np.float32) for n in names}
    if not part:
        value["n"] = rng.integers(0, 9, 4)
    answer = umbel.Arrays(value, {n: model.roles[n] for n in names})
    eager = lazy = state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays_module, "STRETCH", stretch)
        for _ in range(2):
            eager = strategy.apply(eager, Answer(answer))
            lazy = strategy.apply(lazy, Answer(Arrays.computed(answer.schema, answer.stretch)))
            assert lazy.model.is_computed
        assert lazy.model == eager.model
        assert lazy.model.to_bytes() == eager.model.to_bytes()
        for of in ("masters", *eager.slots):
            mine, theirs = (s.masters if of == "masters" else s.slots[of] for s in (lazy, eager))
            assert dict(mine).keys() == dict(theirs).keys()
            assert all(mine[n].tobytes() == theirs[n].tobytes() for n in theirs)


def test_where_it_is_computed_what_is_not_finite_is_an_error_by_name():
    model = Arrays({"w": np.ones(3, np.float32)})
    strategy = FedAvg(server=sgd(lr=1e30))
    answer = Arrays({"w": np.full(3, 1e30, np.float32)})
    state = strategy.apply(strategy.start(model), Answer(Arrays.computed(answer.schema, answer.stretch)))
    with pytest.raises(StrategyError, match="'w' infinite or NaN"):
        state.model.to_bytes()
