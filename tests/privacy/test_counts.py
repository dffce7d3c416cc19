"""Central noise on counts: no client moves the sum by more than its contributions, and the noise is Laplace's."""

import json
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import umbel
from umbel import Arrays, Update
from umbel.core.answer import Answer
from umbel.core.ask import Ask
from umbel.core.randomness import Key
from umbel.core.transform import chain, chain_from_spec
from umbel.core.update import Like
from umbel.entropy import Entropy
from umbel.errors import StrategyError, UpdateRejected
from umbel.privacy import central_counts, randomised_response
from umbel.privacy.counts import sampled
from umbel.privacy.release import NoisyRelease

KEY = Key.from_seed(1)
UNLIKELY = 1e-6
COUNTS = hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 50))
KINDS = [central_counts(epsilon=1.0, most=5), randomised_response(epsilon=2.0)]
every = pytest.mark.parametrize("step", KINDS, ids=lambda step: step.name)


def pinned(*name):
    return Entropy(Key.from_seed(18).derive("counts", *name).draws().words)


def sent(step, counts, own):
    return step.encode(Update({"counts": np.asarray(counts)}, 9.0, {"loss": 1.0}), None, None, KEY, own)[0]


def released(step, total, clients, own, shape=None):
    """What comes of a sum over so many clients; None for nobody's."""
    looks = Arrays({"counts": np.zeros(shape or np.shape(total), np.int64)})
    value = Arrays() if total is None else Arrays({"counts": np.asarray(total)})
    answer = Answer(value, receipts=[None] * clients)
    return step.finish(answer, step.init(looks.schema), KEY, own)[0].value


@every
@given(counts=COUNTS, seed=st.integers(0, 99))
def test_what_an_honest_client_tells_is_taken(step, counts, seed):
    update = sent(step, counts, pinned(seed))
    assert (update.weight, update.metrics) == (1.0, {})
    found = step.decode(update, None).arrays["counts"]
    assert found.shape == counts.shape
    assert found.dtype == np.int64


@every
@given(counts=hnp.arrays(np.int64, st.integers(1, 30)))
def test_whatever_a_client_tells_moves_the_sum_by_its_contributions_at_most(step, counts):
    try:
        found = step.decode(Update({"counts": counts}, 9.0), None).arrays["counts"]
    except UpdateRejected:
        return
    assert (found >= 0).all()
    if step.name == "central_counts":
        assert sum(found.tolist()) <= step.most
    else:
        assert found.max() <= 1


@pytest.mark.parametrize("counts", [[-1, 1], [3, 3], [2**62, 2**62, 2**62], [0.5], [True]])
def test_what_is_no_honest_count_is_rejected(counts):
    for step in KINDS:
        with pytest.raises(UpdateRejected, match=r"contribution|no counts"):
            step.decode(Update({"counts": np.array(counts)}), None)


@given(counts=COUNTS, most=st.integers(1, 100), seed=st.integers(0, 99))
def test_of_many_contributions_so_many_are_drawn(counts, most, seed):
    found = sampled(counts, most, pinned(seed))
    assert found.sum() == min(most, counts.sum())
    assert (found <= counts).all()


def test_each_contribution_is_drawn_alike():
    own, counts = pinned("alike"), np.array([10, 0, 30, 60])
    drawn = sum(sampled(counts, 1, own) for _ in range(1000))
    assert stats.chisquare(drawn[[0, 2, 3]], 10.0 * counts[[0, 2, 3]]).pvalue > UNLIKELY
    assert drawn[1] == 0


def test_noise_is_discrete_laplace_of_the_scale_that_is_claimed():
    """2,000 releases in one: mean, variance within three standard errors, and chi-square; the error is its own."""
    step, n = KINDS[0], 2000
    total = np.arange(n)
    found = released(step, total, 3, pinned("noise"))
    noise, p = found["counts"] - total, math.exp(-1 / 5)
    error = float(found["counts:error"])
    assert error == pytest.approx(math.sqrt(2 * p) / (1 - p))
    law = {x: (1 - p) / (1 + p) * p ** abs(x) for x in range(-400, 401)}
    fourth = sum(x**4 * chance for x, chance in law.items())
    assert abs(noise.mean()) < 3 * error / math.sqrt(n)
    assert abs(noise.var() - error**2) < 3 * math.sqrt((fourth - error**4) / n)
    inside = range(-12, 13)
    seen = [int((noise == x).sum()) for x in inside]
    wanted = [n * law[x] for x in inside]
    assert stats.chisquare([*seen, n - sum(seen)], [*wanted, n - sum(wanted)]).pvalue > UNLIKELY


def test_neighbouring_sums_are_told_apart_by_epsilon_at_most():
    """The distribution of what is released, of a cell that one client has changed by all that it may."""
    step = central_counts(epsilon=0.8, most=3)
    scale = step._scale
    assert float(scale) == pytest.approx(3 / 0.8)
    ratios = [abs(x) / float(scale) - abs(x - 3) / float(scale) for x in range(-50, 50)]
    assert max(map(abs, ratios)) <= 0.8 * (1 + 1e-12)


@every
def test_nobodys_counts_are_released_as_noise_around_zeros(step):
    found = released(step, None, 0, pinned("nobody"), shape=(2, 50))
    assert found["counts"].shape == (2, 50)
    if step.name == "central_counts":
        assert 0 < np.abs(found["counts"]).mean() < 20


@every
def test_each_answer_is_in_the_log_and_says_what_it_costs(step, tmp_path):
    client = umbel.Client()
    client.query("counts")(lambda model, data, ctx: Update({"counts": np.array([1, 0, 0])}, 5.0, {"rows": 5.0}))

    class Asks(umbel.Strategy):
        def round(self, state, r):
            looks = Arrays({"counts": np.zeros(3, np.int64)})
            answer = yield Ask(
                kind="query:counts",
                clients=umbel.Poisson(0.5),
                expects=Like(looks, delta=False),
                fold=umbel.total(),
                transforms=step,
            )
            assert set(answer.value) == {"counts", "counts:error"}
            return state

    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=Asks(), rounds=2, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(20), folder=tmp_path)
    events = [*map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())]
    found = [NoisyRelease.of(each) for event in events if event["event"] == "ask_closed" for each in event["releases"]]
    kinds = {"central_counts": ("poisson", "add or remove one"), "randomised_response": ("everyone", "replace one")}
    assert [(each.sampling["kind"], each.neighbours) for each in found] == [kinds[step.name]] * 2
    assert {each.mechanism for each in found} == {"pure"}
    assert not any("rows" in name for name in result.metrics)


def test_what_would_be_told_as_it_is_is_refused():
    looks = Arrays({"counts": np.zeros(3, np.int64)})
    for wrong, why in [
        (lambda: Ask(clients=1, model=looks, fold=umbel.total(), transforms=KINDS[0]), "delta=False"),
        (lambda: Ask(clients=1, expects=umbel.Free(), fold=umbel.total(), transforms=KINDS[0]), "delta=False"),
        (lambda: Ask(clients=1, expects=Like(looks, delta=False), transforms=KINDS[1]), "total"),
        (lambda: KINDS[0].init(Arrays({"counts": np.zeros(3)}).schema), "int64"),
    ]:
        with pytest.raises(StrategyError) as caught:
            wrong()
        assert why in f"{caught.value.message} {caught.value.hint}"


@every
def test_settings_are_checked_and_cross_the_wire(step):
    assert chain_from_spec(chain(step).spec()).parts == (step,)
    for value in (0, -1, 1e-9, 1e9, np.nan, "1"):
        with pytest.raises(umbel.UmbelError, match="epsilon"):
            type(step)(epsilon=value)
    for value in (0, 1.5, 2**60):
        with pytest.raises(umbel.UmbelError, match="most"):
            central_counts(epsilon=1.0, most=value)
    with pytest.raises(umbel.UmbelError, match="kind"):
        randomised_response(epsilon=1.0, kind="other")
