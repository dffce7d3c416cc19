"""Server optimisers: how the mean difference of a round changes the model (Reddi et al. 2021, arXiv 2003.00295, for the
adaptive ones).

The mean difference plays the part of a negative gradient. All arithmetic is elementwise, in float32 (float64 for
float64 models).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import SettingError
from .arrays import Array
from .schedules import fields_in_round
from .settings import number

Slots = Mapping[str, Mapping[str, Array]]


class ServerOptimizer(ABC):
    """Two pure functions: `init` makes the slots for the parameters, `step` turns a mean difference into new parameters
    and slots. One that treats every element alike says that it is `elementwise`: of large models it is given stretches.
    A rate of those here may be a function of the round, such as `umbel.cosine`.
    """

    elementwise: ClassVar[bool] = False

    def init(self, parameters: Mapping[str, Array]) -> Slots:
        """The slots before the first step: for each slot's name, one array a parameter."""
        return {}

    def in_round(self, r: int) -> ServerOptimizer:
        """The optimiser of round `r`: itself, or with the rates that change by then."""
        return self

    @abstractmethod
    def step(
        self, parameters: Mapping[str, Array], difference: Mapping[str, Array], slots: Slots
    ) -> tuple[dict[str, Array], Slots]:
        """The parameters and the slots after one step; arguments are not changed."""


def _check_rates(optimizer: Any, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(optimizer, name)
        if callable(value):
            continue  # it is checked in each round
        if not (number(value) and low <= value <= high):
            raise SettingError(f"{type(optimizer).__name__} takes a {name} from {low} to {high}, not {value!r}")


_MOST = float(np.finfo(np.float32).max)
_TINY = 1e-30
_BELOW_1 = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class sgd(ServerOptimizer):
    """Add `lr` times the mean difference; with `momentum`, of its running sum (FedAvgM, Hsu et al. 2019, arXiv
    1909.06335).
    """

    elementwise: ClassVar[bool] = True
    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_rates(self, lr=(0.0, _MOST), momentum=(0.0, 1.0))

    def in_round(self, r: int) -> ServerOptimizer:
        return fields_in_round(self, r)

    def init(self, parameters: Mapping[str, Array]) -> Slots:
        return {"velocity": {n: np.zeros_like(p) for n, p in parameters.items()}} if self.momentum else {}

    def step(
        self, parameters: Mapping[str, Array], difference: Mapping[str, Array], slots: Slots
    ) -> tuple[dict[str, Array], Slots]:
        moved: dict[str, Array] = {}
        velocity: dict[str, Array] = {}
        for name, p in parameters.items():  # one at a time, so that a large model needs one array more, not one model
            move = d = difference[name]
            if self.momentum:
                v = self.momentum * slots["velocity"][name]
                v += d
                move = velocity[name] = v
                if self.nesterov:
                    move = self.momentum * v
                    move += d
            moved[name] = p + (move if self.lr == 1.0 else self.lr * move)
        return moved, {"velocity": {**slots["velocity"], **velocity}} if self.momentum else slots


@dataclass(frozen=True)
class AdaptiveOptimizer(ServerOptimizer):
    """What adam, yogi and adagrad share: a running mean, and a second moment that divides it; `tau` bounds how far it
    is divided.

    As in the paper's Algorithm 2: no bias correction, and the second moment starts at tau**2.
    """

    elementwise: ClassVar[bool] = True
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_rates(self, lr=(0.0, _MOST), beta1=(0.0, _BELOW_1), beta2=(0.0, 1.0), tau=(_TINY, _MOST))

    def in_round(self, r: int) -> ServerOptimizer:
        return fields_in_round(self, r)

    def second(self, moment: Array, square: Array) -> Array:
        """The next second moment; `square` is the difference squared."""
        raise NotImplementedError

    def init(self, parameters: Mapping[str, Array]) -> Slots:
        first = {n: np.zeros_like(p) for n, p in parameters.items()}
        return {"first": first, "second": {n: np.full_like(p, self.tau**2) for n, p in parameters.items()}}

    def step(
        self, parameters: Mapping[str, Array], difference: Mapping[str, Array], slots: Slots
    ) -> tuple[dict[str, Array], Slots]:
        moved: dict[str, Array] = {}
        first: dict[str, Array] = {}
        second: dict[str, Array] = {}
        for name, p in parameters.items():
            d = difference[name]
            m = self.beta1 * slots["first"][name]
            m += (1 - self.beta1) * d
            v = self.second(slots["second"][name], np.square(d))
            divisor = np.sqrt(v)
            divisor += self.tau
            step = self.lr * m
            step /= divisor
            step += p
            moved[name], first[name], second[name] = step, m, v
        return moved, {"first": {**slots["first"], **first}, "second": {**slots["second"], **second}}


@dataclass(frozen=True)
class adam(AdaptiveOptimizer):
    """FedAdam's server step."""

    def second(self, moment: Array, square: Array) -> Array:
        return self.beta2 * moment + (1 - self.beta2) * square


@dataclass(frozen=True)
class yogi(AdaptiveOptimizer):
    """FedYogi's server step: the second moment moves towards the square by a bounded amount."""

    def second(self, moment: Array, square: Array) -> Array:
        result: Array = np.subtract(moment, (1 - self.beta2) * square * np.sign(moment - square))
        return result


@dataclass(frozen=True)
class adagrad(AdaptiveOptimizer):
    """FedAdagrad's server step: the second moment is the sum of all squares."""

    beta1: float = 0.0

    def second(self, moment: Array, square: Array) -> Array:
        return moment + square
