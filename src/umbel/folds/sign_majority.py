"""Majority vote of signs, as in signSGD (Bernstein et al. 2018, arXiv 1810.05291)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..core.arrays import Array, Arrays
from ..core.elementwise import Sums, mean
from ..core.update import Contribution


@dataclass(frozen=True)
class sign_majority(mean):
    """Of each parameter the sign that most updates have: 1, -1, or 0 where as many have either.

    The server's learning rate is the step of every parameter: `FedAvg(fold=sign_majority(), server=sgd(0.001))`. A
    stale update has less of a vote. Withstands malicious clients that are fewer than those by whom the honest majority
    leads. Needs differences; buffers take the plain mean. Votes are summed, so memory does not grow with the number of
    updates.
    """

    name: ClassVar[str] = "sign_majority"
    needs_differences: ClassVar[bool] = True
    single: ClassVar[bool] = True

    def add(self, acc: Sums, item: Contribution, factor: float = 1.0) -> Sums:
        roles = item.arrays.roles
        votes = {n: np.asarray(np.sign(a)) if roles[n] == "parameter" else a for n, a in item.arrays.items()}
        sizes = {n: float(m > 0) if roles[n] == "parameter" else m for n, m in item.magnitudes.items()}
        item = replace(item, arrays=Arrays.trusted(votes, roles), magnitudes=sizes, mapped=False)
        return super().add(acc, item, factor)

    def finish(self, acc: Sums) -> Arrays:
        means = super().finish(acc)

        def make(name: str, start: int, stop: int) -> Array:
            part = means.stretch(name, start, stop)
            return np.sign(part) if means.roles[name] == "parameter" else part

        signs = Arrays.computed(means.schema, make)
        return signs if means.is_computed else Arrays.trusted(dict(signs.items()), means.roles)
