"""Clients by the norms of their updates: optimal client sampling (Chen, Horvath & Richtarik 2020, arXiv 2010.13723)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.randomness import Floats, Indices, Key
from ..core.record import Record
from ..core.sampler import (
    amount,
    at_indices,
    capped,
    check_enough,
    metric_name,
    products,
    set_frozen,
    spec_of,
    whole_number,
)
from ..errors import ClientId, SettingError


@dataclass(frozen=True)
class ByNorm:
    """Each client by its own throw of the dice, with odds by the norm of its last update; `cohort` in the mean.

    A client's norm is what it told last as `metric`, times its weight; the handler tells it: ``metrics={"norm":
    ...}``. Who has told none counts with the mean of the others. Of odds that sum to `cohort` those of the paper make
    the variance of the unbiased mean least: proportional to the norms, and 1 for the largest where they would be more.
    The paper has clients compute their updates and send their norms before it is decided whose update is sent; these
    are the norms of the last time, and so a share `uniform` of the cohort is drawn without them, and nobody's odds
    vanish. With ``uniform=1`` it is `Poisson`.

    `odds` are these odds: a mean of updates whose weights are divided by them has no bias. The order is the
    federation's, and the cohort may be empty.
    """

    cohort: int
    metric: str = "norm"
    uniform: float = 0.1

    def __post_init__(self) -> None:
        set_frozen(self, "cohort", whole_number("ByNorm", "cohort", self.cohort))
        set_frozen(self, "uniform", amount("ByNorm", "uniform", self.uniform, 0.0, 1.0))
        if self.uniform == 0.0:
            raise SettingError(
                "ByNorm: uniform must be above 0, not 0", hint="Else a client whose norm was 0 is never asked again."
            )
        metric_name("ByNorm", "metric", self.metric)

    def choose(self, clients: Sequence[ClientId], record: Record, key: Key) -> tuple[ClientId, ...]:
        """Whom the dice took, as they stand in `clients`."""
        check_enough(self, self.cohort, clients)
        _, places, odds, usual = self._odds(clients, record)
        taken = places[key.derive("known").draws().uniform(len(places)) < odds]
        rest = key.draws().bernoulli(usual, len(clients))
        return at_indices(clients, np.sort(np.concatenate((taken, np.setdiff1d(rest, places, assume_unique=True)))))

    def odds(self, clients: Sequence[ClientId], record: Record, cohort: Sequence[ClientId]) -> Floats:
        """The odds of a cohort's clients."""
        rows, _, odds, usual = self._odds(clients, record)
        found: dict[int | None, float] = dict(zip(rows.tolist(), odds.tolist(), strict=True))
        return np.array([found.get(record.row(client), usual) for client in cohort])

    def _odds(self, clients: Sequence[ClientId], record: Record) -> tuple[Indices, Indices, Floats, float]:
        """The rows and places of clients that were asked, their odds, and the odds of each of the others."""
        rows, places = record.known(clients)
        norms = np.abs(products(record.weight, record.metric(self.metric, "ByNorm")))[rows]
        told = norms[np.isfinite(norms)]
        mean = float(told.mean()) if told.size else 1.0
        norms = np.where(np.isfinite(norms), norms, mean)
        others = len(clients) - len(places)
        best = capped(np.append(norms, mean), np.append(np.ones(len(norms)), others), self.cohort)
        odds = (1 - self.uniform) * best + self.uniform * self.cohort / len(clients)
        return rows, places, odds[:-1], float(odds[-1])

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return spec_of(self)
