"""Centred clipping (Karimireddy, He & Jaggi 2021, arXiv 2012.10333)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.fold import Fold
from ..core.settings import positive, whole
from .gathered import Gathered, Updates, knowing
from .geometry import squared_distances_from

if TYPE_CHECKING:
    from ..core.answer import Answer


@dataclass(frozen=True)
class centred_clipping(Gathered):
    """The mean of the updates, each clipped to `radius` around the last round's answer; at first around zero.

    In each of `iterations` the centre moves on by the mean of the clipped differences to it. One update moves the
    answer by radius / n at most, so that what malicious clients add up over the rounds is what counts: the paper has
    honest clients send momenta, whose spread is small. A strategy remembers the centre (`Fold.for_round`). Needs
    differences. Costs 2 n**2 d multiplications, and a weighted mean.
    """

    name: ClassVar[str] = "centred_clipping"
    needs_differences: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    radius: float = 10.0
    iterations: int = 1

    def __post_init__(self) -> None:
        positive(self, "radius")
        whole(self, iterations=1)

    def for_round(self, memory: Any, model: Arrays, r: int) -> Fold:
        return knowing(self, memory)

    def remember(self, memory: Any, answer: Answer) -> Any:
        return answer.value.of_role("parameter") if answer.value else memory

    def made(self, updates: Updates) -> Arrays:
        centre = () if self.kept is None else (self.kept,)
        inner, count = updates.products(*centre), len(updates)
        shares = np.zeros(len(inner))  # of which the centre is made
        shares[count:] = 1.0
        for _ in range(self.iterations):
            squares = squared_distances_from(inner, shares)[:count]
            far = np.maximum(np.sqrt(squares), self.radius)
            steps = self.radius / far / count
            shares *= 1 - math.fsum(steps)
            shares[:count] += steps
        return updates.combined(shares[:count], others=list(zip(centre, shares[count:].tolist(), strict=True)))
