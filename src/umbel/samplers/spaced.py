"""Clients that are asked again after a while only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.randomness import Key
from ..core.record import Record
from ..core.sampler import check_enough, online_first, others, set_frozen, spec_of, whole_number
from ..errors import ClientId, SamplingError


@dataclass(frozen=True)
class Spaced:
    """`cohort` clients, each set equally likely of those that were not in one of the last ``gap - 1`` cohorts.

    So between two asks of a client there are `gap` or more, as noise that is correlated over rounds counts on, whether
    or not the client answered; where all that are left are needed, clients go round in turn. It needs `cohort` times
    `gap` clients. Where too few are online that may be asked, fewer are. It goes by nothing that clients told.

    The order is random. Clients that were never asked take no time.
    """

    cohort: int
    gap: int

    def __post_init__(self) -> None:
        for name in ("cohort", "gap"):
            set_frozen(self, name, whole_number("Spaced", name, getattr(self, name)))

    def choose(self, clients: Sequence[ClientId], record: Record, key: Key) -> tuple[ClientId, ...]:
        """The clients that may be asked and are online, first."""
        check_enough(self, self.cohort, clients)
        if self.cohort * self.gap > len(clients):
            raise SamplingError(
                f"{self} needs {self.cohort * self.gap:,} clients, and the federation has {len(clients):,}",
                hint="Ask fewer at a time, or sooner again.",
            )
        rows, places = record.known(clients)
        resting = places[record.last[rows] > record.asks - self.gap]
        free = others(clients, np.asarray(resting), self.cohort, key.draws())
        return online_first(free, self.cohort, record)

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return spec_of(self)
