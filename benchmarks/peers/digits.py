"""What both sides of `benchmarks.private_mnist` train: a task that is handed to them in one file, so that its split and
its first model are the same; and the network and the local training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Model = dict[str, npt.NDArray[np.float32]]
SHAPES: dict[str, tuple[int, ...]] = {"0": (16, 1, 8, 8), "3": (32, 16, 4, 4), "7": (32, 512), "9": (10, 32)}
"""The weights of `net`, by its layers: 26,010 parameters, biases included."""


@dataclass(frozen=True)
class Setting:
    """What is run: `rounds` for which each of `clients` is taken with probability cohort / clients, trains one epoch by
    SGD (`lr`, `batch`) and is clipped to `norm`; the sum gets noise of `noise` times that, and over `cohort` it is what
    the server steps by (`server_lr`, `momentum`). Where `noise` is None nothing is clipped or noised.
    """

    clients: int
    cohort: int
    rounds: int
    lr: float
    batch: int
    server_lr: float
    momentum: float
    norm: float
    noise: float | None
    delta: float
    seed: int

    @property
    def rate(self) -> float:
        """With what probability a client is taken in a round."""
        return self.cohort / self.clients


@dataclass(frozen=True)
class Task:
    """A setting; images uint8 [n, 28, 28] and their labels; which of them each client has; and the first model."""

    setting: Setting
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    model: Model

    def keep(self, path: Path) -> None:
        """Write it for the sides."""
        model: dict[str, Any] = {f"model:{name}": array for name, array in self.model.items()}
        told = json.dumps(asdict(self.setting))
        np.savez(path, pixels=self.pixels, labels=self.labels, items=self.items, setting=told, **model)

    def examples(self, client: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """A client's images [n, 1, 28, 28] from 0 to 1, and their labels."""
        mine = self.items[client]
        return scaled(self.pixels[mine]), self.labels[mine]


@cache
def given() -> Task:
    """The task that the driver told this process to do."""
    with np.load(os.environ["BENCH_TASK"]) as file:
        model = {name.partition(":")[2]: file[name] for name in file if name.startswith("model:")}
        setting = Setting(**json.loads(str(file["setting"])))
        return Task(setting, file["pixels"], file["labels"], file["items"], model)


def task(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], setting: Setting) -> Task:
    """A task whose images are dealt out equally at random, and whose first model is drawn, by the setting's seed."""
    each = len(labels) // setting.clients
    rng = np.random.default_rng(setting.seed)
    items = rng.permutation(len(labels))[: setting.clients * each].reshape(setting.clients, each)
    return Task(setting, pixels, labels, items, initial(rng))


def initial(rng: np.random.Generator) -> Model:
    """Parameters by the names of `net`."""
    model: Model = {}
    for name, shape in SHAPES.items():
        spread = np.float32(1 / np.sqrt(np.prod(shape[1:])))
        model[f"{name}.weight"] = spread * rng.standard_normal(shape, dtype=np.float32)
        model[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return model


def scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Images [n, 1, 28, 28] from 0 to 1."""
    return pixels[:, None].astype(np.float32) / np.float32(255)


def net(model: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """The CNN that is usual for privacy on MNIST (Papernot et al. 2021, arXiv 2007.14191), with these parameters."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    made = nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip
    made.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in model.items()})
    return made


def fit(net: Any, x: Any, y: Any, setting: Setting) -> None:
    """One epoch of SGD, batches in the order of the data, as pfl takes them."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.SGD(net.parameters(), lr=setting.lr)
    for start in range(0, len(y), setting.batch):
        optimizer.zero_grad()
        cross_entropy(net(x[start : start + setting.batch]), y[start : start + setting.batch]).backward()
        optimizer.step()


def accuracy(model: Model, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> float:
    """Of a model on these images, in percent."""
    import torch

    with torch.inference_mode():
        found = net(model)(torch.from_numpy(scaled(pixels))).argmax(1).numpy()
    return 100 * float((found == labels).mean())
