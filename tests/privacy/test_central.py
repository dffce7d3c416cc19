"""Central privacy: whatever a client sends moves the sum by the bound at most, and noise is added once, to the sum."""

import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel import App, Arrays, FedAvg, Poisson, Simulation, Update, Window
from umbel.core.answer import Answer
from umbel.core.ask import Ask
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.entropy import SYSTEM, Entropy
from umbel.errors import AppError, CorruptFile, RunInterrupted, StrategyError, UpdateRejected
from umbel.privacy import central_gaussian
from umbel.privacy.accounting import spent
from umbel.privacy.central import VOTE
from umbel.privacy.clipped import grid
from umbel.privacy.release import NoisyRelease
from umbel.runs.conductor import Conductor
from umbel.samplers import Oort, Spaced
from umbel.strategies import FedNova
from umbel.testing.deployment import Deployment, Faults
from umbel.transforms import top_k
from umbel.trust.policy import Range, RequiredStep

KEY = Key.from_seed(1)
MODEL = Arrays({"w": np.zeros(40, np.float32), "seen": np.zeros(3, np.float32)}, {"seen": "buffer"})


@pytest.fixture
def pinned(monkeypatch):
    """Noise of a key, in place of the operating system's."""
    monkeypatch.setattr(SYSTEM, "words", Key.from_seed(5).draws().words)


def sent(step, arrays, **claims):
    """What leaves a holder."""
    return step.encode(Update(arrays, delta=True, **claims), {"norm": step.norm}, None, KEY)[0]


def taken(step, update, schema=None):
    """What is folded of what was sent."""
    with np.errstate(all="ignore"):
        return step.decode(update, {"norm": step.norm}, schema)


def app_of(strategy, moves=None, rounds=1, **settings):
    """Clients that move all parameters by what `moves` says, or not at all."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        by = 0.0 if moves is None else moves(ctx.client)
        new = {"w": model["w"] + np.float32(by), "seen": model["seen"] + 7}
        return Update(Arrays(new, {"seen": "buffer"}), weight=1000, metrics={"loss": 3.0})

    return App(client, model=MODEL, strategy=strategy, rounds=rounds, **settings)


def central(noise=1.0, norm=1.0, expected=4, **settings):
    steps = central_gaussian(norm=norm, noise=noise, expected=expected)
    return FedAvg(**{"cohort": 4, **settings}, fold=umbel.total(), transforms=steps)


def ran(app, clients=8, **settings):
    return umbel.run(app, on=Simulation(clients), **{"folder": None, **settings})


# What a client can do

VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)
ANY = hnp.arrays(np.float32, st.integers(1, 50), elements=VALUES)


@given(values=ANY, norm=st.floats(1e-6, 1e6), weight=st.floats(0, 1e9))
def test_what_an_honest_client_sends_is_within_the_bound_and_on_the_grid(values, norm, weight):
    step = central_gaussian(norm=norm, noise=1, expected=10)
    schema = Arrays({"w": values}).schema
    if not np.isfinite(values).all():
        with pytest.raises(UpdateRejected):
            taken(step, sent(step, {"w": values}, weight=weight), schema)
        return
    found = taken(step, sent(step, {"w": values}, weight=weight, metrics={"loss": 1.0}), schema)
    steps = found.arrays["w"].astype(np.float64) / grid(norm)
    assert (steps == np.rint(steps)).all()
    assert np.linalg.norm(found.arrays["w"].astype(np.float64)) <= norm
    assert (found.weight, found.metrics, dict(found.aux)) == (1.0, {}, {})
    if np.linalg.norm(values.astype(np.float64)) < norm / 2:
        np.testing.assert_allclose(found.arrays["w"], values, atol=grid(norm))  # rounded and not scaled


@pytest.mark.parametrize(
    ("values", "why"),
    [([3e-7], "grid"), ([1.0], "norm is 1,"), ([0.8, 0.8], "norm"), ([np.nan], "norm"), ([np.inf], "norm")],
)
def test_what_is_beyond_the_bound_or_beside_the_grid_is_rejected(values, why):
    step = central_gaussian(norm=1.0, noise=1, expected=10)
    with pytest.raises(UpdateRejected, match=why):
        taken(step, Update({"w": np.array(values, np.float32)}, delta=True))


# What is released


def test_the_answer_is_the_clipped_sum_over_what_is_expected_and_noise(pinned):
    result = ran(app_of(central(noise=1e-6), moves=lambda c: 0.01 if c % 2 else 100.0), seed=3)
    clean, cohort = result.model, {row.client for row in result.clients}
    each = [0.01 if c % 2 else 1 / np.sqrt(40) for c in cohort]  # one has a norm of 0.06, the other is clipped to 1
    np.testing.assert_allclose(clean["w"], sum(each) / 4, atol=2e-5)
    assert not clean["seen"].any()  # buffers stay as they are


@pytest.mark.parametrize(("noise", "norm", "expected"), [(1.0, 1.0, 4), (3.0, 0.1, 7.5)])
def test_noise_has_the_standard_deviation_that_it_is_said_to_have(pinned, noise, norm, expected):
    step = central_gaussian(norm=norm, noise=noise, expected=expected)
    state = step.init(Arrays({"w": np.zeros(200, np.float32)}).schema)
    drawn = [step.finish(Answer(Arrays()), state, KEY)[0].value["w"] for _ in range(100)]
    values = np.concatenate(drawn).astype(np.float64) * expected / (noise * norm)
    n = values.size
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    lagged = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(lagged) < 4 / np.sqrt(n)


def test_nobody_is_released_as_noise_and_says_nothing_of_who_came(pinned):
    result = ran(app_of(central(cohort=Poisson(1e-9)), rounds=2, max_failed_rounds=9))
    assert result.model["w"].std() == pytest.approx(np.sqrt(2) / 4, rel=0.5)
    assert not result.model["seen"].any()


def test_weights_metrics_and_losses_are_not_told():
    result = ran(app_of(central()))
    assert {row.weight for row in result.clients} == {1.0}
    assert not any(name.startswith("train.") and "loss" in name for name in result.metrics)


def test_the_noise_is_another_each_time_though_the_seed_is_the_same():
    first, second = (ran(app_of(central()), seed=1).model["w"] for _ in range(2))
    assert (first != second).all()


def test_whom_the_dice_take_does_not_follow_from_the_seed(tmp_path):
    """It follows from a secret, which is kept with the run."""

    def took(strategy, on=8, **settings):
        return tuple(row.client for row in ran(app_of(strategy), on, seed=1, **settings).clients)

    assert took(FedAvg(cohort=20), 1000) == took(FedAvg(cohort=20), 1000)
    private = central(cohort=Poisson(0.02))
    assert len({took(private, 1000) for _ in range(3)}) == 3
    took(private, 1000, folder=tmp_path)
    (secret,) = tmp_path.glob("*/secret")
    assert len(secret.read_bytes()) == 32
    assert secret.stat().st_mode & 0o077 == 0  # for whoever runs it alone
    secret.write_bytes(b"another")
    with pytest.raises(CorruptFile, match="a secret has 32 bytes, and it has 7"):
        umbel.resume(app_of(private), secret.parent, on=Simulation(1000), rounds=2)


def test_a_run_that_goes_on_has_the_noise_that_it_has_drawn(tmp_path, monkeypatch):
    """It ends when the last round has its answer, and is not committed."""
    app, made, commit = app_of(central(), moves=lambda c: 0.01, rounds=3), [], Conductor._commit

    def interrupted(self, event):
        made.append(self._state.model.sha256)
        if len(made) == 3:
            raise KeyboardInterrupt
        commit(self, event)

    monkeypatch.setattr(Conductor, "_commit", interrupted)
    with pytest.raises(RunInterrupted):
        umbel.run(app, on=Simulation(8), folder=tmp_path, seed=2)
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    resumed = umbel.resume(app, folder, on=Simulation(8))
    assert resumed.model_sha256 == made[2]
    releases = [json.loads(line).get("releases") for line in (folder / "events.jsonl").read_text().splitlines()]
    assert len([each for each in releases if each]) == 3  # each is in the log once


def test_the_log_says_what_each_release_is_and_how_clients_were_sampled(tmp_path):
    def logged(**settings):
        result = umbel.run(app_of(central(**settings)), on=Simulation(8), folder=tmp_path)
        events = map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())
        ((release,),) = [event["releases"] for event in events if event["event"] == "ask_closed"]
        return release

    release = logged()
    assert release == {
        "mechanism": "discrete_gaussian",
        "unit": "client",
        "neighbours": "add or remove one",
        "noise": 1.0,
        "norm": 1.0,
        "steps": 2.0**22,
        "denominator": 4,
        "sampling": {"kind": "fixed", "count": 4, "of": 8},
    }
    assert logged(cohort=Poisson(0.5))["sampling"] == {"kind": "poisson", "rate": 0.5}
    assert logged(cohort="all")["sampling"] == {"kind": "everyone"}
    assert "goes by" in logged(cohort=[1, 2])["sampling"]["why"]
    assert "in time" in logged(window=Window(close_after=2))["sampling"]["why"]


def test_noise_is_that_of_the_bound_that_was_sent_though_another_was_kept(pinned):
    before, now = (central_gaussian(norm=norm, noise=1, expected=1) for norm in (1.0, 100.0))
    state = before.init(Arrays({"w": np.zeros(2000, np.float32)}).schema)
    answer, after = now.finish(Answer(Arrays()), state, KEY)
    assert answer.value["w"].std() == pytest.approx(100, rel=0.1)
    assert now.send(after) == {"norm": 100.0}
    assert now.event(answer, state)["norm"] == 100.0


def test_a_round_to_which_nobody_came_is_no_failed_round(pinned):
    """All that were drawn fail: whether somebody else was drawn, too, must not decide what comes of the run."""

    def fails(client):
        raise RuntimeError

    result = ran(app_of(central(cohort="all"), moves=fails, rounds=2))
    assert (result.reason, result.rounds) == ("rounds", 2)  # and RunFailed was not raised
    assert result.model["w"].any()


# A bound that moves


@pytest.mark.parametrize("first", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_bound_comes_to_the_quantile_of_the_norms(pinned, first, quantile):
    """Norms are 1 to 2; from a hundred times too small and too large it is there within 50 rounds."""
    norms = np.linspace(1, 2, 200)
    step = central_gaussian(norm=first, noise=1.0, expected=200, quantile=quantile)
    state = step.init(Arrays({"w": np.zeros(10, np.float32)}).schema)
    for _ in range(50):
        below = np.where(norms <= state["norm"], 1.0, -1.0).mean()
        answer = Answer(Arrays(), Arrays({"central_gaussian:below": np.array(below)}), receipts=[None] * 200)
        _, state = step.finish(answer, state, KEY)
    assert state["norm"] == pytest.approx(np.quantile(norms, quantile), rel=0.05)


def test_noise_on_who_is_below_has_the_standard_deviation_that_it_is_said_to_have():
    """2,000 releases, of nobody: the variance within 3 standard errors. Steps are small, so that no bound cuts them."""
    step, own = (
        central_gaussian(norm=1.0, noise=1.0, expected=1000, quantile=0.5),
        Entropy(Key.from_seed(5).draws().words),
    )
    state = step.init(Arrays({"w": np.zeros(1)}).schema)
    norms = [step.finish(Answer(Arrays()), state, KEY, own)[1]["norm"] for _ in range(2000)]
    voices = np.log(norms) / -step.rate * 2 * step.expected  # by which half of 1,000 is passed, times two
    assert abs((voices / (2 * 50)).var() - 1) < 3 * np.sqrt(2 / 2000)
    assert abs((voices / (2 * 50)).mean()) < 3 / np.sqrt(2000)


def test_a_moving_bound_moves_in_a_run_and_both_noises_cost_what_one_would(pinned, tmp_path):
    steps = central_gaussian(norm=8.0, noise=1.0, expected=4, quantile=0.5, below_noise=1.0)
    app = app_of(FedAvg(cohort=4, fold=umbel.total(), transforms=steps), moves=lambda c: 0.01, rounds=20)
    result = umbel.run(app, on=Simulation(8), folder=tmp_path, seed=1)
    events = map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())
    released = [event["releases"][0] for event in events if event["event"] == "ask_closed"]
    assert released[-1]["norm"] < released[0]["norm"] / 2
    variances = [steps._variance(each["norm"]) * (grid(each["norm"]) / each["norm"]) ** 2 for each in released]
    np.testing.assert_allclose([1 / variance + (2 * 1.0) ** -2 for variance in variances], 1.0, rtol=1e-9)
    assert {each["steps"] for each in released} == {2.0 * VOTE}  # the coarser grid is that of who was below


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_andrew_et_al_2021(accountant):
    """Their section 3, from memory: z = 1, 100 clients in a round and a deviation of 5 on who is below (a twentieth)
    come to 1.005 on the differences. Two sums that are told together are two Gaussians of one sample, which is how
    dp-accounting composes them; here over 1,500 rounds of Stack Overflow's 342,477 clients.
    """
    dp = pytest.importorskip("dp_accounting")
    step = central_gaussian(norm=0.5, noise=1.0, expected=100, quantile=0.5)
    noise = np.sqrt(step._variance(0.5)) * grid(0.5) / 0.5
    assert noise == pytest.approx(1.005, abs=5e-4)
    rate, rounds, delta = 100 / 342477, 1500, 1e-6
    made = dp.rdp.RdpAccountant() if accountant == "rdp" else dp.pld.PLDAccountant()
    if accountant == "rdp":
        both = dp.ComposedDpEvent([dp.GaussianDpEvent(noise), dp.GaussianDpEvent(2 * 5.0)])
    else:  # which does not compose within a sample; both together are one Gaussian of this noise
        both = dp.GaussianDpEvent((noise**-2 + (2 * 5.0) ** -2) ** -0.5)
    made.compose(dp.PoissonSampledDpEvent(rate, both), rounds)
    event = step.event(Answer(Arrays()), step.init(Arrays({"w": np.zeros(3)}).schema))
    release = NoisyRelease(**event, sampling={"kind": "poisson", "rate": rate})
    assert spent([release] * rounds, delta, accountant).epsilon == pytest.approx(made.get_epsilon(delta), rel=1e-3)


def test_who_says_more_than_below_or_above_is_rejected():
    step = central_gaussian(norm=1.0, noise=1, expected=40, quantile=0.5)
    fine = sent(step, {"w": np.zeros(3, np.float32)})
    assert dict(taken(step, fine).aux) == {"central_gaussian:below": 1.0}
    assert dict(sent(step, {"w": np.ones(3, np.float32)}).aux) == {"central_gaussian:below": -1.0}
    for wrong in (np.array(9.0), np.array(0.0), np.array(np.nan), np.ones(2)):
        with pytest.raises(UpdateRejected, match="central_gaussian"):
            taken(step, Update(fine.arrays, aux={"central_gaussian:below": wrong}, delta=True))
    other = Arrays({"central_gaussian:below": np.array(1.0, np.float32)}, {"central_gaussian:below": "buffer"})
    alike = taken(step, Update(fine.arrays, aux=other, delta=True)).aux
    assert alike.schema == taken(step, fine).aux.schema  # or one client's would decide what is summed
    with pytest.raises(UpdateRejected, match="more than that"):
        taken(step, Update(fine.arrays, aux={**fine.aux, "mine": np.ones(2)}, delta=True))


def test_noise_for_who_is_below_that_would_cost_all_is_refused():
    with pytest.raises(StrategyError, match="below_noise"):
        central_gaussian(norm=1, noise=1, expected=4, quantile=0.5)
    for wrong in (0, 1, -1, np.nan, "half"):
        with pytest.raises(StrategyError, match="quantile"):
            central_gaussian(norm=1, noise=1, expected=100, quantile=wrong)


# What is refused


def test_what_would_be_released_as_it_is_is_refused():
    step = central_gaussian(norm=1, noise=1, expected=4)
    for wrong, why in [
        (lambda: FedAvg(transforms=step), "fold=umbel.total"),
        (lambda: FedAvg(fold=umbel.total(), transforms=(step, top_k(0.1))), "alone"),
        (lambda: Ask(clients=Oort(4), model=MODEL, fold=umbel.total(), transforms=step), "Oort goes by"),
        (lambda: FedAvg(cohort=Spaced(4, 2), fold=umbel.total(), transforms=step), "when they were asked"),
        (lambda: Ask(clients=1, model=MODEL, fold=umbel.total(), transforms=step, window=Window(quorum=2)), "quorum"),
        (lambda: Ask(clients=1, model=MODEL, fold=umbel.total(), transforms=step, window=Window(late="keep")), "late"),
        (lambda: Ask(clients=1, model=lambda c: MODEL, fold=umbel.total(), transforms=step), "by client"),
        (lambda: FedNova(fold=umbel.total(), transforms=step), "alone"),
        (lambda: Ask(clients=1, expects=umbel.Free(), fold=umbel.total(), transforms=step), "Like"),
    ]:
        with pytest.raises(StrategyError) as caught:
            wrong()
        assert why in f"{caught.value.message} {caught.value.hint}"


def test_strategies_that_step_in_a_way_of_their_own_are_refused():
    class Counting(FedAvg):
        def stepped(self, state, answer):
            return super().stepped(state, answer) if answer.count > 3 else state

    with pytest.raises(StrategyError, match="how many clients came"):
        Counting(fold=umbel.total(), transforms=central_gaussian(norm=1, noise=1, expected=4))


def test_clients_that_evaluate_are_refused_though_a_strategy_hides_what_it_asks():
    class Own(umbel.Strategy):
        def round(self, state, r):
            yield Ask(clients=4, model=state.model, fold=umbel.total(), transforms=central().transforms)
            return state

    app = app_of(Own())
    app.client.evaluate(lambda model, data, ctx: umbel.Metrics({"accuracy": 1.0}))
    with pytest.raises(AppError, match="evaluate"):
        ran(app)


def test_clients_that_evaluate_are_refused():
    app = app_of(central())
    app.client.evaluate(lambda model, data, ctx: umbel.Metrics({"accuracy": 1.0}))
    with pytest.raises(AppError, match="evaluate"):
        ran(app)
    app.evaluate_every = 0
    ran(app)


@pytest.mark.parametrize("name", ["norm", "noise", "expected"])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, "1"])
def test_settings_are_positive(name, value):
    with pytest.raises(umbel.UmbelError, match=name):
        central_gaussian(**{"norm": 1.0, "noise": 1.0, "expected": 4.0, name: value})


def test_it_crosses_the_wire_by_its_description():
    step = central_gaussian(norm=1.5, noise=0.7, expected=4)
    assert chain_from_spec(chain(step).spec()).parts == (step,)


# Wherever clients train

NODES = {"a": {"0": {"index": 0}, "1": {"index": 1}}, "b": {"2": {"index": 2}}, "c": {"3": {"index": 3}}}


@pytest.mark.parametrize("relays", [None, {"r": ["a", "b"]}])
def test_nodes_and_relays_come_to_the_bits_of_the_simulation(relays, tmp_path, monkeypatch):
    def noise():
        monkeypatch.setattr(SYSTEM, "words", Key.from_seed(5).draws().words)

    app = app_of(central(cohort="all"), moves=lambda c: 0.01 * (1 + int(c)), rounds=2)
    noise()
    here = umbel.run(app, on=Simulation(clients={str(i): {} for i in range(4)}), folder=None, seed=3)
    noise()
    world = Deployment(app, NODES, seed=9, relays=relays, faults=Faults.none(), scratch=tmp_path)
    there = world.run(tmp_path, seed=3)
    assert there.model_sha256 == here.model_sha256
    assert not any("loss" in name for name in there.metrics)


def test_where_the_bound_moves_a_relay_passes_updates_on_one_by_one(pinned, tmp_path):
    """Nobody could check a sum of theirs against a bound that the ask does not name."""
    steps = central_gaussian(norm=1.0, noise=1.0, expected=100, quantile=0.5)
    strategy = FedAvg(cohort="all", fold=umbel.total(), transforms=steps)
    app = app_of(strategy, moves=lambda c: 0.01, rounds=2)
    world = Deployment(app, NODES, seed=9, relays={"r": ["a", "b"]}, faults=Faults.none(), scratch=tmp_path)
    result = world.run(tmp_path, seed=3)
    assert {(row.status, row.reason) for row in result.clients} == {("counted", None)}


def test_two_workers_come_to_the_bits_of_one(monkeypatch):
    models = []
    for workers in (0, 2):
        monkeypatch.setattr(SYSTEM, "words", Key.from_seed(5).draws().words)
        app = app_of(central(), moves=lambda c: 0.01 * (1 + c), rounds=2)
        models.append(umbel.run(app, on=Simulation(8, workers=workers), folder=None, seed=3).model_sha256)
    assert models[0] == models[1]


# What the owner of a node can ask for


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, None),
        ({"norm": 0.5, "noise": 2.0}, None),
        ({"norm": 1.5}, "its norm is 1.5, above 1"),
        ({"noise": 0.5}, "its noise is 0.5, below 0.8"),
        ({"quantile": 0.5, "expected": 100}, "its norm moves from round to round"),
    ],
)
def test_a_policy_asks_for_noise_and_a_bound(settings, why):
    required = RequiredStep("central_gaussian", {"norm": Range(most=1.0), "noise": Range(least=0.8)})
    step = central_gaussian(**{"norm": 1.0, "noise": 1.0, "expected": 10, **settings})
    fault = required.fault(chain(step).spec())
    assert fault is None if why is None else why in fault


def test_a_bound_that_does_not_move_is_the_holders_whatever_the_server_sends():
    step = central_gaussian(norm=1.0, noise=1, expected=10)
    update = Update({"w": np.full(4, 100.0, np.float32)}, delta=True)
    made = step.encode(update, {"norm": 1e6}, None, KEY)[0]
    assert np.linalg.norm(made.arrays["w"]) <= 1.0
