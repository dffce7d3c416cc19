"""What a comparison came to: rows with their spread over seeds, as Markdown, CSV, JSON and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import SettingError
from .algorithm import CLIENT_RATE, Algorithm
from .fingerprint import versions
from .problem import Problem
from .trial import LAST, Outcome, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.95
"""Of the best score, for "rounds to", where a problem has no target."""


@dataclass(frozen=True)
class ResultCell:
    """An algorithm on a problem: the settings that were chosen, the runs that chose them, and a run for each seed."""

    problem: Problem
    name: str
    algorithm: Algorithm
    settings: Mapping[str, Any]
    tries: Sequence[tuple[Trial, Outcome]]
    runs: Sequence[tuple[Trial, Outcome]]


@dataclass(frozen=True)
class ResultRow:
    """A cell in figures, each a mean over the seeds that did not fail.

    `spread` is the standard deviation over seeds; `reached` the median of the rounds to `target`, of those `arrived`
    seeds that came there; `edge` names settings whose best value is at an end of what was tried. `tuning_*` is what
    choosing the settings cost, in runs, client updates and seconds.
    """

    problem: str
    algorithm: str
    metric: str
    score: float
    spread: float
    scores: list[float]
    also: dict[str, float]
    target: float
    reached: float | None
    arrived: int
    seeds: int
    rounds: int
    updates: float
    bytes_down: float
    bytes_up: float
    seconds: float
    settings: dict[str, Any]
    edge: list[str]
    tuning_runs: int
    tuning_updates: int
    tuning_seconds: float
    failed: str | None


class ResultTable:
    """The rows of a comparison; printed, it is its Markdown.

    `cells` have every run with its series, for pictures of one's own.
    """

    def __init__(self, problems: Sequence[Problem], cells: Sequence[ResultCell], seeds: Sequence[int]) -> None:
        self.problems = list(problems)
        self.cells = list(cells)
        self.seeds = list(seeds)

    def __str__(self) -> str:
        return self.markdown()

    def of(self, problem: str) -> list[ResultCell]:
        """The cells of a problem. Raises `SettingError` where there is no such problem."""
        found = [cell for cell in self.cells if cell.problem.name == problem]
        if not found:
            raise SettingError(f"there is no problem {problem!r}; there are {', '.join(p.name for p in self.problems)}")
        return found

    def target(self, problem: Problem) -> float:
        """The value of the metric for "rounds to": the problem's own, or 95 % of the best score."""
        if problem.target is not None:
            return problem.target
        means = [_mean(_scores(cell)) for cell in self.of(problem.name)]
        best = [mean for mean in means if not math.isnan(mean)]
        if not best:
            return math.nan
        return SHARE * max(best) if problem.goal == "max" else min(best) / SHARE

    @property
    def rows(self) -> list[ResultRow]:
        """All rows: problem by problem, the best first, those that failed last."""
        return [row for p in self.problems for row in self._sorted(p)]

    def _sorted(self, problem: Problem) -> list[ResultRow]:
        rows = [_row(cell, self.target(problem)) for cell in self.of(problem.name)]
        sign = -1 if problem.goal == "max" else 1
        return sorted(rows, key=lambda row: math.inf if math.isnan(row.score) else sign * row.score)

    def markdown(self, pictures: Mapping[str, str] | None = None) -> str:
        """A table for each problem, below its name; `pictures` has for problems' names what to show there."""
        return "\n".join(part for p in self.problems for part in self._section(p, pictures or {}))

    def overview(self, metric: str | None = None) -> str:
        """Scores of all algorithms on all problems as one table, by their mean rank, or by that in another metric."""
        names = list(dict.fromkeys(cell.name for cell in self.cells))
        ranks: dict[str, list[int]] = {name: [] for name in names}
        shown: dict[str, list[str]] = {name: [] for name in names}
        for p in self.problems:
            rows = self._sorted(p)
            scores = {row.algorithm: row.also.get(metric, row.score) if metric else row.score for row in rows}
            known = [score for score in scores.values() if not math.isnan(score)]
            for name, score in scores.items():  # what failed comes last
                better = sum(p.better(other, score) for other in known)
                ranks[name].append(len(names) if math.isnan(score) else 1 + better)
                shown[name].append(_figure(score))
        lines = [f"| algorithm | mean rank | {' | '.join(p.name for p in self.problems)} |"]
        lines.append(f"| --- |{' ---: |' * (1 + len(self.problems))}")
        for name in sorted(names, key=lambda name: _mean(ranks[name])):
            lines.append(f"| {name} | {_mean(ranks[name]):.1f} | {' | '.join(shown[name])} |")
        return "\n".join(lines) + "\n"

    def _section(self, p: Problem, pictures: Mapping[str, str]) -> Iterator[str]:
        rows = self._sorted(p)
        yield f"## {p.name}\n"
        yield _budget(p, len(self.seeds)) + "\n"
        if p.name in pictures:
            yield f"![{p.name}: {p.metric} by client updates]({pictures[p.name]})\n"
        heads = ["algorithm", p.metric, "± over seeds", *p.also, f"rounds to {_figure(self.target(p))}"]
        heads += ["rounds", "updates", "MB down", "MB up", "s a run", "settings", "tuning"]
        yield f"| {' | '.join(heads)} |"
        yield f"| --- |{' ---: |' * (len(heads) - 3)} --- | ---: |"
        yield from (f"| {' | '.join(_cells(row, p))} |" for row in rows)
        yield ""
        yield from (f"- {row.algorithm} failed: {' '.join(row.failed.split())}" for row in rows if row.failed)
        if any(row.failed for row in rows):
            yield ""

    def json(self) -> str:
        """The rows, the curves and what they depend on, as JSON."""
        curves = [
            {"problem": cell.problem.name, "algorithm": cell.name, **asdict(outcome), "seed": trial.seed,
             "part": trial.part, "settings": trial.settings, "key": trial.key}
            for cell in self.cells for trial, outcome in (*cell.tries, *cell.runs)
        ]  # fmt: skip
        tree = {"versions": versions(), "rows": [asdict(row) for row in self.rows], "runs": curves}
        return json.dumps(_finite(tree), indent=1) + "\n"

    def csv(self) -> str:
        """The rows as CSV, one line each below a head; lists and settings are JSON in a cell."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        rows = [asdict(row) for row in self.rows]
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in _finite(row).values()])
        return out.getvalue()

    def plot(self, problem: str, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the metric of each algorithm on a problem by client updates; see `picture.draw`."""
        from .picture import draw

        return draw(self, problem, path)

    def write(
        self,
        page: str | os.PathLike[str],
        *,
        title: str = "Comparison",
        intro: str = "",
        pictures: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write the page (Markdown), with the same name the rows as .json and .csv, and a picture for each problem into
        `pictures`, by default beside the page.
        """
        page = Path(page)
        folder = page.parent if pictures is None else Path(pictures)
        folder.mkdir(parents=True, exist_ok=True)
        page.parent.mkdir(parents=True, exist_ok=True)
        shown = {}
        for problem in self.problems:
            place = folder / f"{page.stem}-{slug(problem.name)}.png"
            if any(_curve(cell) for cell in self.of(problem.name)):
                self.plot(problem.name, place)
                shown[problem.name] = Path(os.path.relpath(place, page.parent)).as_posix()
        first = [intro.strip()] if intro else []
        every = [self.overview()] if len(self.problems) > 1 else []
        text = "\n\n".join([f"# {title}", *first, LEGEND, *every, self.markdown(shown)])
        for suffix, content in ((page.suffix, text), (".json", self.json()), (".csv", self.csv())):
            files.write_pieces(page.with_suffix(suffix), [content.encode()])


LEGEND = f"""A score is the mean of a run's last {LAST} evaluations on the test part, and of these over seeds. "Rounds
to" is the median over seeds, with how many came there if not all; what was never reached is "-". Updates, bytes
(without evaluations) and seconds are of one run. Settings were chosen on the validation part by runs with another
seed, which "tuning" counts with their seconds; a setting marked * is at an end of what was tried."""


def _row(cell: ResultCell, target: float) -> ResultRow:
    p, kept = cell.problem, [outcome for _, outcome in cell.runs if outcome.failed is None]
    scores = _scores(cell)
    reached = [r for o in kept if (r := o.reached(p.metric, target, p.goal)) is not None]
    failed = [o.failed for _, o in cell.runs if o.failed is not None]
    if kept and not scores:
        failed.append(f"{p.metric} is not a number at its end, or is not evaluated")
    many = f"{len(failed)} of {len(cell.runs)} seeds: " if failed and scores else ""
    return ResultRow(
        problem=p.name,
        algorithm=cell.name,
        metric=p.metric,
        score=_mean(scores),
        spread=statistics.stdev(scores) if len(scores) > 1 else 0.0 if scores else math.nan,
        scores=scores,
        also={name: _mean([o.score(name) for o in kept]) for name in p.also},
        target=target,
        reached=statistics.median(reached) if reached else None,
        arrived=len(reached),
        seeds=len(cell.runs),
        rounds=cell.runs[0][0].rounds,
        updates=_mean([o.updates for o in kept]),
        bytes_down=_mean([o.bytes_down for o in kept]),
        bytes_up=_mean([o.bytes_up for o in kept]),
        seconds=_mean([o.seconds for o in kept]),
        settings={**cell.settings, **cell.algorithm.config},
        edge=cell.algorithm.at_edge(p, cell.settings) if cell.tries else [],
        tuning_runs=len(cell.tries),
        tuning_updates=sum(o.updates for _, o in cell.tries),
        tuning_seconds=round(math.fsum(o.seconds for _, o in cell.tries), 3),
        failed=f"{many}{failed[0]}" if failed else None,
    )


def _scores(cell: ResultCell) -> list[float]:
    found = [outcome.score(cell.problem.metric) for _, outcome in cell.runs]
    return [score for score in found if not math.isnan(score)]


def _curve(cell: ResultCell) -> bool:
    return any(outcome.series.get(cell.problem.metric) for _, outcome in cell.runs if outcome.failed is None)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _budget(p: Problem, seeds: int) -> str:
    budget = f"{p.rounds} rounds" if p.updates is None else f"{p.updates} client updates"
    cohort = "" if p.cohort is None else f", {p.cohort} clients a round"
    config = ", ".join(f"{name} {value}" for name, value in p.config.items())
    return f"{budget}{cohort}{config and f'; {config}'}; {seeds} seed{'s' if seeds != 1 else ''}."


def _cells(row: ResultRow, p: Problem) -> list[str]:
    if math.isnan(row.score):
        return [row.algorithm, "failed", *["-"] * (7 + len(p.also)), _settings(row), _tuning(row)]
    to = "-" if row.reached is None else f"{row.reached:g}"
    some = f" ({row.arrived} of {row.seeds})" if 0 < row.arrived < row.seeds else ""
    bytes_each = [_figure(b / 1e6) for b in (row.bytes_down, row.bytes_up)]
    figures = [_figure(row.score), _figure(row.spread), *(_figure(v) for v in row.also.values()), to + some]
    return [row.algorithm, *figures, str(row.rounds), f"{row.updates:,.0f}", *bytes_each, f"{row.seconds:.1f}",
            _settings(row), _tuning(row)]  # fmt: skip


def _settings(row: ResultRow) -> str:
    own = {("lr" if n == CLIENT_RATE else f"server {n}" if n == "lr" else n, n): v for n, v in row.settings.items()}
    return ", ".join(f"{said} {value}{'*' if name in row.edge else ''}" for (said, name), value in own.items())


def _tuning(row: ResultRow) -> str:
    return f"{row.tuning_runs} runs, {row.tuning_seconds:.0f} s" if row.tuning_runs else "none"


def _figure(value: float) -> str:
    """Three significant digits, or the whole number where it has more; four decimals of what is below 1."""
    if math.isnan(value):
        return "-"
    if abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _finite(tree: Any) -> Any:
    """The same tree with null for what is no number, which JSON has no word for."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
