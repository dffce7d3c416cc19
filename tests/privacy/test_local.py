"""Local privacy: what leaves a holder has the noise that is claimed, whatever it was, and is drawn once."""

import json
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import umbel
from umbel import App, Arrays, FedAvg, Simulation, Update
from umbel.core.answer import Answer
from umbel.core.ask import Ask
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.entropy import Entropy
from umbel.errors import AppError, StrategyError, UpdateRejected
from umbel.node.holdings import OwedAnswers
from umbel.privacy import local_gaussian, local_laplace, privunit
from umbel.privacy.release import NoisyRelease
from umbel.testing.deployment import Deployment, Faults
from umbel.transforms import top_k

KEY = Key.from_seed(1)
MODEL = Arrays({"w": np.zeros(40, np.float32), "seen": np.ones(3, np.float32)}, {"seen": "buffer"})
KINDS = [local_gaussian(norm=1.0, noise=0.5), local_laplace(norm=2.0, noise=1.0), privunit(norm=0.7, epsilon=8.0)]
UNLIKELY = 1e-6
every = pytest.mark.parametrize("step", KINDS, ids=lambda step: step.name)


def pinned(*name):
    """The holder's randomness, of a key."""
    return Entropy(Key.from_seed(16).derive("local", *name).draws().words)


def sent(step, arrays, own=None, **claims):
    """What leaves a holder."""
    return step.encode(Update(arrays, delta=True, **claims), None, None, KEY, own or pinned("sent"))[0]


def taken(step, update, schema=None):
    """What is folded of what was sent."""
    with np.errstate(all="ignore"):
        return step.decode(update, None, schema)


def app_of(strategy, rounds=1):
    """Clients that move all parameters, and would tell more."""
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        new = {"w": model["w"] + np.float32(0.01), "seen": model["seen"] + 7}
        return Update(Arrays(new, {"seen": "buffer"}), weight=1000, metrics={"loss": 3.0})

    return App(client, model=MODEL, strategy=strategy, rounds=rounds)


# What leaves a holder

VALUES = st.floats(width=64, allow_nan=True, allow_infinity=True)
ANY = hnp.arrays(np.float64, st.integers(0, 50), elements=VALUES)


@every
@given(values=ANY, norm=st.floats(1e-6, 1e6), dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 9))
def test_whatever_an_honest_client_has_its_answer_is_taken(step, values, norm, dtype, seed):
    step = type(step)(**{**step.spec()["settings"], "norm": norm})
    with np.errstate(all="ignore"):
        arrays = Arrays({"w": values.astype(dtype), "seen": np.array([np.nan])}, {"seen": "buffer"})
    update = sent(step, arrays, pinned(seed), weight=7.0, metrics={"loss": 1.0}, aux={"more": values})
    assert (update.weight, update.metrics, dict(update.aux)) == (1.0, {}, {})
    assert not update.arrays["seen"].any()
    found = taken(step, update, arrays.schema)
    assert (found.weight, found.metrics, dict(found.aux)) == (1.0, {}, {})
    assert not found.arrays["seen"].any()
    np.testing.assert_array_equal(found.arrays["w"], update.arrays["w"])


@every
@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=True)))
def test_whatever_a_client_sends_is_no_larger_than_an_honest_answer(step, values):
    """An adversary encodes nothing: what is let pass is what is folded."""
    try:
        found = taken(step, Update({"w": values}, 9.0, {"loss": 1e9}, {"more": values}, True))
    except UpdateRejected:
        return
    most = {"local_gaussian": 1 + 0.5 * (math.sqrt(len(values)) + 10), "local_laplace": 2 + 2 * (math.log(50) + 50)}
    size = np.abs(found.arrays["w"].astype(np.float64)).max()
    assert size <= most.get(step.name, 0.7 * 40) * (1 + 1e-5)
    assert (found.weight, found.metrics, dict(found.aux)) == (1.0, {}, {})


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-7 / 3])
def test_what_is_too_large_or_beside_the_grid_is_rejected(step, value):
    with pytest.raises(UpdateRejected, match=r"NaN|grid|leaves at most"):
        taken(step, Update({"w": np.full(4, value)}, delta=True))


@every
def test_noise_is_the_holders_own_and_not_the_runs(step):
    arrays = {"w": np.ones(40, np.float32)}
    drawn = [step.encode(Update(arrays, delta=True), None, None, key)[0].arrays["w"] for key in (KEY, KEY)]
    assert (drawn[0] != drawn[1]).all()
    keys = KEY, Key.from_seed(2)
    same = [step.encode(Update(arrays, delta=True), None, None, key, pinned())[0].arrays["w"] for key in keys]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("step", [pytest.param(KINDS[0], marks=pytest.mark.slow), KINDS[1]], ids=lambda step: step.name)
def test_noise_has_the_distribution_that_is_claimed(step):
    """2,000 releases: mean, variance within three standard errors, and a chi-square test of 50 cells."""
    values = np.array([3.0, -1.0, 0.0, 0.5])
    order = 2 if step.name == "local_gaussian" else 1
    clipped = values * step.norm / np.linalg.norm(values, order)
    own, scale = pinned("distribution"), step.noise * step.norm
    drawn = np.stack([step.randomised(values, own) for _ in range(2000)]) * step.step(4)
    noise = ((drawn - clipped) / scale).ravel()
    law = stats.norm() if order == 2 else stats.laplace()
    n, kurtosis = noise.size, float(law.stats("k"))
    assert abs(noise.mean()) < 3 * law.std() / np.sqrt(n)
    assert abs(noise.var() / law.var() - 1) < 3 * np.sqrt((kurtosis + 2) / n)
    cells = np.bincount(np.minimum(law.cdf(noise) * 50, 49).astype(int), minlength=50)
    assert stats.chisquare(cells).pvalue > UNLIKELY
    correlation = np.corrcoef(((drawn - clipped) / scale).T)
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(2000)


@given(
    values=hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e9, 1e9)),
    norm=st.floats(1e-6, 1e6),
    order=st.sampled_from([1, 2]),
)
def test_before_the_noise_is_a_point_of_the_grid_within_the_norm(values, norm, order):
    """In whole numbers: two clients are 2 * norm apart at most, rounding included."""
    step = (local_laplace if order == 1 else local_gaussian)(norm=norm, noise=1.0)
    steps = step._steps(values, order)
    whole = [int(x) for x in steps.tolist()]
    assert whole == steps.tolist()
    top = norm / step.step(len(whole))
    assert sum(abs(x) for x in whole) <= top if order == 1 else sum(x * x for x in whole) <= top**2
    if np.linalg.norm(values, order) < norm / 2:
        np.testing.assert_allclose(steps * step.step(len(whole)), values, atol=step.step(len(whole)))


def test_discrete_laplace_noise_costs_no_more_than_its_event_says():
    """Its trade-off of errors lies nowhere above that of the continuous one by which accountants go."""
    step = local_laplace(norm=1.5, noise=1e-5)
    told = 1 + step.step(1) / (4 * 1e-5 * 1.5)
    assert step.noise / step.event(Answer(Arrays()), None)["noise"] == pytest.approx(told, rel=1e-9)
    for scale, shifts in [(3.0, (1,)), (5.0, (4,)), (4.0, (1, 2)), (8.0, (3, 1, 1))]:
        p = math.exp(-1 / scale)
        xs = np.arange(-200, 201)
        mass = (1 - p) / (1 + p) * p ** np.abs(xs)
        joint, moved = np.ones(1), np.ones(1)
        for shift in shifts:
            joint = np.multiply.outer(joint, mass[100:301]).ravel()
            moved = np.multiply.outer(moved, mass[100 - shift : 301 - shift]).ravel()
            joint, moved = merged(joint, moved)
        change = sum(shifts) / scale * (1 + 1 / (4 * scale))
        for epsilon in np.linspace(0, change, 20):
            discrete = np.maximum(moved - np.exp(epsilon) * joint, 0).sum()
            assert discrete <= max(0.0, 1 - math.exp((epsilon - change) / 2)) + 1e-7


def merged(joint, moved):
    """Outcomes of one ratio as one."""
    ratio = np.round(np.log(moved / joint), 9)
    _, place = np.unique(ratio, return_inverse=True)
    return np.bincount(place, joint), np.bincount(place, moved)


# In a run


@every
def test_weights_metrics_and_buffers_are_not_told_and_the_run_learns(step):
    result = umbel.run(app_of(FedAvg(cohort="all", transforms=step)), on=Simulation(8), folder=None)
    assert {row.weight for row in result.clients} == {1.0}
    assert not any("loss" in name for name in result.metrics)
    assert result.model["w"].all()
    assert (result.model["seen"] == 1).all()  # buffers stay as they are


@every
def test_each_answer_is_in_the_log_and_says_what_it_costs(step, tmp_path):
    app = app_of(FedAvg(cohort=umbel.Poisson(0.5), transforms=step), rounds=3)
    result = umbel.run(app, on=Simulation(8), folder=tmp_path)
    events = map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())
    found = [NoisyRelease.of(each) for event in events if event["event"] == "ask_closed" for each in event["releases"]]
    assert len(found) == 3
    assert {(each.sampling["kind"], each.neighbours, each.denominator) for each in found} == {
        ("everyone", "replace one", None)
    }


@pytest.mark.slow
def test_the_account_is_that_of_noise_for_twice_the_norm():
    pytest.importorskip("dp_accounting")
    from umbel.privacy.accounting import spent

    answer = Answer(Arrays())
    gaussian, laplace, pure = (NoisyRelease.of(step.event(answer, None)) for step in KINDS)
    central = {"mechanism": "gaussian", "steps": None, "neighbours": "add or remove one", "denominator": 1}
    half = NoisyRelease.of({**gaussian.plain(), **central, "noise": 0.25})
    assert spent([gaussian], 1e-6).epsilon == pytest.approx(spent([half], 1e-6).epsilon, rel=1e-3)
    assert spent([laplace], 1e-9).epsilon == pytest.approx(2.0, rel=1e-3)
    assert spent([pure] * 2, 1e-9).epsilon == pytest.approx(16.0, rel=1e-3)


def test_what_would_be_told_as_it_is_is_refused():
    app = app_of(FedAvg(transforms=KINDS[0]))
    app.client.evaluate(lambda model, data, ctx: umbel.Metrics({"accuracy": 1.0}))
    with pytest.raises(AppError, match="evaluate"):
        umbel.run(app, on=Simulation(8), folder=None)
    for wrong, why in [
        (lambda: FedAvg(transforms=(KINDS[0], top_k(0.1))), "alone"),
        (lambda: Ask(clients=1, expects=umbel.Free(), transforms=KINDS[1]), "Like"),
        (lambda: Ask(clients=1, model=MODEL, fold=umbel.collect(), transforms=KINDS[2]), "collect"),
        (lambda: Ask(clients=1, model=MODEL, expects=umbel.Like(aux=umbel.Free()), transforms=KINDS[2]), "aux"),
    ]:
        with pytest.raises(StrategyError) as caught:
            wrong()
        assert why in f"{caught.value.message} {caught.value.hint}"


@every
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, "1"])
def test_settings_are_positive(step, value):
    for name in step.spec()["settings"]:
        with pytest.raises(umbel.UmbelError, match=name):
            type(step)(**{**step.spec()["settings"], name: value})


@every
def test_it_crosses_the_wire_by_its_description(step):
    assert chain_from_spec(chain(step).spec()).parts == (step,)


# Wherever clients train

NODES = {"a": {"0": {"index": 0}, "1": {"index": 1}}, "b": {"2": {"index": 2}}}


def lived(tmp_path, seed):
    """A run through whatever goes wrong, with the operating system's noise. A deployment raises where two answers to a
    task leave a node; what it had in mind when it was killed has not left it.
    """
    app = app_of(FedAvg(cohort="all", transforms=KINDS[seed % 3]), rounds=3)
    world = Deployment(app, NODES, seed=seed, scratch=tmp_path)
    for node in world.nodes.values():
        sends, note, node._note = node._wire.send, node._note, lambda message: None
        node._wire.send = lambda message, sends=sends, note=note: (note(message), sends(message))
    folder = tmp_path / str(seed)
    folder.mkdir()
    return world, world.run(folder, seed=3)


@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 40))])
def test_a_lost_answer_is_sent_again_and_never_drawn_again(seed, tmp_path):
    world, result = lived(tmp_path, seed)
    assert result.rounds == 3
    assert len(world.answers) == 9  # each client's of each round
    world.close()


def test_an_answer_that_was_drawn_again_would_be_noticed(tmp_path, monkeypatch):
    """The test above sees a node that answers anew what it has answered."""
    monkeypatch.setattr(OwedAnswers, "answered", lambda self, task, digest: False)
    with pytest.raises(AssertionError, match="answered in two ways"):
        lived(tmp_path, 4)


def test_nodes_and_relays_come_to_the_bits_of_the_simulation(tmp_path, monkeypatch):
    """But for the noise, which is drawn anew wherever it is drawn."""

    def same(self, values, own):
        return np.trunc(values / self.step(values.size)) + values.size

    monkeypatch.setattr(local_gaussian, "randomised", same)
    app = app_of(FedAvg(cohort="all", transforms=KINDS[0]), rounds=2)
    here = umbel.run(app, on=Simulation(clients={str(i): {} for i in range(3)}), folder=None, seed=3)
    relays = {"r": ["a", "b"]}
    world = Deployment(app, NODES, seed=9, relays=relays, faults=Faults.none(), scratch=tmp_path)
    assert world.run(tmp_path, seed=3).model_sha256 == here.model_sha256
