"""XGBoost by bagging: each round the ensemble takes in the trees by which all clients boosted it on their own data, as
XGBoost (Chen & Guestrin 2016, arXiv 1603.02754) takes in parallel trees, grown on samples of rows, where it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .. import catboost, lightgbm, xgboost
from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.strategy import Asks, State, Strategy
from ..core.update import Contribution, Free, Update
from ..core.window import Window
from ..errors import ClientId, SettingError
from ..folds.collect import collect
from ..folds.gathered import Gathering
from ..samplers.shorthand import as_sampler


@dataclass(frozen=True)
class trees(collect):
    """All clients' trees, once they are known to be sound and to fit the ensemble; those of a client that are not cost
    its update.
    """

    name: ClassVar[str] = "trees"
    framework: ClassVar[Any] = xgboost
    features: int = 1
    outputs: int = 1

    def add(self, acc: Gathering, item: Contribution, factor: float = 1.0) -> Gathering:
        self.framework.check_trees(item.arrays, self.features, self.outputs)
        return super().add(acc, item, factor)


@dataclass(frozen=True)
class lightgbm_trees(trees):
    """The same of LightGBM's trees."""

    name: ClassVar[str] = "lightgbm_trees"
    framework: ClassVar[Any] = lightgbm


@dataclass(frozen=True)
class catboost_trees(trees):
    """The same of CatBoost's trees."""

    name: ClassVar[str] = "catboost_trees"
    framework: ClassVar[Any] = catboost


def ask_for_trees(
    clients: Any, model: Arrays, config: Mapping[str, Any], window: Window, taken: type[trees] = trees
) -> Ask:
    """Ask clients to boost an ensemble; `umbel.xgboost.fit`, or that of the framework whose trees they are, answers."""
    features, outputs = taken.framework.shape(model)
    fold = taken(features=features, outputs=outputs)
    return Ask(clients=clients, model=model, config=config, expects=Free(), fold=fold, window=window)


@dataclass(frozen=True, kw_only=True)
class XGBoostBagging(Strategy):
    """Each round a cohort boosts the ensemble (`umbel.xgboost.fit`), which takes in all of its trees; a booster of
    `umbel.xgboost.booster(result.model)` has one boosting round for each.

    All clients' trees correct the same error. So by `scale` "mean" what a client's trees predict counts by its share
    of the cohort's rows (of their updates' weights), as XGBoost divides by its ``num_parallel_tree``; one client alone
    is XGBoost itself. By "sum" all count in full, as in other frameworks: then give clients a learning rate that is
    smaller by the size of the cohort. Needs clients that boost by `umbel.xgboost.fit`.
    """

    taken: ClassVar[type[trees]] = trees
    cohort: Any = "all"
    scale: Literal["mean", "sum"] = "mean"
    window: Window = field(default_factory=Window)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_sampler(self.cohort)
        if self.scale not in ("mean", "sum"):
            raise SettingError(f"{type(self).__name__}'s scale is 'mean' or 'sum', not {self.scale!r}")

    def round(self, state: State, r: int) -> Asks:
        answer = yield ask_for_trees(self.cohort, state.model, self.config, self.window, self.taken)
        updates: dict[ClientId, Update] = answer.value or {}
        weight = sum(update.weight for update in updates.values())
        if not weight:
            return state
        shares = ((u.arrays, u.weight / weight if self.scale == "mean" else 1.0) for u in updates.values() if u.weight)
        return State(self.taken.framework.grown(state.model, shares))


@dataclass(frozen=True, kw_only=True)
class LightGBMBagging(XGBoostBagging):
    """What `XGBoostBagging` is, with LightGBM's trees. Needs clients that boost by `umbel.lightgbm.fit`."""

    taken: ClassVar[type[trees]] = lightgbm_trees


@dataclass(frozen=True, kw_only=True)
class CatBoostBagging(XGBoostBagging):
    """What `XGBoostBagging` is, with CatBoost's trees. Needs clients that boost by `umbel.catboost.fit`."""

    taken: ClassVar[type[trees]] = catboost_trees
