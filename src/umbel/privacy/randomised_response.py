"""Randomised response: each client tells one value, or another, so that nobody can hold it to what it said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array
from ..core.transform import register_transform
from ..entropy import Entropy
from ..errors import SettingError, UpdateRejected
from .counts import NoisyCounts, sampled
from .discrete import Floats, Integers, bernoulli_odds, uniform_integers

FINEST = 2**32
"""Logarithms of odds are multiples of one over this."""
KINDS = ("direct", "unary")


@register_transform
@dataclass(frozen=True)
class randomised_response(NoisyCounts):
    """Hide what each client has from the server, too: it tells of one contribution by randomised response (Warner 1965;
    Wang, Blocki, Li & Jha 2017, arXiv 1705.04421).

    Of a client with more contributions one is drawn at random. ``kind="direct"`` tells its cell (or that there is none)
    exp(epsilon) times as likely as any other: k-ary randomised response. ``kind="unary"`` tells a bit for each cell,
    that of the own cell right or wrong with even odds, all others 1 with odds of exp(-epsilon) to one: optimised unary
    encoding. By default it is what has less error for so many cells. Either is `epsilon`-differentially private,
    whatever the contribution, without a delta. Answers are what n clients must have had for their sums to be expected;
    they may be below 0, and have errors of about sqrt(n), however many there are in a cell.
    """

    name: ClassVar[str] = "randomised_response"
    kind: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in (None, *KINDS):
            raise SettingError(f"randomised_response's kind is {' or '.join(KINDS)}, not {self.kind!r:.60}")

    def told(self, counts: Integers, own: Entropy) -> Integers:
        own_cell = sampled(counts, 1, own)
        if self._chances(counts.size)[0] == "unary":
            # With e = exp(epsilon): where the own cell is another, one bit's odds change by (1 + e) / 2 at most, and
            # another's by 2 e / (1 + e); where there is none, by one of the two alone.
            return bernoulli_odds(np.where(own_cell > 0, 0, -self._odds), FINEST, own).astype(np.int64)
        cell = respond(int(own_cell.argmax()) if own_cell.any() else counts.size, counts.size + 1, self.epsilon, own)
        return np.asarray(np.arange(counts.size) == cell, np.int64)

    def check_told(self, cells: Floats) -> None:
        if cells.max(initial=0.0) > 1 or (cells.sum() > 1 and self._chances(cells.size)[0] == "direct"):
            raise UpdateRejected("the update tells of more than one contribution, or of one more than once")

    def estimated(self, total: Array, clients: int, size: int, own: Entropy) -> tuple[Array, Array]:
        _, true, other = self._chances(size)
        found = (total - clients * other) / (true - other)
        having = np.clip(found, 0, clients)
        variance = having * true * (1 - true) + (clients - having) * other * (1 - other)
        return np.asarray(found), np.asarray(np.sqrt(variance) / (true - other))

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return {
            "mechanism": "pure",
            "unit": "client",
            "neighbours": "replace one",
            "noise": 1 / self.epsilon,
            "norm": 1.0,
            "steps": None,
            "denominator": None,
            "sampling": {"kind": "everyone"},
        }

    @property
    def _odds(self) -> int:
        return math.floor(self.epsilon * (1 - 1e-15) * FINEST)

    def _chances(self, size: int) -> tuple[str, float, float]:
        """The kind for so many cells, and how likely a cell is told by who has it, and by who has another."""
        truth = math.exp(-odds(self.epsilon, size + 1) / FINEST)
        direct = 1 / (1 + truth), truth / (1 + truth) / size
        unary = 0.5, 1 / (1 + math.exp(self._odds / FINEST))
        kinds = {"direct": direct, "unary": unary}
        kind = self.kind or min(KINDS, key=lambda each: _spread(*kinds[each]))
        return kind, *kinds[kind]


def _spread(true: float, other: float) -> float:
    """The variance of what one client adds to the estimate of a cell that it does not have."""
    return other * (1 - other) / (true - other) ** 2


def respond(value: int, count: int, epsilon: float, own: Entropy) -> int:
    """A value below `count` itself, exp(epsilon) times as likely as each other one: k-ary randomised response, drawn
    exactly (Kairouz, Bonawitz & Ramage 2016, arXiv 1602.07387). There are two values at least.
    """
    if bernoulli_odds(odds(epsilon, count), FINEST, own):
        return value
    other = int(uniform_integers(count - 1, 1, own)[0])
    return other + (other >= value)


def odds(epsilon: float, count: int) -> int:
    """By which a value is told as it is: exp(odds / `FINEST`), exp(epsilon) / (count - 1) at most, for what floats err
    by.
    """
    others = math.log(count - 1)
    return math.floor((epsilon - others - 1e-15 * (epsilon + others)) * FINEST) - 1
