"""Folds: mergeable accumulators of updates. `zero`, `add`, `merge`, `finish`; the order and the tree of merges cannot
matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, Literal

from ..errors import UpdateRejected
from .update import Contribution, Stack


class Fold(ABC):
    """How updates become one answer.

    Accumulators are changed in place; `add` and `merge` return the accumulator to go on with. `finish` must leave it as
    it was.
    """

    name: ClassVar[str]
    weights: ClassVar[Literal["claimed", "equal"]] = "equal"
    """Whether an update counts by the weight that its client claims, or like every other."""
    single: ClassVar[bool] = False
    """Whether the fold needs to see every update by itself, which rules out secure aggregation."""
    stacks: ClassVar[bool] = False
    """Whether `add_stack` takes several updates at once."""

    @abstractmethod
    def zero(self) -> Any:
        """An accumulator of nothing."""

    @abstractmethod
    def add(self, acc: Any, item: Contribution, factor: float = 1.0) -> Any:
        """Fold one checked update; `factor` discounts a stale one."""

    def add_stack(self, acc: Any, items: Stack, factor: float = 1.0) -> Any:
        """Fold checked updates with the same arrays: one, or several where the fold `stacks`."""
        for item in items:
            acc = self.add(acc, item, factor)
        return acc

    @abstractmethod
    def merge(self, acc: Any, other: Any) -> Any:
        """Fold everything that `other` holds."""

    @abstractmethod
    def finish(self, acc: Any) -> Any:
        """The answer. Raises `NothingToFold` where there is none."""

    def settle(self, acc: Any) -> None:  # noqa: B027
        """Have nothing wait in the accumulator any more, before it is sent elsewhere."""

    def spec(self) -> Any:
        """A plain description, for the digest of an ask."""
        settings: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return [self.name, settings]


class Unlike(UpdateRejected):
    """The arrays of an update, or of a partial, are not those of what was folded before."""
