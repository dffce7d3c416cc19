"""What releases cost, against dp-accounting by itself, published figures, and laws that any account keeps."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import CallerError, SettingError
from umbel.privacy import accounting
from umbel.privacy.accounting import against_zeros, epsilon_curve, epsilon_of, spent, to_outsiders
from umbel.privacy.distributed import DistributedNoise
from umbel.privacy.release import NoisyRelease

dp = pytest.importorskip("dp_accounting")

EVERYONE = {"kind": "everyone"}
FIXED = {"kind": "fixed", "count": 10, "of": 1000}
UNKNOWN = {"kind": "unknown", "why": "whoever is online"}
ADD, ZERO, REPLACE = "add or remove one", "zero out one", "replace one"
BOTH = pytest.mark.parametrize("accountant", ["pld", "rdp"])
BUT_SLOW = pytest.mark.parametrize("accountant", [pytest.param("pld", marks=pytest.mark.slow), "rdp"])
PUBLISHED = {
    "Abadi et al. 2016": (0.01, 4.0, 10000, 1e-5, 1.26, 5e-3),  # section 3.2, to three digits
    "McMahan et al. 2018": (5000 / 763430, 1.0, 5000, 1e-9, 4.634, 1e-3),  # table 2
}
"""Rate, noise multiplier, rounds, delta; the paper's epsilon, and how exactly it is printed."""


def poisson(rate: float) -> dict[str, Any]:
    return {"kind": "poisson", "rate": rate}


def release(
    noise: float = 1.0,
    sampling: dict[str, Any] = EVERYONE,
    neighbours: str = ADD,
    mechanism: str = "gaussian",
    denominator: float | None = 10.0,
    steps: float | None = None,
    unit: str = "client",
    stream: str | None = None,
) -> NoisyRelease:
    return NoisyRelease(mechanism, noise, 0.3, unit, neighbours, sampling, denominator, steps, stream)


def by_library(events: Iterable[tuple[Any, int]], delta: float, accountant: str) -> float:
    made = dp.rdp.RdpAccountant() if accountant == "rdp" else dp.pld.PLDAccountant()
    for event, count in events:
        made.compose(event, count)
    return float(made.get_epsilon(delta))


def gaussian(noise: float, rate: float = 1.0) -> Any:
    event = dp.GaussianDpEvent(noise)
    return event if rate == 1 else dp.PoissonSampledDpEvent(rate, event)


@BUT_SLOW
@pytest.mark.parametrize("paper", PUBLISHED)
def test_published_settings_come_to_what_the_library_says(paper: str, accountant: str) -> None:
    rate, noise, rounds, delta, printed, exactly = PUBLISHED[paper]
    found = spent([release(noise, poisson(rate))] * rounds, delta, accountant)
    assert found.epsilon == pytest.approx(by_library([(gaussian(noise, rate), rounds)], delta, accountant), rel=1e-3)
    assert found.epsilon < printed
    # The papers' moments accountant: the same divergences, of whole orders, and the looser way to epsilon of its time.
    made = dp.rdp.RdpAccountant([*range(2, 64)]).compose(gaussian(noise, rate), rounds)
    old = min(r + math.log(1 / delta) / (a - 1) for a, r in zip(made.orders, made.rdp, strict=True))
    assert old == pytest.approx(printed, abs=exactly)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta"),
    [
        (0.01, 0.6, 200, 1e-6), (0.01, 0.6, 2000, 1e-6), (0.1, 1.5, 200, 1e-6), (1.0, 1.0, 200, 1e-6),
        (1.0, 10.0, 1, 1e-6), (0.01, 0.3, 200, 1e-6), (1e-4, 1.0, 1000, 1e-8), (0.9, 0.5, 10, 1e-5),
    ],
)  # fmt: skip
def test_the_coarser_grid_is_as_good_as_the_librarys(rate: float, noise: float, rounds: int, delta: float) -> None:
    found = spent([release(noise, poisson(rate))] * rounds, delta).epsilon
    own = by_library([(gaussian(noise, rate), rounds)], delta, "pld")
    assert own * (1 - 1e-9) <= found <= own * (1 + 1e-3)


@pytest.mark.slow
@BOTH
def test_different_releases_compose_in_any_order(accountant: str) -> None:
    kinds = [(1.0, 0.02), (0.8, 0.01), (3.0, 1.0), (2.0, 1.0)]
    releases = [release(noise, poisson(rate) if rate < 1 else EVERYONE) for noise, rate in kinds for _ in range(3)]
    found = spent(releases, 1e-5, accountant)
    own = by_library([(gaussian(noise, rate), 3) for noise, rate in kinds], 1e-5, accountant)
    assert found.epsilon == pytest.approx(own, rel=1e-3)
    for seed in range(3):
        assert spent(random.Random(seed).sample(releases, len(releases)), 1e-5, accountant) == found
    assert found.releases == 12
    assert found.sampling == ("Poisson(0.01): counted", "Poisson(0.02): counted", "everyone")


@BOTH
def test_no_releases_cost_nothing(accountant: str) -> None:
    found = spent([], 1e-6, accountant)
    assert (found.epsilon, found.releases, found.unit, found.neighbours, found.why) == (0.0, 0, None, None, ())


NOISE = st.floats(0.5, 20)
RATE = st.floats(1e-4, 0.5)
ROUNDS = st.integers(1, 300)


@pytest.mark.slow
@given(NOISE, NOISE, RATE, RATE, ROUNDS, ROUNDS)
def test_more_noise_fewer_rounds_and_a_smaller_rate_never_cost_more(
    noise: float, other: float, rate: float, odds: float, rounds: int, more: int
) -> None:
    noise, rate, rounds = max(noise, other), min(rate, odds), min(rounds, more)
    for accountant, slack in (("quick", 1e-12), ("pld", 2e-3)):  # a distribution's grid depends on what it is of
        least = epsilon_of({("poisson gaussian", rate, noise): rounds}, 1e-6, accountant)
        for event, count in (
            (("poisson gaussian", rate, min(noise, other)), rounds),
            (("poisson gaussian", max(rate, odds), noise), rounds),
            (("poisson gaussian", rate, noise), max(rounds, more)),
            (("gaussian", noise), rounds),
        ):
            assert least <= epsilon_of({event: count}, 1e-6, accountant) * (1 + slack) + 1e-4 * slack
        if accountant == "quick" and more % 5:
            return  # distributions take longer, and are tried on every fifth example


@BOTH
@pytest.mark.parametrize("sampling", [FIXED, UNKNOWN])
def test_what_was_not_poisson_gains_nothing_by_sampling(sampling: dict[str, Any], accountant: str) -> None:
    zeroed = spent([release(2.0, sampling, ZERO)] * 5, 1e-6, accountant)
    assert zeroed.epsilon == spent([release(2.0, EVERYONE, ZERO)] * 5, 1e-6, accountant).epsilon
    assert zeroed.sampling[0].endswith(": not counted")
    added = spent([release(2.0, sampling)] * 5, 1e-6, accountant)
    assert added.epsilon == spent([release(1.0)] * 5, 1e-6, accountant).epsilon  # one takes another's place
    assert any("another's place" in why for why in added.why)
    assert any("nobody's data" in why for why in added.why) == (sampling is UNKNOWN)


@pytest.mark.slow
def test_a_fixed_cohort_counts_where_one_is_replaced_and_the_accountant_knows_it() -> None:
    releases = [release(4.0, FIXED, REPLACE)] * 50
    made = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    made.compose(dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(2.0)), 50)
    found = spent(releases, 1e-6, "rdp")
    assert found.epsilon == pytest.approx(made.get_epsilon(1e-6), rel=1e-9)
    assert found.sampling == ("10 of 1,000, each set equally likely: counted",)
    without = spent([release(4.0, EVERYONE, REPLACE)] * 50, 1e-6, "rdp").epsilon
    assert found.epsilon < without / 4
    assert spent(releases, 1e-6, "pld").epsilon == spent([release(2.0)] * 50, 1e-6, "pld").epsilon
    nearly = {"kind": "fixed", "count": 99, "of": 100}  # where the bound is worse than none
    assert spent([release(4.0, nearly, REPLACE)] * 50, 1e-6, "rdp").epsilon == pytest.approx(without, rel=1e-9)


@BOTH
def test_replacing_one_is_twice_the_change_and_zeroing_one_as_much_as_removing_it(accountant: str) -> None:
    assert spent([release(2.0, EVERYONE, REPLACE)], 1e-6, accountant).epsilon == pytest.approx(
        by_library([(gaussian(1.0), 1)], 1e-6, accountant), rel=1e-3
    )
    replaced = spent([release(2.0, poisson(0.01), REPLACE)], 1e-6, accountant)
    assert replaced.epsilon == spent([release(2.0, EVERYONE, REPLACE)], 1e-6, accountant).epsilon
    assert replaced.why
    zeroed, removed = (spent([release(2.0, poisson(0.01), which)], 1e-6, accountant) for which in (ZERO, ADD))
    assert zeroed.epsilon == removed.epsilon
    assert not zeroed.why


@BOTH
def test_who_tells_how_many_came_hides_nobody_that_is_added(accountant: str) -> None:
    assert spent([release(denominator=None)], 1e-6, accountant).epsilon == math.inf
    zeroed = spent([release(2.0, poisson(0.01), ZERO, denominator=None)], 1e-6, accountant)
    assert zeroed.epsilon == spent([release(2.0)], 1e-6, accountant).epsilon
    assert any("how many came" in why for why in zeroed.why)
    found = spent([release(), release(0.0)], 1e-6, accountant)
    assert found.epsilon == math.inf
    assert found.plain()["epsilon"] is None
    assert found.why


@pytest.mark.slow
@BOTH
def test_discrete_noise_counts_as_much_as_is_proven(accountant: str) -> None:
    def discrete(steps: float, sampling: dict[str, Any]) -> Any:
        return spent([release(1.0, sampling, ZERO, "discrete_gaussian", steps=steps)] * 3, 1e-6, accountant)

    for sampling in (EVERYONE, poisson(0.05)):
        whole = spent([release(1.0, sampling, ZERO)] * 3, 1e-6, accountant).epsilon
        assert discrete(2.0**20, sampling).epsilon == pytest.approx(whole, rel=1e-9)
        assert not discrete(2.0**20, sampling).why
        proven = accountant == "rdp" and sampling is EVERYONE
        few = spent([release(1.0 if proven else 0.6, sampling, ZERO)] * 3, 1e-6, accountant).epsilon
        assert discrete(2.5, sampling).epsilon == pytest.approx(few, rel=1e-9)  # 2.5^2 = 2^2 + 1.5^2
    coarse = discrete(1.0, poisson(0.05))
    assert coarse.why
    assert coarse.sampling == ("Poisson(0.05): not counted",)
    unsampled = spent([release(1.0)] * 3, 1e-6, accountant).epsilon
    assert coarse.epsilon == (unsampled if accountant == "rdp" else math.inf)


def shared(mechanism: str, sampling: dict[str, Any] = EVERYONE, share: float = 8.0, **changes: Any) -> NoisyRelease:
    """Of a hundred shares of which each has such a standard deviation."""
    plain = DistributedNoise(f"distributed_{mechanism}", 2.0, 5 * share, 10**6, 100).release(100)
    return NoisyRelease(**{**plain, **changes}, sampling=sampling, denominator=100)


@BUT_SLOW
def test_shared_noise_costs_what_central_noise_does_and_nothing_is_gained_of_the_server(accountant: str) -> None:
    for sampling in (EVERYONE, UNKNOWN, poisson(0.01), FIXED):
        found = spent([shared("gaussian", sampling)] * 5, 1e-6, accountant)
        central = release(shared("gaussian").noise, EVERYONE, ZERO, "discrete_gaussian", steps=80.0)
        assert found.epsilon == spent([central] * 5, 1e-6, accountant).epsilon
        assert any("the server" in why for why in found.why) == (sampling in (poisson(0.01), FIXED))
    sampled = release(shared("gaussian").noise, poisson(0.01), ZERO, "discrete_gaussian", steps=80.0)
    outside = spent(to_outsiders([shared("gaussian", poisson(0.01))] * 5), 1e-6, accountant)
    assert outside.epsilon == spent([sampled] * 5, 1e-6, accountant).epsilon
    replaced = spent([shared("gaussian", neighbours=REPLACE)], 1e-6, accountant).epsilon
    half = release(shared("gaussian").noise / 2, EVERYONE, ZERO)
    assert replaced == pytest.approx(spent([half], 1e-6, accountant).epsilon, rel=2e-3)


@BOTH
def test_skellam_noise_costs_a_little_more(accountant: str) -> None:
    found = spent([shared("skellam", poisson(0.01))] * 5, 1e-6, accountant)
    gaussian = spent([shared("gaussian")] * 5, 1e-6, "rdp").epsilon
    assert gaussian < found.epsilon < gaussian * 1.05
    assert any("Renyi divergences only" in why for why in found.why) == (accountant == "pld")
    assert to_outsiders([shared("skellam")]) == [shared("skellam")]
    mixed = spent([shared("skellam"), release(3.0, EVERYONE, ZERO)], 1e-6, accountant).epsilon
    assert mixed > spent([shared("skellam")], 1e-6, accountant).epsilon
    # By the library, of whole orders.
    made, rho = (
        dp.rdp.RdpAccountant([*range(2, 65)]),
        DistributedNoise("distributed_skellam", 2.0, 40.0, 10**6, 100).rho(100),
    )
    assert found.epsilon == pytest.approx(made.compose(dp.ZCDpEvent(rho), 5).get_epsilon(1e-6), rel=1e-9)


@BOTH
def test_coarse_shares_cost_more_and_by_renyi_divergences_only(accountant: str) -> None:
    fine, epsilon = shared("gaussian"), 0.0
    for share in (1.5, 0.8, 0.6):
        coarse = shared("gaussian", share=share)
        assert to_outsiders([coarse]) == [coarse]
        before, epsilon = epsilon, spent([coarse], 1e-6, accountant).epsilon
        assert epsilon > before
        assert epsilon > spent([fine], 1e-6, "rdp").epsilon
    for nothing in ({"steps": 3.0}, {"noise": 0.0}, {"steps": 0.0}):
        assert spent([shared("gaussian", **nothing)], 1e-6, accountant).epsilon == math.inf
    one = shared("gaussian", share=8.0, shares=1)  # of one share nothing is off, however coarse
    assert spent([one], 1e-6, "rdp").epsilon == spent([fine], 1e-6, "rdp").epsilon
    few = spent([shared("gaussian", shares=1, steps=1.5)], 1e-6, accountant).epsilon  # too few for distributions
    assert few == pytest.approx(spent([fine], 1e-6, "rdp").epsilon, rel=0.01)
    assert spent([shared("skellam", noise=0.0)], 1e-6, accountant).epsilon == math.inf


def test_where_fewer_are_there_a_sum_costs_more() -> None:
    for mechanism in ("distributed_gaussian", "distributed_skellam"):
        noise = DistributedNoise(mechanism, 2.0, 50.0, 1000, 80)
        told = [NoisyRelease(**noise.release(n, 5), sampling=EVERYONE, denominator=None) for n in (100, 85, 60, 20)]
        found = [spent([each], 1e-6).epsilon for each in told]
        assert found == sorted(found)
        assert found[1] == pytest.approx(spent([release(2.0, EVERYONE, ZERO)], 1e-6).epsilon, rel=0.1)


@given(st.floats(2.1, 6.0), st.floats(0, 1))
def test_a_discrete_gaussian_is_a_continuous_one_seen_through_a_rounding(steps: float, shift: float) -> None:
    """The proof of ROUNDING: the odds with which a point is rounded sum to the same wherever it is."""
    r = accounting.ROUNDING
    sums = [math.fsum(math.exp(-((n - y) ** 2) / (2 * r * r)) for n in range(-60, 61)) for y in (0.0, shift)]
    assert sums == pytest.approx([r * math.sqrt(2 * math.pi)] * 2, rel=1e-14)
    inner = math.sqrt(steps**2 - r * r)
    # What comes out at n is the product of two Gaussians, summed over a grid far finer than both are wide.
    y = np.linspace(-40, 40, 8001)
    made = [np.exp(-(y**2) / (2 * inner**2) - (n - y) ** 2 / (2 * r * r)).sum() for n in (0, 3)]
    assert made[1] / made[0] == pytest.approx(math.exp(-9 / (2 * steps**2)), rel=1e-9)


@pytest.mark.slow
@BOTH
def test_pure_mechanisms(accountant: str) -> None:
    few = spent([release(2.0, EVERYONE, REPLACE, "pure")] * 2, 1e-9, accountant).epsilon
    assert few == pytest.approx(1.0, rel=1e-3) if accountant == "pld" else few >= 1.0
    for mechanism in ("pure", "laplace"):
        alone = spent([release(2.0, EVERYONE, ADD, mechanism)] * 9, 1e-6, accountant).epsilon
        sampled = spent([release(2.0, poisson(0.1), ADD, mechanism)] * 9, 1e-6, accountant).epsilon
        assert 0 < sampled < alone / 2
    noisy = by_library([(dp.LaplaceDpEvent(2.0), 9)], 1e-6, accountant)
    assert spent([release(4.0, EVERYONE, REPLACE, "laplace")] * 9, 1e-6, accountant).epsilon == pytest.approx(
        noisy, 1e-3
    )


@BOTH
def test_against_zeros_releases_of_all_neighbours_add_up(accountant: str) -> None:
    """A Gaussian one costs its noise whatever its neighbours, and what sampling gains where that is proven."""
    kinds = [release(2.0, EVERYONE, neighbours) for neighbours in (ADD, ZERO, REPLACE)]
    kinds += [release(2.0, poisson(0.1), REPLACE), release(2.0, EVERYONE, ZERO, stream="s")]
    found = spent(against_zeros(kinds), 1e-6, accountant)
    assert found.neighbours == ZERO
    assert found.epsilon == pytest.approx(by_library([(gaussian(2.0), 5)], 1e-6, accountant), rel=1e-3)
    sampled = [release(2.0, poisson(0.1), neighbours) for neighbours in (ADD, ZERO)]
    own = by_library([(gaussian(2.0, 0.1), 2)], 1e-6, accountant)
    assert spent(against_zeros(sampled), 1e-6, accountant).epsilon == pytest.approx(own, rel=1e-3)
    pure = [release(4.0, EVERYONE, neighbours, "pure") for neighbours in (ADD, ZERO, REPLACE)]
    assert [each.noise for each in against_zeros(pure)] == [2.0, 4.0, 4.0]


def test_what_does_not_add_up_is_refused() -> None:
    with pytest.raises(SettingError, match="several neighbours: add or remove one, replace one"):
        spent([release(), release(neighbours=REPLACE)], 1e-6)
    with pytest.raises(SettingError, match="several unit: client, example"):
        spent([release(), release(unit="example")], 1e-6)
    for delta in (0, 1, -0.1, math.nan, "1e-6"):
        with pytest.raises(SettingError, match="delta"):
            spent([release()], delta)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="accountant"):
        spent([release()], 1e-6, "moments")


def test_the_curve_ends_at_what_was_spent_and_never_falls() -> None:
    releases = [release(3.0)] * 25
    curve = epsilon_curve(releases, 1e-6, "rdp")
    assert curve[0] == (0, 0.0)
    assert curve[-1] == (25, spent(releases, 1e-6, "rdp").epsilon)
    assert [epsilon for _, epsilon in curve] == sorted(epsilon for _, epsilon in curve)
    assert epsilon_curve(releases, 1e-6, "rdp", at=[7]) == [(7, spent(releases[:7], 1e-6, "rdp").epsilon)]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("noise", [1e-300, 1e-5, 0.01, 1e12, 1e300])
def test_extremes_have_an_epsilon(noise: float, accountant: str) -> None:
    for sampling in (EVERYONE, poisson(1e-9), poisson(1.0)):
        found = spent([release(noise, sampling)], 1e-6, accountant).epsilon
        assert found >= 0
        if noise > 1 or sampling != poisson(1e-9):
            assert found < 1e-3 if noise > 1 else found > 1e3
    assert spent([release(noise, FIXED, REPLACE)], 1e-6, accountant).epsilon >= 0


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    accounting._epsilon.cache_clear()
    with pytest.raises(CallerError, match="dp-accounting") as caught:
        spent([release()], 1e-6)
    assert 'pip install "umbel[dp]"' in str(caught.value.hint)


@BOTH
@pytest.mark.parametrize("sampling", [EVERYONE, UNKNOWN, poisson(0.01), FIXED])
def test_a_stream_counts_once_and_as_if_there_were_no_sampling(sampling: dict[str, Any], accountant: str) -> None:
    def stream(name: str, noise: float = 2.0, neighbours: str = ZERO) -> NoisyRelease:
        return release(noise, sampling, neighbours, stream=name)

    once = spent([release(2.0, EVERYONE, ZERO)], 1e-6, accountant).epsilon
    for n in (1, 7):
        found = spent([stream("a")] * n, 1e-6, accountant)
        assert found.epsilon == once
        assert found.releases == n
        assert any("counts once" in why for why in found.why)
    two = spent([stream("a"), stream("b"), stream("a"), release(3.0, EVERYONE, ZERO)], 1e-6, accountant).epsilon
    same = [release(noise, EVERYONE, ZERO) for noise in (2.0, 2.0, 3.0)]
    assert two == spent(same, 1e-6, accountant).epsilon
    assert (
        spent([stream("a"), stream("a", 1.0)], 1e-6, accountant).epsilon
        == spent([release(1.0, EVERYONE, ZERO)], 1e-6, accountant).epsilon
    )  # the least that was told
    assert spent([stream("a"), stream("a", 0.0)], 1e-6, accountant).epsilon == math.inf
    replaced = spent([stream("a", 4.0, REPLACE)] * 3, 1e-6, accountant).epsilon
    assert replaced == once
