"""Keys derived from one seed, and draws that any language can reproduce to the last bit.

Everything below is exact: integers wrap modulo 2^64, real numbers are IEEE 754 doubles, each operation is rounded on
its own (no fused multiply-add), and logarithms are our own series. numpy itself guarantees no stream across its
versions; only Philox's words come from it.

**Keys** are 32 bytes. `B(size, key, message)` is BLAKE2b (RFC 7693), unsalted, with that digest size in bytes. A list
of parts is encoded as the concatenation of, for each part, a letter, the number of bytes in decimal, a colon, and the
bytes: `i` for an integer (decimal digits, `-` before a negative one), `s` for text (UTF-8, not normalised), `b` for
bytes. So `("train", 7)` is ``s5:traini1:7``.

- `Key.from_seed(seed)` is B(32, no key, ``seed/1:`` + encoding of the seed as one part)
- `key.derive(*parts)` is B(32, key, ``derive/1:`` + encoding of the parts)
- `key.integer(bits)` is the low bits of B(64, key, ``integer/1:``) read as a little-endian integer
- `key.draws()` is keyed with B(16, key, ``draws/1:``), and `key.generator()` with B(16, key, ``generator/1:``)

**Words** are the outputs of Philox4x64-10 (Salmon, Moraes, Dror & Shaw 2011). Its key is those 16 bytes as two
little-endian words. Block 0, 1, 2, ... has the counter (block + 1, 0, 0, 0) and gives four words, used in order.
`Draws` is one stream: each call takes the next words, the rest of a block is kept for the next call, and `words(3)`
then `words(5)` is `words(8)`. Below, w is a word, // rounds down, and u is an open uniform.

- uniform: (w // 2^11) * 2^-53, one word each; open uniform: (w // 2^12 + 0.5) * 2^-52, which is never 0 or 1
- integers below `bound`: w mod bound if w < (2^64 // bound) * bound; otherwise the word is skipped, the next one tried
- normal: the inverse normal distribution at u by AS 241, PPND16 (Wichura 1988), one word each; polynomials by Horner's
  rule, and in the middle q * N(r) / D(r) from the left
- permutation: the indices in ascending order of one word each, the lower index first where words are equal
- sample: where 2k > population, the first k of `permutation(population)`; else integers below `population`, keeping
  values that are new, until k are kept
- bernoulli: from index 0, skip floor(log(u) / log(1 - p)) indices, take the index arrived at, go on with the next one;
  the word that leads past the end is the last one used. For p = 0 and p = 1 no words are used
- weighted: the k largest log(u) / (w_i / max w), the largest first, the lower index first where equal (Efraimidis &
  Spirakis 2006); one word for each weight, zeros included

log(x): write x = m * 2^e with sqrt(1/2) <= m < sqrt(2) and s = (m - 1) / (m + 1). It is e * H + (e * L + T(s)), where H
and L are `_LN2_HIGH` and `_LN2_LOW`, T(s) = 2s * P(s * s), and P has the coefficients 1, 1/3, ..., 1/21, by Horner's
rule. log(1 - p) is the log of the rounded 1 - p where p > 1/4, and otherwise -T(p / (2 - p)). The error is below four
units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from numpy.random import Generator, Philox

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_BLOCK = 1 << 14  # values worked on at a time: a block and its temporaries stay in the cache
_SERIES = tuple(1.0 / (2 * j + 1) for j in range(11))
_SQRT_HALF = 0.7071067811865476
_LN2_HIGH = 6.93147180369123816490e-01  # 32 zero bits at the end: e * _LN2_HIGH is exact
_LN2_LOW = 1.90821492927058770002e-10


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """A secret of 32 bytes from which independent keys and streams of draws derive.

    Whoever holds a key can compute all that derives from it, and nothing of what it derives from: a client gets a key
    of its own, and the run's seed stays with the run. A key is for one purpose: `draws()` starts the same stream each
    time. `repr` shows no secret.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != 32:
            raise ValueError("a key is made of just 32 bytes; use Key.from_seed(seed) to make one from a number")

    def __repr__(self) -> str:
        return "Key(<secret>)"

    @classmethod
    def from_seed(cls, seed: int) -> Key:
        """The key of a seed, which is any integer; take a random one of 128 bits where nobody may guess it."""
        return cls(blake2b(b"seed/1:" + _encode((index(_not_bool(seed)),)), digest_size=32).digest())

    def derive(self, *parts: str | int | bytes) -> Key:
        """The key that these parts name: any difference in a part, its type, order or number gives an unrelated key."""
        if not parts:
            raise ValueError("derive needs at least one part, such as a purpose and a round: key.derive('cohort', 3)")
        return Key(blake2b(b"derive/1:" + _encode(parts), digest_size=32, key=self.raw).digest())

    def deriving(self, *parts: str | int | bytes) -> Callable[[str | int | bytes], Key]:
        """What gives `derive(*parts, last)` for each last part; faster where there are many."""
        begun = blake2b(b"derive/1:" + _encode(parts), digest_size=32, key=self.raw)

        def derived(last: str | int | bytes) -> Key:
            hashed = begun.copy()
            hashed.update(_encode((last,)))
            return Key(hashed.digest())

        return derived

    def integer(self, bits: int = 64) -> int:
        """An integer of `bits` bits (1 to 512) to seed another generator with; fewer bits are the low bits of more."""
        if not 1 <= bits <= 512:
            raise ValueError(f"a key gives integers of 1 to 512 bits, not {bits}")
        digest = blake2b(b"integer/1:", digest_size=64, key=self.raw).digest()
        return int.from_bytes(digest, "little") & ((1 << bits) - 1)

    def draws(self) -> Draws:
        """The key's stream of draws, from its start."""
        return Draws(self)

    def generator(self) -> Generator:
        """A numpy generator over Philox, for convenience.

        Its words are fixed; how numpy maps them to normals, integers and so on may change with any version of numpy.
        """
        from numpy.random import Generator

        return Generator(_philox(self, b"generator/1:"))

    def hex(self) -> str:
        """The secret as 64 hexadecimal digits; `Key(bytes.fromhex(text))` is its inverse."""
        return self.raw.hex()


class Draws:
    """A stream of draws from a key.

    Each call uses the next words, in the way that the module's text defines. Threads must not share one stream.
    """

    __slots__ = ("_philox", "_unread")

    def __init__(self, key: Key) -> None:
        self._philox = _philox(key, b"draws/1:")
        self._unread: Words = np.empty(0, np.uint64)

    def words(self, n: int) -> Words:
        """The next `n` words of 64 random bits."""
        n = _count(n, "n")
        kept = self._unread[:n]
        self._unread = self._unread[n:]
        if not kept.size:
            words: Words = self._philox.random_raw(n)
            return words
        return np.concatenate((kept, self._philox.random_raw(n - kept.size)))

    def uniform(self, n: int) -> Floats:
        """`n` multiples of 2^-53, uniform in [0, 1)."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, bound: int, n: int) -> Indices:
        """`n` integers uniform in [0, bound), without bias, for bounds from 1 to 2^63."""
        bound, n = index(bound), _count(n, "n")
        if not 1 <= bound <= 1 << 63:
            raise ValueError(f"bound must be between 1 and 2**63, not {bound}")
        largest = np.uint64((1 << 64) // bound * bound - 1)
        kept = self.words(n)
        kept = kept[kept <= largest]
        while kept.size < n:
            more = self.words(n - kept.size)
            kept = np.concatenate((kept, more[more <= largest]))
        return (kept % np.uint64(bound)).astype(np.int64)

    def normal(self, n: int) -> Floats:
        """`n` standard normal values, of magnitude up to 8.2 and with a relative error of the quantile below 1e-15."""
        result = np.empty(_count(n, "n"))
        for part in _blocks(result.size):
            result[part] = _normal_quantile(self._open(part.stop - part.start))
        return result

    def permutation(self, n: int) -> Indices:
        """The integers below `n` in random order (two equal words, of odds below n^2 / 2^65, would order by index)."""
        words = self.words(n)
        order = np.argsort(words)
        ranked = words[order]
        if (ranked[1:] == ranked[:-1]).any():
            order = np.argsort(words, kind="stable")
        return order.astype(np.int64, copy=False)

    def sample(self, population: int, k: int) -> Indices:
        """`k` different integers below `population` (at most 2^63), in random order.

        Takes O(k log k) time and O(k) memory, however large the population.
        """
        population, k = _count(population, "population"), _count(k, "k")
        if k > population:
            raise ValueError(f"cannot take {k} different values out of {population}")
        if 2 * k > population:
            return self.permutation(population)[:k].copy()
        taken = [np.empty(0, np.int64)]
        runs: list[Indices] = []  # what is taken, each run sorted; they shrink geometrically, so their number is small
        missing = k
        while missing:
            drawn = self.integers(population, missing)
            values, first = np.unique(drawn, return_index=True)
            for run in runs:
                new = run[np.minimum(np.searchsorted(run, values), run.size - 1)] != values
                values, first = values[new], first[new]
            if values.size:
                runs.append(values)
                taken.append(drawn[np.sort(first)])
                missing -= values.size
        return np.concatenate(taken)

    def bernoulli(self, p: float, population: int) -> Indices:
        """The indices below `population` (at most 2^53), each taken independently with probability `p`, ascending.

        Takes O(p * population) time and memory. The probability of each index is `p` to within about 1e-15: what
        skipping by 52 random bits can resolve.
        """
        population = _count(population, "population")
        if not 0.0 <= p <= 1.0 or population > 1 << 53:
            raise ValueError(f"needs p in [0, 1] and a population of at most 2**53, not p={p} and {population}")
        if p == 0.0:
            return np.empty(0, np.int64)
        if p == 1.0:
            return np.arange(population, dtype=np.int64)
        log_miss = _log_of_one_minus(float(p))
        found: list[Indices] = []
        start = 0
        while True:
            left = population - start
            batch = min(int(left * p + 3.0 * math.sqrt(left * p)) + 8, 1 << 20)
            words = self.words(batch)
            with np.errstate(over="ignore", divide="ignore"):  # a p near 0 skips past any end
                skips = np.minimum(np.floor(_log(_open_uniform(words)) / log_miss), left)
            at = np.cumsum(skips.astype(np.int64) + 1) + (start - 1)
            inside = int(np.searchsorted(at, population))
            found.append(at[:inside])
            if inside < batch:
                self._unread = np.concatenate((words[inside + 1 :], self._unread))
                return np.concatenate(found)
            start = int(at[-1]) + 1

    def weighted(self, weights: npt.ArrayLike, k: int) -> Indices:
        """`k` different indices, drawn one after the other with odds proportional to the weights that are left.

        The order is that of drawing. Weights are finite and not negative; an index of weight zero is never drawn, and
        fewer than `k` positive weights are a ValueError. Weights below about 1e-300 of the largest count as equal.
        """
        given, k = np.asarray(weights, dtype=np.float64), _count(k, "k")
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any():
            raise ValueError("weights must be one row of finite numbers that are not negative")
        candidates = np.flatnonzero(given)
        if k > candidates.size:
            raise ValueError(f"cannot take {k} indices: only {candidates.size} of {given.size} weights are positive")
        largest = given.max(initial=0.0)
        scores = np.empty(given.size)
        for part in _blocks(given.size):
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                scores[part] = _log(self._open(part.stop - part.start)) / (given[part] / largest)
        scores = scores[candidates]
        if 0 < k < scores.size:
            best = scores >= np.partition(scores, scores.size - k)[scores.size - k]
            candidates, scores = candidates[best], scores[best]
        return candidates[np.argsort(-scores, kind="stable")[:k]].astype(np.int64, copy=False)

    def _open(self, n: int) -> Floats:
        return _open_uniform(self.words(n))


def normals(words: Words) -> Floats:
    """A standard normal value of each word, as `Draws.normal` makes them."""
    result = np.empty(words.size)
    for part in _blocks(words.size):
        result[part] = _normal_quantile(_open_uniform(words[part]))
    return result


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        raise TypeError("True and False name nothing here: use a word or a number")
    return value


def _count(value: int, name: str) -> int:
    value = index(value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, not {value}")
    return value


def _encode(parts: tuple[str | int | bytes, ...]) -> bytes:
    encoded = b""
    for part in parts:
        if isinstance(part, int | np.integer):
            data = b"%d" % (part if type(part) is int else _not_bool(part))
            encoded += b"i%d:%b" % (len(data), data)
        elif isinstance(part, str):
            data = part.encode()
            encoded += b"s%d:%b" % (len(data), data)
        elif isinstance(part, bytes):
            encoded += b"b%d:%b" % (len(part), part)
        else:
            _not_bool(part)
            raise TypeError(f"a key derives from text, integers and bytes, not from {type(part).__name__}")
    return encoded


def _philox(key: Key, label: bytes) -> Philox:
    from numpy.random import Philox

    digest = blake2b(label, digest_size=16, key=key.raw).digest()
    return Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64), counter=0)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def _open_uniform(words: Words) -> Floats:
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _horner(coefficients: tuple[float, ...], x: Floats) -> Floats:
    """The polynomial with these coefficients, the constant first."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result


def _twice_artanh(s: Floats) -> Floats:
    return 2.0 * s * _horner(_SERIES, s * s)


def _log(x: Floats) -> Floats:
    """The natural logarithm of positive numbers, by operations that every machine rounds alike."""
    # np.log and the C library choose code by processor, and differ in the last bit.
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    e = (exponent - low).astype(np.float64)
    tail = _twice_artanh((mantissa - 1.0) / (mantissa + 1.0))
    result: Floats = e * _LN2_HIGH + (e * _LN2_LOW + tail)
    return result


def _log_of_one_minus(p: float) -> float:
    if p > 0.25:
        return float(_log(np.array([1.0 - p]))[0])
    return -float(_twice_artanh(np.array([p / (2.0 - p)]))[0])


def _normal_quantile(u: Floats) -> Floats:
    """AS 241, PPND16: three ratios of polynomials, for the middle, the tails and the far tails."""
    q = u - 0.5
    near = np.maximum(0.180625 - q * q, 0.0)
    result = q * _horner(_MIDDLE[0], near) / _horner(_MIDDLE[1], near)
    outside = np.flatnonzero(np.abs(q) > 0.425)
    tail = u[outside]
    r = np.sqrt(-_log(np.minimum(tail, 1.0 - tail)))
    value = _horner(_TAIL[0], r - 1.6) / _horner(_TAIL[1], r - 1.6)
    far = np.flatnonzero(r > 5.0)
    if far.size:
        beyond = r[far] - 5.0
        value[far] = _horner(_FAR_TAIL[0], beyond) / _horner(_FAR_TAIL[1], beyond)
    result[outside] = np.copysign(value, q[outside])
    return result


# fmt: off
_MIDDLE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)
_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)
_FAR_TAIL = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)
# fmt: on
