"""So many clients, each set of them equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..core.sampler import draw_uniform, set_frozen, whole_number
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
