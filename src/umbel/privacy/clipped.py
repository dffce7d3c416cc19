"""Differences of bounded norm on a grid of integers: what holders do where the server adds noise to the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, Schema, wide
from ..core.fold import Fold
from ..core.randomness import Key
from ..core.settings import positive
from ..core.transform import Transform, as_arrays
from ..core.update import Expectation, Like, Update
from ..entropy import SYSTEM, Entropy
from ..errors import SettingError, StrategyError, UpdateRejected
from ..transforms.clip_by_norm import parameter_norm, with_roles
from .discrete import Integers

GRID_BITS = 23
"""A clip bound is at most so many powers of two above the grid, so that float32 has all its multiples."""
SLACK = 3e-7
"""How far below the bound, by its share, updates stay: twice and more what float32 can err by as it scales them."""
LEAST_SLACK = 5e-8
"""How far they have to: more than float64 can err by in a norm."""
_PART = 1 << 14
"""So many elements are rounded at a time."""


@dataclass(frozen=True)
class Clipped(Transform):
    """What mechanisms have in common that add noise to the sum of clipped differences; see `central_gaussian`.

    A holder scales its difference to an L2 norm of at most `norm` and rounds it to the grid. With `per_layer` it scales
    each layer (arrays whose names are alike up to the last dot) by itself, to an equal share of the squared bound, so
    that all together stay within it (McMahan et al. 2018, arXiv 1710.06963). Where it is folded the norm of all and the
    grid are checked again. So whatever a client sends, the sum moves by at most norm / `grid` steps in L2.
    """

    norm: float
    noise: float
    expected: float
    per_layer: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        positive(self, "norm", "noise", "expected")
        if not isinstance(self.per_layer, bool):
            raise SettingError(f"{self.name}'s per_layer is True or False, not {self.per_layer!r:.60}")

    @property
    def private(self) -> bool:
        return True

    @property
    def bound(self) -> float:
        return self.norm

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

    def init(self, schema: Schema | None) -> dict[str, Any]:
        """What an answer looks like that nobody contributed to."""
        if schema is None:
            raise StrategyError(
                f"{self.name} has to know what updates look like before there are any",
                hint="Give the ask one model, and one expectation, for all its clients.",
            )
        parameters = {name: spec for name, spec in schema.items() if spec.role == "parameter"}
        if not _limit(1.0, sum(math.prod(spec.shape) for spec in parameters.values())) > 0.5:
            raise StrategyError(f"the model is too large for the grid of {self.name}")
        return {"looks": {name: [list(spec.shape), wide(spec.dtype).name] for name, spec in parameters.items()}}

    def send(self, state: Any) -> Any:
        return {"norm": self._sent(state)}

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        return self._clipped(update, self._sent(params))[0], local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays, bound = with_roles(as_arrays(update), schema), self._sent(params)
        parameters, step = arrays.of_role("parameter"), grid(bound)
        if not (norm := parameter_norm(arrays)) <= bound * (1 - LEAST_SLACK):
            raise UpdateRejected(f"the update's norm is {norm:.9g}, but it had to be clipped to {bound:.9g}")
        for name, array in parameters.items():
            if not _on_grid(array, step):
                raise UpdateRejected(f"array {name!r} is not on the grid of {self.name}: multiples of {step:g}")
        kept = {name: array if name in parameters else np.zeros_like(array) for name, array in arrays.items()}
        return Update(Arrays.trusted(kept, dict(arrays.roles)), delta=update.delta)

    def _sent(self, known: Mapping[str, Any]) -> float:
        """The bound of this round; one that does not move is the setting's, whatever is sent, or was kept."""
        return self.norm

    def _clipped(self, update: Update, bound: float) -> tuple[Update, float]:
        """What is sent of an update, and the norm that it had."""
        arrays, step = as_arrays(update), grid(bound)
        parameters = arrays.of_role("parameter")
        made = {name: np.zeros_like(array) for name, array in arrays.items() if name not in parameters}
        layers = dict[str, list[str]]()
        for name in parameters:
            layers.setdefault((name.rpartition(".")[0] or name) if self.per_layer else "", []).append(name)
        limit = _limit(bound, sum(array.size for array in parameters.values())) / math.sqrt(max(len(layers), 1))
        for names in layers.values():
            norm = parameter_norm(arrays.select(names))
            scale = 1.0 if norm <= limit else limit / norm  # NaN where the norm is, to be rejected by name
            for name in names:
                made[name] = _rounded(arrays[name], scale / step, step)
        whole = norm if len(layers) == 1 else parameter_norm(arrays)
        made = {name: made[name] for name in arrays}
        return Update(Arrays.trusted(made, dict(arrays.roles)), delta=update.delta), whole

    def _released(self, answer: Answer, state: Any, draw: Callable[[int], Integers]) -> Answer:
        """The mean with its noise, in steps of the grid, which `draw` gives for so many elements at a time, by name."""
        noised, step = dict[str, Array](), grid(self._sent(state))
        for name, (shape, dtype) in sorted(state["looks"].items()):
            steps = draw(math.prod(shape))
            made, total = np.empty(len(steps), dtype), np.ravel(answer.value[name]) if name in answer.value else None
            for at in range(0, len(steps), _PART):
                part = steps[at : at + _PART]
                if total is not None:  # else nobody came, whose sum is zero
                    part += np.rint(total[at : at + _PART] / step).astype(np.int64)
                np.multiply(part, step / self.expected, out=made[at : at + _PART], casting="same_kind")
            noised[name] = made.reshape(shape)
        value = Arrays.trusted(noised, dict.fromkeys(noised, "parameter"))
        return replace(answer, value=value, aux=Arrays(), metrics={}, weight=0.0)


def grid(bound: float) -> float:
    """The distance of the points of the grid to which updates of this bound are rounded: a power of two."""
    return math.ldexp(1.0, math.frexp(bound)[1] - GRID_BITS)


def _limit(bound: float, size: int) -> float:
    """The norm to scale to, from which rounding so many elements leads to no norm above the bound."""
    return bound * (1 - SLACK) - grid(bound) * math.sqrt(size) / 2


def _rounded(array: Array, factor: float, step: float) -> Array:
    """The array times a factor, rounded to whole steps, as floats: part by part, so that all stays in the cache."""
    flat, kind = np.ravel(array), _kind(array, step)
    made, room = np.empty(len(flat), wide(array.dtype)), np.empty(min(len(flat), _PART), kind)
    for at in range(0, len(flat), _PART):
        part = flat[at : at + _PART]
        steps = np.multiply(part, kind.type(factor), out=room[: len(part)], dtype=kind)
        np.rint(steps, out=steps)
        np.multiply(steps, kind.type(step), out=made[at : at + _PART], casting="same_kind")
    return made.reshape(array.shape)


def _on_grid(array: Array, step: float) -> bool:
    """Whether all elements are multiples of the step, a power of two; part by part, so that all stays in the cache."""
    flat, kind = np.ravel(array), _kind(array, step)
    for at in range(0, len(flat), _PART):
        steps = np.multiply(flat[at : at + _PART], kind.type(1 / step), dtype=kind)
        if not np.array_equal(np.rint(steps), steps):
            return False
    return True


def _kind(array: Array, step: float) -> np.dtype[Any]:
    """In which floats whole steps are counted: those that the array has, where nothing gets too small for them."""
    return np.dtype(np.float32 if array.dtype == np.float32 and 2.0**-100 <= step <= 1.0 else np.float64)
