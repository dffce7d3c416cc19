"""Folds: mergeable accumulators of updates. `zero`, `add`, `merge`, `finish`; the order and the tree of merges cannot
matter.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import UpdateRejected
from . import encoding
from .arrays import Arrays
from .update import NO_ARRAYS, Contribution, Stack

if TYPE_CHECKING:
    from .answer import Answer


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
    keeps_aux: ClassVar[bool] = False
    """Whether aux arrays stay with their updates, instead of being averaged beside the fold."""

    needs_differences: ClassVar[bool] = False
    """Whether what it makes of values, in place of differences to the model, would mean nothing."""

    @property
    def least(self) -> int:
        """So many updates it needs."""
        return 1

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

    def beside(self, acc: Any) -> Arrays:
        """Arrays that `remember` needs, which reach it among those of `Answer.aux`."""
        return NO_ARRAYS

    def for_round(self, memory: Any, model: Arrays, r: int) -> Fold:
        """The fold of round `r`, in which this model is sent: given what was remembered, None at first. A strategy
        that does not call it has the fold as it is when it remembers nothing.
        """
        return self

    def remember(self, memory: Any, answer: Answer) -> Any:
        """What is to be remembered after an answer, a plain tree that a strategy keeps in its `State`; None for
        nothing.
        """
        return memory

    def spec(self) -> Any:
        """A plain description, for the digest of an ask: arrays by their hash, functions by their names."""
        settings: dict[str, Any] = {}
        if is_dataclass(self):
            settings = {f.name: _said(getattr(self, f.name)) for f in fields(self)}
        return [self.name, settings]


def _said(value: Any) -> Any:
    """A setting as a description has it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    hashed = hashlib.sha256()
    for piece in encoding.pieces(value):
        hashed.update(piece)
    return hashed.hexdigest()


class Unlike(UpdateRejected):
    """The arrays of an update, or of a partial, are not those of what was folded before."""
