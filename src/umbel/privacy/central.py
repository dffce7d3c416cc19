"""Central differential privacy: holders clip, and the server adds noise once, to the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Arrays, Schema
from ..core.randomness import Key
from ..core.settings import number, positive
from ..core.transform import as_arrays, checked_aux, register_transform, taken_aux, with_aux
from ..core.update import Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected
from .clipped import Clipped, grid
from .discrete import discrete_gaussian

LONGEST_STREAK = 10
"""An adaptive bound that was off to one side for so many rounds moves by so many times its rate."""
VOTE = 1 << 12
"""Who is below the bound counts so many steps of the noise's grid: in steps of 1 discrete noise costs some per cent."""
STEEPEST = 1e12
"""An adaptive bound stays within so many times the first one, and the same share of it."""


@register_transform
@dataclass(frozen=True)
class central_gaussian(Clipped):
    """Hide every client behind discrete Gaussian noise, added once to the sum of clipped differences (McMahan et al.
    2018, arXiv 1710.06963; Canonne, Kamath & Steinke 2020, arXiv 2004.00010).

    A holder scales its difference to an L2 norm of at most `norm` and rounds it to a grid that `norm` alone decides, so
    that the sum is one of integers and floating point tells nothing of anybody (Mironov 2012). Where it is folded the
    norm and the grid are checked again. The sum gets noise of the standard deviation ``noise * norm`` in each element,
    and is divided by `expected`: how many clients a round asks on average, a constant, for how many came may tell of
    one. Nobody's updates are released as noise around zero. The server sees clipped updates and is trusted to add the
    noise; who has the models learns little of any client: `event` says how little.

    With a `quantile` the bound moves, by the `rate`, to the norm that this share of clients stays below (Andrew et al.
    2021, arXiv 1905.03871; here steps grow while they go one way, so that the first bound may be far off). Each tells
    whether it was below the bound; their sum gets noise of its own, of the standard deviation `below_noise` (a
    twentieth of `expected`), and the differences so much more that both together cost what `noise` says.

    Weights, metrics and buffers would be released as they are, and are dropped: all clients count alike, and the model
    keeps the buffers that it has. Needs differences, the fold `total`, one model and expectation for all clients, a
    sampler that goes by chance, and a window that keeps no late updates.
    """

    name: ClassVar[str] = "central_gaussian"
    quantile: float | None = None
    rate: float = 0.2
    below_noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "rate")
        if self.below_noise is not None:
            positive(self, "below_noise")
        if self.quantile is None:
            return
        if not (number(self.quantile) and 0 < self.quantile < 1):
            raise StrategyError(f"{self.name}'s quantile is between 0 and 1, not {self.quantile!r}")
        if not 2 * self._below_noise > self.noise:
            raise StrategyError(
                f"with a below_noise of {self._below_noise:g} who is below the bound costs all that {self.noise:g} is "
                "to cost",
                hint=f"Set below_noise above {self.noise / 2:g}.",
            )

    @property
    def bound(self) -> float:
        return math.inf if self.moving else self.norm

    @property
    def moving(self) -> tuple[str, ...]:
        return () if self.quantile is None else ("norm",)

    @property
    def brings_aux(self) -> bool:
        return self.quantile is not None

    def init(self, schema: Schema | None) -> dict[str, Any]:
        return {**super().init(schema), "norm": float(self.norm), "streak": 0}

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        bound = self._sent(params)
        clipped, norm = self._clipped(update, bound)
        if self.quantile is not None:
            clipped = with_aux(clipped, self, {"below": np.array(1.0 if norm <= bound else -1.0)})
        return clipped, local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        decoded = super().decode(update, params, schema)
        if self.quantile is None:
            return decoded
        aux = as_arrays(Update(checked_aux(update, self, {"below": ()}).aux))
        if list(aux) != [f"{self.name}:below"] or abs(float(aux[f"{self.name}:below"])) != 1.0:
            raise UpdateRejected(f"what {self.name} adds to the update is neither 1 nor -1, or more than that")
        # Of one dtype and role, whatever was sent: what is unlike would be summed apart.
        return replace(decoded, aux=Arrays({name: np.array(float(value)) for name, value in aux.items()}))

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        variance = self._variance(self._sent(state))
        released = self._released(answer, state, lambda size: discrete_gaussian(variance, size, own))
        return released, {**state, **self._moved(answer, state, own)} if self.quantile is not None else state

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        bound = self._sent(state)
        steps = math.sqrt(self._variance(bound))
        return {
            "mechanism": "discrete_gaussian",
            "unit": "client",
            "neighbours": "add or remove one",
            "noise": self.noise,
            "norm": bound,
            "steps": steps if self.quantile is None else min(steps, 2 * self._below_noise * VOTE),
            "denominator": self.expected,
        }

    def _sent(self, known: Mapping[str, Any]) -> float:
        return float(known["norm"]) if self.moving else self.norm

    @property
    def _below_noise(self) -> float:
        return self.expected / 20 if self.below_noise is None else self.below_noise

    def _variance(self, bound: float) -> int:
        """That of the differences' noise, in steps of the grid squared: a whole number, not below what it has to be."""
        share = 1 / Fraction(self.noise) ** 2
        if self.quantile is not None:
            share -= 1 / (2 * Fraction(self._below_noise)) ** 2
        return math.ceil((Fraction(bound) / Fraction(grid(bound))) ** 2 / share)

    def _moved(self, answer: Answer, state: Mapping[str, Any], own: Entropy) -> dict[str, Any]:
        """The bound after a step towards the quantile. Clients say 1 or -1, so that a sum moves by 1 with any of them:
        what is summed is twice that by which a share of one half is passed.
        """
        assert self.quantile is not None
        mean = taken_aux(answer, self)[0].get("below", np.zeros(()))
        variance = math.ceil((2 * Fraction(self._below_noise) * VOTE) ** 2)
        passed = round(float(mean) * answer.count) + int(discrete_gaussian(variance, 1, own)[0]) / VOTE
        off = min(max(0.5 + passed / 2 / self.expected, 0.0), 1.0) - self.quantile
        same = state["streak"] * off > 0
        streak = (abs(state["streak"]) if same else 0) + 1
        moved = state["norm"] * math.exp(-self.rate * min(streak, LONGEST_STREAK) * off)
        norm = min(max(moved, self.norm / STEEPEST), self.norm * STEEPEST)
        return {"norm": norm, "streak": int(math.copysign(streak, off))}
