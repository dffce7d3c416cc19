"""What every side of a simulation computes: models, data and cohorts, made by seed with numpy alone, so that all
environments agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Model = dict[str, npt.NDArray[np.float32]]

SEED = 20
PIXELS, CLASSES = 28, 10
SIGNAL = {"regression": 0.12, "cnn": 0.35}
"""How far a class's picture stands out of noise of standard deviation 1."""


@dataclass(frozen=True)
class Workload:
    """One thing to simulate.

    `model` is `regression`, `cnn` or `noop`; a client has so many `samples`, and takes one epoch of SGD over them.
    `rounds` are those that count, after one that does not; `fewer` are the rounds of sides that would take long.
    """

    name: str
    title: str
    model: str
    pool: int
    cohort: int
    rounds: int
    fewer: Mapping[str, int] = field(default_factory=dict)
    samples: int = 1
    batch: int = 1
    rate: float = 0.0

    def rounds_of(self, side: str) -> int:
        """How many rounds of a side count."""
        return self.fewer.get(side, self.rounds)


ALL = (
    Workload(
        "regression",
        "logistic regression 784x10, 100 of 1,000 clients, one step of SGD on a batch of 10",
        "regression",
        pool=1_000,
        cohort=100,
        rounds=100,
        samples=10,
        batch=10,
        rate=0.1,
    ),
    Workload(
        "cnn",
        "CNN of 1.2 M parameters on 28x28, 50 of 100 clients, 100 samples each, batch 20, one epoch",
        "cnn",
        pool=100,
        cohort=50,
        rounds=3,
        samples=100,
        batch=20,
        rate=0.05,
    ),
    Workload(
        "noop",
        "no-op clients, 4 KB, all of 3,000 clients",
        "noop",
        pool=3_000,
        cohort=3_000,
        rounds=10,
        fewer={"flwr": 1},
    ),
    Workload(
        "millions", "no-op clients, 4 KB, 1,000 of 15,000,000 clients", "noop", pool=15_000_000, cohort=1_000, rounds=10
    ),
)
WORKLOADS = {workload.name: workload for workload in ALL}


def quick(workload: Workload) -> Workload:
    """The same with few clients and rounds, to see that it works."""
    cohort = min(workload.cohort, 4 if workload.model == "cnn" else 20)
    pool = min(workload.pool, 1_000) if workload.pool > workload.cohort else cohort
    return replace(workload, pool=pool, cohort=cohort, rounds=2, fewer={})


def chosen() -> Workload:
    """The workload that the driver told this process to do."""
    workload = WORKLOADS[os.environ["BENCH_WORKLOAD"]]
    return quick(workload) if os.environ.get("BENCH_QUICK") else workload


def cohort(workload: Workload, number: int) -> tuple[int, ...]:
    """The clients of round `number`, from 1, in the order in which they are asked."""
    if workload.cohort == workload.pool:
        return tuple(range(workload.pool))
    generator = np.random.default_rng([SEED, 1, number])
    return tuple(generator.choice(workload.pool, workload.cohort, replace=False).tolist())


def examples(workload: Workload, client: int) -> Examples:
    """A client's data: pictures, flat for the regression, and their classes, half of them the client's favourite."""
    generator = np.random.default_rng([SEED, 2, client])
    classes = generator.integers(0, CLASSES, workload.samples)
    classes[generator.random(workload.samples) < 0.5] = client % CLASSES
    return _pictures(workload, classes, generator)


@cache
def everyone(workload_name: str, pool: int) -> list[Examples]:
    """The data of all clients of a workload, made once a process."""
    workload = WORKLOADS[workload_name]
    return [examples(workload, client) for client in range(pool)]


def data(workload: Workload) -> list[Examples]:
    """The data of all clients, in memory."""
    return everyone(workload.name, workload.pool)


def initial(workload: Workload) -> Model:
    """The model to begin with, by the names that PyTorch gives the parameters of `nets.net`."""
    generator = np.random.default_rng([SEED, 4])
    if workload.model == "noop":
        return {"w": np.ones(1_000, np.float32)}
    shapes: dict[str, tuple[int, ...]] = {"layers.0": (CLASSES, PIXELS * PIXELS)}
    if workload.model == "cnn":
        shapes = {
            "layers.0": (32, 1, 3, 3),
            "layers.2": (64, 32, 3, 3),
            "layers.6": (128, 9216),
            "layers.8": (CLASSES, 128),
        }
    model: Model = {}
    for name, shape in shapes.items():
        spread = np.float32(1 / np.sqrt(np.prod(shape[1:])))
        model[f"{name}.weight"] = spread * generator.standard_normal(shape, dtype=np.float32)
        model[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return model


def leave(model: Mapping[str, Any]) -> None:
    """Leave the final model for the driver, in the folder of this run."""
    parts: dict[str, Any] = dict(model)
    np.savez(Path(os.environ["BENCH_FOLDER"]) / "model.npz", **parts)


def _pictures(workload: Workload, classes: npt.NDArray[np.int64], generator: np.random.Generator) -> Examples:
    pictures = generator.standard_normal((len(classes), PIXELS * PIXELS), dtype=np.float32)
    pictures += np.float32(SIGNAL[workload.model]) * _prototypes()[classes]
    if workload.model == "cnn":
        pictures = pictures.reshape(-1, 1, PIXELS, PIXELS)
    return pictures, classes.astype(np.int64)


@cache
def _prototypes() -> npt.NDArray[np.float32]:
    coarse = np.random.default_rng([SEED, 5]).standard_normal((CLASSES, 7, 7), dtype=np.float32)
    return np.kron(coarse, np.ones((1, 4, 4), np.float32)).reshape(CLASSES, -1)
