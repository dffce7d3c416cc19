"""Experiments: one setting of a paper, run by Umbel and by the reference, and whether the two agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

import umbel.strategies
from umbel import bench

from . import reference
from .chance import chance
from .federation import Data, Net, Split, problem
from .reference import Setup

LAST = 3
Curve = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Experiment:
    """One setting of a paper, and what stands for it there.

    - `setting`: what the row is called; `counterpart`: the paper's table or figure.
    - `strategy`: what makes Umbel's strategy of the settings in `grid`, or the name of one that may not be there.
    - `split`: who holds what, by Umbel; `own`: the same by `splits`. `setup`: the reference's settings, from which
      Umbel's cohort, rounds and local work are taken too.
    - `rates`, `grid`: where the settings are tuned, on `held` items; the reference then has those that were chosen.
    - `target`: for rounds to an accuracy, where a run ends; None for the accuracy at the end, a mean over three
      evaluations.
    """

    setting: str
    counterpart: str
    strategy: Any
    data: Data
    split: Split
    own: Split
    net: Net
    setup: Setup
    target: float | None = None
    rates: tuple[float, ...] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    held: int = 0

    @property
    def missing(self) -> str | None:
        """The name of the strategy, where Umbel has none of that name."""
        named = isinstance(self.strategy, str) and self.strategy not in umbel.strategies.__all__
        return self.strategy if named else None

    def problem(self, paper: str) -> bench.Problem:
        """The problem that Umbel is given."""
        s = self.setup
        return problem(
            f"{paper}: {self.setting}", self.data, self.split, self.net, held=self.held, rounds=s.rounds,
            cohort=s.cohort, config={"epochs": s.epochs, "batch": s.batch, "stragglers": s.stragglers},
            rates=self.rates or (s.lr,), evaluate_every=s.every, target=self.target,
            to_target=self.target is not None,
        )  # fmt: skip

    def chosen(self, settings: Mapping[str, Any]) -> Setup:
        """The reference's settings, once Umbel's are chosen."""
        return replace(
            self.setup, lr=settings["client rate"], server_lr=settings.get("lr", self.setup.server_lr)
        )  # fmt: skip

    def value(self, curve: Curve) -> float:
        """Rounds to the target, infinite where it was not reached; or the accuracy at the end."""
        if self.target is None:
            return statistics.fmean([accuracy for _, accuracy, *_ in curve][-LAST:])
        return next((r for r, accuracy, *_ in curve if accuracy >= self.target), math.inf)

    def refer(self, setup: Setup, seed: int) -> Curve:
        """One run of the reference, in one thread, as Umbel's clients have one."""
        x, y = self.data.part("train", self.held)
        clients = [(x[items], y[items]) for items in self.own(y.numpy(), seed)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return reference.train(setup, self.net, clients, self.data.part("test", self.held), seed, self.target)
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Finding:
    """What an experiment came to on either side: a curve for each seed, and seconds."""

    experiment: Experiment
    settings: Mapping[str, Any]
    ours: Sequence[Curve]
    theirs: Sequence[Curve]
    seconds: float
    failed: str | None = None

    @cached_property
    def values(self) -> tuple[list[float], list[float]]:
        """The experiment's figure for each seed, of Umbel and of the reference."""
        return tuple([self.experiment.value(curve) for curve in side] for side in (self.ours, self.theirs))  # type: ignore[return-value]

    @property
    def agrees(self) -> bool | None:
        """Whether the means differ by no more than chance makes those of as many seeds differ in 99 of 100 cases (a
        t-test), or by a point of accuracy or a tenth of the rounds; None where one side has no figure.
        """
        ours, theirs = self.values
        if not ours or not theirs or not all(map(math.isfinite, ours + theirs)):
            return True if ours and theirs and not any(map(math.isfinite, ours + theirs)) else None
        mean = statistics.fmean(theirs)
        least = 0.01 if self.experiment.target is None else max(1.0, 0.1 * mean)
        return abs(statistics.fmean(ours) - mean) <= max(chance(ours, theirs), least)
