"""DP-FTRL: the noise is that of the factorisation, drawn once for each round, and hides as many rounds as it says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel import App, Arrays, FedAvg, Simulation, Update
from umbel.core import encoding
from umbel.core.answer import Answer
from umbel.core.ask import Ask
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.core.update import Receipt
from umbel.entropy import SYSTEM, Entropy
from umbel.errors import AppError, RunInterrupted, StrategyError
from umbel.privacy import central_gaussian, dp_ftrl
from umbel.privacy.accounting import spent
from umbel.privacy.clipped import grid
from umbel.privacy.ftrl import _factorisation
from umbel.privacy.matrices import Factorisation
from umbel.privacy.release import NoisyRelease
from umbel.runs.asks import RunAsks
from umbel.runs.conductor import Conductor
from umbel.samplers import Spaced
from umbel.strategies import FedAvgM
from umbel.testing.deployment import Deployment, Faults
from umbel.trust.policy import Range, RequiredStep

KEY = Key.from_seed(1)


def pin(monkeypatch, seed=5):
    """Noise of a key, in place of the operating system's."""
    monkeypatch.setattr(SYSTEM, "words", Key.from_seed(seed).draws().words)


def app_of(strategy, moves=None, rounds=4, **settings):
    """Clients that move all parameters by what `moves` says, or not at all."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        by = 0.0 if moves is None else moves(ctx.client)
        return Update({"w": model["w"] + by}, weight=1000, metrics={"loss": 3.0})

    return App(client, model={"w": np.zeros(20)}, strategy=strategy, rounds=rounds, **settings)


def ftrl(cohort="all", make=FedAvg, **settings):
    step = dp_ftrl(**{"norm": 1.0, "noise": 1.0, "expected": 4, "rounds": 6, "bands": 3, **settings})
    return make(cohort=cohort, fold=umbel.total(), transforms=step)


def ran(app, clients=8, **settings):
    return umbel.run(app, on=Simulation(clients, workers=0), **{"folder": None, **settings})


def came(*clients):
    return Answer(Arrays(), receipts=[Receipt(f"0.{c}", c, 1.0, {}, 0.0, 0) for c in clients])


# The noise


def streamed(step, streams, seed):
    """The noise of so many streams as `finish` adds it, in steps: stream, round, element (of two arrays)."""
    own, found = Entropy(Key.from_seed(seed).draws().words), []
    for _ in range(streams):
        state = step.init(Arrays({"b": np.zeros(1), "w": np.zeros((3, 1))}).schema)
        for _ in range(getattr(step, "rounds", 1)):
            answer, state = step.finish(Answer(Arrays()), state, KEY, own)
            drawn = [answer.value["b"], answer.value["w"][:, 0]]
            found.append(np.concatenate(drawn) * (step.expected / grid(step.norm)))
    return np.array(found).reshape(streams, -1, 4)


def check_noise(step, streams, covariance):
    """2,000 releases: the variance of each round within 3 standard errors, and what rounds and elements have in common
    within 4.5, beyond which one of a hundred entries is by chance once in 1,400 times. Entropy is pinned.
    """
    noise, width = streamed(step, streams, 7), 4
    rounds = noise.shape[1]
    assert streams * rounds == 2000
    rows = noise.transpose(0, 2, 1).reshape(-1, rounds)  # elements are independent, so many samples there are
    variances = np.diag(covariance)
    found, n = rows.T @ rows / len(rows), len(rows)
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    off = (found - covariance) / errors
    assert np.abs(np.diag(off)).max() < 3
    assert np.abs(off).max() < 4.5
    white = np.linalg.solve(np.linalg.cholesky(covariance), noise.transpose(1, 0, 2).reshape(rounds, -1))
    assert abs(np.square(white).mean() - 1) < 3 * math.sqrt(2 / white.size)
    columns = white.reshape(-1, width)
    between = columns.T @ columns / len(columns) - np.eye(width)
    assert np.abs(between[~np.eye(width, dtype=bool)]).max() < 4.5 / math.sqrt(len(columns))
    assert np.abs(np.diag(between)).max() < 4.5 * math.sqrt(2 / len(columns))


def expected_covariance(made, scale):
    inverse = np.linalg.inv(made.encoder())
    return inverse @ inverse.T * scale**2


STEPS = [
    dp_ftrl(norm=1.5, noise=0.7, expected=3, rounds=8, separation=4, bands=4),
    dp_ftrl(norm=1.5, noise=0.7, expected=3, rounds=8, separation=3),
    dp_ftrl(norm=1.5, noise=0.7, expected=3, rounds=8, separation=8, bands=1),
]


@pytest.mark.parametrize("step", [STEPS[0], *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS[1:])])
def test_noise_has_the_covariance_that_it_is_said_to_have(step):
    made = _factorisation(step.rounds, step.bands)
    scale = 0.7 * made.sensitivity(step.rounds, step.separation) * 1.5 / grid(1.5)
    check_noise(step, 250, expected_covariance(made, scale))


@pytest.mark.slow
def test_central_noise_has_the_covariance_that_it_is_said_to_have():
    step = central_gaussian(norm=1.5, noise=0.7, expected=3)
    check_noise(step, 2000, np.array([[(0.7 * 1.5 / grid(1.5)) ** 2]]))


def test_running_sums_have_less_noise_than_independent_releases_of_the_same_cost():
    errors = [_factorisation(64, bands).errors(4, 16).mean() for bands in (1, 16, None)]
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[0]


# What a client can do


@given(
    st.integers(1, 12), st.integers(1, 6), st.none() | st.integers(1, 6), st.integers(0, 2**32), st.floats(0.01, 100)
)
def test_whatever_a_client_sends_over_all_rounds_moves_what_is_told_by_the_bound_at_most(n, gap, bands, seed, norm):
    """As often as it may come, with updates along one line or any other: C x moves by 1 / noise of z's deviation."""
    step, rng = dp_ftrl(norm=norm, noise=1.0, expected=3, rounds=n, separation=gap, bands=bands), Key.from_seed(seed)
    schema = Arrays({"w": np.zeros(3)}).schema
    state = step.init(schema)
    moved, aligned = np.zeros((n, 3)), rng.draws().normal(3)
    at = rng.draws().integers(gap, 1)[0]
    for t in range(n):
        if t >= at:
            way = aligned if seed % 2 else rng.derive(t).draws().normal(3)
            sent = step.encode(Update({"w": 1e9 * way}, delta=True), step.send(state), None, KEY)[0]
            moved[t] = step.decode(sent, step.send(state), schema).arrays["w"] / grid(norm)
            at = t + gap + (seed >> t & 1)
    made = _factorisation(n, bands)
    steps = step.event(Answer(Arrays()), state)["steps"]
    assert np.linalg.norm(made.encoder() @ moved) <= steps


def test_a_client_that_comes_too_soon_again_is_an_error_and_nothing_is_told():
    step = dp_ftrl(norm=1.0, noise=1.0, expected=3, rounds=9, separation=3)
    state = step.init(Arrays({"w": np.zeros(3)}).schema)
    for clients in (["a", "b"], ["c"], [], ["a", "d"], ["b"]):
        state = encoding.decode(encoding.encode(step.finish(came(*clients), state, KEY)[1]))
    for soon in ("a", "b", "d"):
        with pytest.raises(StrategyError, match=f"'{soon}' came sooner"):
            step.finish(came("c", soon), state, KEY)
    assert step.finish(came("c"), state, KEY)[1]["noise"]["round"] == 6
    everyone = dp_ftrl(norm=1.0, noise=1.0, expected=3, rounds=9)
    state = everyone.init(Arrays({"w": np.zeros(3)}).schema)
    for _ in range(9):
        state = everyone.finish(came("a"), state, KEY)[1]


def test_a_sampler_has_to_see_to_the_separation():
    for fine in ("all", 4, umbel.Poisson(0.5), Spaced(2, 3)):
        ftrl(fine)
    for wrong, separation in (("all", 2), (4, 2), (umbel.Poisson(0.1), 2), (Spaced(2, 3), 4)):
        with pytest.raises(StrategyError, match=r"asked again \d rounds later") as caught:
            ftrl(wrong, separation=separation)
        assert f"gap={separation}" in caught.value.hint
    ftrl(Spaced(2, 6), separation=100)  # of 6 rounds


def test_a_sampler_that_does_not_keep_what_it_says_stops_the_run(tmp_path):
    drawn = []

    class Lying(Spaced):
        def choose(self, clients, record, key):
            drawn.append(drawn[0] if record.asks == 2 else super().choose(clients, record, key))
            return drawn[-1]

    app = app_of(ftrl(Lying(2, 4), separation=4), moves=lambda c: 0.1, rounds=6)
    with pytest.raises(StrategyError, match="came sooner"):
        ran(app, folder=tmp_path, seed=3)
    (folder,) = tmp_path.iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(bool(event.get("releases")) for event in events) == 2


def test_clients_wait_in_a_run_though_some_are_away_and_some_fail():
    def moves(client):
        if client % 5 == 0:
            raise RuntimeError
        return 0.1

    result = ran(app_of(ftrl(Spaced(2, 4), separation=4, rounds=9), moves=moves, rounds=9), clients=11, seed=2)
    rounds = [{row.client for row in result.clients.of(r)} for r in range(1, 10)]
    assert all(len({*a, *b}) == 4 for i, a in enumerate(rounds) for b in rounds[i + 1 : i + 4])


# Runs


def test_the_answer_is_the_clipped_mean_and_momentum_goes_on_from_it(monkeypatch):
    pin(monkeypatch)
    moves = {0: 0.01, 1: 0.02, 2: 100.0, 3: 0.0}  # the third is clipped to a norm of 1
    mean = (0.01 + 0.02 + 1 / np.sqrt(20)) / 4
    result = ran(app_of(ftrl(noise=1e-6), moves=moves.get, rounds=6), clients=4)
    np.testing.assert_allclose(result.model["w"], 6 * mean, atol=1e-4)
    result = ran(app_of(ftrl(noise=1e-6, make=FedAvgM), moves=moves.get, rounds=2), clients=4)
    np.testing.assert_allclose(result.model["w"], 2.9 * mean, atol=1e-4)
    assert not any("loss" in name for name in result.metrics)


def test_a_round_to_which_nobody_came_is_a_round_of_the_stream(monkeypatch):
    pin(monkeypatch)
    result = ran(app_of(ftrl(umbel.Poisson(1e-9)), rounds=6))
    assert (result.reason, result.rounds) == ("rounds", 6)
    made = _factorisation(6, 3)
    deviation = np.sqrt(made.errors(6, 1)[-1]) / 4
    assert result.model["w"].std() == pytest.approx(deviation, rel=0.5)  # 20 elements: 3 standard errors


def test_more_rounds_than_the_noise_is_for_are_refused_and_lose_nothing(tmp_path):
    with pytest.raises(AppError, match="7 rounds, and what hides its clients was made for 6"):
        app_of(ftrl(), rounds=7)
    app = app_of(ftrl(), rounds=6)
    with pytest.raises(AppError, match="made for 6"):
        ran(app, rounds=7)
    done = ran(app, folder=tmp_path)
    with pytest.raises(AppError, match="made for 6"):
        umbel.resume(app, done.folder, on=Simulation(8), rounds=7)

    trained = []

    class Twice(umbel.Strategy):  # of whose asks nobody can know before
        def round(self, state, r):
            for _ in range(2):
                answer = yield Ask(clients="all", model=state.model, fold=umbel.total(), transforms=ftrl().transforms)
                state = state.replace(model=Arrays({"w": state.model["w"] + answer.value["w"]}))
            return state

    with pytest.raises(StrategyError, match="6 rounds, which are over"):
        ran(app_of(Twice(), lambda c: trained.append(c) or 0.0, rounds=5), folder=tmp_path / "twice")
    (folder,) = (tmp_path / "twice").iterdir()
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "round_committed" for event in log) == 3
    assert len(trained) == 6 * 8  # nobody in vain


@pytest.mark.parametrize("bands", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_in_the_midst_of_a_stream_has_the_noise_that_it_has_drawn(tmp_path, monkeypatch, bands):
    """It ends when a round has its answer, and is not committed; the rounds after it go on with the same stream."""
    app = app_of(ftrl(bands=bands), moves=lambda c: 0.01, rounds=6)
    pin(monkeypatch)
    whole, commit, made = ran(app, seed=2).model_sha256, Conductor._commit, []
    pin(monkeypatch)

    def interrupted(self, event):
        made.append(event)
        if len(made) == 4:
            raise KeyboardInterrupt
        commit(self, event)

    monkeypatch.setattr(Conductor, "_commit", interrupted)
    with pytest.raises(RunInterrupted):
        ran(app, folder=tmp_path, seed=2)
    monkeypatch.setattr(Conductor, "_commit", commit)
    (folder,) = tmp_path.iterdir()
    assert umbel.resume(app, folder, on=Simulation(8, workers=0)).model_sha256 == whole
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    releases = [release for event in events for release in event.get("releases", [])]
    assert len(releases) == 6
    assert len({release["stream"] for release in releases}) == 1


def test_a_stream_has_one_name_though_its_first_ask_is_made_again(tmp_path, monkeypatch):
    """By which a node counts it once; and another run of the same seed has another."""
    app, told = app_of(ftrl(), rounds=2), []
    send, close = dp_ftrl.send, RunAsks._close
    monkeypatch.setattr(dp_ftrl, "send", lambda self, state: told.append(state["id"]) or send(self, state))
    monkeypatch.setattr(RunAsks, "_close", lambda self, command, r: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(RunInterrupted):
        ran(app, folder=tmp_path, seed=2)
    monkeypatch.setattr(RunAsks, "_close", close)
    (folder,) = tmp_path.iterdir()
    umbel.resume(app, folder, on=Simulation(8, workers=0))
    assert (len(told), len({*told})) == (3, 1)
    ran(app, seed=2)
    assert len({*told}) == 2


def test_settings_that_the_account_rests_on_do_not_change_on_the_way(tmp_path):
    done = ran(app_of(ftrl(), rounds=2), folder=tmp_path)
    for other in ({"noise": 0.5}, {"norm": 2.0}, {"bands": 2}, {"rounds": 8}):
        with pytest.raises(StrategyError, match="was begun with"):
            umbel.resume(app_of(ftrl(**other), rounds=3), done.folder, on=Simulation(8, workers=0), rounds=3)
    assert (
        umbel.resume(app_of(ftrl(expected=5), rounds=3), done.folder, on=Simulation(8, workers=0), rounds=3).rounds == 3
    )


def test_the_noise_stays_with_the_run():
    step, schema = dp_ftrl(norm=1.0, noise=1.0, expected=3, rounds=9, bands=4), Arrays({"w": np.zeros(3)}).schema
    state = step.init(schema)
    for _ in range(4):
        state = step.finish(came("a"), state, KEY)[1]
    assert step.send(state) == {"norm": 1.0, "stream": state["id"]}
    assert step.init(schema)["id"] != state["id"]


NODES = {"a": {"0": {"index": 0}, "1": {"index": 1}}, "b": {"2": {"index": 2}}, "c": {"3": {"index": 3}}}


@pytest.mark.parametrize("relays", [None, pytest.param({"r": ["a", "b"]}, marks=pytest.mark.slow)])
def test_nodes_and_relays_come_to_the_bits_of_the_simulation(relays, tmp_path, monkeypatch):
    app = app_of(ftrl(Spaced(2, 2), separation=2), moves=lambda c: 0.01 * (1 + int(c)), rounds=4)
    pin(monkeypatch)
    here = umbel.run(app, on=Simulation(4, workers=0), folder=None, seed=3)
    pin(monkeypatch)
    world = Deployment(app, NODES, seed=9, relays=relays, faults=Faults.none(), scratch=tmp_path)
    assert world.run(tmp_path, seed=3).model_sha256 == here.model_sha256


@pytest.mark.slow
def test_two_workers_come_to_the_bits_of_one(monkeypatch):
    models = []
    for workers in (0, 2):
        pin(monkeypatch)
        app = app_of(ftrl(Spaced(2, 4), separation=4), moves=lambda c: 0.01 * (1 + c), rounds=4)
        models.append(umbel.run(app, on=Simulation(8, workers=workers), folder=None, seed=3).model_sha256)
    assert models[0] == models[1]


# The account


def released(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [NoisyRelease.of(each) for event in events for each in event.get("releases", [])]


@pytest.mark.slow
def test_all_answers_count_as_one_release_however_many_they_are(tmp_path):
    dp = pytest.importorskip("dp_accounting")
    releases = released(ran(app_of(ftrl(Spaced(2, 4), separation=4, noise=1.3)), folder=tmp_path).folder)
    assert len(releases) == 4
    assert releases[0].plain() == {
        "mechanism": "discrete_gaussian", "unit": "client", "neighbours": "zero out one", "noise": 1.3, "norm": 1.0,
        "steps": releases[0].steps, "denominator": 4, "stream": releases[0].stream,
        "sampling": {"kind": "unknown", "why": "clients that were asked wait 4 rounds"},
    }  # fmt: skip
    own = dp.pld.PLDAccountant().compose(dp.GaussianDpEvent(1.3)).get_epsilon(1e-6)
    for part in (releases[:1], releases):
        found = spent(part, 1e-6)
        assert found.epsilon == pytest.approx(own, rel=1e-3)
        assert any("counts once" in why for why in found.why)
        assert any("nobody's data" in why for why in found.why)


@pytest.mark.parametrize(("noise", "printed"), [(1.13, 19.74), (8.83, 2.04)])
def test_kairouz_et_al_2021_on_stack_overflow(noise, printed):
    """1,600 rounds, each client in one, delta 1e-6, a tree whose nodes have this noise: the epsilons that the paper's
    own library (TensorFlow Privacy, tests of its tree accountant) names for that setting, by Renyi divergences and the
    conversion of its time. dp-accounting has an event for the tree, which ours has to be in a Gaussian's disguise.
    """
    dp = pytest.importorskip("dp_accounting")
    made = _factorisation(1600, None)
    orders = [1 + x / 10 for x in range(1, 100)] + [*range(12, 64)]
    tree = dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.REPLACE_SPECIAL)
    tree.compose(dp.SingleEpochTreeAggregationDpEvent(noise, 1600))
    ours = dp.rdp.RdpAccountant(orders).compose(dp.GaussianDpEvent(noise / made.sensitivity(1, 1600)))
    assert ours.get_epsilon(1e-6) == pytest.approx(tree.get_epsilon(1e-6), rel=1e-12)
    old = min(r + math.log(1e6) / (a - 1) for a, r in zip(orders, ours.rdp, strict=True))
    assert old == pytest.approx(printed, abs=5e-3)
    step = dp_ftrl(norm=1.0, noise=noise / made.sensitivity(1, 1600), expected=100, rounds=1600, separation=1600)
    event = step.event(Answer(Arrays()), step.init(Arrays({"w": np.zeros(2)}).schema))
    release = NoisyRelease(**event, sampling={"kind": "unknown", "why": "once"})
    assert event["steps"] == pytest.approx(noise / grid(1.0), rel=1e-12)  # z is the noise of the nodes
    own = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
    own.compose(dp.SingleEpochTreeAggregationDpEvent(noise, 1600))
    found = spent([release] * 1600, 1e-6, "rdp").epsilon
    assert found == pytest.approx(own.get_epsilon(1e-6), rel=1e-3)
    assert found < printed
    assert spent([release] * 1600, 1e-6).epsilon < found


# Otherwise


def test_the_owner_of_a_node_can_ask_for_it():
    required = RequiredStep("dp_ftrl", {"norm": Range(most=1.0), "noise": Range(least=0.8)})
    assert required.fault(chain(ftrl().transforms).spec()) is None
    assert "its noise is 0.5" in required.fault(chain(ftrl(noise=0.5).transforms).spec())


def test_it_crosses_the_wire_by_its_description():
    for step in STEPS:
        assert chain_from_spec(chain(step).spec()).parts == (step,)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"rounds": 1.5}, {"separation": 0}, {"bands": 0}, {"bands": "tree"}, {"noise": 0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(umbel.UmbelError, match=next(iter(wrong))):
        ftrl(**wrong)


def test_more_noise_than_whole_numbers_hold_is_refused():
    step = dp_ftrl(norm=1.0, noise=1e7, expected=3, rounds=9, bands=4)
    with pytest.raises(StrategyError, match="64 bits"):
        step.init(Arrays({"w": np.zeros(3)}).schema)


# Faults planted, each of which is found


def test_planted_a_sensitivity_that_forgets_participations(monkeypatch):
    step = dp_ftrl(norm=1.0, noise=1.0, expected=3, rounds=8, separation=2, bands=2)
    state = step.init(Arrays({"w": np.zeros(3)}).schema)
    moved = np.zeros(8)
    moved[::2] = 1 / grid(1.0)
    assert np.linalg.norm(_factorisation(8, 2).encoder() @ moved) <= step.event(Answer(Arrays()), state)["steps"]
    monkeypatch.setattr(Factorisation, "sensitivity", lambda self, k=1, b=1: math.sqrt(self.column_norms().max()))
    from umbel.privacy import ftrl as module

    module._sensitivity.cache_clear()
    assert np.linalg.norm(_factorisation(8, 2).encoder() @ moved) > step.event(Answer(Arrays()), state)["steps"]
    module._sensitivity.cache_clear()


@pytest.mark.slow
def test_planted_a_stream_that_begins_anew_each_round(monkeypatch):
    right = dp_ftrl.finish

    def forgetful(self, answer, state, key, own=SYSTEM):
        fresh = {**state, "noise": {**state["noise"], "past": [], "round": 0}}
        return right(self, answer, fresh, key, own)

    monkeypatch.setattr(dp_ftrl, "finish", forgetful)
    with pytest.raises(AssertionError):
        test_noise_has_the_covariance_that_it_is_said_to_have(STEPS[0])
