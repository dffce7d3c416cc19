"""So many clients, or such a share of them, each set of them equally likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..core.sampler import draw_uniform, set_frozen, share, whole_number
from ..errors import ClientId


@dataclass(frozen=True)
class Uniform:
    """`cohort` clients, each set of them equally likely, in random order."""

    cohort: int

    def __post_init__(self) -> None:
        set_frozen(self, "cohort", whole_number("Uniform", "cohort", self.cohort))

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """`cohort` different clients in the order in which they were drawn."""
        return draw_uniform(clients, self.cohort, key, f"Uniform(cohort={self.cohort})")

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "uniform", "cohort": self.cohort}


@dataclass(frozen=True)
class Fraction:
    """A fixed share of the clients, but at least `minimum`, each set equally likely, in random order.

    The number is `fraction` times the number of clients, computed exactly on the decimal that `fraction` prints as and
    rounded to the nearest whole number, halves up: 0.29 of 50 clients are 15.
    """

    fraction: float
    minimum: int = 1

    def __post_init__(self) -> None:
        set_frozen(self, "fraction", share("Fraction", "fraction", self.fraction))
        set_frozen(self, "minimum", whole_number("Fraction", "minimum", self.minimum))

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """That many different clients in the order in which they were drawn."""
        from fractions import Fraction as Exact

        share = math.floor(Exact(repr(self.fraction)) * len(clients) + Exact(1, 2))
        who = f"Fraction({self.fraction}, minimum={self.minimum})"
        return draw_uniform(clients, max(share, self.minimum), key, who)

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "fraction", "fraction": self.fraction, "minimum": self.minimum}
