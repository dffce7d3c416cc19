"""Newton's method on sums of gradients and informations: Fisher's scoring, as DataSHIELD fits generalized linear models
over data that stays (Gaye et al. 2014, Int. J. Epidemiology 43:1929).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.ask import Ask
from ..core.settings import not_negative
from ..core.strategy import Asks, State, Strategy
from ..core.update import Free
from ..core.window import Window
from ..errors import StrategyError
from ..folds.total import total
from ..samplers.shorthand import as_sampler


@dataclass(frozen=True, kw_only=True)
class Newton(Strategy):
    """Each round clients give the sums over their rows of `gradient` [k] and `information` [k, k] of the log-likelihood
    at the model's `coefficients` [k], which take the whole step (`umbel.statsmodels.fit`).

    Whatever else they give is summed, too, and kept in the model under its name, as the information is: both are those
    at the coefficients before the step, which is of no account once it is small, after about six rounds. `ridge` is
    added to the information's diagonal, as a penalty of half of it times the squares of the coefficients does. Needs
    clients that give these sums.
    """

    cohort: Any = "all"
    ridge: float = 0.0
    window: Window = field(default_factory=Window)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_sampler(self.cohort)
        not_negative(self, "ridge")

    def round(self, state: State, r: int) -> Asks:
        answer = yield Ask(
            clients=self.cohort,
            model=state.model,
            config=self.config,
            expects=Free(),
            fold=total(),
            window=self.window,
        )
        sums, at = answer.value, state.model["coefficients"]
        try:
            information = sums["information"] + self.ridge * np.eye(len(at))
            step = np.linalg.solve(information, sums["gradient"] - self.ridge * at)
        except (np.linalg.LinAlgError, KeyError, ValueError) as error:
            raise StrategyError(
                f"the sums of round {r} give no step: {error}",
                hint="Columns that others add up to have no coefficient of their own: leave them out, or take a ridge.",
            ) from error
        kept = {name: array for name, array in sums.items() if name != "gradient"}
        return State(state.model.replace({**kept, "coefficients": at + step}))
