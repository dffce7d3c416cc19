"""FLTrust (Cao et al. 2021, arXiv 2012.13995)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Arrays
from ..core.fold import Fold
from ..core.update import Like, Update, as_delta
from ..errors import NothingToFold, SettingError, StrategyError
from .gathered import Gathered, Updates, knowing
from .geometry import products


@dataclass(frozen=True)
class fltrust(Gathered):
    """The updates by how much they point the way of the server's own, each scaled to its length.

    ``server(model, r)`` trains the model that round `r` sends on a little clean data of the server, and returns what a
    training handler does: an `Update`, or the new arrays. It has to give the same again for the same model and round,
    so it seeds its generators by `r`. An update's trust is its cosine with the server's, and none below zero; a stale
    one is trusted less. Any number of clients may be malicious as long as the server's data is like that of the honest
    ones. Where nobody is trusted there is nothing to fold. Needs differences. Costs 6 n d multiplications, and a
    weighted mean.
    """

    name: ClassVar[str] = "fltrust"
    needs_differences: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    server: Callable[[Arrays, int], Update | Mapping[str, Any]]

    def __post_init__(self) -> None:
        if not callable(self.server):
            raise SettingError(f"fltrust takes a function of the model and the round, not {self.server!r:.60}")

    def for_round(self, memory: Any, model: Arrays, r: int) -> Fold:
        made = self.server(model.as_given(), r)
        update = made if isinstance(made, Update) else Update(made)
        own = as_delta(update, Like(), model).arrays
        assert isinstance(own, Arrays)
        return knowing(self, own.of_role("parameter"))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "server": None}  # it may hold data, which workers need not have

    def made(self, updates: Updates) -> Arrays:
        if self.kept is None:
            raise StrategyError(
                "fltrust has no update of the server's own",
                hint="FedAvg has it trained; a strategy of your own asks with fold.for_round(None, model, r).",
            )
        (square,) = products([self.kept])[0]
        norms = np.sqrt([products([each])[0, 0] for each in updates.arrays])
        along = products(updates.arrays, [self.kept])[:, 0]
        sizes = norms * math.sqrt(square)
        cosines = np.divide(along, sizes, out=np.zeros(len(along)), where=sizes > 0)
        trust = np.clip(cosines, 0.0, 1.0) * updates.factors
        if not trust.any():
            raise NothingToFold(f"none of {len(updates)} updates points the way of the server's own")
        lengths = np.divide(math.sqrt(square), norms, out=np.zeros(len(norms)), where=norms > 0)
        return updates.combined(trust * lengths / updates.factors, math.fsum(trust))
