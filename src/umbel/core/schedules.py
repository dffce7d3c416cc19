"""Settings that change from round to round: functions of the round, for a strategy's config or its server optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from ..errors import SettingError, StrategyError, UmbelError
from .settings import not_negative, whole

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class cosine:
    """Falls from `first` to `last` over `rounds` rounds along half a cosine (Loshchilov & Hutter 2017, arXiv
    1608.03983), and stays there; over the first `warm_up` rounds it rises to `first` in equal steps.
    """

    first: float
    rounds: int
    last: float = 0.0
    warm_up: int = 0

    def __post_init__(self) -> None:
        not_negative(self, "first", "last")
        whole(self, rounds=1, warm_up=0)
        if self.warm_up >= self.rounds:
            raise SettingError(f"cosine warms up for {self.warm_up} of {self.rounds} rounds: nothing is left to fall")

    def __call__(self, r: int) -> float:
        """The value in round `r`, from 1."""
        if r <= self.warm_up:
            return self.first * r / (self.warm_up + 1)
        done = min(1.0, (r - 1 - self.warm_up) / max(1, self.rounds - 1 - self.warm_up))
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class steps:
    """Is `first`, and `times` as much after every `every` rounds, without `every` for good; over the first `warm_up`
    rounds it rises to `first`, in equal steps.
    """

    first: float
    every: int | None = None
    times: float = 0.1
    warm_up: int = 0

    def __post_init__(self) -> None:
        not_negative(self, "first", "times")
        whole(self, warm_up=0) if self.every is None else whole(self, every=1, warm_up=0)

    def __call__(self, r: int) -> float:
        """The value in round `r`, from 1."""
        rising = min(1.0, r / (self.warm_up + 1))
        fallen = 0 if self.every is None else (r - 1) // self.every
        return float(self.first * rising * self.times**fallen)


def in_round(settings: Mapping[str, Any], r: int) -> Mapping[str, Any]:
    """The settings of round `r`: those that are functions, called with it. Raises `StrategyError` where one raises."""
    if not any(map(callable, settings.values())):
        return settings
    return {name: _called(name, value, r) if callable(value) else value for name, value in settings.items()}


def fields_in_round(settings: Kind, r: int) -> Kind:
    """The same of a dataclass all of whose fields are settings."""
    before = {field.name: getattr(settings, field.name) for field in fields(settings)}  # type: ignore[arg-type]
    after = in_round(before, r)
    return settings if after is before else replace(settings, **after)  # type: ignore[type-var]


def _called(name: str, function: Any, r: int) -> Any:
    try:
        return function(r)
    except UmbelError:
        raise
    except Exception as error:
        raise StrategyError.raised(f"{name}, a function of the round,", error, "a setting") from error
