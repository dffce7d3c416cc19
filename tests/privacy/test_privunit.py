"""PrivUnit2 and ScalarDP: no direction or length is told with odds that epsilon rules out, and the mean is right.

Statistics are of pinned words. A right sampler would fail one of them with a probability of 1e-6.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from umbel import Update
from umbel.core.randomness import Key
from umbel.entropy import Entropy
from umbel.errors import SettingError
from umbel.privacy import privunit
from umbel.privacy.counts import OwnDraws
from umbel.privacy.discrete import bernoulli_odds
from umbel.privacy.privunit import Levels, _beyond_edge, cap, within
from umbel.privacy.randomised_response import FINEST, respond

UNLIKELY = 1e-6
SURE = float(stats.norm.isf(UNLIKELY / 2))
DIMENSIONS = st.integers(4, 10**6)
EPSILONS = st.floats(1e-3, 500)


def pinned(*name):
    return Entropy(Key.from_seed(17).derive("privunit", *name).draws().words)


def share_of(dimensions, edge):
    """How likely a uniform direction is in the cap."""
    return special.betainc((dimensions - 1) / 2, 0.5, (1 - edge) * (1 + edge)) / 2


def within_odds(near):
    """How likely a drawn direction is in the cap."""
    return special.expit(near.odds / FINEST)


@given(dimensions=DIMENSIONS, epsilon=EPSILONS)
def test_no_direction_is_likelier_than_epsilon_lets_it_be(dimensions, epsilon):
    """The density is p / q in the cap of any true direction and (1 - p) / (1 - q) beside it, and nothing else."""
    near = cap(dimensions, epsilon)
    share = share_of(dimensions, near.edge)
    if share < 1e-290:  # which scipy no longer tells
        return
    assert near.share == pytest.approx(share, rel=1e-6)
    found = near.odds / FINEST + math.log1p(-share) - math.log(share)
    assert epsilon - 2e-6 < found <= epsilon


@given(dimensions=st.integers(4, 60), epsilon=st.floats(1e-3, 30))
def test_the_mean_is_the_papers(dimensions, epsilon):
    """m of algorithm 1, by which a direction is divided."""
    near = cap(dimensions, epsilon)
    p, alpha, tau = within_odds(near), (dimensions - 1) / 2, (1 + near.edge) / 2
    whole = special.beta(alpha, alpha)
    below, above = (whole * special.betainc(alpha, alpha, each) for each in (tau, 1 - tau))
    front = (1 - near.edge**2) ** alpha / (2.0 ** (dimensions - 2) * (dimensions - 1))
    assert near.mean == pytest.approx(front * (p / above - (1 - p) / below), rel=1e-6)


@given(dimensions=st.integers(4, 1000), epsilon=st.floats(0.1, 50), edge=st.floats(0.0, 0.99))
def test_no_other_cap_has_less_error(dimensions, epsilon, edge):
    share = share_of(dimensions, edge)
    alpha = (dimensions - 1) / 2
    moment = math.exp(alpha * math.log1p(-(edge**2)) - special.betaln(0.5, alpha)) / (dimensions - 1)
    other = moment * math.expm1(epsilon) / (1 + share * math.expm1(epsilon))
    assert cap(dimensions, epsilon).mean >= other * (1 - 1e-4)


@pytest.mark.parametrize(
    ("dimensions", "epsilon", "n"),
    [(40, 12.0, 400), *(pytest.param(*each, 4000, marks=pytest.mark.slow) for each in ((4, 0.5), (6, 4.0)))],
)
def test_directions_have_the_density_that_they_should(dimensions, epsilon, n):
    near, own = cap(dimensions, epsilon), pinned("density", dimensions)
    true = np.linspace(-1, 2, dimensions)
    true /= np.linalg.norm(true)
    drawn = np.stack([within(true, near, own) for _ in range(n)])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-12)
    products = drawn @ true
    inside = products >= near.edge
    assert stats.binomtest(int(inside.sum()), n, within_odds(near)).pvalue > UNLIKELY
    uniform = stats.beta((dimensions - 1) / 2, (dimensions - 1) / 2)  # of (1 + t) / 2
    below = 1 - near.share
    for these, low, high in ((products[~inside], 0.0, below), (products[inside], below, 1.0)):
        shares = (uniform.cdf((1 + these) / 2) - low) / (high - low)
        cells = np.bincount(np.clip(shares * 8, 0, 7).astype(int), minlength=8)
        assert stats.chisquare(cells).pvalue > UNLIKELY
    across = drawn - np.outer(products, true)
    across /= np.linalg.norm(across, axis=1)[:, None]
    assert np.abs(across.mean(0)).max() < SURE / math.sqrt(n)
    spread = (across.T @ across) / n * (dimensions - 1)
    np.testing.assert_allclose(spread, np.eye(dimensions) - np.outer(true, true), atol=8 / math.sqrt(n))


def test_products_beyond_the_edge_have_their_density():
    draws = OwnDraws(pinned("edge"))
    found = np.array([_beyond_edge(0.4, 2.0, draws) for _ in range(1500)])
    law = stats.beta(3, 3)  # of (1 + t) / 2, in seven dimensions
    below = law.cdf(0.7)
    assert stats.kstest((law.cdf((1 + found) / 2) - below) / (1 - below), "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize("epsilon", [2.0, *(pytest.param(e, marks=pytest.mark.slow) for e in (0.3, 5.0))])
def test_lengths_are_told_with_their_odds_and_a_right_mean(epsilon):
    levels, own = Levels(epsilon), pinned("lengths", str(epsilon))
    count = levels.k + 1
    found = np.bincount([respond(1, count, epsilon, own) for _ in range(400)], minlength=count)
    likely = np.ones(count)
    likely[1] = math.exp(epsilon)
    assert stats.chisquare(found, 400 * likely / likely.sum()).pvalue > UNLIKELY
    for length in (0.0, 0.37, 1.0):
        told = np.array([levels.told(levels.rounded(length, own), own) for _ in range(200)])
        assert abs(told.mean() - length) < SURE * told.std() / math.sqrt(200)


@pytest.mark.parametrize("steps", [-5 * FINEST, -FINEST // 3, 0, FINEST // 2, 3 * FINEST])
def test_odds_are_kept(steps):
    found = int(bernoulli_odds(np.full(20_000, steps), FINEST, pinned("odds", steps)).sum())
    assert stats.binomtest(found, 20_000, float(special.expit(steps / FINEST))).pvalue > UNLIKELY


MEANS = [[3.0, -4.0, 0.0, 1.0, 0.1], [0.5], [0.3, -0.1], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("values", [MEANS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in MEANS[1:])])
def test_the_mean_of_answers_is_the_update_at_its_bound(values):
    step, own, n = privunit(norm=1.0, epsilon=12.0), pinned("mean", *map(str, values)), 200
    update = Update({"w": np.array(values)}, delta=True)
    sent = np.stack([step.encode(update, None, None, Key.from_seed(0), own)[0].arrays["w"] for _ in range(n)])
    true = np.array(values) / max(1.0, np.linalg.norm(values))
    assert (np.abs(sent.mean(0) - true) < SURE * sent.std(0) / math.sqrt(n)).all()


@pytest.mark.slow
def test_the_mean_of_very_many_answers_is_the_update():
    step, own, n = privunit(norm=2.0, epsilon=4.0), pinned("many"), 20_000
    values = np.array([0.7, -0.2, 0.0, 0.4, -0.9, 0.1])
    grid = step.step(6)
    sent = np.stack([step.randomised(values, own) * grid for _ in range(n)])
    assert (np.abs(sent.mean(0) - values) < SURE * sent.std(0) / math.sqrt(n)).all()


def test_its_answers_have_less_error_than_gaussian_noise_of_the_same_epsilon():
    step, own = privunit(norm=1.0, epsilon=8.0), pinned("error")
    true = np.full(100, 0.1)
    errors = [((step.randomised(true, own) * step.step(100) - true) ** 2).sum() for _ in range(40)]
    assert np.mean(errors) < 100 * 2.0**2 / 2  # noise of 1, which is epsilon 8.7 at a delta of 1e-5


@pytest.mark.parametrize(
    ("settings", "why"), [({"share": 1}, "share"), ({"epsilon": 1e-3}, "epsilon"), ({"epsilon": 1e9}, "epsilon")]
)
def test_shares_of_epsilon_that_cannot_be_are_refused(settings, why):
    with pytest.raises(SettingError, match=why):
        privunit(**{"norm": 1.0, "epsilon": 8.0, **settings})
