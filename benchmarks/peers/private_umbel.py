"""Umbel: `central_gaussian` on cohorts by Poisson sampling, with worker processes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import umbel
from umbel.core.optimizers import sgd

from ..meter import Laps, say
from ..workloads import leave
from . import digits

client = umbel.Client()


@cache
def net() -> Any:
    """The module that a process trains with."""
    return digits.net(digits.given().model)


@client.data
def load(source: Any) -> Any:
    """A client's data, as tensors."""
    import torch

    x, y = digits.given().examples(source["index"])
    return torch.from_numpy(x), torch.from_numpy(y)


@client.train
def train(model: umbel.Arrays, examples: Any, ctx: umbel.Context) -> umbel.Update:
    """One epoch."""
    from umbel import torch as adapter

    digits.fit(adapter.load_(net(), model), *examples, digits.given().setting)
    return umbel.Update(adapter.arrays(net()), weight=len(examples[1]))


def strategy(setting: digits.Setting) -> umbel.Strategy:
    """FedAvg, private or not."""
    cohort, server = umbel.Poisson(setting.rate), sgd(setting.server_lr, setting.momentum)
    if setting.noise is None:
        return umbel.FedAvg(cohort=cohort, server=server)
    from umbel.privacy import central_gaussian

    noise = central_gaussian(norm=setting.norm, noise=setting.noise, expected=setting.cohort)
    return umbel.FedAvg(cohort=cohort, server=server, fold=umbel.total(), transforms=noise)


def main() -> None:
    """Do all rounds, print what they took and released, and leave the model in the folder of this run."""
    task = digits.given()
    setting, folder = task.setting, Path(os.environ["BENCH_FOLDER"])
    laps, releases = Laps(setting.rounds), list[Any]()
    model, chosen = umbel.Arrays(task.model), strategy(setting)
    app = umbel.App(client, model=lambda: model, strategy=chosen, rounds=setting.rounds, evaluate_every=0)

    def watch(event: Any) -> None:
        if event.name == "ask_closed":
            releases.extend(event.releases)
        elif event.name == "round_committed":
            laps.lap()

    on = umbel.Simulation(setting.clients, workers=int(os.environ.get("BENCH_WORKERS", "2")))
    result = umbel.run(app, on=on, folder=folder / "runs", observers=[watch], seed=setting.seed)
    report = laps.report("umbel", "torch", "numpy", includes="the event log and a checkpoint every round on disk")
    say({**report, "releases": releases})
    leave(result.model)
