"""Experiments are run on both sides, and what they came to is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import umbel.strategies
from umbel import bench
from umbel.bench.fingerprint import described, digest, versions

from . import reference
from .experiment import Curve, Experiment, Finding
from .reference import Setup


def measure(
    paper: str, experiment: Experiment, seeds: int, folder: Path, workers: str | int, tell: Callable[[str], None]
) -> Finding:
    """Run both sides, or read what they came to before."""
    named = isinstance(experiment.strategy, str)
    made = getattr(umbel.strategies, experiment.strategy) if named else experiment.strategy
    only = {experiment.setting: bench.Algorithm(made, experiment.grid)}
    table = bench.run(experiment.problem(paper), only, seeds=seeds, folder=folder, workers=workers, tell=tell)
    (cell,), (row,) = table.cells, table.rows
    ours = [outcome.series["test.accuracy"] for _, outcome in cell.runs if outcome.failed is None]
    setup = experiment.chosen(cell.settings)
    theirs = referred(paper, experiment, setup, range(1, seeds + 1), folder, workers, tell)
    return Finding(experiment, cell.settings, ours, theirs, row.seconds, row.failed)


def referred(
    paper: str, e: Experiment, setup: Setup, seeds: Sequence[int], folder: Path, workers: str | int,
    tell: Callable[[str], None],
) -> list[Curve]:  # fmt: skip
    """What the reference comes to with each seed, several at once in processes of their own."""
    about = [reference.train, setup, e.own, e.net, e.data.name, e.data.load, e.held, e.target]
    keys = {seed: digest(described([*about, seed, versions()]))[:24] for seed in seeds}
    places = {seed: folder / "references" / f"{key}.json" for seed, key in keys.items()}
    wanted = [seed for seed in seeds if not places[seed].exists()]
    began = time.perf_counter()

    def keep(seed: int, curve: Curve) -> None:
        places[seed].parent.mkdir(parents=True, exist_ok=True)
        aside = places[seed].with_suffix(".part")
        aside.write_text(json.dumps({"paper": paper, "setting": e.setting, "seed": seed, "curve": curve}))
        aside.replace(places[seed])
        seconds = time.perf_counter() - began
        tell(f"{paper}, {e.setting}, reference, seed {seed}: {e.value(curve):.4g} (after {seconds:.1f} s)")

    if workers == 0 or len(wanted) < 2:
        for seed in wanted:
            keep(seed, e.refer(setup, seed))
    else:
        processes = 2 if workers == "auto" else int(workers)
        with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
            for seed, curve in zip(wanted, pool.map(partial(e.refer, setup), wanted), strict=True):
                keep(seed, curve)
    return [json.loads(places[seed].read_text())["curve"] for seed in seeds]


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)
