"""Example privacy by itself: dice, noise, and the account that a client keeps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core import encoding
from umbel.core.client import Context, LocalCorrection
from umbel.core.correction import Correction
from umbel.core.randomness import Key, normals
from umbel.entropy import Entropy
from umbel.errors import AppError, SettingError, UnusedCorrection
from umbel.privacy import ExamplePrivacy, example_privacy_spent

WORDS = st.integers(0, 1000).map(lambda seed: Entropy(Key.from_seed(seed).draws().words))


def pinned(seed=5):
    return Entropy(Key.from_seed(seed).draws().words)


def context(state=None, correction=None):
    offered = None if correction is None else LocalCorrection(correction, umbel.Arrays())
    kept = {} if state is None else state
    return Context(
        client=0, round=1, kind="train", config={}, key=Key.from_seed(1), inbox=umbel.Arrays(), state=kept,
        correction=offered,
    )  # fmt: skip


# Dice and noise


@given(count=st.integers(0, 300), examples=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_who_is_drawn_does_not_go_by_who_else_is_there(count, examples, share, seed):
    privacy, batch = ExamplePrivacy(norm=1, noise=1, examples=examples), max(1, int(share * examples))
    few, more = ([*privacy.drawn(n, batch, pinned(seed))] for n in (count, count + 1))
    assert all(0 < len(portion) <= privacy.capacity(batch) for portion in more)
    few, more = ([int(i) for portion in portions for i in portion] for portions in (few, more))
    assert few == more[: len(few)] == sorted({*few})
    assert set(more) - set(few) <= {count}
    if batch == examples:
        assert few == [*range(count)]


@pytest.mark.parametrize(("batch", "examples", "count"), [(1, 1000, 400), (30, 100, 400), (99, 100, 400)])
def test_each_is_drawn_as_often_as_the_rate_says_whatever_is_there(batch, examples, count):
    own, times = pinned(), 500
    privacy = ExamplePrivacy(norm=1, noise=1, examples=examples)
    found = np.zeros(count)
    for _ in range(times):
        for portion in privacy.drawn(count, batch, own):
            found[portion] += 1
    rate = batch / examples
    off = (found - times * rate) / math.sqrt(times * rate * (1 - rate))
    assert abs(off.sum()) < 4 * math.sqrt(count)  # one in 15,000 of other keys would fail
    assert abs((off**2).sum() - count) < 5 * math.sqrt(2 * count)


def test_the_noise_is_normal_and_has_the_standard_deviation_that_is_stated():
    drawn = ExamplePrivacy(norm=0.5, noise=3.0, examples=9).drawn_noise(100_000, pinned()) / 1.5
    assert abs(drawn.mean()) < 4 / math.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / drawn.size)
    observed = np.histogram(drawn, [-np.inf, *np.arange(-3, 3.1, 0.25), np.inf])[0]
    edges = [0.0, *(0.5 * (1 + math.erf(x / math.sqrt(2))) for x in np.arange(-3, 3.1, 0.25)), 1.0]
    expected = np.diff(edges) * drawn.size
    assert ((observed - expected) ** 2 / expected).sum() < 60  # 25 degrees of freedom: one in 10,000


@given(seed=st.integers(0, 9), n=st.integers(0, 20_000))
def test_normals_are_those_that_keys_draw(seed, n):
    draws = Key.from_seed(seed)
    assert np.array_equal(normals(draws.draws().words(n)), draws.draws().normal(n))


def test_the_operating_system_is_asked_unless_a_test_says_otherwise():
    privacy = ExamplePrivacy(norm=1, noise=1, examples=1000)
    assert not np.array_equal(privacy.drawn_noise(8), privacy.drawn_noise(8))
    assert [*map(list, privacy.drawn(1000, 500))] != [*map(list, privacy.drawn(1000, 500))]


# The account


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])
def test_what_is_spent_adds_up_over_rounds_and_is_what_dp_accounting_says_of_dp_sgd(accountant):
    dp = pytest.importorskip("dp_accounting")
    state, privacy = {}, ExamplePrivacy(norm=0.3, noise=1.1, examples=1000)
    assert example_privacy_spent(state, 1e-5).epsilon == 0
    for _ in range(3):
        assert privacy.begin(context(state), batch=48, epochs=2) == 42  # 41.7, rounded up
        state = encoding.decode(encoding.encode(state))
    assert len(state["example_privacy"]) == 1
    step = dp.PoissonSampledDpEvent(0.048, dp.GaussianDpEvent(1.1))
    made = dp.rdp.RdpAccountant() if accountant == "rdp" else dp.pld.PLDAccountant()
    made.compose(dp.SelfComposedDpEvent(step, 126))
    found = example_privacy_spent(state, 1e-5, accountant)
    assert abs(found.epsilon - made.get_epsilon(1e-5)) < 1e-3
    assert (found.unit, found.neighbours, found.releases) == ("example", "add or remove one", 126)
    assert found.sampling == ("Poisson(0.048): counted",)
    ExamplePrivacy(norm=0.3, noise=2.0, examples=1000).begin(context(state), batch=48, epochs=1)
    assert [count for _, count in state["example_privacy"]] == [126, 21]


@pytest.mark.slow
def test_abadi_2016_again():
    dp = pytest.importorskip("dp_accounting")
    ctx = context()
    assert ExamplePrivacy(norm=4.0, noise=4.0, examples=60_000).begin(ctx, batch=600, epochs=100) == 10_000
    ((release, count),) = ctx.state["example_privacy"]
    step = dp.PoissonSampledDpEvent(release["sampling"]["rate"], dp.GaussianDpEvent(release["noise"]))
    made = dp.rdp.RdpAccountant([*range(2, 64)]).compose(step, count)
    papers = min(r + math.log(1e5) / (a - 1) for a, r in zip(made.orders, made.rdp, strict=True))
    assert papers == pytest.approx(1.26, abs=5e-3)  # section 3.2: the looser way to epsilon of its time
    by_library = dp.rdp.RdpAccountant().compose(step, count).get_epsilon(1e-5)
    assert example_privacy_spent(ctx.state, 1e-5, "rdp").epsilon == pytest.approx(by_library, abs=1e-3)
    assert example_privacy_spent(ctx.state, 1e-5).epsilon < by_library < papers


def test_the_holder_is_told_before_the_first_step():
    told = []

    class Telling(Context):
        def account(self, release, times=1):
            told.append((release, times))

    ctx = context()
    telling = Telling(**{name: getattr(ctx, name) for name in ("client", "round", "kind", "config", "key", "inbox")},
                      state={})  # fmt: skip
    privacy = ExamplePrivacy(norm=0.3, noise=1.1, examples=100)
    privacy.begin(telling, batch=10, epochs=1)
    assert told == [(privacy.release(10), 10)]
    privacy.begin(telling, batch=10, epochs=0)
    assert len(told) == 1


# What cannot be


@pytest.mark.parametrize(
    "settings", [{"norm": 0}, {"noise": 0}, {"noise": math.nan}, {"examples": 0}, {"examples": 9.5}]
)
def test_settings_that_hide_nothing_are_errors(settings):
    with pytest.raises(SettingError, match="ExamplePrivacy"):
        ExamplePrivacy(**{"norm": 1.0, "noise": 1.0, "examples": 10, **settings})


@pytest.mark.parametrize("batch", [-1, 0, 11])
def test_a_batch_is_drawn_of_what_there_is_about(batch):
    with pytest.raises(AppError, match="cannot be drawn"):
        ExamplePrivacy(norm=1.0, noise=1.0, examples=10).begin(context(), batch, 1)


MORE = [
    {"procedure": "ditto"}, {"control": True}, {"perturbation": (0.1, 0.5)}, {"reports": ("initial_loss",)},
]  # fmt: skip


@pytest.mark.parametrize("settings", MORE, ids=lambda settings: next(iter(settings)))
def test_a_strategy_that_needs_more_than_gradients_is_refused(settings):
    privacy, ctx = ExamplePrivacy(norm=1.0, noise=1.0, examples=10), context(correction=Correction(**settings))
    with pytest.raises(UnusedCorrection, match="noised gradients"):
        privacy.begin(ctx, 5, 1)
    assert not ctx.state
    privacy.begin(context(correction=Correction(proximal=1.0, scale=0.5, reports=("steps", "lr"))), 5, 1)
