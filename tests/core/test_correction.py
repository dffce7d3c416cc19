"""Corrections: what they come to, that several are one, and that they are read again as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import some

import umbel
from umbel import Arrays, Ask, Correction, FedAvg, Free, Like, State, Strategy, Update, Window, mean
from umbel.core import encoding
from umbel.core.client import LocalCorrection
from umbel.core.transform import chain, checked_aux, with_aux
from umbel.errors import StrategyError, UnusedCorrection, UpdateRejected
from umbel.folds import median
from umbel.strategies import AFL, FedAsync, FedBuff
from umbel.transforms import control_variates, dynamic_regularizer, extrapolated, fair_weights, quantise, tilted

numbers = st.floats(-4, 4, width=32)
arrays = st.lists(numbers, min_size=2, max_size=2).map(lambda values: Arrays({"w": np.array(values)}))
corrections = st.builds(
    Correction,
    proximal=st.floats(0, 4),
    linear=st.none() | arrays,
    scale=st.floats(0.125, 2),
    control=st.booleans(),
    reports=st.sets(st.sampled_from(["steps", "lr", "initial_loss"])).map(lambda found: tuple(sorted(found))),
)
CURVE = np.array([[2.0, 0.5], [0.5, 1.0]])


def slope(at):
    return {"w": CURVE @ at["w"] - 1.0}


@given(corrections, arrays, arrays, st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_to_step_against_is_what_the_page_says(correction, anchor, weights, perturbation):
    made = Correction(**{**vars(correction), "perturbation": perturbation})
    local = LocalCorrection(made, anchor)
    w, at = weights["w"], anchor["w"]
    g = CURVE @ w - 1
    if perturbation is not None:
        step, share = perturbation
        g = (1 - share) * g + share * (CURVE @ (w + step * g) - 1)
    g = g - (CURVE @ at - 1) * made.control
    linear = 0 if made.linear is None else made.linear["w"]
    expected = made.scale * g + made.proximal * (w - at) + linear
    np.testing.assert_allclose(local.corrected(slope, {"w": w})["w"], expected, atol=1e-9)
    assert local.taken


@given(corrections, corrections, corrections)
def test_several_are_one_in_any_order(one, two, three):
    both, turned = one.with_(two), two.with_(one)
    for found in (both, turned):
        assert found.proximal == pytest.approx(one.proximal + two.proximal)
        assert found.scale == pytest.approx(one.scale * two.scale)
        assert set(found.reports) == {*one.reports, *two.reports}
        parts = [c.linear["w"] for c in (one, two) if c.linear is not None]
        assert (found.linear is None) == (not parts)
        if parts:
            np.testing.assert_allclose(found.linear["w"], sum(parts), atol=1e-6)
    left, right = both.with_(three), one.with_(two.with_(three))
    assert left.proximal == pytest.approx(right.proximal)
    assert (left.control, left.reports) == (right.control, right.reports)
    assert one.with_(None) is one


def test_linear_terms_of_several_add_up_by_name():
    one, two = ({"w": np.ones(2), "v": np.ones(1)}, {"u": np.ones(3), "v": np.full(1, 2.0)})
    for first, second in ((one, two), (two, one)):
        found = Correction(linear=Arrays(first)).with_(Correction(linear=Arrays(second))).linear
        assert {name: array.tolist() for name, array in found.items()} == {"w": [1, 1], "v": [3], "u": [1, 1, 1]}
    assert Correction().with_(Correction(linear=Arrays(two))).linear == Arrays(two)


def test_two_ways_to_train_are_not_one():
    with pytest.raises(StrategyError, match="procedure"):
        Correction(procedure="a").with_(Correction(procedure="b"))
    assert Correction(procedure="a").with_(Correction(proximal=1.0)).procedure == "a"


@given(corrections)
def test_it_is_read_as_it_was_and_that_of_an_earlier_release_too(correction):
    whole = Correction(**{**vars(correction), "procedure": "p", "settings": {"mu": 0.5}, "perturbation": (0.1, 1.0)})
    for each in (correction, whole):
        assert encoding.decode(encoding.encode(each)) == each
    old = encoding.encode(Correction(0.5, correction.linear))
    assert b"scale" not in old
    assert encoding.decode(old) == Correction(0.5, correction.linear)


def test_what_wants_metrics_alone_need_not_be_taken():
    assert Correction(reports=("steps",)).optional
    assert not Correction().optional
    assert not Correction(proximal=0.1, reports=("steps",)).optional
    with pytest.raises(UnusedCorrection, match="more of the training loop"):
        LocalCorrection(Correction(control=True), Arrays()).gradient({})


def test_a_personal_part_of_a_linear_term_stays_here():
    linear = Arrays({"w": np.ones(1), "own": np.ones(1)}, {"own": "personal"})
    assert list(Correction(linear=linear).linear) == ["w"]


# Of transforms

MODEL = Arrays({"w": np.zeros(2), "n": np.zeros(1, np.int64)})


def test_aux_arrays_are_those_of_their_step_and_no_others():
    step = control_variates()
    good = with_aux(Update({}), step, {"w": np.zeros(2)})
    assert checked_aux(good, step, {"w": (2,)}) is good
    for wrong in ({"w": np.zeros(3)}, {"v": np.zeros(2)}, {}, {"w": np.zeros(2, np.int64)}):
        with pytest.raises(UpdateRejected, match="control_variates"):
            step.decode(with_aux(Update({}), step, wrong), None, MODEL.schema)
    lying = with_aux(Update({"w": np.ones(2)}), extrapolated(), {"square": np.float64(1e9)})
    assert extrapolated().decode(lying, None, MODEL.schema).aux["extrapolated:square"] == pytest.approx(2.0)
    for loss in (-1.0, np.nan, np.inf, 1e30):
        with pytest.raises(UpdateRejected, match="weighed"):
            fair_weights().decode(with_aux(Update({}), fair_weights(), {"bend": np.float64(loss)}), None, MODEL.schema)


def test_what_is_measured_does_not_depend_on_what_the_holder_calls_it():
    """Who calls its parameters buffers would else have a norm of 0."""
    for step in (fair_weights(), extrapolated()):
        both = [Arrays({"w": np.full(2, 9.0)}), Arrays({"w": np.full(2, 9.0)}, {"w": "buffer"})]
        sent = [with_aux(Update(each, delta=True), step, {"bend": np.float64(1.0)}) for each in both]
        honest, lying = (step.decode(update, None, MODEL.schema).aux for update in sent)
        assert dict(honest) == dict(lying)


def test_an_ask_expects_what_its_transforms_add():
    ask = Ask(clients=1, model=MODEL, transforms=control_variates(), fold=mean())
    assert ask.expects == Like(aux=Free())
    assert Ask(clients=1, model=MODEL, transforms=dynamic_regularizer(), fold=mean()).expects == Like()
    both = chain(control_variates(), dynamic_regularizer(0.5))
    assert both.corrects
    assert both.brings_aux
    assert not chain(umbel.top_k(0.5)).corrects
    made = both.correct(MODEL, both.send(both.init(MODEL.schema)), None)
    assert (made.proximal, made.reports) == (0.5, ("lr", "steps"))


def test_what_is_expected_of_each_client_has_room_for_aux_arrays_too():
    by_client = Ask(clients=1, model=MODEL, expects=lambda c: Like(), transforms=control_variates(), fold=mean())
    assert by_client.expects(0) == Like(aux=Free())
    assert replace(by_client, lane="b").expects(0) == Like(aux=Free())
    own = Free(max_bytes=1000)
    assert (
        Ask(clients=1, model=MODEL, expects=lambda c: Like(aux=own), transforms=control_variates()).expects(0).aux
        == own
    )


def test_what_is_measured_of_updates_goes_together_with_their_bound():
    """Each client's square norm, by which the server steps, is at most that which its update may have."""
    client = umbel.Client()
    client.train(lambda model, data, ctx: Update({"w": model["w"] + 10.0 ** (3 * ctx.client)}))
    steps = (extrapolated(), umbel.clip_by_norm(1.0))
    strategy = FedAvg(cohort="all", transforms=steps, fold=mean())
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=strategy, rounds=1)
    result = umbel.run(app, on=umbel.Simulation(3, workers=0), folder=None)
    assert result.model["w"] == pytest.approx(1.0, rel=1e-5)
    for other in ((control_variates(), umbel.clip_by_norm(1.0)), (fair_weights(), umbel.clip_by_norm(1.0))):
        with pytest.raises(StrategyError, match="could move it at will"):
            FedAvg(transforms=other, fold=mean()).ask(State(MODEL), 1)
    with pytest.raises(StrategyError, match="could move it at will"):
        FedAvg(transforms=extrapolated(), fold=median()).ask(State(MODEL), 1)


def test_a_client_that_sends_wrong_aux_arrays_is_one_that_failed():
    """Whatever a holder says, the others' mean is theirs."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        ctx.correction.take()
        aux = {"control_variates:w": np.zeros(7)} if data["index"] == 0 else {}
        return Update({"w": model["w"] + 1}, metrics={"steps": 1, "lr": 1.0}, aux=aux)

    model = {"w": np.zeros(2)}
    app = umbel.App(
        client, model=model, strategy=FedAvg(cohort="all", transforms=control_variates(), fold=mean()), rounds=1
    )
    result = umbel.run(app, on=umbel.Simulation(3, workers=0), folder=None)
    np.testing.assert_array_equal(result.model["w"], [1, 1])  # its own aux arrays have the place of what it claimed


# What an update counts

weighing = umbel.Client()
weighing.train(lambda model, data, ctx: Update({"w": model["w"] + data["index"]}, weight=100.0))


class Weighs(Strategy):
    def __init__(self, weight):
        self.weight = weight

    def round(self, state, r):
        answer = yield Ask(clients="all", model=state.model, weight=self.weight)
        assert answer.federation == 3
        return State(state.model.replace({"w": state.model["w"] + answer.value["w"]}))


@pytest.mark.parametrize("workers", some([0, 2], 1))
@pytest.mark.parametrize(
    ("weight", "expected"),
    [(None, 1.0), (2.0, 1.0), (lambda c: c, 5 / 3), (lambda c: 1.0 if c == 2 else 0.0, 2.0), (lambda c: None, 1.0)],
)
def test_an_update_counts_what_the_ask_says(weight, expected, workers):
    app = umbel.App(weighing, model={"w": np.zeros(2)}, strategy=Weighs(weight), rounds=1, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(3, workers=workers), folder=None)
    np.testing.assert_allclose(result.model["w"], expected, rtol=1e-12)


def test_a_weight_that_is_none_is_refused():
    for wrong in (-1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(StrategyError, match="weight"):
            Ask(clients=1, model=MODEL, weight=wrong)
        app = umbel.App(weighing, model={"w": np.zeros(2)}, strategy=Weighs(lambda c, w=wrong: w), rounds=1)
        with pytest.raises(StrategyError, match="weight"):
            umbel.run(app, on=umbel.Simulation(3, workers=0), folder=None)


# What a client says, and what goes together


@pytest.mark.parametrize(
    ("steps", "fold", "why"),
    [
        ([quantise(8), control_variates()], mean(), "does not see the update as it was trained"),
        ([control_variates(), control_variates()], mean(), "twice"),
        ([control_variates(), umbel.clip_by_norm(1.0)], mean(), "could move it at will"),
        ([control_variates()], umbel.folds.median(), "could move it at will"),
        ([dynamic_regularizer()], umbel.collect(), "keeps them apart"),
    ],
)
def test_what_does_not_go_together_is_refused(steps, fold, why):
    with pytest.raises(StrategyError, match=why):
        FedAvg(transforms=steps, fold=fold)
    FedAvg(transforms=[dynamic_regularizer(), umbel.clip_by_norm(1.0)], fold=mean())


@pytest.mark.parametrize("said", [{}, {"initial_loss": float("nan")}, {"initial_loss": 1e300}])
@pytest.mark.parametrize("tilting", [True, False])
def test_a_metric_that_cannot_be_costs_its_client_alone_and_a_missing_one_is_the_apps_fault(said, tilting):
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        own = said if data["index"] == 0 and ctx.round == 1 else {"initial_loss": 1.0}
        return Update({"w": model["w"] + 1}, metrics=own)

    strategy = FedAvg(cohort="all", transforms=tilted(2.0)) if tilting else AFL()
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=strategy, rounds=3, evaluate_every=0)
    on = umbel.Simulation(3, workers=0)
    if not said:
        with pytest.raises(UnusedCorrection, match="'initial_loss'"):
            umbel.run(app, on=on, folder=None)
        return
    np.testing.assert_allclose(umbel.run(app, on=on, folder=None).model["w"], 3.0, rtol=1e-9)


def test_values_of_late_updates_count_less_and_do_not_shrink():
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        return Update({"w": model["w"] + 1.0, "running": np.full(1, 100.0), "seen": np.full(1, 7)})

    model = Arrays({"w": np.zeros(1), "running": np.ones(1), "seen": np.zeros(1, np.int64)}, {"running": "buffer"})
    for strategy in (
        FedBuff(concurrency=5, buffer=2),
        FedAsync(cohort=3, window=Window(in_flight=3, close_after=1, late="keep")),
    ):
        app = umbel.App(client, model=model, strategy=strategy, rounds=6, evaluate_every=0)
        found = umbel.run(app, on=umbel.Simulation(8, workers=0), folder=None).model
        np.testing.assert_allclose(found["running"], 100.0, rtol=1e-12)
        assert found["seen"] == 7
