"""How much noise a run needs for what may be spent, and what other cohorts and rounds would come to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.settings import positive, whole
from ..errors import SettingError
from .accounting import MOST_NOISE, QUICK, Event, check, epsilon_of, library
from .matrices import banded

LEAST = 0.01
"""The least noise multiplier that is looked for."""
TOLERANCE = 2e-5


@dataclass(frozen=True)
class PrivacyPlan:
    """The least noise with which a run spends at most `epsilon` at `delta`, by an accountant.

    `noise` is the standard deviation of the Gaussian noise on the sum over the clip bound, rounded up to five digits;
    `spent` is the epsilon that it comes to. `cohort` is that of the mean round: each of `population` clients is taken
    with probability `rate`.
    """

    epsilon: float
    delta: float
    rounds: int
    population: int
    cohort: int
    accountant: str
    noise: float
    spent: float

    @property
    def rate(self) -> float:
        """With what probability a client is taken in a round."""
        return self.cohort / self.population

    @property
    def mean_noise(self) -> float:
        """The standard deviation of the noise in each element of the mean, over the clip bound."""
        return self.noise / self.cohort

    def with_same_noise(self, cohort: int, rounds: int) -> float:
        """The epsilon of this noise with another cohort and so many rounds."""
        return epsilon_of(_events(self.noise, cohort / self.population, rounds), self.delta, self.accountant)

    @property
    def assumed(self) -> tuple[str, ...]:
        """What has to be so for the plan to hold, in plain words."""
        rare = () if self.delta * self.population < 1 else (
            f"A delta of {self.delta:g} is much: at {1 / self.population:g} and more, one over the clients, a "
            "mechanism that tells all about some of them would pass.",
        )  # fmt: skip
        return (
            f"Each client is taken by its own throw of the dice, Poisson({self.rate:g}), anew in every round. A fixed "
            "cohort, or whoever is there first, gains nothing by sampling and needs far more noise.",
            "Whoever sees the model or the metrics does not see who was asked, nor the seed that this was drawn with.",
            "Two federations are neighbours where one has one client more (add or remove one): what is hidden is "
            "whether a client takes part at all, with all its data.",
            "The server is trusted: it sees each clipped update, adds the noise, divides by the fixed number "
            f"{self.cohort:,} and not by how many came, and tells nothing else.",
            *rare,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        more = {"rate": self.rate, "mean_noise": self.mean_noise, "neighbours": "add or remove one", "unit": "client"}
        return {**asdict(self), **more, "assumed": list(self.assumed)}


def calibrated(
    epsilon: float, delta: float, rounds: int, population: int, cohort: int, accountant: str = "pld"
) -> PrivacyPlan:
    """The least noise for a budget, as noise multiplier, with Poisson sampling and under "add or remove one"; within a
    hundredth of a per cent.

    Raises `SettingError` for what cannot be, and `CallerError` where dp-accounting is not installed.
    """
    plan = PrivacyPlan(epsilon, delta, rounds, population, cohort, accountant, math.nan, math.nan)
    check(delta, accountant)
    positive(plan, "epsilon")
    whole(plan, rounds=1, population=1, cohort=1)
    if cohort > population:
        raise SettingError(f"a cohort of {cohort:,} cannot be taken from a population of {population:,}")
    guess = _calibrated(plan, QUICK, *_bracket(plan, QUICK, 1.0, 8.0))
    noise = _calibrated(plan, accountant, *_bracket(plan, accountant, guess, 1.1))
    digits = 4 - math.floor(math.log10(noise))
    noise = float(f"{math.ceil(noise * 10.0**digits) / 10.0**digits:.{max(digits, 0)}f}")
    return replace(plan, noise=noise, spent=replace(plan, noise=noise).with_same_noise(cohort, rounds))


def tradeoff(plan: PrivacyPlan, cohorts: Iterable[int] = (), rounds: Iterable[int] = ()) -> list[PrivacyPlan]:
    """Plans for the same budget: one for each other cohort, then one for each other number of rounds."""
    others = [replace(plan, cohort=cohort) for cohort in cohorts] + [replace(plan, rounds=n) for n in rounds]
    return [calibrated(p.epsilon, p.delta, p.rounds, p.population, p.cohort, p.accountant) for p in others]


def correlated(plan: PrivacyPlan, separation: int) -> dict[str, Any]:
    """The least `noise` with which `dp_ftrl` keeps to a plan's budget where clients wait so many rounds, with as many
    `bands`; `model_noise` is the standard deviation that it leaves in each element of the model, over the clip bound,
    in the mean round, and `sampled` that of the plan's own noise.

    Raises `SettingError` where there are too few clients for that.
    """
    bands = min(separation, plan.rounds)
    if plan.cohort * bands > plan.population:
        raise SettingError(
            f"{plan.cohort:,} clients in a round that then wait for {bands:,} rounds cannot be had of "
            f"{plan.population:,}",
            hint="Ask fewer at a time, or sooner again.",
        )
    # All rounds are one release, and nobody is sampled.
    one = calibrated(plan.epsilon, plan.delta, 1, plan.cohort, plan.cohort, plan.accountant)
    left = math.sqrt(float(banded(plan.rounds, bands).errors(plan.rounds, bands).mean()))
    return {
        "noise": one.noise,
        "spent": one.spent,
        "separation": separation,
        "bands": bands,
        "model_noise": one.mean_noise * left,
        "sampled": plan.mean_noise * math.sqrt((plan.rounds + 1) / 2),
    }


def around(value: int, factors: Iterable[float], most: float = math.inf) -> list[int]:
    """A number times each of these factors, as whole numbers from 1 on and up to `most`, each once."""
    return sorted({max(1, round(value * factor)) for factor in factors if round(value * factor) <= most})


def _events(noise: float, rate: float, rounds: int) -> Counter[Event]:
    event = ("poisson gaussian", rate, noise) if rate < 1 else ("gaussian", noise)
    return Counter({event: rounds} if rounds else {})


def _epsilon(plan: PrivacyPlan, accountant: str) -> Callable[[float], float]:
    """The epsilon of a plan by the logarithm of its noise."""
    return lambda log: epsilon_of(_events(math.exp(log), plan.rate, plan.rounds), plan.delta, accountant)


def _bracket(plan: PrivacyPlan, accountant: str, guess: float, factor: float) -> tuple[float, float]:
    """Two logarithms of noise, of which the first spends more than the budget and the second does not."""
    epsilon, high, step = _epsilon(plan, accountant), math.log(guess), math.log(factor)
    while epsilon(high) > plan.epsilon:
        if high > math.log(MOST_NOISE):
            raise SettingError(f"no noise is enough for an epsilon of {plan.epsilon:g}")
        high += step
    low = high - step
    while low > math.log(LEAST) and epsilon(low) <= plan.epsilon:
        low, high = low - step, low
    return low, high


def _calibrated(plan: PrivacyPlan, accountant: str, low: float, high: float) -> float:
    if low <= math.log(LEAST):
        return math.exp(high)
    dp = library()
    log = dp.calibrate_dp_mechanism(
        lambda: _Accountant(_epsilon(plan, accountant), dp.NoOpDpEvent()),
        lambda log: log,
        plan.epsilon,
        plan.delta,
        dp.ExplicitBracketInterval(low, high),
        tol=TOLERANCE,
    )
    return math.exp(log)


@dataclass
class _Accountant:
    """For the library's calibration: an accountant whose events are parameters."""

    epsilon: Callable[[float], float]
    ledger: Any
    log: float = math.nan

    def compose(self, log: float) -> _Accountant:
        self.log = log
        return self

    def get_epsilon(self, delta: float) -> float:
        return self.epsilon(self.log)
