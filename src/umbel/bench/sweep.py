"""Sweeps: an app's runs with several settings and seeds, which share workers, are kept as runs, and go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.app import App
from ..core.arrays import Arrays
from ..errors import RunFailed, RunInterrupted, SettingError, StorageError, UmbelError
from ..files import alone as alone_in
from ..runs.config import laid_over
from ..runs.past import PastRun
from ..runs.run import RUNS, Result, federation_of, load_model, resume
from ..runs.run import run as run_app
from ..runs.settings import Changed, apply
from .fingerprint import described, digest, versions
from .progress import Progress, outcome_said, say
from .space import Point, Space, ValueRange, drawn, grid, space_of
from .study import PRUNED, Study
from .swept import GOOD, Goal, Sweep, SweepRow, by_metric, goal_of, marked, point_of
from .trial import reason_of

GO_ON = "What is done is kept, if the sweep has a folder: the same sweep again goes on."
OVER = (*GOOD, PRUNED, "failed", "refused")
"""States of runs that are not gone on with."""


def sweep(
    app: App,
    settings: Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 1,
    random: int | None = None,
    optuna: int | None = None,
    sampler: Any = "TPESampler",
    metric: str | None = None,
    goal: Goal | None = None,
    on: Any = None,
    rounds: int | None = None,
    init: Arrays | str | Path | None = None,
    folder: str | Path | None = RUNS,
    name: str = "run",
    source: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = say,
) -> Sweep:
    """Run an app with several settings, and return what came of each run.

    - `settings`: by names as `umbel run --set` takes them (``lr``, ``rounds``, ``strategy.cohort``), a list of values,
      or a text as on the command line: ``"0.1,0.03"``, or a range such as ``"0.001..0.1"``; see `umbel.bench.space`.
    - `seeds`: how many, from 0 on, or which: each choice of settings is run with each.
    - All combinations are run; with `random` so many that are drawn, with `optuna` so many that a `sampler` of Optuna
      proposes (its name, or one), whose pruner stops runs that are below the median of the others; needs a `metric`.
    - `metric`, `goal`: what is best: see `Sweep`. By default an accuracy is to be great, a loss or an error small.
    - `on`, `rounds`, `init`, `folder`, `name`, `source`: as in `run`. Runs of a `Simulation` share its workers; see
      `Simulation.warm`.
    - `tell`: is given a line for each run that is done; None for silence.

    Each run is an ordinary run in `folder`, marked as one of this sweep. The same sweep again goes on where it was:
    what is over is not run again, also with more values or seeds; what was broken off is resumed. It is another sweep
    where the app, its code, what of it varies, or the software is another. A run that fails is a row that says why.

    Raises `SettingError` before anything runs for what no run can have. `RunInterrupted` and `StorageError` end it.
    """
    space, wanted = space_of(settings), _seeds(seeds)
    if random is not None and optuna is not None:
        raise SettingError("a sweep draws at random, or asks Optuna, not both")
    for count in (random, optuna):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise SettingError(f"a sweep draws a whole number of at least 1, not {count!r}")
    if goal not in (None, "max", "min"):
        raise SettingError(f"a metric is watched for its 'max' or its 'min', not {goal!r}")
    study = None
    if optuna is not None:
        if metric is None:
            raise SettingError("Optuna has to know what is best", hint="Say --metric evaluate.accuracy, metric=....")
        study = Study(space, metric, goal or goal_of(metric), sampler)
        points = _corners(space)
    else:
        points = grid(space) if random is None else drawn(space, random)
    for point in points if random is None else [*_corners(space), *points]:
        _changed(app, point, rounds)
    on, mode = federation_of(app, on), ["points"] if study is None else ["optuna", metric, goal, _name(sampler)]
    id = f"{name}-sweep-{digest(_known(app, on, rounds, init, [sorted(space), mode]))[:8]}"
    runs = (len(points) if study is None else optuna or 0) * len(wanted)
    how = {"rounds": rounds, "init": init, "folder": folder, "name": name, "source": source}
    busy = "Wait for it, or stop it: the same command then goes on with what it has done."
    alone: AbstractContextManager[Any] = (
        nullcontext() if folder is None else alone_in(Path(folder), id, busy, f".{id}.lock", 0o777)
    )
    with alone, getattr(on, "warm", nullcontext)():
        past: Sequence[PastRun] = () if folder is None else marked(folder).get(id, ())
        before = {_key(point_of(run), run.log.started.seed): run for run in past}
        desk = _Desk(app, on, id, metric, goal, how, before, Progress(runs, tell))
        if before and tell is not None:
            tell(f"{id} has {len(before)} {'run' if len(before) == 1 else 'runs'} already")
        try:
            desk.all(points, wanted) if study is None else desk.proposed(study, optuna or 0, wanted)
        except KeyboardInterrupt:
            raise RunInterrupted(f"the sweep was stopped after {len(desk.done)} of {runs} runs", hint=GO_ON) from None
    return by_metric(id, list(desk.done.values()), metric, goal)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    wanted = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not wanted or len({*wanted}) < len(wanted):
        raise SettingError(f"a sweep takes at least one seed, each once, not {seeds!r}")
    return wanted


def _corners(space: Space) -> list[Point]:
    """Points that have each value, and the ends of each range, once at least."""
    ends = {name: values.ends if isinstance(values, ValueRange) else values for name, values in space.items()}
    most = max(map(len, ends.values()), default=1)
    return [{name: each[min(at, len(each) - 1)] for name, each in ends.items()} for at in range(most)]


def _assignments(point: Point) -> list[str]:
    return [f"{name}={value}" for name, value in point.items()]


def _changed(app: App, point: Point, rounds: int | None) -> Changed:
    """The app at a point. Raises `SettingError` where it cannot be there."""
    changed = apply(app, _assignments(point))
    laid_over(app.config, changed.config)
    if rounds is not None and changed.rounds not in (None, rounds):
        raise SettingError(f"{rounds} rounds and rounds={changed.rounds} disagree", hint="Keep one of them.")
    return changed


def _known(app: App, on: Any, rounds: int | None, init: Any, varied: Any) -> Any:
    """All that tells one sweep from another, as a plain tree: the app and its code, where it runs, what varies."""
    parts = {name: value for name, value in vars(app).items() if name not in ("_made", "federation")}
    places = {name: value for name in ("sources", "devices") if (value := getattr(on, name, None)) is not None}
    places["device"] = getattr(getattr(on, "settings", None), "device", None)
    begin = load_model(init) if isinstance(init, str | Path) else init
    return described([parts, type(on).__name__, places, rounds, begin, varied, versions()])


def _name(sampler: Any) -> str:
    return sampler if isinstance(sampler, str) else type(sampler).__name__


def _key(point: Point, seed: int) -> tuple[Any, ...]:
    """By what a run of a sweep is known, in whatever order its settings were given."""
    return tuple(sorted(point.items())), seed


@dataclass
class _Desk:
    """Does runs that are not done, and tells of them."""

    app: App
    on: Any
    id: str
    metric: str | None
    goal: Goal | None
    how: Mapping[str, Any]
    before: Mapping[tuple[Any, ...], PastRun]
    progress: Progress
    done: dict[tuple[Any, ...], SweepRow] = field(default_factory=dict)

    def all(self, points: Sequence[Point], seeds: Sequence[int]) -> None:
        """A run for each point and seed."""
        for point in points:
            for seed in seeds:
                self.row(point, seed, self.app.early_stop)

    def proposed(self, study: Study, count: int, seeds: Sequence[int]) -> None:
        """The runs at so many points that a study proposes. Where the first fails or is pruned it is the only one."""
        for _ in range(count):
            proposal = study.ask()
            rows = [self.row(proposal.point, seeds[0], proposal.stopping(self.app.early_stop))]
            if rows[0].state in GOOD:
                rows += [self.row(proposal.point, seed, self.app.early_stop) for seed in seeds[1:]]
            else:
                self.progress.runs -= len(seeds) - 1
            study.tell(proposal, rows)

    def row(self, point: Point, seed: int, stop: Any) -> SweepRow:
        """The run of a point and a seed: as it was done before, or is done now."""
        key = _key(point, seed)
        record = self.before.get(key)
        fresh = key not in self.done and (record is None or record.state not in OVER)
        if key not in self.done:
            old = None if fresh or record is None else SweepRow.of(record, point, seed)
            self.done[key] = self._run(point, seed, stop, record) if old is None else old
        row = self.done[key]
        sweep = by_metric(self.id, [row], self.metric, self.goal)  # a metric that is not there is told of at once
        value = outcome_said(sweep.value(row), None)
        said = f"{sweep.metric} {value}" if row.state in GOOD else f"{row.state} {row.error or ''}".strip()
        self.progress.done(row.title, said, fresh)
        return row

    def _run(self, point: Point, seed: int, stop: Any, record: PastRun | None) -> SweepRow:
        changed = _changed(self.app, point, self.how["rounds"])
        app = copy.copy(changed.app)
        app.early_stop = stop
        title = SweepRow(point, seed, None, "").title
        wanted = self.how["rounds"] or changed.rounds or app.rounds
        observers = (self.progress.watch(title, wanted),)
        try:
            if record is not None:
                source = self.how["source"]
                result = resume(app, record.folder, on=self.on, source=source, observers=observers)
            else:
                init = self.how["init"]
                begin = init if init is None or isinstance(init, Arrays) else str(Path(init).resolve())
                mark = {"id": self.id, "number": len(self.done), "metric": self.metric, "goal": self.goal}
                said = {"set": _assignments(point), "init": begin if isinstance(begin, str) else None, "sweep": mark}
                where = {name: self.how[name] for name in ("init", "folder", "name", "source")}
                more: dict[str, Any] = {"config": changed.config, "settings": said, "observers": observers}
                result = run_app(app, on=self.on, rounds=wanted, seed=seed, **more, **where)
        except RunInterrupted as error:
            error.hint = GO_ON
            raise
        except StorageError:
            raise
        except Exception as error:
            run, folder = error.run if isinstance(error, UmbelError) else None, self.how["folder"]
            if run is not None and folder is not None:  # as it is told of whenever the sweep goes on
                return SweepRow.of(PastRun(Path(folder) / run), point, seed)
            if isinstance(error, RunFailed) and isinstance(kept := getattr(error, "result", None), Result):
                return _row(kept, point, seed, reason_of(error))
            return SweepRow(point, seed, run, "failed", error=reason_of(error))
        return _row(result, point, seed)


def _row(result: Result, point: Point, seed: int, failed: str | None = None) -> SweepRow:
    """The row of a run that has just ended."""
    state = "failed" if failed else {"rounds": "finished"}.get(result.reason, result.reason)
    history = result.history
    seconds = round(sum(event.seconds for event in history), 3)
    return SweepRow(point, seed, result.run, state, len(history), seconds, result.metrics, failed, history)
