"""Exact noise, against the algorithms of Canonne, Kamath & Steinke 2020 in fractions, and against the probabilities.

Statistics are of pinned words. A right sampler would fail one of them with a probability of 1e-6.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from tests.conftest import some

from umbel.core.randomness import Key
from umbel.entropy import SYSTEM, Entropy
from umbel.privacy import discrete
from umbel.privacy.discrete import (
    _Bessel,
    _stairs,
    bernoulli_exp,
    discrete_gaussian,
    discrete_laplace,
    skellam,
    uniform_integers,
)

UNLIKELY = 1e-6
EVERYTHING = 2.0**33  # as a margin: floats decide nothing
VARIANCES = [Fraction(1, 3), 1, Fraction(15, 2), 100]
SCALES = [Fraction(1, 3), 1, Fraction(7, 3), 20]
KINDS = [("gaussian", v) for v in VARIANCES] + [("laplace", s) for s in SCALES]


def pinned(*name: int | str) -> Entropy:
    return Entropy(Key.from_seed(15).derive("discrete", *name).draws().words)


def planted(*words: int) -> Entropy:
    """Just these words, then ones that are random."""
    left, rest = list(words), pinned("rest")

    def take(n: int) -> Any:
        first = [left.pop(0) for _ in range(min(n, len(left)))]
        return np.concatenate([np.array(first, np.uint64), rest.words(n - len(first))])

    return Entropy(take)


def weight(kind: str, setting: Fraction | int, x: int) -> float:
    return math.exp(-(x * x) / (2 * setting) if kind == "gaussian" else -abs(x) / setting)


def odds_of(values: Any, probability: dict[int, float]) -> float:
    """The p-value of a chi-square test over runs of neighbouring values, each of which is expected ten times or more;
    0 if there is one that cannot be.
    """
    found = dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    parts, seen, wanted = [], 0, 0.0
    for x in sorted(probability):
        seen, wanted = seen + found.pop(x, 0), wanted + len(values) * probability[x]
        if wanted >= 10:
            parts.append((seen, wanted))
            seen, wanted = 0, 0.0
    parts[-1] = (parts[-1][0] + seen, parts[-1][1] + wanted)
    return 0.0 if found else float(stats.chi2.sf(sum((s - w) ** 2 / w for s, w in parts), len(parts) - 1))


def odds(kind: str, setting: Fraction | int, values: Any) -> float:
    weights = {x: weight(kind, setting, x) for x in range(-1500, 1501)}
    total = math.fsum(weights.values())
    return odds_of(values, {x: w / total for x, w in weights.items()})


def draw(kind: str, setting: Fraction | int, n: int, own: Entropy, module: ModuleType = discrete) -> Any:
    return getattr(module, f"discrete_{kind}")(setting, n, own)


class Paper:
    """Algorithms 1, 2 and 3, one value at a time."""

    def __init__(self, own: Entropy) -> None:
        self.words = iter(lambda: int(own.words(1)[0]), None)

    def below(self, bound: int) -> int:
        bits = (bound - 1).bit_length()
        while True:
            value = next(self.words) >> (64 - bits) if bits else 0
            if value < bound:
                return value

    def bernoulli(self, p: Fraction) -> bool:
        return self.below(p.denominator) < p.numerator

    def bernoulli_exp(self, gamma: Fraction) -> bool:
        for _ in range(math.floor(gamma)):
            if not self.bernoulli_exp_up_to_1(Fraction(1)):
                return False
        return self.bernoulli_exp_up_to_1(gamma - math.floor(gamma))

    def bernoulli_exp_up_to_1(self, gamma: Fraction) -> bool:
        k = 1
        while self.bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    def laplace(self, scale: Fraction) -> int:
        t, s = scale.numerator, scale.denominator
        while True:
            u, v = self.below(t), 0
            if not self.bernoulli_exp(Fraction(u, t)):
                continue
            while self.bernoulli_exp(Fraction(1)):
                v += 1
            y, negative = (u + t * v) // s, self.bernoulli(Fraction(1, 2))
            if not (negative and y == 0):
                return -y if negative else y

    def gaussian(self, variance: Fraction) -> int:
        t = math.isqrt(math.floor(variance)) + 1
        while True:
            y = self.laplace(Fraction(t))
            if self.bernoulli_exp((abs(y) - variance / t) ** 2 / (2 * variance)):
                return y


def curve_of(kind: str, setting: Fraction | int) -> discrete._Curve:
    return (
        discrete._Curve(2, 1 / (2 * Fraction(setting)))
        if kind == "gaussian"
        else discrete._Curve(1, 1 / Fraction(setting))
    )


def exp_floor(gamma: Fraction, size: int) -> int:
    """2^size exp(-gamma), rounded down, by the decimal module."""
    with localcontext(prec=size + 60, Emin=-(10**12)):
        return int((Decimal(-gamma.numerator) / gamma.denominator).exp() * 2**size)


# What is drawn


@pytest.mark.parametrize(("kind", "setting"), KINDS)
def test_draws_have_the_probabilities(kind: str, setting: Fraction | int) -> None:
    values = draw(kind, setting, 50_000, pinned(kind, str(setting)))
    assert odds(kind, setting, values) > UNLIKELY
    there = {int(v) for v in values}
    assert all(-x in there for x in there if weight(kind, setting, x) > 0.05)


@pytest.mark.parametrize(("kind", "setting"), KINDS)
@pytest.mark.parametrize("n", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_papers_own_algorithm_has_them_too(kind: str, setting: Fraction | int, n: int) -> None:
    paper = Paper(pinned("paper", kind, str(setting)))
    values = [getattr(paper, kind)(Fraction(setting)) for _ in range(n)]
    assert odds(kind, setting, values) > UNLIKELY


@pytest.mark.parametrize(("kind", "setting"), KINDS)
@pytest.mark.parametrize("n", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_integers_alone_give_them_too(
    kind: str, setting: Fraction | int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discrete, "_MARGIN", EVERYTHING)
    values = draw(kind, setting, n, pinned("integers", kind, str(setting)))
    assert odds(kind, setting, values) > UNLIKELY


@pytest.mark.parametrize("variance", [2**20, 2**60 + Fraction(1, 3), 2**80 - 1, 2**100])
def test_a_large_gaussian_is_the_normal_distribution_with_no_gaps(variance: Fraction | int) -> None:
    n, sigma = 50_000, math.sqrt(variance)
    values = discrete_gaussian(variance, n, pinned("large", str(variance)))
    z = values / sigma
    assert abs(z.mean()) < 5 / math.sqrt(n)  # five standard errors: 6e-7
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    cuts = np.floor(sigma * stats.norm.ppf(np.arange(1, 64) / 64)).astype(np.int64)
    parts = np.diff(stats.norm.cdf((cuts + 0.5) / sigma), prepend=0, append=1)
    assert odds_of(np.searchsorted(cuts, values), dict(enumerate(parts))) > UNLIKELY
    assert odds_of(values % 16, dict.fromkeys(range(16), 1 / 16)) > UNLIKELY


@pytest.mark.parametrize("scale", [2**20, 2**40 + Fraction(1, 7), Fraction(2**101 - 1, 2**51)])
def test_a_large_laplace_has_exponential_sizes_with_no_gaps(scale: Fraction | int) -> None:
    values = discrete_laplace(scale, 50_000, pinned("large", str(scale)))
    parts = np.floor(64 * (1 - np.exp(-np.abs(values) / float(scale))))
    assert odds_of(parts, dict.fromkeys(range(64), 1 / 64)) > UNLIKELY
    assert odds_of(values % 16, dict.fromkeys(range(16), 1 / 16)) > UNLIKELY
    assert odds_of(np.sign(values), {-1: 0.5, 1: 0.5}) > UNLIKELY


def test_a_tiny_one_is_zero() -> None:
    for kind in ("gaussian", "laplace"):
        assert not draw(kind, Fraction(1, 2**100), 1000, pinned("tiny")).any()


def test_bernoulli_draws_have_the_probabilities() -> None:
    numerators = np.arange(12).repeat(20_000).reshape(12, -1)
    seen = bernoulli_exp(numerators, 3, pinned("bernoulli"))
    assert seen[0].all()
    for i in range(1, 12):
        p = math.exp(-i / 3)
        assert odds_of(seen[i], {False: 1 - p, True: p}) > UNLIKELY
    assert not bernoulli_exp(np.full(1000, 2**64 - 1, np.uint64), 1, pinned("never")).any()
    assert bernoulli_exp(np.full(1000, 2**64 - 1, np.uint64), 10**400, pinned("always")).all()


@pytest.mark.parametrize("bound", [1, 2, 7, 2**63, 3 * 2**61])
def test_integers_are_uniform(bound: int) -> None:
    values = uniform_integers(bound, 60_000, pinned("uniform", bound))
    assert values.dtype == np.int64
    assert 0 <= values.min() <= values.max() < bound
    parts = min(bound, 12)
    if parts == 1:
        return
    assert odds_of([v * parts // bound for v in values.tolist()], dict.fromkeys(range(parts), 1 / parts)) > UNLIKELY
    assert odds_of(values % parts, dict.fromkeys(range(parts), 1 / parts)) > UNLIKELY


# How it is decided

rationals = st.builds(
    lambda a, b, power: min(max(Fraction(a, b) * Fraction(2) ** power, Fraction(1, 2**100)), Fraction(2**50)),
    st.integers(1, 2**70),
    st.integers(1, 2**70),
    st.integers(-80, 80),
)
kinds = st.sampled_from(["gaussian", "laplace"])


@given(kinds, rationals, st.integers(0, 5), st.integers(0, 2**32))
def test_floats_decide_as_integers_do(kind: str, setting: Fraction, n: int, seed: int) -> None:
    setting = setting**2 if kind == "gaussian" and setting > 1 else setting
    wanted = draw(kind, setting, n, pinned(seed))
    assert (wanted.shape, wanted.dtype) == ((n,), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "_MARGIN", EVERYTHING)
        patch.setattr(discrete.np, "exp", lambda x: np.zeros_like(x))  # and none is used
        assert draw(kind, setting, n, pinned(seed)).tolist() == wanted.tolist()


@given(kinds, rationals)
def test_what_is_close_to_the_curve_is_on_the_right_side_of_it(kind: str, setting: Fraction) -> None:
    curve = curve_of(kind, setting)
    stairs = _stairs(curve)
    sizes = np.unique(np.concatenate([np.arange(40), np.linspace(0, stairs.far, 60).astype(np.int64)]))
    floors = np.array([exp_floor(curve.gamma(int(x)), 32) for x in sizes])
    for off in (-4, -3, -2, -1, 1, 2, 3, 4):
        bits = np.clip(floors + off, 0, 2**32 - 1)
        seen = curve.above(bits.astype(np.uint32), sizes, SYSTEM)
        clear = bits != floors
        assert (seen == (bits < floors))[clear].all()


@given(kinds, rationals)
def test_the_stairs_stand_above_the_curve(kind: str, setting: Fraction) -> None:
    curve = curve_of(kind, setting)
    stairs = _stairs(curve)
    first, *heights, slabs = (int(each) for each in np.diff(stairs.starts))
    assert first == 2**32  # so that 32 bits hold what is below it
    assert stairs.far == (1 + len(heights)) << stairs.bits
    assert slabs == 2 << (stairs.tail_bits - stairs.bits)
    for k, (height, sure) in enumerate(zip([first, *heights], stairs.sure[:-1].tolist(), strict=True)):
        assert height == first or height == exp_floor(curve.gamma(k << stairs.bits), 32) + 1
        assert sure <= exp_floor(curve.gamma((k + 1 << stairs.bits) - 1), 32)
    assert stairs.sure[-1] == 0
    for slab in range(80):
        assert exp_floor(curve.gamma(stairs.far + (slab << stairs.tail_bits)), 32 + slab) == 0
    edges = np.unique(np.concatenate([stairs.starts[:-1], stairs.starts[1:] - np.uint64(1)]))
    areas = np.concatenate([edges, uniform_integers(stairs.area, 1000, SYSTEM).view(np.uint64)])
    assert stairs.at(areas).tolist() == (np.searchsorted(stairs.starts, areas, "right") - 1).tolist()
    assert len(stairs.bucket) <= 1 << 12


TAILS = [("gaussian", Fraction(15, 2)), ("gaussian", 3000), ("laplace", Fraction(7, 3)), ("laplace", 300)]


def tail(kind: str, setting: Fraction | int, module: ModuleType = discrete, n: int = 2_000) -> float:
    """The p-value of what is drawn far out."""
    curve, own = module._Curve(*curve_of(kind, setting)), pinned("tail", kind)
    stairs = module._stairs(curve)
    drawn = (module._in_the_tail(curve, stairs, own) for _ in range(n))
    values = [size - stairs.far for size, kept in drawn if kept]
    if len(values) < n / 20:
        return 0.0
    rate, far = float(curve.rate), stairs.far
    weights = {x: math.exp(rate * (far**curve.power - (far + x) ** curve.power)) for x in range(9999)}
    total = math.fsum(weights.values())
    return odds_of(values, {x: each / total for x, each in weights.items()})


@pytest.mark.parametrize(("kind", "setting"), some(TAILS, 1))
def test_what_is_far_out_has_the_probabilities_too(kind: str, setting: Fraction | int) -> None:
    assert tail(kind, setting) > UNLIKELY


@pytest.mark.parametrize(("kind", "setting"), TAILS)
def test_what_is_on_the_slabs_is_drawn_there(kind: str, setting: Fraction | int) -> None:
    stairs = _stairs(curve_of(kind, setting))
    [drawn] = draw(kind, setting, 1, planted(*[stairs.area - 1] * 9, *[1 << 63] * 9)).tolist()
    assert drawn <= -stairs.far


@given(st.fractions(0, 60, max_denominator=10**9), st.integers(32, 200))
def test_the_series_is_right_to_the_last_bit(gamma: Fraction, size: int) -> None:
    assert discrete._exp_floor(gamma, size) == exp_floor(gamma, size)
    tiny = Fraction(1, 2**300 + gamma.numerator)
    assert discrete._exp_floor(tiny, size) == 2**size - 1
    assert discrete._exp_floor(Fraction(size) + 1 + gamma, size) == 0


@given(st.integers(1, 2**32 - 1), st.integers(30, 120), st.sampled_from([1, -1]))
def test_the_series_is_right_just_beside_an_integer(whole: int, bits: int, side: int) -> None:
    with localcontext(prec=100):
        gamma = Fraction(-((whole + side / Decimal(2**bits)) / 2**32).ln())
    assert discrete._exp_floor(gamma, 32) == (whole if side > 0 else whole - 1)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 2))
def test_what_no_bits_so_far_decide_further_ones_do(numerator: int, denominator: int, words: int) -> None:
    floor = exp_floor(Fraction(numerator, denominator), 32 + 64 * words)
    for off in (-1, 1):
        value = max(floor + off, 0)
        first, rest = value >> 64 * words, [value >> 64 * i & (1 << 64) - 1 for i in reversed(range(words))]
        if value != floor:
            own = planted(first << 32, *rest)
            assert bernoulli_exp([numerator], denominator, own).tolist() == [off < 0]


def test_whoever_has_no_random_words_is_told() -> None:
    curve = curve_of("laplace", 3)
    with pytest.raises(OverflowError, match="not random"):
        discrete._in_the_tail(curve, _stairs(curve), Entropy(lambda n: np.zeros(n, np.uint64)))


# Skellam noise


def poissons(variance: Fraction | float, most: int = 1500) -> dict[int, float]:
    """The probabilities of the difference of two Poisson variables."""
    one = stats.poisson.pmf(np.arange(most + 1), float(variance) / 2)
    return dict(zip(range(-most, most + 1), np.convolve(one, one[::-1]).tolist(), strict=True))


def bessel_floor(x: int, variance: Fraction, size: int) -> int:
    """2^size I_x / I_0 at the variance, rounded down, by the power series in the decimal module."""
    with localcontext(prec=size + 100, Emin=-(10**6)):
        half, sums = Decimal(variance.numerator) / (2 * variance.denominator), []
        for order in (x, 0):
            term, total, j = half**order / math.factorial(order), Decimal(0), 0
            while term > total / 2 ** (size + 200) or j <= half:
                total, j = total + term, j + 1
                term *= half * half / (j * (j + order))
            sums.append(total)
        return int(sums[0] / sums[1] * 2**size)


@pytest.mark.parametrize("variance", [Fraction(1, 50), 1, Fraction(15, 2), 100])
def test_skellam_draws_are_differences_of_poisson_variables(variance: Fraction | int) -> None:
    values = skellam(variance, 50_000, pinned("skellam", str(variance)))
    assert odds_of(values, poissons(variance)) > UNLIKELY
    assert odds_of(values, {x: float(special.ive(x, float(variance))) for x in range(-1500, 1501)}) > UNLIKELY


@pytest.mark.parametrize("variance", [Fraction(1, 3), 100])
@pytest.mark.parametrize("n", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_integers_alone_give_skellam_draws_too(
    variance: Fraction | int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discrete, "_MARGIN", EVERYTHING)
    assert odds_of(skellam(variance, n, pinned("skellam integers", n)), poissons(variance)) > UNLIKELY


def test_sums_of_skellam_draws_are_skellam() -> None:
    shares = [skellam(Fraction(5, 2), 50_000, pinned("share", i)) for i in range(8)]
    assert odds_of(sum(shares), poissons(20)) > UNLIKELY


@pytest.mark.parametrize(
    "variance", [2**40 + Fraction(1, 3), *(pytest.param(2**i, marks=pytest.mark.slow) for i in (20, 100))]
)
def test_a_large_skellam_is_nearly_normal_with_no_gaps(variance: Fraction | int) -> None:
    n, sigma = 50_000, math.sqrt(variance)
    values = skellam(variance, n, pinned("large skellam", str(variance)))
    z = values / sigma
    assert abs(z.mean()) < 5 / math.sqrt(n)  # five standard errors: 6e-7
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    cuts = np.floor(sigma * stats.norm.ppf(np.arange(1, 64) / 64)).astype(np.int64)
    parts = np.diff(stats.norm.cdf((cuts + 0.5) / sigma), prepend=0, append=1)  # of the true ones within 1 / variance
    assert odds_of(np.searchsorted(cuts, values), dict(enumerate(parts))) > UNLIKELY
    assert odds_of(values % 16, dict.fromkeys(range(16), 1 / 16)) > UNLIKELY


@given(st.fractions(Fraction(1, 2**100), 150, max_denominator=2**100), st.integers(0, 60), st.integers(32, 160))
def test_the_sum_of_waves_is_right_to_the_last_bit(variance: Fraction, x: int, size: int) -> None:
    assert _Bessel(variance).floor(x, size) == bessel_floor(x, variance, size)


@pytest.mark.slow
@given(rationals, st.floats(0, 12), st.integers(0, 32))
def test_the_sum_of_waves_keeps_the_recurrence_of_bessels_functions(v: Fraction, out: float, size: int) -> None:
    """I_(x - 1) - I_(x + 1) = 2 x / v I_x: with what it is at 0, and far out, no other function does."""
    v = min(v * v if v > 1 else v, Fraction(2**100))
    curve, x = _Bessel(v), 1 + math.floor(out * math.sqrt(v))
    before, there, after = (curve.floor(each, size + 64) for each in (x - 1, x, x + 1))
    assert before >= there >= after
    assert abs((before - after) * v - 2 * x * there) <= v + 2 * x


@pytest.mark.slow
@given(rationals, st.integers(0, 5), st.integers(0, 2**32))
def test_floats_decide_as_integers_do_of_skellam_draws(v: Fraction, n: int, seed: int) -> None:
    v = min(v * v if v > 1 else v, Fraction(2**100))
    wanted = skellam(v, n, pinned(seed))
    assert (wanted.shape, wanted.dtype) == ((n,), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "_MARGIN", EVERYTHING)
        patch.setattr(discrete.np, "cos", lambda x: np.zeros_like(x, np.float64))  # and none is used
        assert skellam(v, n, pinned(seed)).tolist() == wanted.tolist()


@pytest.mark.slow
@given(rationals)
def test_floats_are_close_to_the_sum_of_waves(v: Fraction) -> None:
    v = min(v * v if v > 1 else v, Fraction(2**100))
    curve = _Bessel(v)
    at = np.unique(np.concatenate([np.arange(5), np.linspace(0, _stairs(curve).far, 12).astype(np.int64)]))
    floors = np.array([curve.floor(int(x), 36) for x in at])
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Any] = []
        patch.setattr(discrete, "_decided", lambda curve, heights, *rest: seen.append(heights))
        curve.above(np.zeros(at.size, np.uint32), at, SYSTEM)
    assert (np.abs(seen[0] * 2.0**36 - floors - 0.5) < 1.5).all()


@pytest.mark.slow
@given(rationals)
def test_the_stairs_stand_above_the_skellam_curve(v: Fraction) -> None:
    v = min(v * v if v > 1 else v, Fraction(2**100))
    curve = _Bessel(v)
    stairs = _stairs(curve)
    first, *heights, slabs = (int(each) for each in np.diff(stairs.starts))
    assert first == 2**32
    assert stairs.far == (1 + len(heights)) << stairs.bits
    assert slabs == 2 << (stairs.tail_bits - stairs.bits)
    assert stairs.tail_bits <= stairs.bits + 4  # else nearly all there is refused
    for k in {*range(0, len(heights), 9), len(heights) - 1} - {-1}:
        assert heights[k] == curve.floor((k + 1) << stairs.bits, 32) + 1
        assert int(stairs.sure[k]) <= curve.floor((k + 1 << stairs.bits) - 1, 32)
    for slab in (0, 1, 7, 30):
        assert curve.floor(stairs.far + (slab << stairs.tail_bits), 32 + slab) == 0


@pytest.mark.slow
@pytest.mark.parametrize("variance", [Fraction(15, 2), 3000])
def test_what_is_far_out_of_a_skellam_has_the_probabilities_too(variance: Fraction | int) -> None:
    curve, own = _Bessel(Fraction(variance)), pinned("skellam tail")
    stairs = _stairs(curve)
    drawn = (discrete._in_the_tail(curve, stairs, own) for _ in range(2_000))
    values = [size - stairs.far for size, kept in drawn if kept]
    assert len(values) > 100
    floors = [curve.floor(stairs.far + x, 128) for x in range(400)]
    assert odds_of(values, {x: each / sum(floors) for x, each in enumerate(floors)}) > UNLIKELY


# What would be wrong


def broken(old: str, new: str) -> ModuleType:
    source = inspect.getsource(discrete)
    assert source.count(old) == 1
    module = ModuleType("broken")
    module.__package__ = discrete.__package__
    exec(compile(source.replace(old, new), "broken", "exec"), vars(module))
    return module


ONE_ZERO = "kept &= (size > 0) | (negative == 0)"
BUGS = {
    "zero twice": (ONE_ZERO, "pass", "laplace", 1),
    "zero twice, of the Gaussian": (ONE_ZERO, "pass", "gaussian", 1),
    "no zero": (ONE_ZERO, "kept &= size > 0", "laplace", 20),
    "variance for its double": ("(2 * _rational", "(_rational", "gaussian", 100),
    "a scale too large by one": ("1 / _rational(scale", "1 / _rational(scale + 1", "laplace", Fraction(7, 3)),
    "a curve of the other power": ("int(x**self.power)", "x**2", "laplace", 20),
    "the sign's bit used twice": ("words >> np.uint64(63)", "words & np.uint64(1)", "gaussian", 10_000),
    "nothing kept where it is close": ("kept[unsure] = curve", "curve", "gaussian", 10_000),
    "all kept where it is close": ("kept[unsure] = curve", "kept[unsure] = True | curve", "gaussian", 10_000),
    "heights of the stair before": ("stairs.starts.take(stair)", "stairs.starts.take(stair - 1)", "gaussian", 10_000),
    "the same numbers on each stair": ("(stair << stairs.bits) + (", "(", "gaussian", 10_000),
    "a sum that is too large": ("high += 1  #", "high = low = low + low // 9  #", "gaussian", 1),
}
TAIL_BUGS = {
    "slabs that all are as high": ("slab += 64 - word.bit_length()", "pass"),
    "slabs with one too many": ("64 - word.bit_length()", "65 - word.bit_length()"),
    "a slab without its right half": ("(1 << stairs.tail_bits) - 1", "(1 << stairs.tail_bits >> 1) - 1"),
    "all kept": (".below(partial(curve.floor, size))", ".below(lambda size: 1 << size)"),
    "as high as the first one": ("32 + slab, own", "32, own"),
}


WAVE_BUGS = {
    "waves of a Gaussian": ("one - _cosine(j, points, bits)", "(_pi(bits) * 2 * j // points) ** 2 >> bits + 1"),
    "the first wave left out": ("self.weights[:0:-1]", "self.weights[:1:-1]"),
    "a cosine with other factorials": ("(k * (k - 1))", "(k * (k + 1))"),
    "too few points": ("15 * reach**2", "150 * reach**2"),
    "too few waves": ("if not weight:", "if weight < 1 << bits // 2:"),
}


@pytest.mark.parametrize("bug", WAVE_BUGS)
def test_wrong_waves_are_found(bug: str) -> None:
    module = broken(*WAVE_BUGS[bug])
    tried = [(Fraction(v), x) for v in (Fraction(7, 3), 300) for x in range(1, 12)]
    assert any(module._Bessel(v).floor(x, 64) != bessel_floor(x, v, 64) for v, x in tried)


def test_half_the_variance_is_found() -> None:
    module = broken('_Bessel(_rational(variance, "variance", 100)', '_Bessel(_rational(variance, "variance", 100) / 2')
    assert odds_of(module.skellam(2, 50_000, pinned("half")), poissons(2)) < UNLIKELY


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_sampler_is_found(bug: str) -> None:
    old, new, kind, setting = BUGS[bug]
    module = broken(old, new)
    assert odds(kind, setting, draw(kind, setting, 500_000, pinned(bug), module)) < UNLIKELY


@pytest.mark.parametrize("bug", some(TAIL_BUGS, 1))
def test_a_wrong_tail_is_found(bug: str) -> None:
    assert min(tail(*each, broken(*TAIL_BUGS[bug])) for each in TAILS) < UNLIKELY


# What is refused


@pytest.mark.parametrize("sampler", [discrete_gaussian, discrete_laplace, skellam])
@pytest.mark.parametrize("setting", [0, -1, Fraction(-1, 3), 2**100 + 1, Fraction(1, 2**101), 10**400])
def test_what_int64_or_floats_do_not_hold_is_refused(sampler: Callable[..., Any], setting: Fraction | int) -> None:
    with pytest.raises(ValueError, match=r"must be from 2\*\*-100 to 2"):
        sampler(setting, 1, SYSTEM)


@pytest.mark.parametrize("sampler", [discrete_gaussian, discrete_laplace, skellam])
@pytest.mark.parametrize("setting", [1.0, True, "1", None, np.int64(3), math.inf])
def test_what_is_no_rational_is_refused(sampler: Callable[..., Any], setting: Any) -> None:
    with pytest.raises(ValueError, match="must be an int or a Fraction"):
        sampler(setting, 1, SYSTEM)


def test_fractions_of_numpys_integers_do_not_overflow() -> None:
    variance = Fraction(np.int64(2**40), np.int64(3))
    seen = discrete_gaussian(variance, 100, pinned("numpy"))
    assert seen.tolist() == discrete_gaussian(Fraction(2**40, 3), 100, pinned("numpy")).tolist()


@pytest.mark.parametrize("numerators", [[-1], [0.5], [True], [2**65], ["1"]])
def test_numerators_that_are_none_are_refused(numerators: Any) -> None:
    with pytest.raises(ValueError, match="numerators must be integers"):
        bernoulli_exp(numerators, 1, SYSTEM)


CALLS = [
    ("denominator must be", lambda: bernoulli_exp([1], 0, SYSTEM)),
    ("denominator must be", lambda: bernoulli_exp([1], 1.5, SYSTEM)),  # type: ignore[arg-type]
    ("bound must be", lambda: uniform_integers(0, 1, SYSTEM)),
    ("bound must be", lambda: uniform_integers(2**63 + 1, 1, SYSTEM)),
    ("n must not be negative", lambda: discrete_gaussian(1, -1, SYSTEM)),
    ("n must not be negative", lambda: discrete_laplace(1, -1, SYSTEM)),
    ("n must not be negative", lambda: skellam(1, -1, SYSTEM)),
    ("n must not be negative", lambda: uniform_integers(1, -1, SYSTEM)),
]


@pytest.mark.parametrize(("message", "call"), CALLS)
def test_wrong_settings_are_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@given(st.lists(st.integers(0, 4), max_size=3), st.sampled_from("bhilBHIL"))
def test_bernoulli_draws_have_the_shape_of_what_is_asked(shape: list[int], dtype: str) -> None:
    seen = bernoulli_exp(np.ones(shape, dtype), 2, pinned("shape"))
    assert (seen.shape, seen.dtype) == (tuple(shape), np.bool_)


@given(st.integers(0, 50), st.integers(1, 20))
def test_blocks_do_not_show(n: int, block: int) -> None:
    """Each block is drawn like the first one: no value is left out or there twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "_BLOCK", block)
        assert discrete_gaussian(2**80, n, pinned(block)).size == n == len(set(discrete_gaussian(2**80, n, SYSTEM)))
        assert bernoulli_exp(np.arange(n) * 10**9, 1, SYSTEM).tolist() == [i == 0 for i in range(n)]


def test_the_operating_systems_noise_is_other_noise_each_time() -> None:
    first, second = (discrete_gaussian(2**60, 20, SYSTEM) for _ in range(2))
    assert not set(first.tolist()) & set(second.tolist())
