"""The parameters' part of an update that is a difference, for transforms that work on it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Schema, wide
from ..core.fold import Fold
from ..core.transform import Transform, as_arrays, checked_aux
from ..core.update import Expectation, Update
from ..errors import StrategyError


@dataclass(frozen=True)
class OnDifferences(Transform):
    """A step that works on differences, and on what they come to."""

    def check(self, fold: Fold, expects: Expectation) -> None:
        if fold.keeps_aux:
            raise StrategyError(
                f"{self.name} works on what updates come to, and {fold.name} keeps them apart",
                hint="Use a fold that sums.",
            )
        if not expects.delta:
            raise StrategyError(
                f"{self.name} works on differences, but the ask expects values", hint="Use Like(delta=True)."
            )


@dataclass(frozen=True)
class PerParameter(OnDifferences):
    """A step whose updates bring an array for each parameter; the state has one for each, too, which all are sent."""

    brings_aux: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("lr", "steps")

    def init(self, schema: Schema | None) -> Any:
        return zeros(schema)

    def send(self, state: Any) -> Any:
        return state

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        shapes = {n: s.shape for n, s in (schema or {}).items() if s.role == "parameter"}
        return checked_aux(update, self, shapes)


def zeros(schema: Schema | None) -> Arrays:
    """Zeros like the differences of the parameters."""
    return Arrays({n: np.zeros(s.shape, wide(s.dtype)) for n, s in (schema or {}).items() if s.role == "parameter"})


def changed(update: Update, change: Callable[[str, Array], Array]) -> Update:
    """The update with each parameter's difference changed."""
    arrays = as_arrays(update)
    return replace(update, arrays=arrays.replace({n: change(n, a) for n, a in arrays.of_role("parameter").items()}))


def changed_answer(answer: Answer, change: Callable[[str, Array], Array]) -> Answer:
    """The answer with each parameter's folded difference changed."""
    value: Arrays = answer.value
    own = {n: change(n, a).astype(a.dtype, copy=False) for n, a in value.of_role("parameter").items()}
    return replace(answer, value=value.replace(own))
