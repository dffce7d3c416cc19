"""Evaluations with noise: no client moves the sum by more than its ranges, and nothing else that it says is told."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel import App, Arrays, FedAvg, Simulation, Update
from umbel.core.answer import Answer
from umbel.core.ask import Ask
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.entropy import Entropy
from umbel.errors import SettingError, StrategyError, UpdateRejected
from umbel.privacy import central_gaussian, central_metrics
from umbel.privacy.metrics import HALF
from umbel.privacy.release import NoisyRelease
from umbel.testing.deployment import Deployment, Faults

KEY = Key.from_seed(1)
STEP = central_metrics(ranges={"loss": (0.0, 4.0), "accuracy": (0, 1)}, noise=1.0, expected=10)
ANY = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 4.0]))


def pinned(*name):
    return Entropy(Key.from_seed(21).derive("metrics", *name).draws().words)


def app_of(noise, says=lambda client: {"accuracy": 0.75, "loss": 1.0, "mine": 5.0}, **settings):
    client = umbel.Client()
    client.train(lambda model, data, ctx: Update({"w": model["w"]}))
    client.evaluate(lambda model, data, ctx: umbel.Metrics(says(ctx.client), weight=1000))
    hidden = FedAvg(
        cohort="all", fold=umbel.total(), transforms=central_gaussian(norm=1.0, noise=1.0, expected=10), **settings
    )
    model = {"w": np.zeros(3, np.float32)}
    return App(client, model=model, strategy=hidden, rounds=2, evaluate_clients="all", evaluate_noise=noise)


@given(st.dictionaries(st.sampled_from(["loss", "accuracy", "mine"]), ANY), st.floats(0, 1e9))
def test_whatever_a_client_says_moves_the_sum_by_its_ranges_at_most(metrics, weight):
    update = STEP.encode(Update(metrics=metrics, weight=weight), None, None, KEY)[0]
    assert (update.weight, update.metrics, dict(update.aux)) == (1.0, {}, {})
    found = STEP.decode(update, None)
    assert (found.weight, found.metrics, dict(found.aux)) == (1.0, {}, {})
    steps = found.arrays["metrics"].tolist()
    assert math.hypot(*steps) <= HALF * STEP.event(Answer(Arrays()), None)["norm"] * (1 + 1e-15)
    for step, (name, (low, high)) in zip(steps, STEP.ranges.items(), strict=True):
        value = metrics.get(name, math.nan)
        mean = (low + high) / 2 + step / HALF * (high - low) / 2
        wanted = min(max(value, low), high) if math.isfinite(value) else (low + high) / 2
        assert mean == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("values", [[0, HALF + 1], [-HALF - 1, 0], [0.0, 0.0], [-(2**63), 0]])
def test_what_is_beyond_the_ranges_is_rejected(values):
    with pytest.raises(UpdateRejected, match="within their ranges"):
        STEP.decode(Update({"metrics": np.array(values)}), None)


@pytest.mark.slow
def test_noise_has_the_standard_deviation_that_it_is_said_to_have():
    """2,000 releases: mean, and variance within three standard errors."""
    step, own = central_metrics(ranges={"a": (-1e3, 1e3), "b": (0, 2e3)}, noise=2.0, expected=50), pinned("noise")
    answer = Answer(Arrays({"metrics": np.array([5 * HALF, 0])}), receipts=[None] * 9)
    found = [step.finish(answer, None, KEY, own)[0].metrics for _ in range(2000)]
    for name, mean in (("a", 1e3 * 5 / 50), ("b", 1e3)):
        off = np.array([(each[name] - mean) / (1e3 * 2.0 * math.sqrt(2) / 50) for each in found])
        assert abs(off.mean()) < 3 / math.sqrt(2000)
        assert abs(off.var() - 1) < 3 * math.sqrt(2 / 2000)


def test_a_strategy_that_hides_clients_evaluates_with_noise_and_both_are_in_the_account(tmp_path):
    result = umbel.run(app_of(central_metrics({"accuracy": (0, 1)}, 0.01, 10)), on=Simulation(10), folder=tmp_path)
    told = {name: value for name, value in result.metrics.items() if name.startswith("evaluate.")}
    assert told.keys() == {"evaluate.accuracy"}
    assert told["evaluate.accuracy"] == pytest.approx(0.75, abs=0.01)
    events = [*map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())]
    closed = [event for event in events if event["event"] == "ask_closed"]
    found = {event["kind"]: NoisyRelease.of(*event["releases"]) for event in closed}
    assert len(closed) == 4
    assert (found["evaluate"].noise, found["evaluate"].denominator) == (0.01, 10)
    assert found["evaluate"].neighbours == found["train"].neighbours


def test_fewer_than_expected_draw_the_mean_to_the_middle_and_nobody_is_noise():
    noise = central_metrics({"accuracy": (0, 1)}, 0.01, 40)
    result = umbel.run(app_of(noise), on=Simulation(10), folder=None)
    assert result.metrics["evaluate.accuracy"] == pytest.approx(0.5 + 0.25 / 4, abs=0.01)

    def fails(client):
        raise RuntimeError

    result = umbel.run(app_of(noise, fails), on=Simulation(10), folder=None)
    assert result.metrics["evaluate.accuracy"] == pytest.approx(0.5, abs=0.01)


def test_nodes_and_relays_tell_the_same(tmp_path):
    nodes = {"a": {"0": {}, "1": {}}, "b": {"2": {}}, "c": {"3": {}}}
    app = app_of(central_metrics({"accuracy": (0, 1)}, 1e-6, 4), lambda client: {"accuracy": int(client) / 4})
    world = Deployment(app, nodes, seed=9, relays={"r": ["a", "b"]}, faults=Faults.none(), scratch=tmp_path)
    assert world.run(tmp_path).metrics["evaluate.accuracy"] == pytest.approx(1.5 / 4, abs=1e-4)


def test_it_is_for_evaluations_alone_and_for_noise():
    model = Arrays({"w": np.zeros(3)})
    for kind, fold in (("train", umbel.total()), ("evaluate", umbel.mean())):
        with pytest.raises(StrategyError, match="when they evaluate"):
            Ask(clients=1, kind=kind, model=model, fold=fold, transforms=STEP)
    with pytest.raises(StrategyError, match="differences"):
        Ask(clients=1, kind="evaluate", model=model, fold=umbel.total(), transforms=central_gaussian(1.0, 1.0, 10))
    with pytest.raises(SettingError, match="evaluate_noise"):
        app_of(umbel.transforms.top_k(0.1))


def test_settings_are_checked_and_cross_the_wire():
    plain = json.loads(json.dumps(chain(STEP).spec()))
    assert chain_from_spec(plain).parts == (STEP,)
    for wrong in ({}, {"a": (1, 0)}, {"a": (0, math.inf)}, {"a": (0, 5e-324)}, {"a": 1}, [("a", 0, 1)], {1: (0, 1)}):
        with pytest.raises(SettingError, match="ranges"):
            central_metrics(wrong, 1.0, 10)
    for name in ("noise", "expected"):
        with pytest.raises(SettingError, match=name):
            central_metrics(**{"ranges": STEP.ranges, "noise": 1.0, "expected": 10, name: 0})
