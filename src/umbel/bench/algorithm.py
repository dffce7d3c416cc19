"""Algorithms as they are compared: a strategy, and which of its settings are tuned over which values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Any

from ..core.strategy import Strategy
from ..errors import SettingError
from .problem import Problem

SERVER_RATES = (0.01, 0.1, 1.0)
"""The learning rates of servers that are tried for every algorithm that has one."""


@dataclass(frozen=True)
class Algorithm:
    """A strategy, and how it is tuned.

    - `strategy`: an instance; or what makes one, a class or a function, which is given the settings of `grid`.
    - `grid`: names of its own settings and the values that are tried, each with each.
    - `rates`: the clients' learning rates that are tried, where they cannot be the problem's.
    - `config`: laid over the problem's, for clients.
    - `metric`: by what it is tuned where that is not the problem's metric, with the same goal: personalised models
      are for their clients.
    - `given`: what of the problem's is passed to what makes it, by these names: `"rate"`, the clients' learning rate;
      `"cohort"`, for a strategy whose clients do not come by the round: its rounds are as many as make as many updates.
    """

    strategy: Strategy | Callable[..., Strategy]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rates: Sequence[float] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    given: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy) and not callable(self.strategy):
            raise SettingError(f"an algorithm is a strategy or makes one, not {self.strategy!r:.60}")
        if isinstance(self.strategy, Strategy) and self.grid:
            raise SettingError(
                f"a {type(self.strategy).__name__} is made already, and cannot be given {', '.join(self.grid)}",
                hint=f"Pass what makes it: Algorithm({type(self.strategy).__name__}, {{...}}), or a function.",
            )
        if {*self.given} - {"rate", "cohort"}:
            raise SettingError(f"an algorithm is given the rate and the cohort, not {', '.join(self.given)}")
        empty = next((name for name, values in self.grid.items() if isinstance(values, str) or not len(values)), None)
        if empty is not None:
            raise SettingError(f"the grid's {empty} is a list of values, at least one, not {self.grid[empty]!r}")

    def choices(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """All settings to try on a problem: the clients' rate, and each value of the grid with each."""
        rates = self.rates or problem.rates
        for rate, *own in product(rates, *self.grid.values()):
            yield {CLIENT_RATE: rate, **dict(zip(self.grid, own, strict=True))}

    @property
    def essence(self) -> list[Any]:
        """What comes of a run depends on this of it, beside the settings."""
        return [self.strategy, self.config, self.given]

    def build(self, problem: Problem, settings: Mapping[str, Any]) -> Strategy:
        """The strategy with these settings and the problem's cohort."""
        own = {name: value for name, value in settings.items() if name != CLIENT_RATE}
        own |= {"rate": settings[CLIENT_RATE]} if "rate" in self.given else {}
        own |= {"cohort": problem.cohort} if "cohort" in self.given else {}
        made = self.strategy if isinstance(self.strategy, Strategy) else self.strategy(**own)
        if not isinstance(made, Strategy):
            raise SettingError(f"{self.strategy!r:.60} made {made!r:.60}, not a strategy")
        has = is_dataclass(made) and any(each.name == "cohort" and each.init for each in fields(made))
        if "cohort" not in self.given and has and problem.cohort is not None:
            made = replace(made, cohort=problem.cohort)  # type: ignore[type-var]
        return made

    def at_edge(self, problem: Problem, settings: Mapping[str, Any]) -> list[str]:
        """The settings whose best value is the first or the last of at least three numbers: better may lie beyond."""
        grids = {CLIENT_RATE: self.rates or problem.rates, **self.grid}
        numbers = {n: sorted(v) for n, v in grids.items() if all(isinstance(x, int | float) for x in v) and len(v) > 2}
        return [n for n, v in numbers.items() if settings.get(n) in (v[0], v[-1])]


CLIENT_RATE = "client rate"
"""What the clients' learning rate is called among the settings of a trial."""


def as_algorithm(value: Any) -> Algorithm:
    """An algorithm as it was given, or of a strategy, or of what makes one."""
    return value if isinstance(value, Algorithm) else Algorithm(value)
