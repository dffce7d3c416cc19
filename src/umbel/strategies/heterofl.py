"""HeteroFL: weak clients train a narrower part of the model (Diao, Ding & Tarokh 2021, arXiv 2010.01264)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays
from ..core.elementwise import Elementwise
from ..core.settings import functions, number
from ..core.strategy import Asks, State
from ..errors import SettingError, StrategyError
from ..samplers.shorthand import as_sampler
from .fedavg import FedAvg

Shapes = Callable[[float], Mapping[str, tuple[int, ...]]]
"""The shapes of a model's arrays by its width: of what `arrays(Net(width))` gives, say."""


@dataclass(frozen=True, kw_only=True)
class HeteroFL(FedAvg):
    """Each client gets the leading part of every array that a model of its width has; each element of the model is the
    mean of those that had it.

    `levels` says who has which width, such as ``{1.0: Uniform(5), 0.25: ["phone-1", "phone-2"]}``; `cohort` is not
    used. `shapes` gives the shapes of a width's arrays. What is personal has one shape at all widths. Needs clients
    that build the net that fits what they get; scaling and masked cross-entropy are theirs.
    """

    levels: Mapping[float, Any]
    shapes: Shapes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self, "levels", Mapping)
        functions(self, "shapes")
        for who in self.levels.values():
            as_sampler(who)

    def width(self, level: float, r: int) -> float:
        """The width that the clients of a level train in round `r`."""
        return level

    def round(self, state: State, r: int) -> Asks:
        memory: dict[str, Any] = dict(state.parts().get("memory") or {})  # what the fold remembers of each width
        widths = [self.width(level, r) for level in self.levels]
        asks = [
            replace(
                self.ask(state.replace(model=self.cut(state.model, width), memory=memory.get(str(width))), r),
                clients=who,
                lane=f"train-{level}",
                window=replace(self.window, quorum=0),  # a level may lack for once
            )
            for width, (level, who) in zip(widths, self.levels.items(), strict=True)
        ]
        came = [(width, answer) for width, answer in zip(map(str, widths), (yield asks), strict=True) if answer.count]
        if not came:
            return state
        for width, answer in came:
            if (found := self.fold.remember(memory.get(width), answer)) is not None:
                memory[width] = found
        answers = [answer for _, answer in came]
        weights = [self._weight(answer) for answer in answers]
        model = state.model.select(answers[0].value)  # all but what is personal
        value = model.map(lambda n, a: _mean(n, a, model.roles[n] == "parameter", answers, weights))
        after = self.stepped(state, replace(answers[0], value=value))
        return after.replace(memory=memory) if memory else after

    def _weight(self, answer: Answer) -> float:
        """What the clients of a level count together."""
        if isinstance(self.fold, Elementwise) and self.fold.weights == "claimed":
            return math.fsum(self.fold.weigh(receipt.weight, 1.0) for receipt in answer.receipts)
        return float(answer.count)

    def cut(self, model: Arrays, width: float) -> Arrays:
        """The leading part of each array that a model of this width has. Raises `StrategyError`."""
        shapes = self.shapes(width)
        if not isinstance(shapes, Mapping) or shapes.keys() != model.keys():
            raise StrategyError(f"the arrays of width {width} have other names than the model's")
        for name, shape in shapes.items():
            whole = model[name].shape
            fits = (isinstance(a, int | np.integer) and 0 <= a <= b for a, b in zip(shape, whole, strict=False))
            if len(shape) != len(whole) or not all(fits):
                raise StrategyError(f"array {name!r} has shape {[*shape]} at width {width}, no part of {[*whole]}")
            if model.roles[name] == "personal" and tuple(shape) != whole:
                raise StrategyError(f"array {name!r} is personal, and so has shape {[*whole]} at all widths")
        return model.map(lambda n, a: np.array(a[tuple(map(slice, shapes[n]))], order="C"))


def check_widths(strategy: HeteroFL, name: str, kind: Any) -> None:
    """Raise `SettingError` for a setting of another kind, or of widths that are none."""
    value = getattr(strategy, name)
    if not (isinstance(value, kind) and value and all(number(width) and 0 < width <= 1 for width in value)):
        raise SettingError(f"{type(strategy).__name__} takes {name} of widths above 0 and up to 1, not {value!r:.60}")


def _mean(name: str, whole: Array, difference: bool, answers: Sequence[Answer], weights: Sequence[float]) -> Array:
    """The mean of each element over the answers that have it; where none does no difference, or the value as it was."""
    total, count = np.zeros(whole.shape, np.float64), np.zeros(whole.shape, np.float64)
    for answer, weight in zip(answers, weights, strict=True):
        part = answer.value[name]
        place = tuple(map(slice, part.shape))
        total[place] += weight * part.astype(np.float64)
        count[place] += weight
    kept = np.zeros(whole.shape) if difference else whole.astype(np.float64)
    found = np.divide(total, count, out=kept, where=count > 0)
    return found.astype(answers[0].value[name].dtype)
