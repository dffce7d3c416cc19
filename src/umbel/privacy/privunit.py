"""Directions on the unit sphere and lengths, hidden by their holder with little error: PrivUnit2 and ScalarDP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..core.answer import Answer
from ..core.randomness import Draws
from ..core.settings import number
from ..core.transform import register_transform
from ..entropy import Entropy
from ..errors import SettingError, UpdateRejected
from .clipped import grid
from .counts import OwnDraws
from .discrete import Floats, bernoulli_odds
from .local import ROUNDED, LocalNoise, unit_of
from .randomised_response import FINEST, respond

LEAST, MOST = 1e-3, 1e4
"""Between which each share of epsilon lies: beyond it floats do not tell odds apart, or nothing is hidden."""
MARGIN = 1e-6
"""By how much less than its epsilon the odds of a cap are: more than floats err by in the logarithm of its share."""
MOST_LEVELS = 1000
"""So many steps a length is rounded to at most."""
LEAST_DIMENSIONS = 4
"""Fewer are filled up by zeros, which are left out of what is drawn: that changes neither privacy nor the mean."""


@register_transform
@dataclass(frozen=True)
class privunit(LocalNoise):
    """Hide each client's update from the server, too: a random direction near its own, and a random length
    (Bhowmick, Duchi, Freudiger, Kapoor & Rogers 2018, arXiv 1812.00984: PrivUnit2 and ScalarDP).

    One answer is `epsilon`-differentially private, without a delta. The length, of at most `norm`, gets `share` of it,
    the direction the rest. A direction in a cap around the true one is drawn exp(epsilon) times as likely as one beside
    it, and stretched so that the mean is the true one; the cap is that of the least error. A length is rounded at
    random to one of k + 1 levels, of which k-ary randomised response tells one, so that its mean is right, too. Of d
    elements an answer has a squared error of about d / epsilon times `norm` squared: less than `local_gaussian` has.

    Odds are drawn exactly. Directions are computed in double precision, and rounded to a far coarser grid that shows
    nothing of their last bits; the epsilon is proven of real numbers alone.
    """

    name: ClassVar[str] = "privunit"
    epsilon: float
    share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (number(self.share) and 0 < self.share < 1):
            raise SettingError(f"privunit's share is between 0 and 1, not {self.share!r:.60}")
        if not (number(self.epsilon) and min(self.shares) >= LEAST and max(self.shares) <= MOST):
            raise SettingError(
                f"privunit's epsilon is such that each share of it is from {LEAST:g} to {MOST:g}, "
                f"not {self.epsilon!r:.60}"
            )

    @property
    def shares(self) -> tuple[float, float]:
        """The epsilon of the direction, and that of the length."""
        return self.epsilon * (1 - self.share), self.epsilon * self.share

    def step(self, size: int) -> float:
        return grid(self._most(size))

    def randomised(self, values: Floats, own: Entropy) -> Floats:
        unit, peak = unit_of(values)
        size = float(np.linalg.norm(unit)) if peak else 1.0
        direction = np.zeros(max(values.size, LEAST_DIMENSIONS))
        direction[: values.size] = unit / size
        direction[0] += 0.0 if peak else 1.0  # of zeros: whichever, for its length is 0 in the mean
        near, levels = cap(direction.size, self.shares[0]), Levels(self.shares[1])
        drawn = within(direction, near, own)[: values.size]
        told = levels.told(levels.rounded(peak * size / self.norm, own), own)
        return np.rint(drawn * (told * self.norm / near.mean / self.step(values.size)))

    def check_size(self, values: Floats) -> None:
        most = self._most(values.size) * (1 + ROUNDED) + self.step(values.size) * math.sqrt(values.size)
        if not (found := float(np.linalg.norm(values))) <= most:
            raise UpdateRejected(f"the update's norm is {found:.6g}, but {self.name} leaves at most {most:.6g}")

    def _most(self, size: int) -> float:
        """The norm of the longest answer of so many elements."""
        near = cap(max(size, LEAST_DIMENSIONS), self.shares[0])
        return float(np.abs(Levels(self.shares[1]).values).max()) * self.norm / near.mean

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return self._event("pure", 1 / self.epsilon)


class Cap(NamedTuple):
    """The directions whose product with the true one is at least `edge`.

    A uniform one is among them with probability `share`, a drawn one with odds exp(`odds` / `FINEST`); the mean of
    drawn ones is `mean` times the true one.
    """

    edge: float
    share: float
    odds: int
    mean: float


@lru_cache(maxsize=64)
def cap(dimensions: int, epsilon: float) -> Cap:
    """The cap of the least error among those that keep an epsilon.

    With a density on the cap exp(epsilon) times that beside it, a share of q, and A = E[t; t >= edge] of a uniform
    direction's product t, the mean is A (e - 1) / (1 + q (e - 1)), e = exp(epsilon). As A falls by edge where q falls
    by one, it is largest where edge = mean, which happens once, for edge (1 + q (e - 1)) - A (e - 1) grows.
    """
    low, high, over = 0.0, 1 - 2.0**-30, -epsilon - math.log(-math.expm1(-epsilon))  # the logarithm of 1 / (e - 1)
    for _ in range(100):
        edge = (low + high) / 2
        ratio, moment = _beyond(dimensions, edge)
        above = math.log(edge) + float(np.logaddexp(over - moment, ratio)) > 0
        low, high = (low, edge) if above else (edge, high)
    ratio, moment = _beyond(dimensions, low)
    share = math.exp(ratio + moment)
    # A direction in the cap is (p / share) / ((1 - p) / (1 - share)) times as likely as one beside it: these odds of p
    # make that exp(epsilon) at most.
    odds = math.floor((epsilon - MARGIN + ratio + moment - math.log1p(-share)) * FINEST)
    least = math.exp(-odds / FINEST)
    mean = math.exp(-ratio) - least * math.exp(moment) / (1 - share)
    return Cap(low, share, odds, mean / (1 + least))


def _beyond(dimensions: int, edge: float) -> tuple[float, float]:
    """The logarithms of q / A and of A, as in `cap`.

    The product of a uniform direction with another is the sine of an angle of density proportional to its
    cosine^(d - 2), and A is in closed form; q is integrated up to where the cosine's power is below exp(-40).
    """
    cosine = math.sqrt((1 - edge) * (1 + edge))
    tangent, far = edge / cosine, 80 / (dimensions - 2)
    reach = min(far / (tangent + math.sqrt(tangent**2 + far)), math.atan2(cosine, edge))
    nodes, weights = _nodes()
    angles = reach * nodes
    falls = np.log1p(-(2 * np.sin(angles / 2) ** 2 + tangent * np.sin(angles)))
    integral = float(weights @ np.exp((dimensions - 2) * falls)) * reach
    x = (dimensions - 1) / 2
    if x < 50:
        gammas = math.lgamma(x + 0.5) - math.lgamma(x)
    else:  # which would cancel
        gammas = math.log(x) / 2 - 1 / (8 * x) + 1 / (192 * x**3) - 1 / (640 * x**5)
    moment = gammas - math.log(math.pi) / 2 + (dimensions - 1) * math.log(cosine) - math.log(dimensions - 1)
    return math.log(integral * (dimensions - 1) / cosine), moment


@lru_cache(maxsize=1)
def _nodes() -> tuple[Floats, Floats]:
    """Those of Gauss and Legendre, for the interval from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return (nodes + 1) / 2, weights / 2


def within(direction: Floats, near: Cap, own: Entropy) -> Floats:
    """A direction drawn around a unit vector as `near` says (PrivUnit2)."""
    draws, d = OwnDraws(own), direction.size
    inside = bool(bernoulli_odds(near.odds, FINEST, own))
    while True:
        found = draws.normal(d)
        along = float(found @ direction)
        size = float(np.linalg.norm(found))
        if inside and near.share < 0.1:
            product = _beyond_edge(near.edge, (d - 3) / 2, draws)
            break
        product = along / size
        if (product >= near.edge) == inside:
            break
    across = found - along * direction
    across *= math.sqrt((1 - product) * (1 + product)) / float(np.linalg.norm(across))
    return np.asarray(across + product * direction)


def _beyond_edge(edge: float, power: float, draws: Draws) -> float:
    """A number from `edge` to 1 of density proportional to (1 - t^2)^power: its logarithm is concave, so that the
    exponential that touches it at the edge is nowhere below it.
    """
    width = (1 - edge) * (1 + edge)
    rate = 2 * power * edge / width
    while True:
        step, kept = (-np.log1p(-draws.uniform(2))).tolist()
        step /= rate
        if step >= 1 - edge:
            continue
        if -kept <= power * math.log1p(-(2 * edge + step) * step / width) + rate * step:
            return float(edge + step)


class Levels:
    """k + 1 lengths from 0 to 1, of which one is told by k-ary randomised response (ScalarDP); `values` are what stands
    for each, so that the mean is right.
    """

    def __init__(self, epsilon: float) -> None:
        self.k = k = min(math.ceil(math.exp(min(epsilon, 30.0) / 3)), MOST_LEVELS)
        self._epsilon = epsilon
        rare = math.exp(-epsilon)
        self.values: Floats = (np.arange(k + 1, dtype=np.float64) - k * (k + 1) / 2 * rare / (1 + k * rare)) * (
            (1 + k * rare) / (1 - rare) / k
        )

    def rounded(self, length: float, own: Entropy) -> int:
        """One of the two levels beside a length, at random, so that the mean is right; above 1 it counts as 1."""
        at = min(length, 1.0) * self.k
        return min(math.floor(at) + (float(OwnDraws(own).uniform(1)[0]) < at - math.floor(at)), self.k)

    def told(self, level: int, own: Entropy) -> float:
        """What stands for the level, exp(epsilon) times as likely as what stands for each other one."""
        return float(self.values[respond(level, self.k + 1, self._epsilon, own)])
