"""Windows: how many tasks of an ask fly at once, when the ask closes, and what happens to late answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import StrategyError
from .settings import number


@dataclass(frozen=True)
class Window:
    """When an ask closes, and what it takes in until then. The default asks all at once and waits for all.

    - `in_flight`: at most so many tasks at once, late ones of the same lane included (None: all).
    - `close_after`: close once so many updates are admitted (None: once no task can still arrive).
    - `quorum`: with fewer updates than this the ask fails with `NothingToFold`. With 0 it never does for want of
      updates, or of weight, or of as many as the fold needs: the answer has no arrays then.
    - `deadline`: close after so many seconds of served time; an outage of the server does not count. An
      infinite one is none.
    - `late`: what becomes of tasks still out when the ask closes: `"drop"` cancels them; `"keep"` lets them finish and
      count in a later ask of the same lane.
    - `staleness_exponent`: an update that is s asks late counts by 1 / (1 + s) ** exponent (Xie et al. 2019; Nguyen et
      al. 2022).
      Under `mean` such an update counts less for good; under `weighted_mean` it only counts less than fresher ones, so
      that answers which are all late count in full: asynchronous strategies fold with `mean`.
    """

    in_flight: int | None = None
    close_after: int | None = None
    quorum: int = 1
    deadline: float | None = None
    late: Literal["drop", "keep"] = "drop"
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("in_flight", 1), ("close_after", 1), ("quorum", 0)):
            value = getattr(self, name)
            if value is None and name != "quorum":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise StrategyError(f"a window's {name} is a whole number of at least {least}, not {value!r}")
        if self.deadline == math.inf:
            object.__setattr__(self, "deadline", None)
        if self.deadline is not None and not (number(self.deadline) and self.deadline > 0):
            raise StrategyError(f"a window's deadline is a positive number of seconds, not {self.deadline!r}")
        if self.close_after is not None and self.quorum > self.close_after:
            raise StrategyError(
                f"a window that closes after {self.close_after} updates can never reach its quorum of {self.quorum}"
            )
        if self.late not in ("drop", "keep"):
            raise StrategyError(f"a window's late is 'drop' or 'keep', not {self.late!r}")
        if not (number(self.staleness_exponent) and self.staleness_exponent >= 0):
            raise StrategyError(
                f"a window's staleness_exponent is a number that is not negative, not {self.staleness_exponent!r}"
            )

    @property
    def unbounded(self) -> bool:
        """Whether all tasks fly at once and as many answers are taken in."""
        return self.in_flight is None and self.close_after is None

    @property
    def takes_all(self) -> bool:
        """Whether all that it says is a quorum, so that the order of answers cannot matter."""
        return self == Window(quorum=self.quorum)

    def discount(self, staleness: int) -> float:
        """The factor by which an update counts that was sent `staleness` asks ago."""
        return float((1 + staleness) ** -self.staleness_exponent) if staleness else 1.0
