"""Bounds of audits hold as often as they say, and are those of the papers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import SettingError
from umbel.privacy.accounting import epsilon_of
from umbel.privacy.audit import (
    check_confidence,
    clopper_pearson,
    discriminant,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    ideal,
    many_run_bounds,
    one_run_bound,
    one_run_epsilon,
    one_run_p_value,
)

special = pytest.importorskip("scipy.special")
pytest.importorskip("dp_accounting")

DELTA = 1e-5


def masses(n, p):
    """The binomial distribution, term by term."""
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@given(st.integers(1, 60), st.data(), st.floats(0.001, 0.4))
def test_bounds_of_a_probability_are_exact(trials, data, error):
    hits = data.draw(st.integers(0, trials))
    low, high = (float(each) for each in clopper_pearson(hits, trials, error))
    assert 0 <= low <= hits / trials <= high <= 1
    if hits:
        assert sum(masses(trials, low)[hits:]) == pytest.approx(error, rel=1e-6)
    if hits < trials:
        assert sum(masses(trials, high)[: hits + 1]) == pytest.approx(error, rel=1e-6)


def paper(m, r, v, epsilon, delta):
    """The algorithm of Steinke, Nasr & Jagielski 2023, appendix D, as it is printed there."""
    mass = masses(r, 1 / (1 + math.exp(-epsilon)))
    beta, alpha, total = sum(mass[v:]), 0.0, 0.0
    for i in range(1, v + 1):
        total += mass[v - i]
        if total > i * alpha:
            alpha = total / i
    return min(1.0, beta + alpha * delta * 2 * m)


@given(st.integers(1, 80), st.data(), st.floats(0, 6), st.sampled_from([0, 1e-9, 1e-5, 1e-2]))
def test_the_p_value_of_one_run_is_that_of_the_paper(m, data, epsilon, delta):
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(0, r))
    assert one_run_p_value(m, r, v, epsilon, delta) == pytest.approx(
        paper(m, r, v, epsilon, delta), rel=1e-6, abs=1e-12
    )


@given(st.integers(2, 200), st.data(), st.sampled_from([0, 1e-6, 1e-3]), st.sampled_from([0.9, 0.95]))
def test_more_hits_never_prove_less(guesses, data, delta, confidence):
    correct = data.draw(st.integers(0, guesses - 1))
    fewer, more = (one_run_epsilon(guesses, guesses, v, delta, confidence) for v in (correct, correct + 1))
    assert fewer <= more
    if fewer:
        assert one_run_p_value(guesses, guesses, correct, fewer, delta) <= 1 - confidence


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("guesses", [1, 30, 500])
def test_one_run_is_wrong_as_often_as_it_may_be(epsilon, guesses):
    """Against randomised response, whose hits are binomial: added up and not simulated."""
    mass = masses(guesses, 1 / (1 + math.exp(-epsilon)))
    wrong = sum(p for v, p in enumerate(mass) if one_run_epsilon(guesses, guesses, v, 0.0) > epsilon + 1e-9)
    assert wrong <= 0.05
    assert wrong > 0.02 or guesses < 100 or epsilon > 3  # it takes as much as it may


def test_all_shares_together_are_wrong_as_seldom_as_one():
    """Of randomised response, where every guess is as good as it may be. More than 24 of 200: a chance below 1e-4."""
    rng, epsilon, wrong = np.random.default_rng(4), 1.0, 0
    for _ in range(200):
        taken = rng.random(200) < 0.5
        told = (rng.random(200) < 1 / (1 + math.exp(-epsilon))) == taken
        scores = told + rng.random(200) / 2
        wrong += one_run_bound(scores[taken], scores[~taken], 0.0) > epsilon
    assert 0 < wrong <= 24


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_of_a_gaussian_mechanism_few_bounds_exceed_what_is_true(mu):
    """Of 200 audits, each of which may be wrong by 5 %, more than 24 are by a chance below 1e-4."""
    rng, deltas = np.random.default_rng(round(mu * 10)), (DELTA, 1e-2, 0.1)
    true = {delta: gaussian_epsilon(mu, delta) for delta in deltas}
    wrong = {"one run": 0, "many": 0, "mu": 0}
    for _ in range(200):
        present, absent = rng.normal(mu, 1, (120, 1)), rng.normal(0, 1, (120, 1))
        wrong["one run"] += one_run_bound(present[:, 0], absent[:, 0], DELTA) > true[DELTA]
        found, _, _ = many_run_bounds(present, absent, true)
        wrong["many"] += any(found[delta] > true[delta] for delta in deltas)
        wrong["mu"] += many_run_bounds(present, absent, true, gaussian=True)[1] > mu
    assert max(wrong.values()) <= 24, wrong


def test_a_discriminant_sees_through_noise_that_rounds_share_and_looks_at_the_first_half_alone():
    rng = np.random.default_rng(5)
    shared, own = rng.normal(size=(2, 400, 1)), 0.1 * rng.normal(size=(2, 400, 3))
    rows = shared * [1, -1, 1] + own
    rows[0] += [1, 1, 1]
    present, absent = discriminant(*rows)
    apart = (present.mean() - absent.mean()) / absent.std()
    assert apart == pytest.approx(np.sqrt(8 / 3) / 0.1, rel=0.1)  # of (1, 1, 1) what is at right angles to (1, -1, 1)
    again = discriminant(*np.concatenate([rows[:, :200], 100 * rng.normal(size=(2, 200, 3))], axis=1))
    np.testing.assert_array_equal([each[:200] for each in again], [present[:200], absent[:200]])
    assert not np.any(discriminant(*rows[:, :58]))


def test_the_best_statistic_and_side_is_found_and_measured_on_other_runs():
    """The second of three columns tells the worlds apart, and says less where the canary is."""
    rng = np.random.default_rng(1)
    present, absent = rng.normal(size=(400, 3)), rng.normal(size=(400, 3))
    present[:, 1] -= 5
    found, _, column = many_run_bounds(present, absent, {DELTA: 1.0})
    assert column == 1
    assert found[DELTA] > 3
    assert many_run_bounds(present, absent, {DELTA: 1.0}, gaussian=True)[1] > 3
    present[200:, 1] += 5  # what the first half of the runs shows does not count
    assert many_run_bounds(present, absent, {DELTA: 1.0})[0][DELTA] < 0.5


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_what_gaussians_spend_is_what_accountants_say(mu):
    for delta in (1e-6, 1e-3, 0.1):
        epsilon = gaussian_epsilon(mu, delta)
        assert epsilon == pytest.approx(epsilon_of({("gaussian", 1 / mu): 1}, delta, "pld"), rel=2e-3, abs=2e-4)
        if epsilon:
            assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)
            assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)
    assert gaussian_epsilon(0.0, DELTA) == 0.0


@pytest.mark.slow
def test_power_grows_with_runs_and_comes_near_what_is_true():
    def bound(present, absent):
        found = many_run_bounds(present[:, None], absent[:, None], {DELTA: 10.0}, gaussian=True)
        return gaussian_epsilon(found[1], DELTA)

    few, many = (ideal(bound, 2.0, n, n, seed=0) for n in (50, 2000))
    assert 0 < few < 0.6 * gaussian_epsilon(2.0, DELTA) < 0.75 * gaussian_epsilon(2.0, DELTA) < many
    assert many < gaussian_epsilon(2.0, DELTA)


@pytest.mark.parametrize("confidence", [0.0, 0.4, 1.0, math.nan])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(SettingError, match="confidence"):
        check_confidence(confidence)
