"""Each client by its own throw of the dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..core.sampler import at_indices, set_frozen, share
from ..errors import ClientId


@dataclass(frozen=True)
class Poisson:
    """Each client independently with probability `rate`, in the federation's order; the cohort may be empty.

    This is the sampling that the usual accounts of differential privacy assume.
    """

    rate: float

    def __post_init__(self) -> None:
        set_frozen(self, "rate", share("Poisson", "rate", self.rate))

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """The clients that the dice took, as they stand in `clients`."""
        return at_indices(clients, key.draws().bernoulli(self.rate, len(clients)))

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "poisson", "rate": self.rate}
