"""What noisy releases cost in privacy, all together: epsilon at a delta, by the library dp-accounting.

Amplification by sampling is counted only where the sampling was what the theorem is about. Where it was not, what
holds without it is counted instead, and said.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import CallerError, SettingError
from .distributed import gaussian_rho, inflation, skellam_rho
from .release import ADD_OR_REMOVE, DISTRIBUTED, GAUSSIAN, REPLACE, ZERO_OUT, NoisyRelease

ACCOUNTANTS = ("pld", "rdp")

Event = tuple[Any, ...]
"""A release as an accountant sees it: its kind, and numbers; noise relative to what can change between neighbours."""

ROUNDING = 2.0
"""What a discrete Gaussian of s steps, s above this, may stand behind: a continuous one of sqrt(s^2 - ROUNDING^2).

Proof: draw y from the continuous one around an integer, and then an integer n with odds proportional to
exp(-(n - y)^2 / 2r^2), r = ROUNDING. By Poisson's summation formula those odds sum to r sqrt(2 pi) (1 +- 2e^(-2 pi^2
r^2)) for every y, so n has the odds of a discrete Gaussian of variance s^2 up to a factor of 1 +- 3e-34. So it is
post-processing of a continuous one, sampled or not, in any composition; over 10^15 elements and rounds the factor
stays within 1 +- 1e-18, which is beyond the digits of an epsilon.
"""

NEGLIGIBLE = 1e-18
"""Odds that are off by so much, in logarithm and in all elements together, are off beyond the digits of an epsilon."""
FINEST = 1e-4
LEAST_NOISE, LEAST_LAPLACE, MOST_NOISE = 1e-6, 1e-2, 1e9
"""Less noise counts as none, and more as this, so that no square of it overflows."""
VAST = 500.0
"""Losses above this are too large for privacy loss distributions in floating point: Renyi divergences bound them."""
QUICK = "quick"
"""An accountant of few orders of Renyi divergences: a bound to begin with."""
WHOLE_ORDERS = (*range(2, 65), 96, 128, 192, 256, 512, 1024)
"""Those at which what is known of Skellam noise holds."""
QUICK_ORDERS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True)
class PrivacySpent:
    """What releases cost together: (`epsilon`, `delta`)-differential privacy of a `unit` under a neighbouring relation.

    `epsilon` is an upper bound, and infinite where nothing holds. `sampling` are the kinds of sampling, in words, and
    whether each was counted; `why` says what was counted instead, and on what condition. Without releases `unit` and
    `neighbours` are None.
    """

    epsilon: float
    delta: float
    accountant: str
    unit: str | None
    neighbours: str | None
    sampling: tuple[str, ...]
    releases: int
    why: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: an infinite epsilon is None."""
        found = {**asdict(self), "sampling": list(self.sampling), "why": list(self.why)}
        return {**found, "epsilon": self.epsilon if math.isfinite(self.epsilon) else None}


def spent(releases: Iterable[NoisyRelease], delta: float, accountant: str = "pld") -> PrivacySpent:
    """What releases cost, whatever their order; each may depend on what those before it gave.

    `accountant` is ``pld`` (privacy loss distributions, tight; of an epsilon in the hundreds Renyi divergences) or
    ``rdp`` (Renyi divergences, looser, and quicker).
    Raises `SettingError` for releases of several units or neighbouring relations, whose costs do not add up, and
    `CallerError` where dp-accounting is not installed.
    """
    check(delta, accountant)
    listed = [*releases]
    for name in ("unit", "neighbours"):
        if len(found := {getattr(each, name) for each in listed}) > 1:
            raise SettingError(
                f"the releases have several {name}: {', '.join(sorted(found))}",
                hint="What they cost does not add up: account each kind by itself.",
            )
    events: Counter[Event] = Counter()
    streams: dict[str, Event] = {}
    sampling, why = set(), set()
    for release in listed:
        seen = _Seen(release, accountant)
        if release.stream is None:
            events[seen.event] += 1
        else:  # one event, with the least noise that was told of it; none at all has no number
            least = min(streams.get(release.stream, seen.event), seen.event, key=lambda event: event[1:])
            streams[release.stream] = least
        sampling.add(seen.sampling)
        why.update(seen.why)
    events.update(streams.values())
    first = listed[0] if listed else None
    return PrivacySpent(
        epsilon_of(events, delta, accountant),
        delta,
        accountant,
        first.unit if first else None,
        first.neighbours if first else None,
        tuple(sorted(sampling)),
        len(listed),
        tuple(sorted(why)),
    )


def against_zeros(releases: Iterable[NoisyRelease]) -> list[NoisyRelease]:
    """The same releases as they hide a client whose answers become zeros, whatever their neighbours are: so what they
    cost adds up. Neither holds less: zeros move a sum by no more than one that is removed, and are what one may be
    replaced by.
    """
    return [*map(_against_zeros, releases)]


def _against_zeros(release: NoisyRelease) -> NoisyRelease:
    pure, kind = release.mechanism == "pure", release.sampling["kind"]
    if release.neighbours == ADD_OR_REMOVE:  # of no sum it is two steps: to none, and from that to zeros
        return replace(release, neighbours=ZERO_OUT, noise=release.noise / 2 if pure else release.noise)
    if release.neighbours == REPLACE and kind == "poisson":  # of which nothing is counted there
        why = "by the dice, whose gain is not counted where one is replaced"
        return replace(release, neighbours=ZERO_OUT, sampling={"kind": "unknown", "why": why})
    return replace(release, neighbours=ZERO_OUT)


def to_outsiders(releases: Iterable[NoisyRelease]) -> list[NoisyRelease]:
    """The same releases as they hide a client from whoever gets them, and does not see who was asked, as the server
    does: what sampling gains counts of distributed Gaussian noise there, too, where it is as good as central noise.
    """
    return [*map(_to_outsiders, releases)]


def _to_outsiders(release: NoisyRelease) -> NoisyRelease:
    if release.mechanism != "distributed_gaussian" or not _as_one(release):
        return release
    return replace(release, mechanism="discrete_gaussian", shares=None, size=None)


def _as_one(release: NoisyRelease) -> bool:
    """Whether shares of discrete Gaussian noise make one, beyond all digits."""
    steps, shares, size = release.steps or 0.0, release.shares or 1, release.size or 1
    return inflation(steps**2 / shares, shares) * size <= NEGLIGIBLE


def epsilon_curve(
    releases: Sequence[NoisyRelease], delta: float, accountant: str = "pld", at: Iterable[int] | None = None
) -> list[tuple[int, float]]:
    """The epsilon of the first n releases, for each n of `at`: by default about twelve, up to all of them."""
    count = len(releases)
    wanted = sorted({*at} if at is not None else {*range(0, count, max(1, count // 12)), count})
    return [(n, spent(releases[:n], delta, accountant).epsilon) for n in wanted]


def check(delta: float, accountant: str) -> None:
    """Raise `SettingError` for a delta that is no probability strictly between 0 and 1, or an unknown accountant."""
    if not isinstance(delta, int | float) or not 0 < delta < 1:
        raise SettingError(
            f"delta is above 0 and below 1, not {delta!r:.60}", hint="Well below one over the number of clients."
        )
    if accountant not in ACCOUNTANTS:
        raise SettingError(f"an accountant is one of {', '.join(ACCOUNTANTS)}, not {accountant!r:.60}")


class _Seen:
    """How one accountant sees a release: `event`, `sampling` in words, and `why`, sentences on what it leaves out."""

    def __init__(self, release: NoisyRelease, accountant: str) -> None:
        self.release, self.accountant = release, accountant
        self.why: list[str] = []
        kind = release.sampling["kind"]
        self.counted = {"poisson": self._poisson, "fixed": self._fixed}.get(kind, lambda: False)()
        if release.stream is not None:
            self.counted, self.why = False, [
                "what is told with correlated noise counts once, and as a whole, however many answers there are; what "
                "sampling gains is not counted of it"
            ]  # fmt: skip
        if release.mechanism in DISTRIBUTED and kind in ("poisson", "fixed"):
            self.counted, self.why = False, [
                "what sampling gains is not counted of distributed noise, for the server, from which it hides, sees "
                "who was asked"
            ]  # fmt: skip
        self.event = self._event()
        words = {
            "poisson": "Poisson({rate:g})",
            "fixed": "{count:,} of {of:,}, each set equally likely",
            "unknown": "unknown: {why}",
            "everyone": "everyone",
        }[kind].format(**release.sampling)
        self.sampling = words if kind == "everyone" else f"{words}: {'' if self.counted else 'not '}counted"

    def _poisson(self) -> bool:
        """Whether what Poisson sampling gains is proven."""
        if self.release.neighbours == REPLACE:
            self.why.append("what Poisson sampling gains is not counted where one is replaced")
            return False
        if self.release.denominator is None:
            self.why.append("what Poisson sampling gains is not counted where it is told how many came")
            return False
        return True

    def _fixed(self) -> bool:
        """Whether what sampling without replacement gains is counted (Wang, Balle & Kasiviswanathan 2019)."""
        if self.release.neighbours == REPLACE and self.accountant == "rdp" and self.release.mechanism in GAUSSIAN:
            return True
        self.why.append(
            "what cohorts of a fixed size gain is not counted: only the accountant rdp knows it, of Gaussian noise and "
            "where one is replaced"
        )
        return False

    def _event(self) -> Event:
        release = self.release
        if release.denominator is None and release.neighbours == ADD_OR_REMOVE:
            self.why.append("how many came is told as it is, which shows whether one was added: nothing holds")
            return ("nothing",)
        noise, kind = release.noise / self._change(), release.mechanism
        if release.mechanism == "discrete_gaussian":
            noise = self._continuous(noise)
        if release.mechanism in DISTRIBUTED:
            kind, noise = self._shared(noise)
        if noise < (LEAST_LAPLACE if release.mechanism in ("laplace", "pure") else LEAST_NOISE):
            self.why.append("a release has next to no noise: nothing holds")
            return ("nothing",)
        noise = min(noise, MOST_NOISE)
        if release.mechanism in DISTRIBUTED:
            return (kind, noise)
        if release.mechanism in GAUSSIAN:
            return self._sampled("gaussian", noise)
        if release.mechanism == "laplace":
            return self._sampled("laplace", noise)
        return ("pure", _sampled_pure(release.sampling["rate"], 1 / noise) if self.counted else 1 / noise)

    def _change(self) -> float:
        """How many times `norm` the sum can change between neighbours."""
        release = self.release
        if release.sampling["kind"] == "unknown":
            self.why.append("it holds if nobody's data decide who takes part")
        if release.neighbours == REPLACE:
            return 1.0 if release.mechanism == "pure" else 2.0  # of a pure one the noise stands for its own neighbours
        if release.neighbours == ADD_OR_REMOVE and release.sampling["kind"] in ("fixed", "unknown"):
            self.why.append("who is added may take another's place, so that the sum changes by twice the bound")
            return 2.0
        return 1.0

    def _continuous(self, noise: float) -> float:
        """The noise of a continuous Gaussian that a discrete one stands behind."""
        steps = self.release.steps or 0.0
        if self.accountant == "rdp" and not self.counted:
            return noise  # no larger Renyi divergences than a continuous one: Canonne, Kamath & Steinke 2020
        if steps > ROUNDING:
            return noise * math.sqrt(1 - (ROUNDING / steps) ** 2)
        self.counted = False
        self.why.append(
            f"discrete noise of {steps:g} steps of its grid counts by Renyi divergences only, and without sampling"
        )
        return noise if self.accountant == "rdp" else 0.0

    def _shared(self, noise: float) -> tuple[str, float]:
        """The noise of a continuous Gaussian that shares are as good as, and whether by Renyi divergences alone."""
        release, gaussian = self.release, self.release.mechanism == "distributed_gaussian"
        steps, shares, size = release.steps or 0.0, release.shares or 1, release.size or 1
        if gaussian and _as_one(release) and (steps > ROUNDING or self.accountant == "rdp"):
            return "gaussian", self._continuous(noise)
        if self.accountant == "pld":
            self.why.append("distributed noise of so few steps, and Skellam noise, counts by Renyi divergences only")
        if not (noise and steps):
            return "concentrated", 0.0
        rho = (gaussian_rho if gaussian else skellam_rho)(steps / noise, steps**2 / shares, shares, size)
        return "concentrated", 1 / math.sqrt(2 * rho)

    def _sampled(self, kind: str, noise: float) -> Event:
        sampling = self.release.sampling
        if not self.counted or sampling.get("rate") == 1:
            return (kind, noise)
        if sampling["kind"] == "fixed":
            return ("fixed", sampling["count"], sampling["of"], min(noise, 1e6))  # more is beyond the library's digits
        return (f"poisson {kind}", sampling["rate"], noise)


def _sampled_pure(rate: float, epsilon: float) -> float:
    """Of a mechanism that is epsilon-private by itself, with Poisson sampling: Balle, Barthe & Gaboardi 2018."""
    return math.log1p(rate * math.expm1(epsilon))


def event_of(release: NoisyRelease, accountant: str = "pld") -> Event:
    """A release as an accountant sees it."""
    return _Seen(release, accountant).event


def epsilon_of(events: Mapping[Event, int], delta: float, accountant: str) -> float:
    """The epsilon of events, each so many times, by one accountant."""
    if not events:
        return 0.0
    if ("nothing",) in events:
        return math.inf
    return _epsilon(tuple(_merged(events)), delta, accountant)


def _merged(events: Mapping[Event, int]) -> Iterator[tuple[Event, int]]:
    """The events in an order of their own; Gaussian noise without sampling as one event, which it amounts to."""
    shares = [count / event[1] / event[1] for event, count in events.items() if event[0] == "gaussian"]
    if shares:
        yield ("gaussian", 1 / math.sqrt(math.fsum(shares))), 1
    yield from sorted((event, count) for event, count in events.items() if event[0] != "gaussian")


@lru_cache(maxsize=256)
def _epsilon(events: tuple[tuple[Event, int], ...], delta: float, accountant: str) -> float:
    """Of merged events; what was found is kept, for calibration comes back to it."""
    with _quiet():
        if accountant == "rdp":
            return min(_renyi(each, delta) for each in {events, _without_sampling(events)})
        if accountant == QUICK:
            return _renyi(events, delta, QUICK_ORDERS)
        dp, found = library(), 0.0
        bound, before = _renyi(events, delta, QUICK_ORDERS), math.inf
        if max(bound, _widest(events)) > VAST or any(event[0] == "concentrated" for event, _ in events):
            return _renyi(events, delta)
        while before > (step := _step(bound, events)):
            made = dp.pld.PLDAccountant(value_discretization_interval=step)
            found = float(_composed(made, events).get_epsilon(delta))
            if found > bound / 2:
                break
            bound, before = found, step
        return found


def _step(epsilon: float, events: Iterable[tuple[Event, int]]) -> float:
    """The grid for losses of events that come to about this epsilon.

    Losses are rounded up to it, which adds about count * step^2 / 4 to their variance; that is to be less than a
    two-thousandth of it. It is no finer than dp-accounting's own, nor than memory has room for.
    """
    if not all("gaussian" in event[0] for event, _ in events):
        return max(FINEST, epsilon / 2e4)  # a pure loss has an end, which is to stay where it is
    count = sum(count for _, count in events)
    return max(FINEST, _widest(events) / 2e5, epsilon * math.sqrt(6e-5 / (count * max(1.0, epsilon / 5))))


def _widest(events: Iterable[tuple[Event, int]]) -> float:
    """About the largest loss of one event that matters."""
    return max(10 / event[-1] + 0.5 / event[-1] ** 2 if "gaussian" in event[0] else 100.0 for event, _ in events)


def _without_sampling(events: Iterable[tuple[Event, int]]) -> tuple[tuple[Event, int], ...]:
    """What sampling without replacement gains left out: its bound may be above what holds without it."""
    return tuple((("gaussian", event[-1]) if event[0] == "fixed" else event, count) for event, count in events)


def _renyi(events: Sequence[tuple[Event, int]], delta: float, orders: Sequence[float] | None = None) -> float:
    dp = library()
    kinds = {event[0] for event, _ in events}
    replaced = "fixed" in kinds
    if "concentrated" in kinds:
        orders = [order for order in orders or WHOLE_ORDERS if order in WHOLE_ORDERS]
    relation = dp.NeighboringRelation.REPLACE_ONE if replaced else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    return float(_composed(dp.rdp.RdpAccountant(orders, relation), events).get_epsilon(delta))


def _composed(accountant: Any, events: Iterable[tuple[Event, int]]) -> Any:
    # The library's relations are not used to double anything: its two accountants differ in that, and noise is
    # relative to what can change already.
    dp = library()
    rdp = isinstance(accountant, dp.rdp.RdpAccountant)
    for (kind, *numbers), count in events:
        noise = numbers[-1]
        if kind in ("gaussian", "poisson gaussian", "fixed", "concentrated"):
            event: Any = dp.GaussianDpEvent(noise)
        elif kind == "laplace" or (not rdp and kind == "poisson laplace"):
            event = dp.LaplaceDpEvent(noise)
        elif rdp:
            noise = _sampled_pure(numbers[0], 1 / noise) if kind == "poisson laplace" else noise
            event = dp.ZCDpEvent(noise**2 / 2)  # Bun & Steinke 2016, proposition 1.4
        else:
            # Discrete Laplace noise of one step's change has losses of just +-epsilon, which no pure one exceeds.
            event = dp.dp_event.DiscreteLaplaceDpEvent(noise, 1)
        if kind == "fixed":
            event = dp.SampledWithoutReplacementDpEvent(numbers[1], numbers[0], event)
        elif kind == "poisson gaussian" or (not rdp and kind == "poisson laplace"):
            event = dp.PoissonSampledDpEvent(numbers[0], event)
        accountant.compose(event, count)
    return accountant


def library() -> Any:
    """The module dp_accounting. Raises `CallerError` where it is not installed."""
    try:
        import dp_accounting
    except ImportError as error:
        raise CallerError(
            "privacy accounting needs dp-accounting", hint='Install it with: pip install "umbel[dp]"'
        ) from error
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """Without notes on orders of Renyi divergences that are left out, as they are to be."""
    noted = logging.getLogger("absl")
    before = noted.level
    noted.setLevel(logging.ERROR)
    try:
        yield
    finally:
        noted.setLevel(before)
