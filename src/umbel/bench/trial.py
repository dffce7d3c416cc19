"""Entries: the runs that a comparison is made of, each with a file of its own for what came of it."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ClientError, CorruptFile, RunFailed, RunInterrupted, StorageError, UmbelError
from ..runs.events import AskClosed, RoundCommitted, RunEvent
from ..runs.run import Result
from ..runs.run import run as run_app
from .algorithm import CLIENT_RATE, Algorithm
from .fingerprint import described, digest
from .problem import Part, Problem

FORMAT = 1
LAST = 3
"""A score is the mean of so many last evaluations: one lucky test is no result."""


@dataclass(frozen=True)
class Trial:
    """One run of a comparison, evaluated `every` so many rounds; `key` is a hash of all that its outcome depends on."""

    problem: str
    algorithm: str
    part: Part
    seed: int
    rounds: int
    every: int
    settings: Mapping[str, Any]
    key: str

    @property
    def title(self) -> str:
        """What it is called where it is told of."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        why = "tuning" if self.part == "validation" else f"seed {self.seed}"
        return f"{self.problem}, {self.algorithm}, {why}, {settings}"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: the values of each metric by round, what it cost, and why it `failed`, if it did.

    `updates` counts what was folded of clients' updates, as the run's log says; `asks` counts the tasks asked for by
    kind. `bytes_down` and `bytes_up` are what clients were sent and gave back, evaluations aside; `seconds` is the wall
    clock, `busy` the seconds in handlers over all processes, evaluations aside; `virtual` the devices' clock.
    """

    rounds: int = 0
    updates: int = 0
    asks: Mapping[str, int] = field(default_factory=dict)
    series: Mapping[str, list[list[float]]] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    virtual: float = 0.0
    model_sha256: str = ""
    failed: str | None = None

    def score(self, metric: str) -> float:
        """The mean of the last evaluations; NaN where it failed or has no such metric."""
        values = [value for _, value in self.series.get(metric, ())][-LAST:]
        return statistics.fmean(values) if values and self.failed is None else math.nan

    def reached(self, metric: str, target: float, goal: str) -> int | None:
        """The first round whose evaluation came to the target."""
        for r, value in self.series.get(metric, ()):
            if value >= target if goal == "max" else value <= target:
                return int(r)
        return None


def planned(
    problem: str,
    algorithm: str,
    known: Any,
    *,
    part: Part,
    seed: int,
    rounds: int,
    every: int,
    settings: Mapping[str, Any],
) -> Trial:
    """The trial of a run; `known` describes problem and algorithm (see `fingerprint.described`)."""
    key = digest([FORMAT, known, part, seed, rounds, every, described(settings)])[:24]
    return Trial(problem, algorithm, part, seed, rounds, every, dict(settings), key)


def perform(
    trial: Trial, problem: Problem, algorithm: Algorithm, workers: Any, watch: Callable[[RunEvent], None]
) -> Outcome:
    """Do a trial's run. What the algorithm, the client or the model does wrong is an outcome that says so; a full disk
    or Ctrl-C ends the comparison.
    """
    ledger = Tally()
    began = time.perf_counter()
    try:
        settings = {problem.rate: trial.settings[CLIENT_RATE], **algorithm.config}
        app = problem.app(algorithm.build(problem, trial.settings), trial.rounds, trial.part, settings, trial.every)
        federation = problem.federation(trial.seed, workers)
        result = run_app(app, on=federation, seed=trial.seed, folder=None, observers=(ledger.note, watch))
    except RunInterrupted as error:
        error.hint = "The runs that are done are kept in the comparison's folder, if it has one; the next call goes on."
        raise
    except StorageError:
        raise
    except Exception as error:
        if isinstance(error, RunFailed) and isinstance(kept := getattr(error, "result", None), Result):
            return ledger.outcome(kept, failed=reason_of(error))
        return Outcome(seconds=time.perf_counter() - began, failed=reason_of(error))
    return ledger.outcome(result)


def reason_of(error: Exception) -> str:
    """Why a run failed, in a line."""
    said = error.message if isinstance(error, UmbelError) else str(error)
    kind = "" if isinstance(error, ClientError | RunFailed) else f"{type(error).__name__}: "
    return f"{kind}{said}"[:400]


class Tally:
    """Counts what a run asks and folds, by its log."""

    def __init__(self) -> None:
        self.updates = 0
        self.asks: dict[str, int] = {}
        self.account: dict[str, float] = {}

    def note(self, event: RunEvent) -> None:
        """Take note of an event."""
        if isinstance(event, AskClosed):
            self.asks[event.kind] = self.asks.get(event.kind, 0) + event.asked
            if event.kind != "evaluate":
                self.updates += event.count
                for name, value in event.account.items():
                    self.account[name] = self.account.get(name, 0) + value

    def outcome(self, result: Result, failed: str | None = None) -> Outcome:
        """What a run came to."""
        rounds: list[RoundCommitted] = list(result.history)
        return Outcome(
            rounds=len(rounds),
            updates=self.updates,
            asks=dict(self.asks),
            series={n: [[r, v] for r, v in result.history.series(n)] for n in result.history.names},
            bytes_down=int(self.account.get("bytes_down", 0)),
            bytes_up=int(self.account.get("bytes_up", 0)),
            seconds=round(result.seconds, 3),
            busy=round(self.account.get("training", 0.0), 3),
            virtual=float((rounds[-1].clock if rounds else 0.0) or 0.0),
            model_sha256=result.model_sha256,
            failed=failed,
        )


class Shelf:
    """The folder that has a file for each trial that is done; None keeps nothing."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def place(self, trial: Trial) -> Path | None:
        """The file of a trial."""
        return None if self.folder is None else self.folder / "trials" / f"{trial.key}.json"

    def find(self, trial: Trial) -> Outcome | None:
        """What came of a trial, if it is done. Raises `CorruptFile` for a file that is not what was written."""
        place = self.place(trial)
        try:
            if place is None:
                return None
            tree = json.loads(place.read_text(encoding="utf-8"))
            return Outcome(**tree["outcome"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFile(f"{place} is no trial: {error}", hint="Remove it, and it is done again.") from error

    def keep(self, trial: Trial, outcome: Outcome) -> None:
        """Write a trial's file, whole or not at all. Raises `StorageError`."""
        if (place := self.place(trial)) is None:
            return
        text = json.dumps({"trial": asdict(trial), "outcome": asdict(outcome)}, indent=1)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_pieces(place, [text.encode()])
