"""Umbel: `umbel.Simulation` in this process, or with worker processes."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import umbel

from ..meter import Laps, handling, say
from ..workloads import Workload, chosen, cohort, data, initial, leave

client = umbel.Client()


@cache
def workload() -> Workload:
    """The workload, in this process or in a worker."""
    return chosen()


@cache
def net() -> Any:
    """The module that a process trains with; torch is loaded in the workers alone."""
    from . import nets

    return nets.net(workload())


@client.data
def load(source: Any) -> Any:
    """A client's data, as tensors."""
    with handling():
        if workload().model == "noop":
            return None
        import torch

        x, y = data(workload())[source["index"]]
        return torch.from_numpy(x), torch.from_numpy(y)


@client.train
def train(model: umbel.Arrays, examples: Any, ctx: umbel.Context) -> umbel.Update:
    """One epoch, or nothing at all."""
    with handling():
        if workload().model == "noop":
            return umbel.Update(model)
        from umbel import torch as adapter

        from . import nets

        nets.fit(adapter.load_(net(), model), examples, workload())
        return umbel.Update(adapter.arrays(net()), weight=len(examples[1]))


class Given(umbel.FedAvg):
    """FedAvg that asks the cohorts of the workload."""

    def ask(self, state: umbel.State, r: int) -> umbel.Ask:
        asked, task = super().ask(state, r), workload()
        return asked if task.cohort == task.pool else replace(asked, clients=cohort(task, r))


def strategy(task: Workload) -> umbel.Strategy:
    """The cohorts of the workload; or, where the driver says so, as many by dice, with or without noise."""
    poisson = os.environ.get("BENCH_POISSON")
    if poisson is None:
        return Given(cohort=task.cohort)
    cohort = umbel.Poisson(task.cohort / task.pool)
    if poisson == "plain":
        return umbel.FedAvg(cohort=cohort)
    from umbel.privacy import central_gaussian

    noise = central_gaussian(norm=1.0, noise=1.0, expected=task.cohort)
    return umbel.FedAvg(cohort=cohort, fold=umbel.total(), transforms=noise)


def main() -> None:
    """Do all rounds, print what they took, and leave the model in the folder of this run."""
    folder, task = Path(os.environ["BENCH_FOLDER"]), workload()
    rounds = task.rounds_of("umbel") + 1
    laps = Laps(rounds)
    workers = int(os.environ["BENCH_WORKERS"])
    app = umbel.App(
        client,
        model=lambda: umbel.Arrays(initial(task)),
        strategy=strategy(task),
        rounds=rounds,
        evaluate_every=0,
    )

    def watch(event: Any) -> None:
        if event.name == "round_committed":
            laps.lap()

    result = umbel.run(
        app, on=umbel.Simulation(task.pool, workers=workers), folder=folder / "runs", observers=[watch], seed=1
    )
    where = f"{workers} worker processes" if workers else "one process"
    includes = f"{where}; every update checked, exact sums, the event log and a checkpoint every round on disk"
    say(laps.report("umbel", "torch", "numpy", includes=includes))
    leave(result.model)
