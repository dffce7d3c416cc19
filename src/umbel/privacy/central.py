"""Central differential privacy: holders clip, and the server adds noise once, to the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Schema, wide
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import number, positive
from ..core.transform import Transform, as_arrays, checked_aux, register_transform, taken_aux, with_aux
from ..core.update import Expectation, Like, Update
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UpdateRejected
from ..transforms.clip_by_norm import parameter_norm, with_roles
from .discrete import discrete_gaussian

GRID_BITS = 23
"""A clip bound is at most so many powers of two above the grid, so that float32 has all its multiples."""
SLACK = 1e-7
"""How far below the bound, by its share, updates stay: more than float64 can err by in a norm."""
LONGEST_STREAK = 10
"""An adaptive bound that was off to one side for so many rounds moves by so many times its rate."""
STEEPEST = 1e12
"""An adaptive bound stays within so many times the first one, and the same share of it."""


@register_transform
@dataclass(frozen=True)
class central_gaussian(Transform):
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
    norm: float
    noise: float
    expected: float
    quantile: float | None = None
    rate: float = 0.2
    below_noise: float | None = None

    def __post_init__(self) -> None:
        for name in ("norm", "noise", "expected", "rate"):
            positive(self, name)
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
    def private(self) -> bool:
        return True

    @property
    def bound(self) -> float:
        return math.inf if self.moving else self.norm

    @property
    def moving(self) -> tuple[str, ...]:
        return () if self.quantile is None else ("norm",)

    @property
    def brings_aux(self) -> bool:
        return self.quantile is not None

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not (isinstance(expects, Like) and expects.delta):
            raise StrategyError(
                f"{self.name} bounds differences, but the ask expects something else", hint="Use Like(delta=True)."
            )
        if fold.name != "total":
            raise StrategyError(
                f"{self.name} adds noise to the sum of updates, and {fold.name} makes something else of them",
                hint=f"Write fold=umbel.total(): {self.name} divides the sum by what it expects.",
            )

    def init(self, schema: Schema | None) -> Any:
        """What an answer looks like that nobody contributed to, and the first bound."""
        if schema is None:
            raise StrategyError(
                f"{self.name} has to know what updates look like before there are any",
                hint="Give the ask one model, and one expectation, for all its clients.",
            )
        parameters = {name: spec for name, spec in schema.items() if spec.role == "parameter"}
        if not _limit(1.0, sum(math.prod(spec.shape) for spec in parameters.values())) > 0.5:
            raise StrategyError(f"the model is too large for the grid of {self.name}")
        looks = {name: [list(spec.shape), wide(spec.dtype).name] for name, spec in parameters.items()}
        return {"looks": looks, "norm": float(self.norm), "streak": 0}

    def send(self, state: Any) -> Any:
        return {"norm": self._sent(state)}

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        arrays, bound = as_arrays(update), self._sent(params)
        parameters, step = arrays.of_role("parameter"), grid(bound)
        norm, limit = parameter_norm(arrays), _limit(bound, sum(array.size for array in parameters.values()))
        scale = 1.0 if norm <= limit else limit / norm  # NaN where the norm is, to be rejected by name
        made = {name: np.zeros_like(array) for name, array in arrays.items()}
        for name, array in parameters.items():
            steps = np.rint(np.multiply(array, scale / step, dtype=np.float64))
            made[name] = np.asarray(steps * step, wide(array.dtype))
        clipped = Update(Arrays.trusted(made, dict(arrays.roles)), delta=update.delta)
        if self.quantile is not None:
            clipped = with_aux(clipped, self, {"below": np.array(1.0 if norm <= bound else -1.0)})
        return clipped, local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays, bound = with_roles(as_arrays(update), schema), self._sent(params)
        parameters, step, aux = arrays.of_role("parameter"), grid(bound), Arrays()
        if not (norm := parameter_norm(arrays)) <= bound * (1 - SLACK / 2):
            raise UpdateRejected(f"the update's norm is {norm:.9g}, but it had to be clipped to {bound:.9g}")
        for name, array in parameters.items():
            steps = np.asarray(array, np.float64) / step
            if not (np.rint(steps) == steps).all():
                raise UpdateRejected(f"array {name!r} is not on the grid of {self.name}: multiples of {step:g}")
        if self.quantile is not None:
            aux = as_arrays(Update(checked_aux(update, self, {"below": ()}).aux))
            if list(aux) != [f"{self.name}:below"] or abs(float(aux[f"{self.name}:below"])) != 1.0:
                raise UpdateRejected(f"what {self.name} adds to the update is neither 1 nor -1, or more than that")
            # Of one dtype and role, whatever was sent: what is unlike would be summed apart.
            aux = Arrays({name: np.array(float(value)) for name, value in aux.items()})
        kept = {name: array if name in parameters else np.zeros_like(array) for name, array in arrays.items()}
        return Update(Arrays.trusted(kept, dict(arrays.roles)), aux=aux, delta=update.delta)

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        looks, bound = state["looks"], self._sent(state)
        noised = {name: self._noised(answer.value.get(name), looks[name], bound, own) for name in sorted(looks)}
        if self.quantile is not None:
            state = {**state, **self._moved(answer, state, own)}
        value = Arrays.trusted(noised, dict.fromkeys(noised, "parameter"))
        return replace(answer, value=value, aux=Arrays(), metrics={}, weight=0.0), state

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        bound = self._sent(state)
        steps = math.sqrt(self._variance(bound))
        return {
            "mechanism": "discrete_gaussian",
            "unit": "client",
            "neighbours": "add or remove one",
            "noise": self.noise,
            "norm": bound,
            "steps": steps if self.quantile is None else min(steps, 2 * self._below_noise),
            "denominator": self.expected,
        }

    def _sent(self, known: Mapping[str, Any]) -> float:
        """The bound of this round; one that does not move is the setting's, whatever is sent, or was kept."""
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

    def _noised(self, total: Array | None, looks: Any, bound: float, own: Entropy) -> Array:
        """The mean of an array with its noise; None is the sum of nobody's."""
        shape, dtype = looks
        noise = discrete_gaussian(self._variance(bound), math.prod(shape), own).reshape(shape)
        if total is not None:
            noise += np.rint(total / grid(bound)).astype(np.int64)
        return np.asarray(noise * (grid(bound) / self.expected), dtype)

    def _moved(self, answer: Answer, state: Mapping[str, Any], own: Entropy) -> dict[str, Any]:
        """The bound after a step towards the quantile. Clients say 1 or -1, so that a sum moves by 1 with any of them:
        what is summed is twice that by which a share of one half is passed.
        """
        assert self.quantile is not None
        mean = taken_aux(answer, self)[0].get("below", np.zeros(()))
        variance = math.ceil((2 * Fraction(self._below_noise)) ** 2)
        passed = round(float(mean) * answer.count) + int(discrete_gaussian(variance, 1, own)[0])
        off = min(max(0.5 + passed / 2 / self.expected, 0.0), 1.0) - self.quantile
        same = state["streak"] * off > 0
        streak = (abs(state["streak"]) if same else 0) + 1
        moved = state["norm"] * math.exp(-self.rate * min(streak, LONGEST_STREAK) * off)
        norm = min(max(moved, self.norm / STEEPEST), self.norm * STEEPEST)
        return {"norm": norm, "streak": int(math.copysign(streak, off))}


def grid(bound: float) -> float:
    """The distance of the points of the grid to which updates of this bound are rounded: a power of two."""
    return math.ldexp(1.0, math.frexp(bound)[1] - GRID_BITS)


def _limit(bound: float, size: int) -> float:
    """The norm to scale to, from which rounding so many elements leads to no norm above the bound."""
    return bound * (1 - SLACK) - grid(bound) * math.sqrt(size) / 2
