"""What it costs a run to be tracked: runs with and without a tracker, in one process, by turns."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import umbel

from .figures import Row, turns

ROUNDS = 1_000
TRACKERS = {
    "csv": "csv:{0}",
    "tensorboard": "tensorboard:{0}",
    "wandb": "wandb:{0}",
    "mlflow": "mlflow:sqlite:///{0}/runs.db",
}
CLIENTS, COHORT, IMAGES, PIXELS, CLASSES = 50, 10, 600, 784, 10

client = umbel.Client()


@client.data
def data(source: Any) -> Any:
    """A client's images, as many as those of MNIST are for a hundred clients."""
    generator = np.random.default_rng(source["index"])
    return generator.normal(size=(IMAGES, PIXELS)).astype(np.float32), generator.integers(0, CLASSES, IMAGES)


@client.train
def train(model: Any, data: Any, ctx: Any) -> umbel.Update:
    """One epoch of softmax regression."""
    images, labels = data
    weights = model["weights"].copy()
    for batch in np.array_split(ctx.rng.permutation(IMAGES), IMAGES // 20):
        scores = images[batch] @ weights
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        loss = float(-np.log(likely[np.arange(len(batch)), labels[batch]] + 1e-9).mean())
        likely[np.arange(len(batch)), labels[batch]] -= 1
        weights -= 0.01 / len(batch) * images[batch].T @ likely
    return umbel.Update({"weights": weights}, weight=IMAGES, metrics={"loss": loss})


def spent(rounds: int, tracker: str | None) -> tuple[float, float]:
    """How long a run takes, with its tracker's last word, and the CPU-seconds of the run's own process."""
    app = umbel.App(
        client,
        model={"weights": np.zeros((PIXELS, CLASSES), np.float32)},
        strategy=umbel.FedAvg(cohort=COHORT),
        rounds=rounds,
        evaluate_every=0,
        federation=umbel.Simulation(CLIENTS, workers=0),
    )
    with tempfile.TemporaryDirectory() as folder:
        told = [] if tracker is None else [umbel.track(TRACKERS[tracker].format(folder))]
        with chdir(folder):  # where MLflow puts pictures and models
            began, before = time.perf_counter(), time.process_time()
            done = umbel.run(app, folder=Path(folder) / "runs", observers=told)
            assert done.rounds == rounds
            return time.perf_counter() - began, time.process_time() - before


def tracked(smoke: bool, times: int) -> Iterator[Row]:
    """A run of 1,000 rounds, tracked, over the same run untracked. The wait for the tracker at its end counts; in CPU
    time it is the run's own process alone, for the tracker's has another core.
    """
    os.environ.setdefault("WANDB_MODE", "offline")
    rounds = 20 if smoke else ROUNDS
    names = [name for name in TRACKERS if name == "csv" or find_spec(name) is not None]
    found = turns({"off": partial(spent, rounds, None), **{n: partial(spent, rounds, n) for n in names}}, times)
    for name in names:
        for at, (short, told) in enumerate((("", ""), ("-cpu", ": CPU of the run"))):
            ours, off = ([None if pair is None else pair[at] for pair in found[side]] for side in (name, "off"))
            what = f"{rounds:,} rounds of {COHORT} clients, tracked by {name}{told}"
            yield Row(f"tracked-{name}{short}", what, "s", 1.05, ours, off, limit_is="(untracked)", judged="over")
