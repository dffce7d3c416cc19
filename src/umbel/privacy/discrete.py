"""Noise through which floating point leaks nothing: exact discrete Gaussian, discrete Laplace and Bernoulli draws.

Samplers in floating point have gaps and odds that tell apart what they should hide (Mironov 2012). Here every draw has
just the probability that stands there, if the words of `Entropy` are uniform. As in Canonne, Kamath & Steinke 2020
(arXiv 2004.00010), proposals with a geometric tail are kept by Bernoulli draws of probability exp(-gamma), gamma
rational. Each compares a uniform real number, of whose bits as many are drawn as it takes, with exp(-gamma). The first
32 bits nearly always decide, against a float that has to be right to 2^-32 only; where they may not, integers do. So
what is drawn from given words is the same on every machine. How long it takes tells something about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from ..entropy import Entropy

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Halves = npt.NDArray[np.uint32]

_BLOCK = 1 << 14  # tries made at a time: a block and its temporaries stay in the cache
_MARGIN = 2.0  # in units of 2^-32: one for the width of what 32 bits leave open, one for the error of floats
_MOST_STEPS = 1 << 10  # more have odds below exp(-500), and with steps up to 2^50 int64 holds all results


def discrete_gaussian(variance: Fraction | int, n: int, own: Entropy) -> Integers:
    """`n` integers x, each of probability proportional to exp(-x^2 / (2 variance)) (Canonne et al. 2020, algorithm 3).

    `variance` is that parameter, which the variance of the draws is never above. It is from 2^-100 to 2^100, anything
    else is a ValueError. Takes memory for the result and one block.
    """
    variance = _rational(variance, "variance", 100)
    step = math.isqrt(math.floor(variance)) + 1

    def gamma(u: Any, v: Any, square: Any, constant: Any) -> Any:
        return (u + step * v) ** 2 * square - v + constant  # = u / step + (|x| - variance / step)^2 / (2 variance)

    return _two_sided(n, step, Fraction(1), gamma, (1 / (2 * variance), variance / (2 * step**2)), own)


def discrete_laplace(scale: Fraction | int, n: int, own: Entropy) -> Integers:
    """`n` integers x, each of probability proportional to exp(-|x| / scale) (Canonne et al. 2020, algorithm 2).

    `scale` is from 2^-100 to 2^50, anything else is a ValueError. Takes memory for the result and one block.
    """
    scale = _rational(scale, "scale", 50)
    step = max(1, math.floor(scale))
    return _two_sided(n, step, step / scale, _product, (1 / scale,), own)


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
    flat, unit = given.ravel(), Fraction(1, denominator)
    result = np.empty(flat.size, np.bool_)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        result[start : start + part.size] = _below_exp(_halves(part.size, own)[0], _product, (part,), (unit,), own)
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


def _halves(n: int, own: Entropy) -> tuple[Halves, Halves]:
    words = own.words(n)
    return (words >> np.uint64(32)).astype(np.uint32), words.astype(np.uint32)


def _product(u: Any, *others: Any) -> Any:
    return u * others[-1]


class _Uniform:
    """A uniform real number in [0, 1), of which those bits are drawn that it takes; the first 32 are given."""

    __slots__ = ("_bits", "_own", "_size")

    def __init__(self, bits: int, own: Entropy) -> None:
        self._bits, self._size, self._own = bits, 32, own

    def below_exp(self, gamma: Fraction) -> bool:
        """Whether it is below exp(-gamma), which is 1 or irrational: so it never takes bits without end."""
        while (floor := _exp_floor(gamma, self._size)) == self._bits:
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


def _below_exp(
    bits: Halves, gamma: Callable[..., Any], at: tuple[npt.NDArray[Any], ...], exact: tuple[Fraction, ...], own: Entropy
) -> Bools:
    """Which uniform numbers, given by their first 32 bits, are below exp(-gamma(*at, *exact)): `at` are integers for
    each of them. Floats, if they decide, are off by less than 2^-40, and gamma matters up to 23 only.
    """
    rounded = gamma(*(each.astype(np.float64) for each in at), *(float(each) for each in exact))
    with np.errstate(under="ignore"):
        edges = np.exp(-rounded) * 2.0**32
    below: Bools = bits < edges - _MARGIN
    for i in np.flatnonzero(below != (bits < edges + _MARGIN)).tolist():
        below[i] = _Uniform(int(bits[i]), own).below_exp(gamma(*(int(each[i]) for each in at), *exact))
    return below


def _geometric(bits: Halves, rate: Fraction, own: Entropy) -> Integers:
    """For each uniform number, by its first 32 bits, how many of exp(-rate), exp(-2 rate), ... it is below: that is
    k or more with probability exp(-k rate).
    """
    with np.errstate(under="ignore"):  # so many that the last one is below 2^-32
        edges = np.exp(-float(rate) * np.arange(int(32 * math.log(2) / rate) + 1, 0, -1)) * 2.0**32
    below: Integers = edges.size - np.searchsorted(edges - _MARGIN, bits, "right")
    for i in np.flatnonzero(below != edges.size - np.searchsorted(edges + _MARGIN, bits, "right")).tolist():
        uniform, k = _Uniform(int(bits[i]), own), int(below[i])
        while uniform.below_exp((k + 1) * rate):
            k += 1
            if k > _MOST_STEPS:
                raise OverflowError("a draw is so large as none ever is: the words of the entropy are not random")
        below[i] = k
    return below


def _two_sided(
    n: int, step: int, rate: Fraction, gamma: Callable[..., Any], exact: tuple[Fraction, ...], own: Entropy
) -> Integers:
    """`n` integers +-(u + step v), where u is uniform below `step`, v geometric by `rate`, and both are kept with
    probability exp(-gamma(u, v, *exact)).
    """
    result = np.empty(_count(n), np.int64)
    done = 0
    while done < n:
        tries = min(3 * (n - done) + 8, _BLOCK)
        first, second = _halves(tries, own)
        v = _geometric(first, rate, own)
        u = uniform_integers(2 * step, tries, own)
        negative, u = (u & 1).astype(np.bool_), u >> 1
        kept = _below_exp(second, gamma, (u, v), exact, own)
        size = u + step * v
        kept &= ~negative | (size > 0)  # there is one zero, not two
        drawn = np.where(negative, -size, size)[kept][: n - done]
        result[done : done + drawn.size] = drawn
        done += drawn.size
    return result


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
