"""Matched: neurons of clients' models are brought into one order before they are averaged.

The idea is that of PFNM and FedMA (Yurochkin et al. 2019, arXiv 1905.12022; Wang et al. 2020, arXiv 2002.06440), the
matching that of weights in Git Re-Basin (Ainsworth, Hayase & Srinivasa 2023, arXiv 2209.04836).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.arrays import Array, Arrays, is_floating
from ..core.fold import Fold
from ..core.settings import whole
from ..core.strategy import State
from ..errors import NothingToFold, SettingError, StrategyError
from ..folds.collect import collect
from .fedavg import FedAvg

Axis = tuple[str, int]


_LARGE = 1e100


@dataclass(frozen=True, kw_only=True)
class Matched(FedAvg):
    """FedAvg, of one round most often, that first permutes each client's neurons to those of the client with the most
    weight, which they are most like.

    `neurons` lists, for each hidden layer, the axes of arrays that its neurons lie on: ``[("0.weight", 0), ("0.bias",
    0), ("2.weight", 1)]``. Layers are matched in turn, `sweeps` times. For clients that begin from models of their
    own, or train long. The server needs SciPy, and holds every update. It needs nothing of clients.
    """

    collects: ClassVar[bool] = True
    neurons: Sequence[Sequence[Axis]]
    sweeps: int = 3
    fold: Fold = field(default_factory=collect)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, sweeps=1)
        for place in (place for layer in self.neurons for place in layer):
            if not isinstance(place, tuple | list) or [*map(type, place)] != [str, int] or place[1] < 0:
                raise SettingError(f"Matched takes neurons as (name of an array, axis from 0 on), not {place!r:.60}")

    def stepped(self, state: State, answer: Answer) -> State:
        if not answer.count:
            return state
        model: Arrays = state.model
        for name, axis in (place for layer in self.neurons for place in layer):
            if name not in model or axis >= model[name].ndim:
                raise StrategyError(f"the model has no axis {axis} of an array {name!r} to match neurons by")
        values = [
            ({n: a + model[n] if model.roles[n] == "parameter" else a for n, a in u.arrays.items()}, u.weight)
            for u in answer.value.values()
        ]
        first = max(values, key=lambda each: each[1])[0]
        matched = [(value if value is first else self._permuted(value, first), weight) for value, weight in values]
        total = sum(weight for _, weight in matched)
        if not total:
            raise NothingToFold("the weights of all updates are zero")
        mean = {n: _mean_of(n, matched, total) for n in first}
        changed = {n: a - model[n] if model.roles[n] == "parameter" else a for n, a in mean.items()}
        return super().stepped(state, Answer(Arrays(changed, model.select(changed).roles)))

    def _permuted(self, value: dict[str, Array], first: dict[str, Array]) -> dict[str, Array]:
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise StrategyError("Matched needs SciPy", hint="Install it with: pip install scipy") from error
        found = dict(value)
        for _ in range(self.sweeps):
            for layer in self.neurons:
                rows = [(_rows(first[n], axis), _rows(found[n], axis)) for n, axis in layer]
                largest = max(1.0, *(np.abs(each).max(initial=0) for pair in rows for each in pair))
                if largest > _LARGE:  # whose products may be infinite
                    rows = [(mine / largest, theirs / largest) for mine, theirs in rows]
                alike = sum(mine @ theirs.T for mine, theirs in rows)
                _, order = linear_sum_assignment(alike, maximize=True)
                found.update({n: np.take(found[n], order, axis) for n, axis in layer})
        return found


def _mean_of(name: str, values: Sequence[tuple[dict[str, Array], float]], total: float) -> Array:
    """The mean of the arrays of a name by weight; integers are rounded."""
    mean: Array = np.sum([weight / total * value[name] for value, weight in values], axis=0)
    dtype = values[0][0][name].dtype
    return mean if is_floating(dtype) else np.rint(mean).astype(dtype)


def _rows(array: Array, axis: int) -> Array:
    """An array with a row for each neuron."""
    moved: Array = np.moveaxis(array, axis, 0).astype(np.float64)
    return moved.reshape(len(moved), -1)
