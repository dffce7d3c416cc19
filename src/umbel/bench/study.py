"""A sweep whose points Optuna proposes, and whose runs it prunes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from ..core.app import EarlyStop
from ..errors import CallerError, SettingError
from ..runs.history import History
from ..runs.outcome import early_end
from .space import Point, Space, ValueRange
from .swept import GOOD, Goal, SweepRow

PRUNED = "pruned"
"""Why a run ends that its pruner has no hopes for."""


class Study:
    """A study of Optuna over a space: `sampler` is the name of one of its samplers, or one; runs are pruned by the
    median of others at the same round.
    """

    def __init__(self, space: Space, metric: str, goal: Goal, sampler: Any = "TPESampler", seed: int = 0) -> None:
        try:
            optuna: Any = import_module("optuna")
        except ImportError as error:
            raise CallerError("Optuna is not installed", hint='pip install "umbel[sweep]"') from error
        self._states = optuna.trial.TrialState
        self._space, self._metric = space, metric
        if isinstance(sampler, str):
            kind = getattr(optuna.samplers, sampler, None)
            if kind is None or not sampler.endswith("Sampler"):
                raise SettingError(f"Optuna has no sampler {sampler!r}", hint="Such as TPESampler or RandomSampler.")
            sampler = kind(seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = "maximize" if goal == "max" else "minimize"
        pruner = optuna.pruners.MedianPruner()
        self._study = optuna.create_study(direction=direction, sampler=sampler, pruner=pruner)

    def ask(self) -> Proposal:
        """What to try next."""
        trial = self._study.ask()
        point = {name: _suggested(trial, name, values) for name, values in self._space.items()}
        return Proposal(point, trial, self._metric)

    def tell(self, proposal: Proposal, rows: Sequence[SweepRow]) -> None:
        """What came of it: the mean over the runs, which have different seeds."""
        proposal.report(rows[0].history)
        values = [row.metrics.get(self._metric, math.nan) for row in rows if row.state in GOOD]
        if rows[0].state == PRUNED:
            self._study.tell(proposal.trial, state=self._states.PRUNED)
        elif len(values) < len(rows) or not math.isfinite(sum(values)):
            self._study.tell(proposal.trial, state=self._states.FAIL)
        else:
            self._study.tell(proposal.trial, sum(values) / len(values))


class Proposal:
    """A point that a study proposes, and what its pruner is told of the first run there."""

    def __init__(self, point: Point, trial: Any, metric: str) -> None:
        self.point, self.trial = point, trial
        self._metric = metric
        self._reported = 0

    def report(self, history: History) -> None:
        """Tell the pruner of the evaluations that it has not heard of."""
        series = history.series(self._metric) if self._metric in history.names else []
        for r, value in series:
            if r > self._reported and math.isfinite(value):
                self.trial.report(value, r)
                self._reported = r

    def stopping(self, stop: EarlyStop | Callable[[Any], Any] | None) -> Callable[[History], str | None]:
        """The early stop of the first run: the app's own, or that of the pruner."""

        def early(history: History) -> str | None:
            if own := early_end(stop, history):
                return own
            before = self._reported
            self.report(history)
            return PRUNED if self._reported > before and self.trial.should_prune() else None

        return early


def _suggested(trial: Any, name: str, values: tuple[str, ...] | ValueRange) -> str:
    if not isinstance(values, ValueRange):
        return values[0] if len(values) == 1 else str(trial.suggest_categorical(name, values))
    suggest = trial.suggest_int if values.whole else trial.suggest_float
    low, high = (int(values.low), int(values.high)) if values.whole else (values.low, values.high)
    return values.text(suggest(name, low, high, log=values.log))
