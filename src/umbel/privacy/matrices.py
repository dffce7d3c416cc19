"""Factorisations of running sums for DP-FTRL, their sensitivity, and the correlated noise that they make.

Of the rounds' sums x a run wants A x, where A is a lower triangle of ones, or of what momentum makes of them. With
A = B C, what is released is B (C x + z) = A x + B z, so that round t releases x_t + (C^-1 z)_t, and all else is made of
that. C hides x as the Gaussian mechanism does, z being of standard deviation multiplier * clip * `sensitivity`. C is
lower triangular, so row t of C x + z is a release with fresh noise z_t, and rounds may depend on what was released
before (Denisov et al. 2022).

All entries of C are whole numbers here. So where x and z are whole (x on a grid, z discrete Gaussian in its units),
C x + z is whole, and the discrete mechanism is exact; over real entries, the fraction of C x + z would tell x. A stream
fed with int64 rounds its noise to whole numbers within the recurrence, c_0 y_t = z_t - sum_j c_j y_{t-j} + r_t, by a
rule that moving y_t by a whole number moves along. Therefore the releases o = x + y obey the same recurrence with
(C x + z)_t in the place of z_t: they are a function of C x + z and of nothing else, and need no further rounding. Fed
with float64 a stream gives real numbers, whose last digits may tell something (Mironov 2012), however they are rounded
later: that is for measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError, StrategyError

Floats = NDArray[np.float64]
Noise = NDArray[np.int64] | NDArray[np.float64]
_GRID = 4096
"""Optimised coefficients are multiples of 1 / 4096: it costs less than 1e-6 of the error (1,000 rounds, 256 bands)."""


@dataclass(frozen=True)
class Factorisation:
    """A = B C for as many rounds as `workload` has entries: A[t, s] = workload[t - s], and C is square and whole."""

    name: ClassVar[str]
    workload: tuple[float, ...]

    @property
    def rounds(self) -> int:
        """The number of rounds, beyond which no noise is made."""
        return len(self.workload)

    def encoder(self) -> Floats:
        """C, as an array of rounds x rounds."""
        raise NotImplementedError

    def decoder(self) -> Floats:
        """B, as an array of rounds x rounds."""
        raise NotImplementedError

    def column_norms(self) -> Floats:
        """The squared norms of C's columns: whole numbers, exact below 2^53."""
        raise NotImplementedError

    @property
    def reach(self) -> int:
        """Columns of C that are so many rounds apart, or more, have no row in common."""
        return self.rounds

    def errors(self, participations: int = 1, separation: int = 1) -> Floats:
        """The variance that each round's running sum A x has for each coordinate, at noise multiplier and clip 1."""
        rows: Floats = np.square(self.decoder()).sum(1)
        return rows * self.sensitivity(participations, separation) ** 2

    def sensitivity(self, participations: int = 1, separation: int = 1) -> float:
        """How far C x moves, in L2 norm, when one client's vectors of norm up to 1 are added or taken away: it is in at
        most so many rounds, any two of them at least `separation` apart. (To replace them moves it up to twice as far.)

        Exact for one participation and where `separation` is at least `reach`: columns without a row in common are
        orthogonal, so that their squared norms add up, to `participations` times the largest where so many of the
        largest fit in. Otherwise an upper bound, of absolute inner products (Choquette-Choo et al. 2023, 2306.08153).
        """
        k = min(_whole("participations", participations), -(-self.rounds // _whole("separation", separation)))
        squares = self.column_norms()
        if k > 1 and separation < self.reach:
            # ||sum_i C_i u_i||^2 <= sum_i sum_j |<C_i, C_j>|: the largest inner sum for each i, then the largest outer.
            inner = np.abs(self.encoder().T @ self.encoder())
            at = np.arange(self.rounds)
            inner[np.abs(at[:, None] - at) < separation] = 0
            squares = squares + _largest(inner, k - 1, separation)
        return math.sqrt(_largest(squares, k, separation))

    def spec(self) -> dict[str, Any]:
        """What the noise depends on, as a plain tree."""
        return {"name": self.name, "rounds": self.rounds}

    def stream(self, state: Mapping[str, Any] | None = None) -> NoiseStream:
        """The noise from the first round on, or from where a stream had come with `state`."""
        return NoiseStream(self, state)

    def correlated(self, past: Sequence[Noise], z: Noise, round: int) -> tuple[Noise, list[Noise]]:
        """Row `round` of C^-1 z, and what the next row needs; `past` is what this one needs."""
        raise NotImplementedError


@dataclass(frozen=True)
class BinaryTree(Factorisation):
    """Binary tree aggregation (Kairouz et al. 2021, 2103.00039), of those nodes alone that some running sum uses.

    Row t of C, counted from 1, sums the last 2^i rounds, 2^i being the largest power of two that divides t; a running
    sum is one of such rows, for each bit of t that is set. Memory: as many vectors as t has bits set.
    """

    name = "tree"

    def encoder(self) -> Floats:
        c = np.zeros((self.rounds, self.rounds))
        for t in range(1, self.rounds + 1):
            c[t - 1, t - (t & -t) : t] = 1
        return c

    def decoder(self) -> Floats:
        b = _triangle(self.workload)
        t = np.arange(1, self.rounds + 1)
        after = t + (t & -t)  # the row of C that takes the place of row t
        t, after = t[after <= self.rounds], after[after <= self.rounds]
        b[:, t - 1] -= b[:, after - 1]  # the right side is a copy, made before
        return b

    def column_norms(self) -> Floats:
        rows = [0.0] * (self.rounds + 1)
        for t in range(self.rounds, 0, -1):
            after = t + (t & -t)
            rows[t] = 1 + (rows[after] if after <= self.rounds else 0)
        return np.array(rows[1:], np.float64)

    def correlated(self, past: Sequence[Noise], z: Noise, round: int) -> tuple[Noise, list[Noise]]:
        replaced = (round ^ (round + 1)).bit_length() - 1  # the bits that are set at the end of `round`
        kept, gone = past[: len(past) - replaced], past[len(past) - replaced :]
        return _less(z, [(1, node) for node in gone]), [*kept, z]


@dataclass(frozen=True)
class BandedToeplitz(Factorisation):
    """C[t, s] = coefficients[t - s], whole numbers; their common factor changes nothing but the unit of z.

    Memory: one vector less than there are coefficients.
    """

    name = "banded"
    coefficients: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        _whole("the first coefficient", self.coefficients[0])
        if len(self.coefficients) > self.rounds:
            raise SettingError(f"{len(self.coefficients)} bands do not fit into {self.rounds} rounds")

    @property
    def reach(self) -> int:
        return len(self.coefficients)

    def encoder(self) -> Floats:
        return _triangle([*self.coefficients, *[0] * (self.rounds - self.reach)])

    def decoder(self) -> Floats:
        return _triangle(_quotient(self.workload, self.coefficients))

    def column_norms(self) -> Floats:
        rows = np.minimum(self.reach, self.rounds - np.arange(self.rounds))
        norms: Floats = np.cumsum(np.square(np.asarray(self.coefficients, np.float64)))[rows - 1]
        return norms

    def errors(self, participations: int = 1, separation: int = 1) -> Floats:
        squares = np.square(_quotient(self.workload, self.coefficients))
        return np.cumsum(squares) * self.sensitivity(participations, separation) ** 2

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "coefficients": list(self.coefficients)}

    def correlated(self, past: Sequence[Noise], z: Noise, round: int) -> tuple[Noise, list[Noise]]:
        first, *others = self.coefficients
        y: Noise = _less(z, [*zip(others, past, strict=False)])  # the first rounds have less behind them
        if y.dtype == np.int64:
            y += first // 2
            y //= first
        else:
            y /= first
        return y, [y, *past][: len(others)]


class NoiseStream:
    """The rounds' noise C^-1 z, one after the other.

    Its `state` is all that is needed to go on with the same bits. It tells the noise, and so with the releases the sums
    themselves: it has to be kept as secret as they are.
    """

    def __init__(self, factorisation: Factorisation, state: Mapping[str, Any] | None = None) -> None:
        self._factorisation = factorisation
        self._round, self._past = 0, list[Noise]()
        if state is not None:
            if state["of"] != factorisation.spec():
                raise StrategyError(
                    f"noise begun by {_short(state['of'])} cannot go on by {_short(factorisation.spec())}",
                    hint="Build the factorisation with the rounds and coefficients that the state names.",
                )
            self._round, self._past = state["round"], list(state["past"])

    @property
    def state(self) -> dict[str, Any]:
        """A plain tree, with which `Factorisation.stream` goes on from here."""
        return {"of": self._factorisation.spec(), "round": self._round, "past": list(self._past)}

    def next(self, z: Noise) -> Noise:
        """This round's noise, of the shape and type of `z`, read-only: whole numbers for int64, real ones for float64.

        `z` is fresh, independent noise (see the module's text). Raises `StrategyError` beyond the last round, for which
        no sensitivity was computed, for another shape or type than before, and where int64 does not suffice.
        """
        if self._round == self._factorisation.rounds:
            raise StrategyError(
                f"the noise was made for {self._round} rounds, which are over", hint="Build it for more rounds."
            )
        if z.dtype not in (np.int64, np.float64):
            raise StrategyError(f"correlated noise is made of int64 or float64, not of {z.dtype}")
        if any((each.shape, each.dtype) != (z.shape, z.dtype) for each in self._past):
            was = self._past[0]
            raise StrategyError(f"the noise was {was.dtype} of shape {was.shape}, and is now {z.dtype} of {z.shape}")
        z = z.copy()
        y, self._past = self._factorisation.correlated(self._past, z, self._round)
        for each in (z, y):  # what is kept must not change, as by adding a sum to it in place
            each.flags.writeable = False
        self._round += 1
        return y


def tree(rounds: int, workload: Sequence[float] | None = None) -> BinaryTree:
    """Binary tree aggregation over so many rounds; `workload` is as in `banded`."""
    return BinaryTree(_workload(rounds, workload))


def banded(
    rounds: int, bands: int, workload: Sequence[float] | None = None, *, error: Literal["mean", "max"] = "mean"
) -> BandedToeplitz:
    """The banded Toeplitz factorisation of least mean or largest squared error over the rounds, for one participation
    or several that are at least `bands` rounds apart (Choquette-Choo et al. 2023, 2306.08153).

    `workload` is A's first column, ones unless given (see `momentum`). One band is independent noise. Starts at the
    workload's square root (Fichtenberger et al. 2023), cut to `bands`, and is no worse than that, both rounded.
    """
    a, bands = _workload(rounds, workload), min(_whole("bands", bands), rounds)
    if error not in ("mean", "max"):
        raise SettingError(f"error is 'mean' or 'max', not {error!r:.60}")
    weights = 1 - np.arange(rounds) / rounds if error == "mean" else np.ones(rounds)
    start = square_root(a)[:bands]
    found = (_on_grid(c) for c in (start, _optimal(start, np.asarray(a), weights)))
    return BandedToeplitz(a, min(found, key=lambda c: _loss(np.asarray(c, np.float64), np.asarray(a), weights)[0]))


def momentum(rounds: int, beta: float) -> tuple[float, ...]:
    """The workload of heavy-ball momentum: t rounds later a round counts 1 + beta + .. + beta^t."""
    return tuple(np.cumsum(beta ** np.arange(_whole("rounds", rounds))).tolist())


def square_root(workload: Sequence[float]) -> Floats:
    """The series whose square is `workload`, divided by its first entry; of ones, binom(2j, j) / 4^j."""
    c = np.ones(len(workload))
    for j in range(1, len(c)):
        c[j] = (workload[j] / workload[0] - np.dot(c[1:j], c[j - 1 : 0 : -1])) / 2
    return c


def _optimal(c: Floats, a: Floats, weights: Floats) -> Floats:
    """BFGS over all coefficients but the first, which stays 1; each step lowers the loss."""
    loss, slope = _loss(c, a, weights)
    inverse = np.eye(len(c))
    for _ in range(500):
        way = -inverse @ slope
        down = float(slope @ way)
        if down > -1e-14:
            break
        step = 1.0
        while not (after := _loss(c + step * way, a, weights))[0] <= loss + 1e-4 * step * down:
            step /= 2  # infinity and NaN, where the inverse grows without bound, are never taken
            if step < 1e-12:
                return c
        moved, turned = step * way, after[1] - slope
        c, (loss, slope) = c + moved, after
        if (curve := float(moved @ turned)) > 0:
            left = np.eye(len(c)) - np.outer(moved, turned) / curve
            inverse = left @ inverse @ left.T + np.outer(moved, moved) / curve
    return c


def _loss(c: Floats, a: Floats, weights: Floats) -> tuple[float, Floats]:
    """The logarithm of ||c||^2 * sum_j weights_j b_j^2 where b = a / c as series, and its slope but for c_0."""
    with np.errstate(all="ignore"):
        b = _quotient(a, c)
        again = _quotient(b, c)
        weighted = weights * b
        squares, error = np.dot(c, c), np.dot(weighted, b)
        lagged = np.array([np.dot(weighted[j:], again[: len(a) - j]) for j in range(len(c))])
        slope = 2 * c / squares - 2 * lagged / error
        slope[0] = 0
        return float(np.log(squares) + np.log(error)), slope


def _quotient(a: Sequence[float] | Floats, c: Sequence[float] | Floats) -> Floats:
    """The series a / c, of as many terms as a has."""
    first, back = c[0], np.asarray(c[:0:-1], np.float64)
    b = np.zeros(len(back) + len(a))
    for t in range(len(a)):
        b[t + len(back)] = (a[t] - np.dot(back, b[t : t + len(back)])) / first
    return b[len(back) :]


def _largest(values: Floats, picks: int, separation: int) -> Any:
    """The largest sums, along the last axis, of at most so many values (none negative) that are so far apart."""
    best = np.zeros_like(values)
    separation = min(separation, values.shape[-1])
    for _ in range(picks):
        earlier = np.zeros_like(values)
        earlier[..., separation:] = best[..., : best.shape[-1] - separation]
        best = np.maximum.accumulate(values + earlier, axis=-1)
    return best[..., -1]


def _less(z: Noise, terms: Sequence[tuple[int, Noise]]) -> Any:
    """z less the sum of factors times vectors; raises `StrategyError` where int64 would not hold it."""
    whole = z.dtype == np.int64
    if whole and _size(z) + sum(abs(c) * _size(each) for c, each in terms) >= 1 << 62:
        raise StrategyError(
            "the noise is too large for whole numbers of 64 bits", hint="Use a coarser grid, or less noise."
        )
    result = z.copy()
    for c, each in terms:
        result -= c * each
    return result


def _size(z: Noise) -> int:
    return max(int(z.max()), -int(z.min())) if z.size else 0


def _triangle(column: Sequence[float] | Floats) -> Floats:
    below = np.subtract.outer(np.arange(len(column)), np.arange(len(column)))
    return np.where(below >= 0, np.asarray(column, np.float64)[np.maximum(below, 0)], 0.0)


def _on_grid(c: Floats) -> tuple[int, ...]:
    whole = np.rint(c * _GRID).astype(np.int64).tolist()
    return tuple(each // math.gcd(*whole) for each in whole)


def _workload(rounds: int, workload: Sequence[float] | None) -> tuple[float, ...]:
    a = (1.0,) * _whole("rounds", rounds) if workload is None else tuple(float(each) for each in workload)
    if len(a) != rounds or not np.isfinite(a).all() or a[0] <= 0:
        raise SettingError(f"a workload has one finite number for each of {rounds} rounds, the first above 0")
    return a


def _whole(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise SettingError(f"{name} has to be a whole number of at least 1, not {value!r:.60}")
    return value


def _short(spec: Any) -> str:
    return f"{spec!r:.200}"
