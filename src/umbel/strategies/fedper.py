"""FedPer, LG-FedAvg and FedBN: a part of the model is everyone's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..core.arrays import Arrays
from ..core.strategy import State
from ..errors import StrategyError
from .fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedPer(FedAvg):
    """FedAvg of the base of a model, while everyone keeps a head of its own (Arivazhagan et al. 2019, arXiv
    1912.00818).

    `personal` are patterns of the names of arrays that never leave their holder (``("head.*",)``). Needs clients that
    keep what is personal, in ``ctx.state["personal"]``, where `umbel.torch.fit` puts it and
    `umbel.torch.load_personal_` finds it.
    """

    personal: Sequence[str]

    def start(self, model: Arrays) -> State:
        return super().start(with_personal(model, self.personal))


def with_personal(model: Arrays, patterns: Sequence[str]) -> Arrays:
    """The model with the arrays personal whose names match. Raises `StrategyError` for a pattern that none does."""
    mine: dict[str, Any] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if not (found := [name for name in model if fnmatchcase(name, pattern)]):
            listed = ", ".join(list(model)[:6]) + (", ..." if len(model) > 6 else "")
            raise StrategyError(
                f"the personal pattern {pattern!r} matches no array of the model", hint=f"Its arrays are {listed}."
            )
        mine.update(dict.fromkeys(found, "personal"))
    if len(mine) in (0, len(model)):
        why = "all arrays of the model are personal: there is nothing to learn together"
        raise StrategyError(why if mine else "no array of the model is personal", hint=None if mine else "Use FedAvg.")
    return Arrays(model, mine)
