"""One-shot federated learning: clients train once, and what they made votes (Guha et al. 2019, arXiv 1902.11175)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.strategy import Asks, State, Strategy
from ..core.update import Contribution, Free, Update
from ..core.window import Window
from ..errors import ClientId, UpdateRejected
from ..folds.collect import collect
from ..folds.gathered import Gathering
from ..samplers.shorthand import as_sampler


@dataclass(frozen=True)
class members(collect):
    """All clients' arrays, of the names, shapes and dtypes that `looks` says; but where it says that an array is empty
    they may have any length. What looks otherwise costs the update.
    """

    name: ClassVar[str] = "members"
    looks: tuple[tuple[str, tuple[int, ...], str], ...] = ()

    def add(self, acc: Gathering, item: Contribution, factor: float = 1.0) -> Gathering:
        if item.arrays.keys() != {name for name, _, _ in self.looks}:
            raise UpdateRejected(f"the update has the arrays {', '.join(item.arrays):.200}, which are not the model's")
        for name, shape, dtype in self.looks:
            found, any_length = item.arrays[name], 0 in shape
            if (found.ndim, found.dtype.name) != (len(shape), dtype) or found.shape[any_length:] != shape[any_length:]:
                have = f"shape {[*found.shape]} and dtype {found.dtype.name}"
                raise UpdateRejected(f"array {name!r} has {have}, expected {[*shape]} and {dtype}")
        return super().add(acc, item, factor)


@dataclass(frozen=True, kw_only=True)
class OneShot(Strategy):
    """One round, after which the model holds what each client of the cohort has made, in the order of their ids.

    Arrays of clients are stacked, [clients, ...], beside `weights`, [clients], those of their updates
    (`umbel.sklearn.ensemble` has them vote). An array that is empty in the model, as of a forest without trees, takes
    in those of all clients, one after the other. Updates without weight are left out.
    """

    cohort: Any = "all"
    window: Window = field(default_factory=Window)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_sampler(self.cohort)

    def round(self, state: State, r: int) -> Asks:
        if r > 1:
            return state
        model = state.model
        answer = yield Ask(
            clients=self.cohort,
            model=model,
            config=self.config,
            expects=Free(),
            fold=members(looks=tuple((n, a.shape, a.dtype.name) for n, a in sorted(model.items()))),
            window=self.window,
        )
        found: dict[ClientId, Update] = answer.value or {}
        updates = [update for update in found.values() if update.weight]
        if not updates:
            return state
        made = {name: [update.arrays[name] for update in updates] for name in model}
        taken = {n: np.stack(parts) if model[n].size else np.concatenate(parts) for n, parts in made.items()}
        if any(array.size for array in model.values()):
            taken["weights"] = np.array([update.weight for update in updates])
        return State(Arrays(taken, model.roles))
