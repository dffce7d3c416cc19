"""Comparisons: each algorithm on each problem, tuned by one rule, run with several seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.strategy import Strategy
from ..errors import SettingError
from .algorithm import Algorithm, as_algorithm
from .fingerprint import described, versions
from .problem import Part, Problem
from .progress import Progress, outcome_said, say
from .table import ResultCell, ResultTable
from .trial import Outcome, Shelf, Trial, perform, planned

FOLDER = "umbel-bench"


@dataclass(frozen=True)
class Tuning:
    """How settings are chosen, the same way for all: each choice of an algorithm has one run with the tuning `seed`,
    of so many `rounds` (by default as many as are compared), and is scored on the validation part by the mean of its
    last three evaluations. The best is taken, the first of equals; what fails is worst. An algorithm with one choice
    has no such run.
    """

    seed: int = 0
    rounds: int | None = None


def run(
    problems: Problem | Sequence[Problem],
    algorithms: Mapping[str, Algorithm | Strategy | Callable[..., Strategy]],
    *,
    seeds: int | Sequence[int] = 3,
    tuning: Tuning | None = Tuning(),
    folder: str | os.PathLike[str] | None = FOLDER,
    workers: Any = "auto",
    tell: Callable[[str], None] | None = say,
) -> ResultTable:
    """Compare algorithms: run each on each problem with each seed, and return the table.

    - `algorithms`: by name, a strategy, what makes one, or an `Algorithm`, which says what is tuned. One's own is one
      line more. All have the problem's cohort, local work and budget.
    - `seeds`: how many, from 1 on, or which.
    - `tuning`: the rule by which settings are chosen; None takes the first of each grid.
    - `folder`: has a file for each run that is done, under a hash of all that it depends on: the problem, the
      algorithm, the settings, the seed, their code, the versions of packages. What is there is not run again, so a
      comparison that was stopped, or has one algorithm more, goes on. None keeps nothing. The code of Umbel beyond the
      strategy's own modules is known by the version alone: take another folder to have all run anew.
    - `workers`: as a `Simulation` has them; results do not depend on them.
    - `tell`: is given a line for each run that is done; None for silence.

    An algorithm that fails is a row that says why. Raises `SettingError`, and `StorageError` on a full disk.
    """
    listed = [problems] if isinstance(problems, Problem) else list(problems)
    chosen = {name: as_algorithm(each) for name, each in algorithms.items()}
    _check(listed, chosen)
    wanted = list(range(1, seeds + 1)) if isinstance(seeds, int) else list(seeds)
    if not wanted or len({*wanted}) < len(wanted):
        raise SettingError(f"a comparison takes at least one seed, each once, not {seeds!r}")
    # Before anything runs: what code keeps in globals may change by running it.
    known = {
        (p.name, name): described([p.essence, a.essence, versions()]) for p in listed for name, a in chosen.items()
    }
    tries = [0 if tuning is None else len(c) if len(c := list(a.choices(p))) > 1 else 0
             for p in listed for a in chosen.values()]  # fmt: skip
    progress = Progress(sum(tries) + len(tries) * len(wanted), tell)
    desk = _Desk(Shelf(folder), known, workers, progress)
    cells = [desk.cell(p, name, a, wanted, tuning) for p in listed for name, a in chosen.items()]
    return ResultTable(listed, cells, wanted)


@dataclass
class _Desk:
    """Does trials that are not done, and tells of them."""

    shelf: Shelf
    known: Mapping[tuple[str, str], Any]
    workers: Any
    progress: Progress

    def cell(self, p: Problem, name: str, a: Algorithm, seeds: Sequence[int], tuning: Tuning | None) -> ResultCell:
        """An algorithm on a problem."""
        settings, tries = self.tuned(p, name, a, tuning)
        runs = [self.done(p, name, a, "test", seed, settings) for seed in seeds]
        return ResultCell(p, name, a, settings, tries, runs)

    def tuned(
        self, p: Problem, name: str, a: Algorithm, tuning: Tuning | None
    ) -> tuple[dict[str, Any], list[tuple[Trial, Outcome]]]:
        """The best settings, and what was tried for them."""
        choices = list(a.choices(p))
        if tuning is None or len(choices) == 1:
            return choices[0], []
        metric = a.metric or p.metric
        tries, best = [], choices[0]
        most = math.nan
        for settings in choices:
            tries.append(self.done(p, name, a, "validation", tuning.seed, settings, tuning.rounds))
            if p.better(score := tries[-1][1].score(metric), most):
                best, most = settings, score
        return best, tries

    def done(
        self, p: Problem, name: str, a: Algorithm, part: Part, seed: int, settings: Mapping[str, Any],
        rounds: int | None = None,
    ) -> tuple[Trial, Outcome]:  # fmt: skip
        """A trial, and what came of it: now, or when it was done."""
        rounds, every = self.rounds(p, name, a, settings, rounds)
        known = self.known[p.name, name]
        trial = planned(p.name, name, known, part=part, seed=seed, rounds=rounds, every=every, settings=settings)
        return self.entered(p, a, trial)

    def entered(self, p: Problem, a: Algorithm, trial: Trial, count: bool = True) -> tuple[Trial, Outcome]:
        """The outcome of a trial."""
        outcome = self.shelf.find(trial)
        fresh = outcome is None
        if outcome is None:
            outcome = perform(trial, p, a, self.workers, self.progress.watch(trial.title, trial.rounds))
            self.shelf.keep(trial, outcome)
        if count:
            said = outcome_said(outcome.score(a.metric or p.metric), outcome.failed)
            self.progress.done(trial.title, said, fresh)
        return trial, outcome

    def rounds(
        self, p: Problem, name: str, a: Algorithm, settings: Mapping[str, Any], rounds: int | None
    ) -> tuple[int, int]:
        """The rounds of the budget, and how many of them lie between evaluations. Where the budget is in updates, how
        many rounds those make is known after a run of one round.
        """
        rounds = rounds or p.rounds
        if rounds is not None and "cohort" not in a.given:
            return rounds, p.evaluate_every
        known = self.known[p.name, name]
        pilot = planned(p.name, name, known, part="validation", seed=0, rounds=1, every=1, settings=settings)
        each = self.entered(p, a, pilot, count=False)[1].updates or 1
        cohort = p.cohort if isinstance(p.cohort, int) else round((p.cohort or 1) * len(p.federation(0, 0).clients))
        updates = rounds * cohort if rounds is not None else p.updates or 0
        return max(1, round(updates / each)), max(1, round(p.evaluate_every * cohort / each))


def _check(problems: Sequence[Problem], algorithms: Mapping[str, Algorithm]) -> None:
    if not problems or not algorithms:
        raise SettingError("a comparison takes at least one problem and one algorithm")
    names = [p.name for p in problems]
    if len({*names}) < len(names):
        raise SettingError(f"two problems have one name: {', '.join(names)}")
