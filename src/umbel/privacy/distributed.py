"""Distributed noise: every client adds a share of it to its whole numbers before they are masked, so that the server
sees a sum that has noise already. How large the shares are, what is there when clients drop out, and what that costs.

Norms, variances and sensitivities are in steps of the clients' grid. A client hidden by noise is hidden against one
that sends zeros and adds its share all the same: the server sees who is there.

Bounds are of concentrated privacy: rho stands for Renyi divergences of at most rho times their order. Between sums
that differ by whole numbers of L2 norm D2, at most D2^2 elements differ, and so many times D2^2 is at least D1^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from ..core.settings import positive, whole
from ..entropy import SYSTEM, Entropy
from ..errors import SettingError
from .discrete import Integers, discrete_gaussian, skellam
from .release import DISTRIBUTED, ZERO_OUT

FINENESS = 1 << 10
"""A share's variance is a whole number of so many parts of a step squared: rounded up, so that there is no less."""
WIDEST = 64
"""The most bits of a modulus."""


@dataclass(frozen=True)
class DistributedNoise:
    """Noise on a sum of `size` whole numbers of each client, in shares. Raises `SettingError` for what cannot be.

    `mechanism` is ``distributed_gaussian``, shares of discrete Gaussian noise (Kairouz, Liu & Steinke 2021, arXiv
    2102.06387), or ``distributed_skellam``, shares of Skellam noise (Agarwal, Kairouz & Liu 2021, arXiv 2110.04995).
    What one client sends has an L2 norm of at most `norm` steps, rounding included (`rounded_norm`). The shares of
    `sharers` clients together have a standard deviation of ``noise * norm``: set it to how many at least are there and
    do not collude, however many are asked.
    """

    name: ClassVar[str] = "distributed noise"
    mechanism: str
    noise: float
    norm: float
    size: int
    sharers: int

    def __post_init__(self) -> None:
        if self.mechanism not in DISTRIBUTED:
            raise SettingError(f"distributed noise is one of {', '.join(DISTRIBUTED)}, not {self.mechanism!r:.60}")
        positive(self, "noise", "norm")
        whole(self, size=1, sharers=1)
        if self.mechanism == "distributed_gaussian" and self.variance < Fraction(1, 4):
            raise SettingError(
                f"a share of discrete Gaussian noise has a standard deviation of {math.sqrt(self.variance):.3g} steps, "
                "of which no sum is known to hide anything: it takes half a step",
                hint="Take a finer grid, fewer sharers, or distributed_skellam.",
            )

    @property
    def variance(self) -> Fraction:
        """That of one share, in steps squared: the parameter of its distribution."""
        wanted = (Fraction(self.noise) * Fraction(self.norm)) ** 2 / self.sharers
        return Fraction(math.ceil(wanted * FINENESS), FINENESS)

    def share(self, own: Entropy = SYSTEM) -> Integers:
        """One client's share of the noise: an integer for each element."""
        draw = discrete_gaussian if self.mechanism == "distributed_gaussian" else skellam
        return draw(self.variance, self.size, own)

    def noise_left(self, survivors: int, colluding: int = 0) -> float:
        """The standard deviation of the noise over `norm` where so many clients are in the sum, and so many of them may
        tell the server their shares. Whose privacy is at stake tells it nothing: its own share counts.
        """
        return math.sqrt(float(self.variance) * _honest(survivors, colluding)) / self.norm

    def rho(self, survivors: int, colluding: int = 0) -> float:
        """What one answer costs a client, as `gaussian_rho` and `skellam_rho` have it."""
        honest, bound = _honest(survivors, colluding), gaussian_rho if "gaussian" in self.mechanism else skellam_rho
        return bound(self.norm, float(self.variance), honest, self.size)

    def release(self, survivors: int, colluding: int = 0, step: float = 1.0) -> dict[str, Any]:
        """The sum of so many clients as `NoisyRelease` has it, but for how they were sampled and what the sum is
        divided by; one step is `step` of the unit of its norm.
        """
        honest = _honest(survivors, colluding)
        return {
            "mechanism": self.mechanism,
            "unit": "client",
            "neighbours": ZERO_OUT,
            "noise": self.noise_left(survivors, colluding),
            "norm": self.norm * step,
            "steps": math.sqrt(float(self.variance) * honest),
            "shares": honest,
            "size": self.size,
        }

    def modulus_bits(self, clients: int, failure: float = 1e-9) -> int:
        """The bits of a modulus 2^bits with which the sum of so many clients, as a number from -2^(bits - 1) up to
        2^(bits - 1) - 1, wraps in any element with a probability of at most `failure`, whatever they send.

        To wrap costs no privacy. Raises `SettingError` where it would take more than 64 bits.
        """
        most = clients * math.floor(self.norm) + self.largest(clients, failure)
        if (bits := most.bit_length() + 1) > WIDEST:
            raise SettingError(
                f"a sum of {clients:,} clients of norm {self.norm:g} with its noise takes {bits} bits, and {WIDEST} "
                "are there",
                hint="Take a coarser grid.",
            )
        return bits

    def largest(self, clients: int, failure: float) -> int:
        """What no element of the noise of so many clients exceeds in size, but with such a probability at most."""
        if type(clients) is not int or clients < 1 or not 0 < failure < 1:
            raise SettingError(
                f"{clients!r:.60} clients and a probability of failure of {failure!r:.60} are no setting"
            )
        total, far = float(self.variance) * clients, math.log(2 * self.size / failure)
        # The moments of a discrete Gaussian are below those of a continuous one (Canonne, Kamath & Steinke 2020); those
        # of Skellam noise, variance * (cosh(t) - 1) in logarithm, are below variance * t^2 / 2 / (1 - t / 3), so that
        # Bernstein's inequality holds with jumps of 1.
        jump = 0.0 if self.mechanism == "distributed_gaussian" else far / 3
        return math.ceil(jump + math.sqrt(jump * jump + 2 * total * far))


def _honest(survivors: int, colluding: int) -> int:
    if not (type(survivors) is int and type(colluding) is int and 0 <= colluding < survivors):
        raise SettingError(f"of {survivors!r:.60} clients in a sum {colluding!r:.60} cannot collude, and some not")
    return survivors - colluding


def rounded_norm(norm: float, size: int, beta: float = 0.0) -> float:
    """The most that the L2 norm of `size` numbers, `norm` at most, may be after each was rounded to a whole number at
    random, up with the probability of its fraction.

    With a `beta` above 0 it is what that exceeds with a probability of at most beta: rounding is then tried again until
    it does not, which biases it a little (Kairouz, Liu & Steinke 2021, proposition 22).
    """
    most = norm + math.sqrt(size)
    if not beta:
        return most
    spread = math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(size) / 2)
    return min(most, math.sqrt(norm * norm + size / 4 + spread))


def inflation(variance: float, sharers: int) -> float:
    """How far the logarithm of what odds an element of a sum of so many discrete Gaussians, of a variance of at least
    1/4, gives to two results, is from that of one discrete Gaussian: tau of Kairouz, Liu & Steinke 2021.

    Proof: rho_s(x) being exp(-x^2 / 2 s^2), those of a sum of k with one more are rho_(s sqrt(k + 1))(x) times the sum
    of rho_(s sqrt(k / (k + 1))) over a grid moved by x k / (k + 1), which by Poisson's summation formula differs with x
    by a factor of (1 + 2q + ...) / (1 - 2q - ...) at most, q = exp(-2 pi^2 s^2 k / (k + 1)): that is below exp(5q) for
    s of at least 1/2. A sum's odds are off by the product of these at most, once for each of the two results.
    """
    if sharers == 1 or variance < 0.25:
        return 0.0 if sharers == 1 else math.inf
    first = min(sharers - 1, 100)  # of all later ones, none is larger than the next
    odds = [math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, first + 2)]
    return 10 * (math.fsum(odds[:-1]) + (sharers - 1 - first) * odds[-1])


def gaussian_rho(norm: float, variance: float, sharers: int, size: int) -> float:
    """What a sum costs that has so many shares of discrete Gaussian noise, where it moves by at most `norm`.

    Proof: an element that moves by x is within inflation / 2 of one discrete Gaussian's on both sides, which as pure
    privacy is (inflation / 2)^2 / 2 of rho, and that costs x^2 / 2 over the variance of all (Canonne, Kamath & Steinke
    2020). Square roots of rho add up along such a chain (Bun & Steinke 2016), which makes (|x| / deviation +
    inflation)^2 / 2; elements are independent, so that theirs add up, over those that move at all.
    """
    total, moved = variance * sharers, min(size, norm * norm)
    if math.isinf(tau := inflation(variance, sharers)):
        return math.inf
    return (norm / math.sqrt(total) + tau * math.sqrt(moved)) ** 2 / 2


def skellam_rho(norm: float, variance: float, sharers: int, size: int) -> float:
    """What a sum costs that has so many shares of Skellam noise, where it moves by at most `norm`: a bound for whole
    orders alone, from 2 on, of `skellam_divergence`.
    """
    total, far = variance * sharers, norm * math.sqrt(min(size, norm * norm))
    # ((2a - 1) D2^2 + 6 D1) / a is largest for an order a of 2, or without end.
    close = max(2 * norm * norm, 1.5 * norm * norm + 3 * far) / (4 * total * total)
    return norm * norm / (2 * total) + min(close, 3 * far / (4 * total))


def skellam_divergence(order: int, norm: float, variance: float, size: int) -> float:
    """The Renyi divergence, at most, between sums with Skellam noise of this variance, all shares together, that differ
    by at most `norm` (Agarwal, Kairouz & Liu 2021, section 3). `order` is whole, and from 2 on.
    """
    far = norm * math.sqrt(min(size, norm * norm))
    close = ((2 * order - 1) * norm * norm + 6 * far) / (4 * variance * variance)
    return order * norm * norm / (2 * variance) + min(close, 3 * far / (2 * variance))
