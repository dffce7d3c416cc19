"""Noise through which floating point leaks nothing: exact discrete Gaussian, Laplace, Skellam and Bernoulli draws.

Samplers in floating point have gaps and odds that tell apart what they should hide (Mironov 2012). Here every draw has
just the probability that stands there, if the words of `Entropy` are uniform. As in a ziggurat of integers (Buchmann et
al. 2013, IACR 2013/510), a point is drawn below a flight of stairs that stands above the curve, and kept where it is
below the curve itself. Its height is a uniform real number, of whose bits as many are drawn as it takes: the first 32
nearly always decide, against integers, or against a float that has to be right to 2^-32 only; where they may not,
further integers do. So what is drawn from given words is the same on every machine. How long it takes tells something
about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from fractions import Fraction
from functools import lru_cache, partial
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..entropy import Entropy

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Halves = npt.NDArray[np.uint32]

_BLOCK = 1 << 13  # tries made at a time: a block and its temporaries stay in the cache
_MARGIN = 2.0  # in units of 2^-32: one for the width of what 32 bits leave open, one for the error of floats
_BUCKETS = 12  # so many bits of a number say, nearly always, which stair it is on
_MOST_SLABS = 1 << 10  # further out have odds below exp(-700), and with slabs up to 2^52 int64 holds all results


def discrete_gaussian(variance: Fraction | int, n: int, own: Entropy) -> Integers:
    """`n` integers x, each of probability proportional to exp(-x^2 / (2 variance)) (Canonne, Kamath & Steinke 2020,
    arXiv 2004.00010).

    `variance` is that parameter, which the variance of the draws is never above. It is from 2^-100 to 2^100, anything
    else is a ValueError. Takes memory for the result and one block.
    """
    return _two_sided(n, _Curve(2, 1 / (2 * _rational(variance, "variance", 100))), own)


def discrete_laplace(scale: Fraction | int, n: int, own: Entropy) -> Integers:
    """`n` integers x, each of probability proportional to exp(-|x| / scale).

    `scale` is from 2^-100 to 2^50, anything else is a ValueError. Takes memory for the result and one block.
    """
    return _two_sided(n, _Curve(1, 1 / _rational(scale, "scale", 50)), own)


def skellam(variance: Fraction | int, n: int, own: Entropy) -> Integers:
    """`n` integers, each the difference of two Poisson variables of the mean variance / 2: x has the probability
    exp(-variance) I_x(variance), of the modified Bessel function. Sums of Skellam variables are Skellam, of the sum of
    the variances (Agarwal, Kairouz & Liu 2021, arXiv 2110.04995).

    `variance`, which is that of the draws, is from 2^-100 to 2^100, anything else is a ValueError. Takes memory for the
    result and one block, and time that hardly depends on the variance.
    """
    return _two_sided(n, _Bessel(_rational(variance, "variance", 100)), own)


def bernoulli_exp(numerators: npt.ArrayLike, denominator: int, own: Entropy) -> Bools:
    """For each of `numerators` a draw that is True with probability exp(-numerator / denominator).

    They are integers of at least 0 in an array of any shape, which the result has too, and `denominator` is one above
    0; anything else is a ValueError.
    """
    given = np.asarray(numerators)
    if given.dtype.kind not in "iu" or (given < 0).any():
        raise ValueError(f"numerators must be integers of at least 0, in an array of integers, not of {given.dtype}")
    if type(denominator) is not int or denominator < 1:
        raise ValueError("denominator must be an int above 0")
    flat, curve = given.ravel(), _Curve(1, Fraction(1, denominator))
    result = np.empty(flat.size, np.bool_)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        bits = (own.words(part.size) >> np.uint64(32)).astype(np.uint32)
        result[start : start + part.size] = curve.above(bits, part, own)
    return result.reshape(given.shape)


def bernoulli_odds(odds: npt.ArrayLike, unit: int, own: Entropy) -> Bools:
    """For each of `odds`, integers of either sign, a draw that is True exp(odds / unit) times as likely as False.

    One of both is tried, each as likely, and the rarer one kept by a Bernoulli draw. Raises as `bernoulli_exp` does.
    """
    flat = np.atleast_1d(np.asarray(odds)).ravel()
    result, left = np.empty(flat.size, np.bool_), np.arange(flat.size)
    while left.size:
        tried = uniform_integers(2, left.size, own).astype(np.bool_)
        gaps = np.where(tried == (flat[left] > 0), 0, np.abs(flat[left]))
        kept = bernoulli_exp(gaps, unit, own)
        result[left[kept]] = tried[kept]
        left = left[~kept]
    return result.reshape(np.shape(odds))


def uniform_integers(bound: int, n: int, own: Entropy) -> Integers:
    """`n` integers uniform in [0, bound), without bias; `bound` is from 1 to 2^63, anything else is a ValueError."""
    bound, n = index(bound), _count(n)
    if not 1 <= bound <= 1 << 63:
        raise ValueError("bound must be between 1 and 2**63")
    largest = np.uint64((1 << 64) // bound * bound - 1)
    words = own.words(n)
    while (over := np.flatnonzero(words > largest)).size:
        words[over] = own.words(over.size)
    return (words - words // np.uint64(bound) * np.uint64(bound)).view(np.int64)


class _Uniform:
    """A uniform real number in [0, 1), of which those bits are drawn that it takes; the first `size` are given."""

    __slots__ = ("_bits", "_own", "_size")

    def __init__(self, bits: int, size: int, own: Entropy) -> None:
        self._bits, self._size, self._own = bits, size, own

    def below(self, floor_of: Callable[[int], int]) -> bool:
        """Whether it is below a number, which is 1 or irrational: so it never takes bits without end. `floor_of` a size
        is 2^size times that, rounded down.
        """
        while (floor := floor_of(self._size)) == self._bits:
            self._bits = self._bits << 64 | int(self._own.words(1)[0])
            self._size += 64
        return self._bits < floor


def _exp_floor(gamma: Fraction, size: int) -> int:
    """2^size exp(-gamma), rounded down, for a gamma of at least 0."""
    if gamma == 0:
        return 1 << size
    if gamma > size:  # exp(-1) is below 1/2
        return 0
    guard = 32
    while True:
        # exp(gamma) by its series, once with each term rounded down and once up, until the bounds agree on the result
        one = low = high = down = up = 1 << (size + guard)
        k, twice = 0, math.ceil(2 * gamma)
        while up > 1 or k < twice:
            k += 1
            down = down * gamma.numerator // (gamma.denominator * k)
            up = -(-up * gamma.numerator // (gamma.denominator * k))
            low, high = low + down, high + up
        high += 1  # all further terms: each is below half of the one before it
        if (floor := (one << size) // high) == (one << size) // low:
            return floor
        guard *= 2


class _LogConcave(Hashable, Protocol):
    """A curve over integers x of at least 0, which is 1 at 0 and irrational elsewhere, and falls ever faster."""

    @property
    def stair_bits(self) -> int:
        """How wide its stairs are to be: a power of two."""

    def floor(self, x: int, size: int) -> int:
        """2^size times the curve at x, rounded down."""

    def halves(self, x: int, width: int) -> bool:
        """Whether it is known to be half as high, or less, after such a width."""

    def above(self, bits: Halves, at: npt.NDArray[Any], own: Entropy) -> Bools:
        """At which of these x it is above a uniform number, given by its first 32 bits."""


class _Curve(NamedTuple):
    """exp(-rate x^power), for integers x of at least 0."""

    power: int
    rate: Fraction

    @property
    def stair_bits(self) -> int:
        return max(0, (math.floor(1 / self.rate).bit_length() - 1) // self.power - 2 - self.power)

    def gamma(self, x: int) -> Fraction:
        return self.rate * int(x**self.power)

    def floor(self, x: int, size: int) -> int:
        return _exp_floor(self.gamma(x), size)

    def halves(self, x: int, width: int) -> bool:
        return self.gamma(x + width) - self.gamma(x) >= Fraction(7, 10)  # ln 2 is below that

    def above(self, bits: Halves, at: npt.NDArray[Any], own: Entropy) -> Bools:
        """Floats, where they decide, are off by less than 2^-40: a gamma matters up to 23 only."""
        with np.errstate(under="ignore"):
            heights = np.exp(-float(self.rate) * at.astype(np.float64) ** self.power)
        return _decided(self, heights, bits, at, own)


class _Bessel(NamedTuple):
    """I_x(variance) / I_0(variance), for integers x of at least 0, by its sum of waves.

    It is log-concave, as the Poisson distribution is, and irrational: it is a polynomial in 1 / variance plus another
    one, whose coefficients all have one sign, times I_1 / I_0, which is transcendental (Siegel 1929).
    """

    variance: Fraction

    @property
    def stair_bits(self) -> int:
        return _Curve(2, 1 / (2 * self.variance)).stair_bits

    def floor(self, x: int, size: int) -> int:
        if x == 0:
            return 1 << size
        guard = 32
        while True:
            waves = _waves(self.variance, x.bit_length(), size + guard)
            high, crest = waves.at(x), sum(waves.weights)
            floor = max(0, high - waves.off << size) // (crest + waves.off)
            if floor == (high + waves.off << size) // (crest - waves.off):
                return floor
            guard *= 2

    def halves(self, x: int, width: int) -> bool:
        size = 64
        while (high := self.floor(x, size)) < 1 << 32:
            size *= 2
        return 2 * self.floor(x + width, size) + 2 <= high

    def above(self, bits: Halves, at: npt.NDArray[Any], own: Entropy) -> Bools:
        """Floats, where they decide, are off by less than 2^-36."""
        waves = _waves(self.variance, int(at.max(initial=0)).bit_length(), 48)
        twice, last, now = 2 * np.cos(at * (2 * math.pi / waves.points)), np.zeros(at.size), np.zeros(at.size)
        for weight in waves.shares[:0:-1]:  # Clenshaw's algorithm
            last, now = now, twice * now - last + weight
        return _decided(self, twice / 2 * now - last + waves.shares[0], bits, at, own)


def _decided(curve: _LogConcave, heights: Floats, bits: Halves, at: npt.NDArray[Any], own: Entropy) -> Bools:
    """What `above` is, by floats that are right to 2^-32, and by integers where these may not be enough."""
    edges = heights * 2.0**32
    above: Bools = bits < edges - _MARGIN
    for i in np.flatnonzero(above != (bits < edges + _MARGIN)).tolist():
        above[i] = _Uniform(int(bits[i]), 32, own).below(partial(curve.floor, int(at[i])))
    return above


class _Waves(NamedTuple):
    """The sum over j of weights[j] cos(2 pi j x / points), in units that are the same for all x: in them the
    probabilities of a Skellam variable, but for an error of at most `off`.

    With the angles t = 2 pi j / points, j from 0 to points - 1, exp(variance (cos t - 1)) cos(x t) adds up to `points`
    times the probability of x and of all that differ from it by multiples of `points`, which are so far out that they
    hardly count (the trapezoidal rule on Bessel's integral). Most of these weights vanish.
    """

    points: int
    bits: int
    weights: tuple[int, ...]
    off: int
    shares: tuple[float, ...]

    def at(self, x: int) -> int:
        """The sum, by Clenshaw's algorithm."""
        cosine, last, now = _cosine(x, self.points, self.bits), 0, 0
        for weight in self.weights[:0:-1]:
            last, now = now, (2 * cosine * now >> self.bits) - last + weight
        return (cosine * now >> self.bits) - last + self.weights[0]


def _waves(variance: Fraction, x_bits: int, size: int) -> _Waves:
    """Such that for x of so many bits `off` is about 2^-size of the sum at 0, or less."""
    most, points = math.ceil(variance), 1 << x_bits + 1
    while True:
        bits = size + points.bit_length() + most.bit_length() + 8
        reach = points - (1 << x_bits)
        # Bernstein: what is `reach` away has a probability of at most 2 exp(-reach^2 / 2(variance + reach / 3)). Times
        # points, that is below 2^-bits.
        if 15 * reach**2 >= (3 * most + reach) * 7 * (bits + points.bit_length() + 1):
            return _weighed(variance, points, bits)
        points *= 2


@lru_cache(256)
def _weighed(variance: Fraction, points: int, bits: int) -> _Waves:
    one, weights, most = 1 << bits, [1 << bits], math.ceil(variance)
    for j in range(1, points // 2 + 1):
        fall = max(0, one - _cosine(j, points, bits)) * variance.numerator
        weight = _exp_floor(Fraction(fall, variance.denominator << bits), bits)
        if not weight:
            break
        weights.append(2 * weight if 2 * j < points else weight)
    # In units of 2^-bits: a weight is off by most + 1, as its cosine is by 1, and those left out are no larger than
    # that; each step of Clenshaw's algorithm is off by 1, and the sum moves by up to 2 j^2 for each j with its cosine.
    j = len(weights)
    off = points * (most + 2) + 2 * j * (most + 2) + j**3
    total = sum(weights)
    return _Waves(points, bits, tuple(weights), off, tuple(weight / total for weight in weights))


def _cosine(part: int, points: int, bits: int) -> int:
    """2^bits cos(2 pi part / points), off by 1 at most."""
    bits += 32
    part %= points
    angle = 2 * min(part, points - part) * _pi(bits) // points
    square, term, total, k = angle**2 >> bits, 1 << bits, 0, 0
    while term:
        total, k = total + (term if k % 4 == 0 else -term), k + 2
        term = (term * square >> bits) // (k * (k - 1))
    return total >> 32


@lru_cache(64)
def _pi(bits: int) -> int:
    """2^bits pi, off by less than 1: Machin's formula."""

    def arctan(inverse: int) -> int:
        term, total, k = (1 << bits + 16) // inverse, 0, 1
        while term:
            total, term, k = total + (term // k if k % 4 == 1 else -(term // k)), term // inverse**2, k + 2
        return total

    return 16 * arctan(5) - 4 * arctan(239) >> 16


class _Stairs(NamedTuple):
    """What stands above a curve: stairs of one width, 2^`bits`, whose heights are whole numbers of 2^-32, and after the
    last one, at `far`, slabs of the width 2^`tail_bits`, of which each is half as high as the one before it.
    """

    bits: int
    tail_bits: int
    far: int
    starts: npt.NDArray[np.uint64]
    """The area, in units of a width times 2^-32, before each stair, before the slabs, and that of all."""
    sure: npt.NDArray[np.uint64]
    """So much of each stair's height, in units of 2^-32, is below the curve all over."""
    shift: int
    bucket: Integers
    """Which stair the first one of so many (2^`shift`) units of area is on."""

    @property
    def area(self) -> int:
        return int(self.starts[-1])

    def at(self, areas: npt.NDArray[np.uint64]) -> Integers:
        """Which stair each of these units of area is on; the slabs are the last one."""
        found = self.bucket.take((areas >> np.uint64(self.shift)).view(np.int64))
        later = np.flatnonzero(areas >= self.starts.take(found + 1))
        found[later] = np.searchsorted(self.starts, areas[later], "right") - 1
        return found


@lru_cache(64)
def _stairs(curve: _LogConcave) -> _Stairs:
    bits = curve.stair_bits
    floors = [1 << 32]
    while floors[-1]:
        floors.append(curve.floor(len(floors) << bits, 32))
    stairs = len(floors) - 1
    far, tail_bits = stairs << bits, bits
    while not curve.halves(far, 1 << tail_bits):
        tail_bits += 1
    heights = [floors[0], *(each + 1 for each in floors[1:stairs])]
    starts = np.cumsum([0, *heights, 2 << (tail_bits - bits)]).astype(np.uint64)
    shift = max(0, int(starts[-1]).bit_length() - _BUCKETS)
    firsts = np.arange((int(starts[-1]) - 1 >> shift) + 1, dtype=np.uint64) << np.uint64(shift)
    sure = np.array([*(floors[1:] if bits else floors[:stairs]), 0], np.uint64)
    return _Stairs(bits, tail_bits, far, starts, sure, shift, np.searchsorted(starts, firsts, "right") - 1)


def _two_sided(n: int, curve: _LogConcave, own: Entropy) -> Integers:
    """`n` integers, each of a probability proportional to the curve at its size."""
    result, stairs, done = np.empty(_count(n), np.int64), _stairs(curve), 0
    while done < n:
        tries = min((n - done) * 9 // 8 + 8, _BLOCK)
        areas = uniform_integers(stairs.area, tries, own).view(np.uint64)
        stair = stairs.at(areas)
        height = areas - stairs.starts.take(stair)
        words = own.words(tries)
        negative = (words >> np.uint64(63)).view(np.int64)
        size = (stair << stairs.bits) + (words & np.uint64((1 << stairs.bits) - 1)).view(np.int64)
        kept = height < stairs.sure.take(stair)
        unsure = np.flatnonzero(~kept)
        kept[unsure] = curve.above(height[unsure].astype(np.uint32), size[unsure], own)
        for i in np.flatnonzero(stair == stairs.sure.size - 1).tolist():
            size[i], kept[i] = _in_the_tail(curve, stairs, own)
        kept &= (size > 0) | (negative == 0)  # there is one zero, not two
        drawn = ((size ^ -negative) + negative)[kept][: n - done]
        result[done : done + drawn.size] = drawn
        done += drawn.size
    return result


def _in_the_tail(curve: _LogConcave, stairs: _Stairs, own: Entropy) -> tuple[int, bool]:
    """A number on the slabs, and whether it is kept."""
    slab = 0
    while not (word := int(own.words(1)[0])):
        slab += 64
        if slab > _MOST_SLABS:
            raise OverflowError("a draw is so large as none ever is: the words of the entropy are not random")
    slab += 64 - word.bit_length()
    offset = int(own.words(1)[0]) & (1 << stairs.tail_bits) - 1
    size = stairs.far + (slab << stairs.tail_bits) + offset
    return size, _Uniform(0, 32 + slab, own).below(partial(curve.floor, size))


def _count(n: int) -> int:
    if (n := index(n)) < 0:
        raise ValueError(f"n must not be negative, not {n}")
    return n


def _rational(value: Fraction | int, name: str, most: int) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | Fraction):
        raise ValueError(f"{name} must be an int or a Fraction, not {type(value).__name__}: Fraction(x) of a float x")
    value = Fraction(int(value.numerator), int(value.denominator))  # numpy's integers would overflow
    if not Fraction(1, 1 << 100) <= value <= 1 << most:
        raise ValueError(f"{name} must be from 2**-100 to 2**{most}")
    return value
