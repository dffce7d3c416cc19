"""Accuracy under central privacy on MNIST, Umbel beside pfl: `python -m benchmarks.private_mnist`.

The same small CNN, split, local training, server step, clip bound and noise on both, the noise calibrated by Umbel's
plan; and, by the first seed, the same without clipping and noise. The epsilon of each is found by Umbel's accountant:
of Umbel by what the run's log says was released, of pfl by what it was told to do. pfl runs in an environment of its
own, which `make bench-peers` makes, or by the Python that BENCH_PFL names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

from umbel.data.mnist import idx_folder, idx_part
from umbel.errors import DataError
from umbel.privacy.accounting import spent
from umbel.privacy.plan import calibrated
from umbel.privacy.release import NoisyRelease

from .figures import VOID, machine
from .launch import Side, SideFailed, launch
from .peers import digits
from .peers.digits import Setting

PAGE = Path(__file__).resolve().parent / "private_mnist.md"
SIDES = {
    "Umbel": Side("umbel", "Umbel with 2 workers", "private_umbel", {"BENCH_WORKERS": "2"}),
    "pfl": Side("pfl", "pfl in 2 processes", "private_pfl", peer="pfl"),
}
EPSILON = 4.0
FULL = Setting(
    clients=10_000, cohort=1_000, rounds=75, lr=0.1, batch=3, server_lr=1.0, momentum=0.9, norm=0.5, noise=None,
    delta=1e-5, seed=0,
)  # fmt: skip
QUICK = replace(FULL, clients=100, cohort=50, rounds=3)
SEEDS = 3
FEWEST = 2
"""Of fewer seeds nobody knows the spread."""
ABOUT = (
    "pfl's own samplers draw a fixed number with replacement, or go through the users in turn, and it divides by how "
    "many came: no account of sampling holds of that. Here it is handed cohorts by Poisson sampling and a fixed number "
    "to divide by, by its own interfaces; clipping, noise and all else are its own. Its noise is continuous, in "
    "float32 and from a seed, of which the accountant knows nothing; Umbel's is discrete, exact, and of the operating "
    "system's randomness, so that a seed fixes its split, first model and batches alone."
)

Found = dict[tuple[str, bool], list["Run | None"]]
"""Runs by side and whether they were private, one a seed from the first on; None where one failed."""


@dataclass(frozen=True)
class Run:
    """One training: the accuracy of the last model in percent on the test set, epsilon (of pfl's own accountant too),
    the seconds of a round (the median) and of the whole process.
    """

    accuracy: float
    epsilon: float | None
    own: float | None
    round: float
    whole: float
    versions: Mapping[str, str]


def once(side: Side, task: digits.Task, tests: tuple[Any, Any]) -> Run:
    """Train on a side. `SideFailed` where that fails, or is not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.npz"
        task.keep(path)
        done = launch(side, task=path)
    assert done.model is not None
    releases = [NoisyRelease.of(each) for each in done.said["releases"]]
    epsilon = spent(releases, task.setting.delta).epsilon if releases else None
    accuracy = digits.accuracy(done.model, *tests)
    seconds = median(done.said["seconds"])
    return Run(accuracy, epsilon, done.said.get("own"), seconds, done.whole, done.said["versions"])


def measure(folder: str, setting: Setting, seeds: int, limit: int | None = None) -> tuple[Found, list[str]]:
    """All runs, sides by turns, every second turn backwards, on the first `limit` images; and why some failed. Without
    noise there is one seed.
    """
    (pixels, labels), tests = idx_part(folder, "train"), idx_part(folder, "t10k")
    found: Found = {(name, private): [] for private in (True, False) for name in SIDES}
    failed, order = dict[str, None](), list(found)
    for seed in range(1, seeds + 1):
        for name, private in order if seed == 1 else filter(itemgetter(1), order):
            began = time.perf_counter()
            here = replace(setting, seed=seed, noise=setting.noise if private else None)
            try:
                run = once(SIDES[name], digits.task(pixels[:limit], labels[:limit], here), tests)
                told = f"{run.accuracy:.2f} %, {run.round:.2f} s a round"
            except SideFailed as error:
                run, told = None, f"{error}"
                failed[f"{name}: {error}"] = None
            found[name, private].append(run)
            what = "private" if private else "plain"
            print(f"  {name}, {what}, seed {seed}, {time.perf_counter() - began:.0f} s: {told}", file=sys.stderr)
        order.reverse()
    return found, [*failed]


def table(found: Found) -> str:
    """The runs in Markdown, a row for each side with noise and without."""
    seeds = max(map(len, found.values()))
    heads = ["", *(f"seed {seed}" for seed in range(1, seeds + 1)), "mean ± spread", "epsilon", "s a round", "s a run"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for (name, private), runs in found.items():
        there = [run for run in runs if run is not None]
        cells = [f"{run.accuracy:.2f}" if run else "-" for run in runs] + [""] * (seeds - len(runs))
        epsilons = {f"{run.epsilon:.3f}" for run in there if run.epsilon is not None}
        more = ["not measured", "-", "-", "-"] if not there else [
            f"{fmean(run.accuracy for run in there):.2f}" + (f" ± {spread([there]):.2f}" if len(there) > 1 else ""),
            ", ".join(sorted(epsilons)) or "none holds",
            f"{median(run.round for run in there):.2f}",
            f"{median(run.whole for run in there):.0f}",
        ]  # fmt: skip
        lines.append([f"{name}, {'private' if private else 'without noise and clipping'}", *cells, *more])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(groups: Sequence[Sequence[Run]]) -> float:
    """The standard deviation of the accuracy over seeds, of several groups pooled."""
    return fmean(variance([run.accuracy for run in group]) for group in groups) ** 0.5


def verdict(found: Found) -> str:
    """Whether Umbel's private accuracy is not below the peer's by more than the seeds' spread."""
    ours, peer = ([run for run in found[name, True] if run is not None] for name in SIDES)
    if len(ours) < len(found["Umbel", True]):
        return "FAILED: a run of Umbel did not come to its end"
    if not peer:
        return "not measured: there is no peer"
    if min(len(ours), len(peer)) < FEWEST:
        return "too few seeds for a spread"
    below = fmean(run.accuracy for run in peer) - fmean(run.accuracy for run in ours)
    reach = spread([ours, peer])
    told = f"Umbel's mean is {abs(below):.2f} points {'below' if below > 0 else 'above'} pfl's"
    return f"{'holds' if below <= reach else 'MISSED'}: {told}, and the spread over seeds (pooled) is {reach:.2f}"


def report(found: Found, failed: Sequence[str], setting: Setting) -> str:
    """All that is to be known, in Markdown."""
    runs = [run for each in found.values() for run in each if run is not None]
    own = sorted({f"{run.own:.3f}" for run in runs if run.own is not None})
    versions = sorted({f"{name} {number}" for run in runs for name, number in run.versions.items()})
    each = (
        f"{setting.cohort:,} of {setting.clients:,} clients a round by Poisson sampling, {setting.rounds} rounds; "
        f"a CNN of 26,010 parameters; one epoch of SGD, lr {setting.lr:g}, batches of {setting.batch}; the server "
        f"steps by SGD, lr {setting.server_lr:g}, momentum {setting.momentum:g}; clipped to {setting.norm:g}, noise "
        f"multiplier {setting.noise:g} for an epsilon of {EPSILON:g} at a delta of {setting.delta:g} (PLD, one client "
        "added or removed). Accuracy in percent of the test set, of the last model."
    )
    counted = [f"pfl's own accountant counts an epsilon of {', '.join(own)} for it."] if own else []
    parts = [each, table(found), f"Bar (not worse, within the spread over seeds): {verdict(found)}.", *failed]
    return "\n\n".join([*parts, " ".join([ABOUT, *counted]), f"On: {machine()}; sides had {', '.join(versions)}."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table and the verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_mnist", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; the figures are void")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} anew")
    parser.add_argument("--rounds", type=int, help="other than the usual number of rounds")
    parser.add_argument("--seeds", type=int, help="other than the usual number of seeds")
    parser.add_argument("--data", help="the folder of MNIST; by default where `make data` puts it")
    chosen = parser.parse_args(arguments)
    if chosen.write and (chosen.quick or chosen.rounds or chosen.seeds):
        parser.error("--write is for full sizes")
    try:
        folder = idx_folder("mnist", chosen.data)
    except DataError as error:
        raise SystemExit(f"{error}") from error
    setting = QUICK if chosen.quick else FULL
    setting = replace(setting, rounds=chosen.rounds or setting.rounds)
    plan = calibrated(EPSILON, setting.delta, setting.rounds, setting.clients, setting.cohort)
    setting = replace(setting, noise=plan.noise)
    limit = 6 * setting.clients if chosen.quick else None
    found, failed = measure(folder, setting, chosen.seeds or (1 if chosen.quick else SEEDS), limit)
    told = report(found, failed, setting)
    print(told)
    if chosen.quick:
        print(VOID)
    if chosen.write:
        PAGE.write_text(f"# Private MNIST\n\n{__doc__.strip()}\n\n{told}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
