"""What an audit proves: lower bounds on epsilon from how well canaries are found again, with a stated confidence.

A bound is a test turned round: it is the least epsilon for which what was seen is not less likely than one minus the
confidence. So where a mechanism is (epsilon, delta)-differentially private, a bound exceeds that epsilon with at most
that probability, whatever the mechanism is. Needs scipy, which comes with ``umbel[dp]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import SettingError

Floats = npt.NDArray[np.float64]

LARGEST = 200.0
"""No bound above this is looked for."""
SHARES = (1.0, 0.25, 1 / 16)
"""Of how many of its canaries a one-run audit guesses: each share is a test of its own, at a third of the error."""
MOST = 10_000
"""Thresholds that are tried."""
IDEALS = 20
"""Ideal audits whose median is told."""


@dataclass(frozen=True)
class PrivacyAudit:
    """What one audit has found beside what is claimed, both at the same delta.

    With probability `confidence` or more, `epsilon` is below the mechanism's true one. `gaussian` is that of the
    Gaussian mechanism that would be found as well, the bound for mechanisms whose trade-off is a Gaussian's; None where
    the claim is not about one. `profile` has rows of a delta, the bound there and the claim there; all its bounds hold
    together. `ideal` is what audits of this size find where the claim is just true (their median, of `epsilon`, or of
    `gaussian` where there is one): one that is far below the claim would overlook much. `present` and `absent` are the
    scores that were compared, of canaries that took part and of those that did not.
    """

    kind: Literal["one run", "many runs"]
    epsilon: float
    gaussian: float | None
    claim: float
    delta: float
    confidence: float
    ideal: float
    profile: tuple[tuple[float, float, float], ...]
    canaries: int
    runs: int
    seed: int
    present: Floats
    absent: Floats

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, with this confidence."""
        return any(found > claim for _, found, claim in self.profile) or (self.gaussian or 0.0) > self.claim

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, without the scores."""
        left_out = ("present", "absent", "profile")
        found = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**found, "profile": [list(row) for row in self.profile], "refuted": self.refuted}


def clopper_pearson(hits: Any, trials: Any, error: float) -> tuple[Any, Any]:
    """A lower and an upper bound of a probability from its hits, each wrong with probability `error` at most (Clopper &
    Pearson 1934). Numbers or arrays.
    """
    from scipy.special import betaincinv

    hits, misses = np.asarray(hits, float), np.asarray(trials, float) - hits
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), misses + 1, error), 0.0)
    high = np.where(misses > 0, betaincinv(hits + 1, np.maximum(misses, 1), 1 - error), 1.0)
    return low, high


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are at most where a mechanism is (epsilon, delta)-private: Steinke, Nasr &
    Jagielski 2023 (arXiv 2305.08846), theorem 5.2. Each of the canaries took part by a fair coin of its own, and it was
    guessed of `guesses` of them whether they did, from what was released alone.
    """
    from scipy.special import bdtrc, expit

    if correct == 0:
        return 1.0
    tail = float(bdtrc(correct - 1, guesses, expit(epsilon)))
    if not delta:
        return tail
    i = np.arange(1, correct + 1)
    below = np.append(bdtrc(correct - 1 - i[:-1], guesses, expit(epsilon)), 1.0)
    return min(1.0, tail + 2 * canaries * delta * float(((below - tail) / i).max()))


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many correct guesses refute; 0 for none. More hits never refute less."""
    if one_run_p_value(canaries, guesses, correct, 0.0, delta) >= 1 - confidence:
        return 0.0
    return _last(lambda epsilon: one_run_p_value(canaries, guesses, correct, epsilon, delta) < 1 - confidence)


def one_run_bound(present: Floats, absent: Floats, delta: float, confidence: float = 0.95) -> float:
    """The bound from the scores of one run's canaries, of those that took part and those that did not: of a share of
    them with the highest scores it is guessed that they did, of as many with the lowest that they did not. Each of
    `SHARES` is tested at its part of the error (Bonferroni), and the largest bound told.
    """
    scores = np.concatenate([present, absent])
    taken = np.repeat([True, False], [len(present), len(absent)])[np.argsort(scores, kind="stable")]
    found = []
    for share in SHARES:
        half = max(1, int(len(scores) * share / 2))
        correct = int(taken[len(taken) - half :].sum() + (~taken[:half]).sum())
        each = 1 - (1 - confidence) / len(SHARES)
        found.append(one_run_epsilon(len(scores), min(2 * half, len(scores)), correct, delta, each))
    return max(found)


def many_run_bounds(
    present: Floats, absent: Floats, claims: Mapping[float, float], confidence: float = 0.95, gaussian: bool = False
) -> tuple[dict[float, float], float, int]:
    """Bounds at each delta of `claims`, that of mu (of Gaussian differential privacy), and the statistic that was used,
    from runs with one canary and without it: rows of statistics, a row a run, runs independent of each other.

    For whatever is (epsilon, delta)-private, and any set A of what can be released, P(A | one) <= e^epsilon P(A |
    other) + delta, either way round. A is a half-line of one statistic; which, and which way round, is chosen on the
    first half of the runs: by its margin over the claims, or, of a claim that is `gaussian`, by mu. Its two
    probabilities are bounded on the second half alone, each at half of the error (Clopper-Pearson), so all bounds hold
    together. The bound of mu is one for mechanisms whose trade-off function is a Gaussian's: for these A has the
    probabilities Phi(a + mu) and Phi(a) at most (Dong, Roth & Su 2019; Nasr et al. 2023, arXiv 2302.07956).
    """
    from scipy.special import ndtri

    error = (1 - confidence) / 2
    firsts, seconds = zip(*(np.array_split(rows, 2) for rows in (present, absent)), strict=True)
    best: tuple[float, int, float, bool, bool] = (-math.inf, 0, 0.0, True, False)
    for column in range(present.shape[1]):
        marks = np.unique(np.concatenate([rows[:, column] for rows in firsts]))
        marks = marks[:: max(1, len(marks) // MOST)]
        for above, turned in ((True, False), (True, True), (False, False), (False, True)):
            low, high = _rates([rows[:, column] for rows in firsts], marks, above, turned, error)
            margins = [ndtri(low) - ndtri(high)]
            if not gaussian:
                margins = [_epsilons(low, high, delta) - claim for delta, claim in claims.items()]
            margin = np.maximum.reduce([np.nan_to_num(each, neginf=-1e9) for each in margins])
            at = int(margin.argmax())
            best = max(best, (float(margin[at]), column, float(marks[at]), above, turned))
    _, column, mark, above, turned = best
    low, high = _rates([rows[:, column] for rows in seconds], np.array([mark]), above, turned, error)
    mu = max(0.0, float(np.nan_to_num(ndtri(low) - ndtri(high), neginf=0.0)[0]))
    return {delta: max(0.0, float(_epsilons(low, high, delta)[0])) for delta in claims}, mu, column


def discriminant(present: Floats, absent: Floats) -> tuple[Floats, Floats]:
    """Scores of runs from what each round shows (rows of rounds, a row a run), by Fisher's linear discriminant: it goes
    by how noise is correlated over rounds. It is found on the first half of the runs alone, as is what
    `many_run_bounds` chooses; zeros where these are too few for so many rounds.
    """
    firsts = [np.array_split(rows, 2)[0] for rows in (present, absent)]
    rounds = present.shape[1]
    if min(map(len, firsts)) < 10 * rounds:
        return np.zeros(len(present)), np.zeros(len(absent))
    centred = np.concatenate([rows - rows.mean(0) for rows in firsts])
    spread = centred.T @ centred / len(centred)
    spread += np.eye(rounds) * (1e-3 * np.trace(spread) / rounds + 1e-300)
    weights = np.linalg.solve(spread, firsts[0].mean(0) - firsts[1].mean(0))
    return present @ weights, absent @ weights


def _rates(scores: Sequence[Floats], marks: Floats, above: bool, turned: bool, error: float) -> tuple[Floats, Floats]:
    """A lower bound of the probability of a half-line in one world, and an upper bound of that in the other."""
    counts = []
    for found in scores:
        upto = np.searchsorted(np.sort(found), marks, side="right")
        counts.append((len(found) - upto if above else upto, len(found)))
    more, less = counts[::-1] if turned else counts
    return clopper_pearson(*more, error)[0], clopper_pearson(*less, error)[1]


def _epsilons(low: Floats, high: Floats, delta: float) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(low - delta, 0.0) / high)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta of mu-Gaussian differential privacy at an epsilon (Balle & Wang 2018, arXiv 1805.06530)."""
    from scipy.special import log_ndtr

    if mu == 0:
        return 0.0
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.exp(first) * math.expm1(min(0.0, second - first)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of mu-Gaussian differential privacy at a delta."""
    return _last(lambda epsilon: gaussian_delta(mu, epsilon) > delta) if gaussian_delta(mu, 0.0) > delta else 0.0


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose epsilon this is at a delta."""
    return _last(lambda mu: gaussian_delta(mu, epsilon) < delta)


def ideal(audited: Callable[[Floats, Floats], float], mu: float, present: int, absent: int, seed: int) -> float:
    """The median of what audits of so many scores find of a Gaussian mechanism with this mu."""
    rng = np.random.default_rng(abs(seed))  # keys take seeds below 0, numpy takes none
    found = [audited(rng.normal(mu, 1.0, present), rng.normal(0.0, 1.0, absent)) for _ in range(IDEALS)]
    return float(np.median(found))


def check_confidence(confidence: float) -> None:
    """Raise `SettingError` for what is no probability to be confident with."""
    if not 0.5 <= confidence < 1:
        raise SettingError(f"a confidence is at least 0.5 and below 1, not {confidence!r}")


def _last(holds: Callable[[float], bool]) -> float:
    """The largest number up to which this holds, rounded down; it holds at 0, and ceases once."""
    low, high = 0.0, 1.0
    while high < LARGEST and holds(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
