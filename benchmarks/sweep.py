"""A sweep of twelve runs beside twelve runs by themselves: python -m benchmarks.sweep [--rounds N] [APP ...]

Both are the commands that users type, one after the other, by turns; of each the wall clock and the seconds of the
processor, over all its processes, and whether all runs came to the same models. The bar is 0.6 of the time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import umbel
from umbel.bench.swept import open_sweep, point_of
from umbel.runs.past import past_runs

from .figures import ROOT

APPS = ("examples/quickstart-numpy/app.py", "examples/quickstart-pytorch/app.py")
RATES, EPOCHS, SEEDS = ("0.1", "0.05", "0.02"), ("1", "2"), ("0", "1")
BAR = 0.6


def spent(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Seconds of wall clock, and of the processor, that these take one after the other."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        line = [sys.executable, "-m", "umbel.cli", *command]
        subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(app: str, rounds: int, folder: str) -> dict[str, list[list[str]]]:
    """What is typed for a sweep, and for its runs."""
    how = ["--rounds", str(rounds)]
    values = ["--set", f"lr={','.join(RATES)}", "--set", f"epochs={','.join(EPOCHS)}", "--seeds", str(len(SEEDS))]
    return {
        "sweep": [["sweep", app, *values, *how, "--folder", f"{folder}/sweep"]],
        "runs": [
            ["run", app, "--set", f"lr={rate}", "--set", f"epochs={epochs}", "--seed", seed, *how]
            + ["--folder", f"{folder}/runs"]
            for rate, epochs, seed in itertools.product(RATES, EPOCHS, SEEDS)
        ],
    }


def models(folder: Path) -> set[tuple[object, ...]]:
    """The settings, seed and model of each run in a folder."""
    return {
        (*sorted(point_of(run).items()), run.log.started.seed, umbel.open(run.folder).model_sha256)
        for run in past_runs(folder)
    }


def measure(app: str, rounds: int, times: int) -> float:
    """Print a row for an app, and return the ratio of the wall clocks."""
    found: dict[str, list[tuple[float, float]]] = {"sweep": [], "runs": []}
    for turn in range(times):
        with tempfile.TemporaryDirectory(prefix="umbel-sweep-") as folder:
            sides = commands(app, rounds, folder)
            for name in sorted(sides, reverse=bool(turn % 2)):
                found[name].append(spent(sides[name]))
            assert len(open_sweep("last", f"{folder}/sweep")) == 12
            if models(Path(folder, "sweep")) != models(Path(folder, "runs")):
                raise RuntimeError("the sweep came to other models than its runs by themselves")
    (wall, cpu), (alone, alone_cpu) = (
        [median(side) for side in zip(*found[n], strict=True)] for n in ("sweep", "runs")
    )
    ratio = wall / alone
    verdict = "holds" if ratio <= BAR else "MISSED"
    print(
        f"| {Path(app).parent.name}, {rounds} rounds | {wall:.1f} s | {alone:.1f} s | {ratio:.2f} | {cpu:.1f} s "
        f"| {alone_cpu:.1f} s | {cpu / alone_cpu:.2f} | <= {BAR} | {verdict} |",
        flush=True,
    )
    return ratio


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("apps", nargs="*", default=APPS, help="app files; by default both quickstarts")
    parser.add_argument("--rounds", type=int, default=5, help="of each run")
    parser.add_argument("--times", type=int, default=1, help="so many turns, of which the median counts")
    given = parser.parse_args()
    print("| 12 runs of | sweep | by themselves | ratio | processor | by themselves | ratio | bar | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for app in given.apps:
        measure(app, given.rounds, given.times)


if __name__ == "__main__":
    main()
