"""Noise in shares: what they add up to, and bounds of what that costs against divergences that are summed up exactly.

Statistics are of pinned words. A right sampler would fail one of them with a probability of 1e-6.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from umbel.core.randomness import Key
from umbel.entropy import Entropy
from umbel.errors import SettingError
from umbel.privacy import distributed
from umbel.privacy.discrete import discrete_gaussian, skellam
from umbel.privacy.distributed import (
    DistributedNoise,
    gaussian_rho,
    inflation,
    rounded_norm,
    skellam_divergence,
    skellam_rho,
)
from umbel.privacy.release import DISTRIBUTED, NoisyRelease

GAUSSIAN, SKELLAM = DISTRIBUTED
BOTH = pytest.mark.parametrize("mechanism", DISTRIBUTED)
REACH = 400
X = np.arange(-REACH, REACH + 1)


def pinned(*name: int | str) -> Entropy:
    return Entropy(Key.from_seed(16).derive("distributed", *name).draws().words)


def normalised(logs: Any) -> Any:
    return logs - special.logsumexp(logs)


def gaussians(variance: float, sharers: int) -> Any:
    """The logarithms of the odds of a sum of discrete Gaussians, by convolution."""
    one = found = normalised(-(X**2) / (2 * variance))
    at = X[:, None] - X[None, :] + REACH
    near = np.where((at >= 0) & (at <= 2 * REACH), one[at.clip(0, 2 * REACH)], -np.inf)
    for _ in range(sharers - 1):
        found = special.logsumexp(near + found[None, :], axis=1)
    return found


def skellams(variance: float) -> Any:
    """The logarithms of the probabilities, by Bessel's series: those of scipy are 0 far out."""
    k, j = np.abs(X)[:, None], np.arange(600)[None, :]
    terms = (2 * j + k) * math.log(variance / 2) - special.gammaln(j + 1) - special.gammaln(j + k + 1)
    return special.logsumexp(terms, axis=1) - variance


def divergence(logs: Any, shift: int, order: float) -> float:
    """The Renyi divergence of a distribution from itself moved by a whole number, the larger one of both ways."""
    p, q = logs[shift:], logs[: logs.size - shift]
    both = (special.logsumexp(order * a + (1 - order) * b) for a, b in ((p, q), (q, p)))
    return float(max(both)) / (order - 1)


# What a sum costs


@pytest.mark.parametrize("variance", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("sharers", [1, 2, pytest.param(7, marks=pytest.mark.slow)])
def test_sums_of_discrete_gaussians_diverge_no_more_than_the_bound(variance: float, sharers: int) -> None:
    logs, one = gaussians(variance, sharers), normalised(-(X**2) / (2 * variance * sharers))
    inner = np.abs(X) <= 10 * math.sqrt(variance * sharers)  # further out the window's edge is felt
    off = np.abs(logs - one)[inner].max()
    assert off <= inflation(variance, sharers) / 2 + 1e-9
    if sharers == 2 and variance < 1:
        assert (
            off >= inflation(variance, sharers) / 5
        )  # within a factor of 2.5; of many, by how much each is off adds up
    for shift in (1, 2, 3):
        for order in (1.1, 2, 3.5, 8):
            exact = divergence(logs, shift, order)
            bound = order * gaussian_rho(shift, variance, sharers, 1)
            assert exact <= bound * (1 + 1e-9)
            if variance >= 2:
                assert bound <= exact * (1.002 if order % 1 == 0 else 1.01)
            # Of many elements, each of which moves by that.
            assert 30 * exact <= order * gaussian_rho(shift * math.sqrt(30), variance, sharers, 30) * (1 + 1e-9)


@pytest.mark.parametrize("variance", [0.3, *(pytest.param(v, marks=pytest.mark.slow) for v in (1.0, 5.0, 40.0)), 200.0])
def test_skellam_noise_diverges_no_more_than_the_bound(variance: float) -> None:
    logs = skellams(variance)
    assert special.logsumexp(logs) == pytest.approx(0, abs=1e-9)
    for shift in (1, 2, 5):
        for order in (2, 3, 8, 20):
            exact = divergence(logs, shift, order)
            bound = skellam_divergence(order, shift, variance, 1)
            assert exact <= bound * (1 + 1e-9)
            assert bound <= order * skellam_rho(shift, variance / 4, 4, 1) * (1 + 1e-9)
            assert 30 * exact <= skellam_divergence(order, shift * math.sqrt(30), variance, 30) * (1 + 1e-9)
            if variance >= 200:
                assert order * skellam_rho(shift, variance, 1, 1) <= exact * 1.07


@given(st.floats(0.3, 300), st.floats(0.5, 1e4), st.integers(1, 10**7), st.integers(1, 1000), st.integers(2, 500))
def test_one_number_stands_for_the_skellam_bound_at_all_whole_orders(
    variance: float, norm: float, size: int, sharers: int, order: int
) -> None:
    bound = skellam_divergence(order, norm, variance * sharers, size)
    assert bound <= order * skellam_rho(norm, variance, sharers, size) * (1 + 1e-12)
    if variance * sharers > 50:  # and is close to what Gaussian noise of the variance costs
        assert skellam_rho(norm, variance, sharers, size) <= norm**2 / (2 * variance * sharers) * 1.05


def as_in_the_paper(order: float, norm: float, variance: float, sharers: int, size: int) -> float:
    """Kairouz, Liu & Steinke 2021, proposition 14, but for its first term: as tensorflow's code has it."""
    total, far = variance * sharers, min(math.sqrt(size) * norm, norm**2)
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, sharers))
    return order / 2 * (norm**2 / total + 2 * far / math.sqrt(total) * tau + tau**2 * size)


@given(st.floats(0.25, 3), st.floats(1, 1e4), st.integers(1, 10**7), st.integers(1, 1000))
def test_the_gaussian_bound_is_the_papers(variance: float, norm: float, size: int, sharers: int) -> None:
    paper = as_in_the_paper(2, norm, variance, sharers, size)
    bound = 2 * gaussian_rho(norm, variance, sharers, size)
    if size <= norm**2:
        assert bound == pytest.approx(paper, rel=0.25 if sharers > 101 else 1e-9)
    assert paper * (1 - 1e-9) <= bound or size > norm**2
    assert bound <= paper * 1.25


@given(st.floats(0.25, 3), st.integers(2, 3000))
def test_the_inflation_is_the_papers_sum(variance: float, sharers: int) -> None:
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, sharers))
    assert tau * (1 - 1e-9) <= inflation(variance, sharers) <= tau * (1 + 1e-9 if sharers <= 101 else 1.8)


def test_what_no_bound_is_known_of_hides_nothing() -> None:
    assert inflation(0.2, 2) == gaussian_rho(1, 0.2, 2, 1) == math.inf
    assert inflation(0.2, 1) == 0
    with pytest.raises(SettingError, match="half a step"):
        DistributedNoise(GAUSSIAN, 1.0, 4.0, 10, 100)
    assert DistributedNoise(SKELLAM, 1.0, 4.0, 10, 100).rho(100) < 0.57


# What is there


@BOTH
def test_shares_add_up_to_the_noise(mechanism: str) -> None:
    noise, size = DistributedNoise(mechanism, 1.5, 10.0, 40_000, 20), 40_000
    shares = [noise.share(pinned(mechanism, i)) for i in range(20)]
    assert all(share.dtype == np.int64 and share.shape == (size,) for share in shares)
    draw = discrete_gaussian if mechanism == GAUSSIAN else skellam
    assert shares[3].tolist() == draw(Fraction(45, 4), size, pinned(mechanism, 3)).tolist()
    total = np.sum(shares, axis=0)
    assert abs(total.var() / 225 - 1) < 5 * math.sqrt(2 / size)  # five standard errors: 6e-7
    assert abs(total.mean()) < 5 * 15 / math.sqrt(size)
    assert abs(shares[0].var() / 11.25 - 1) < 5 * math.sqrt(2.1 / size)
    cuts = np.arange(-40, 41)
    parts = np.diff(stats.norm.cdf((cuts + 0.5) / 15), prepend=0, append=1)  # of either one's within 0.2 %
    seen = np.bincount(np.searchsorted(cuts, total), minlength=82)
    assert stats.chi2.sf(((seen - size * parts) ** 2 / (size * parts)).sum(), 81) > 1e-6


@BOTH
@given(st.floats(0.1, 10), st.floats(20, 1e5), st.integers(1, 100), st.integers(1, 100), st.integers(0, 99))
def test_who_drops_out_takes_a_share_of_the_noise_along(
    mechanism: str, wanted: float, norm: float, sharers: int, survivors: int, colluding: int
) -> None:
    noise = DistributedNoise(mechanism, wanted, norm, 7, sharers) if wanted * norm > 5 * sharers**0.5 else None
    if noise is None or colluding >= survivors:
        return
    exact = (Fraction(wanted) * Fraction(norm)) ** 2 / sharers
    assert exact <= noise.variance <= exact + Fraction(1, 1 << 10)
    honest = survivors - colluding
    left = noise.noise_left(survivors, colluding)
    assert left == pytest.approx(wanted * math.sqrt(honest / sharers), rel=1e-3)
    assert left >= wanted * math.sqrt(honest / sharers) * (1 - 1e-12)
    assert noise.rho(survivors, colluding) == noise.rho(honest)
    assert noise.rho(honest) >= 1 / (2 * left**2) * (1 - 1e-9)
    release = noise.release(survivors, colluding, step=0.25)
    assert (release["noise"], release["norm"], release["shares"]) == (left, norm / 4, honest)
    assert release["steps"] / release["noise"] == pytest.approx(norm)
    NoisyRelease(**release, sampling={"kind": "everyone"}, denominator=None)


# No wrap


@pytest.mark.parametrize("mechanism", [GAUSSIAN, pytest.param(SKELLAM, marks=pytest.mark.slow)])
@given(st.floats(0.3, 20), st.integers(3, 5000), st.integers(1, 40), st.integers(1, 200), st.data())
def test_a_sum_never_wraps(
    mechanism: str, wanted: float, norm: int, clients: int, size: int, data: st.DataObject
) -> None:
    if wanted * norm < math.sqrt(clients):
        return
    noise = DistributedNoise(mechanism, wanted, norm, size, clients)
    bits = noise.modulus_bits(clients)  # of a thousand million sums one may
    own, sign = pinned(data.draw(st.integers(0, 2**32))), data.draw(st.sampled_from([-1, 1]))
    sent = [sign * norm + noise.share(own) for _ in range(clients)]  # in each element as much as goes into one
    masked = np.sum([each.astype(np.uint64) for each in sent], axis=0, dtype=np.uint64) & np.uint64((1 << bits) - 1)
    half = 1 << bits - 1
    assert ((masked.astype(np.int64) + half) % (1 << bits) - half).tolist() == np.sum(sent, axis=0).tolist()
    # One bit less would do for no sum of this noise and what clients may send, or for one with less noise alone.
    assert clients * norm + noise.largest(clients, 1e-9) >= 1 << bits - 2


@pytest.mark.parametrize("total", [0.5, 3.0, 60.0])
@pytest.mark.parametrize("failure", [pytest.param(1e-2, marks=pytest.mark.slow), 1e-20])
@pytest.mark.parametrize("size", [1, pytest.param(1000, marks=pytest.mark.slow)])
def test_what_is_largest_is_exceeded_as_rarely_as_it_says(total: float, failure: float, size: int) -> None:
    for mechanism, logs in ((GAUSSIAN, gaussians(total / 2, 2)), (SKELLAM, skellams(total))):
        noise = DistributedNoise(mechanism, math.sqrt(total), 1.0, size, 2)
        most = noise.largest(2, failure)
        beyond = math.exp(special.logsumexp(logs[np.abs(X) > most]))
        assert size * beyond <= failure
        assert most <= 9 * math.sqrt(total) + 40  # and is not far beyond: 1 / 3 of the logarithm for Skellam noise


def test_what_no_word_holds_is_refused() -> None:
    with pytest.raises(SettingError, match="bits, and 64 are there"):
        DistributedNoise(SKELLAM, 1.0, 2.0**62, 10, 10).modulus_bits(10)
    assert DistributedNoise(SKELLAM, 1.0, 2.0**20, 10, 10).modulus_bits(10) == 26
    for clients, failure in ((0, 0.1), (10, 0.0), (10, 1.0), (True, 0.1), (1.5, 0.1)):
        with pytest.raises(SettingError, match="no setting"):
            DistributedNoise(SKELLAM, 1.0, 2.0, 10, 10).modulus_bits(clients, failure)  # type: ignore[arg-type]


# Rounding


@given(st.floats(0, 100), st.integers(1, 200), st.integers(0, 2**32))
def test_rounding_stays_within_its_norm(norm: float, size: int, seed: int) -> None:
    own = np.random.default_rng(seed)
    x = own.normal(size=size)
    x *= norm / np.linalg.norm(x)
    for rounded in (np.floor(x), np.ceil(x), np.floor(x + own.random(size))):
        assert np.linalg.norm(rounded) <= rounded_norm(norm, size) + 1e-9


@pytest.mark.parametrize("beta", [0.5, 0.05])
@pytest.mark.parametrize("norm", [1.0, 30.0, 400.0])
def test_rounding_at_random_exceeds_its_norm_as_rarely_as_it_says(norm: float, beta: float) -> None:
    own, size, tries = np.random.default_rng(1), 400, 2000
    bound = rounded_norm(norm, size, beta)
    assert bound <= rounded_norm(norm, size)
    for x in (np.full(size, norm / 20), np.eye(1, size)[0] * norm, own.normal(size=size) * norm / 25):
        x = x * min(1.0, norm / np.linalg.norm(x))
        norms = np.linalg.norm(np.floor(x + own.random((tries, size))), axis=1)
        assert stats.binom.sf((norms > bound).sum() - 1, tries, beta) > 1e-6
    assert rounded_norm(norm, size, 1e-300) <= norm + 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mechanism": "gaussian"}, "distributed noise is one of"),
        ({"noise": 0.0}, "noise"),
        ({"norm": math.inf}, "norm"),
        ({"size": 0}, "size"),
        ({"sharers": 2.5}, "sharers"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], named: str) -> None:
    plain = {"mechanism": SKELLAM, "noise": 1.0, "norm": 100.0, "size": 10, "sharers": 10}
    with pytest.raises(SettingError, match=named):
        DistributedNoise(**{**plain, **change})
    for survivors, colluding in ((5, 5), (0, 0), (3, -1), (2.0, 0)):
        with pytest.raises(SettingError, match="cannot collude"):
            DistributedNoise(**plain).rho(survivors, colluding)  # type: ignore[arg-type]


# What would be wrong


def test_bounds_that_are_too_low_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "inflation", lambda variance, sharers: 0.0)
    logs = gaussians(0.25, 2)
    assert divergence(logs, 1, 1.1) > 1.1 * gaussian_rho(1, 0.25, 2, 1) * 1.05
    logs = skellams(40.0)
    assert divergence(logs, 1, 2) > skellam_divergence(2, 1, 2 * 40.0, 1)  # as if each of both had that variance
    assert divergence(logs, 1, 2) > 2 * skellam_rho(1, 40.0, 2, 1)  # as if one more had a share
