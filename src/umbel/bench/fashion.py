"""Fashion-MNIST over a hundred clients (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..core.arrays import Arrays
from ..core.randomness import Key
from ..data.mnist import idx_digest, idx_folder, idx_part
from ..data.partition import Partition
from ..data.partitioners import dirichlet, iid, shards
from ..errors import DataError
from .classifiers import Items, classifier, parted, scores
from .problem import Problem

if TYPE_CHECKING:
    from torch import nn

HELD = 5000
"""So many training images no client gets: settings are chosen on them."""
Split = Literal["iid", "dirichlet 0.1", "dirichlet 0.5", "2 classes"]
SPLITS: dict[str, Callable[[npt.NDArray[np.int64], int, int], Partition]] = {
    "iid": iid(),
    "dirichlet 0.1": dirichlet(0.1, minimum=10),
    "dirichlet 0.5": dirichlet(0.5, minimum=10),
    "2 classes": shards(2),
}
"""Who holds what, by (labels, clients, seed)."""


def fashion_mnist(
    split: Split = "dirichlet 0.5",
    *,
    clients: int = 100,
    model: Literal["logistic", "mlp"] = "mlp",
    folder: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Problem:
    """Images of clothes in ten classes: 55,000 to train on over the clients, 5,000 for validation, 10,000 for the test.

    `split` is one of `SPLITS`, drawn anew for each seed. The model is logistic regression or a perceptron with 64
    hidden units. Each client keeps two of ten items for evaluations of its own (`evaluate.accuracy`). `folder` has the
    four idx files; without it they are looked for as by `umbel.data.fashion_mnist`.
    `changes` are fields of `Problem`, such as ``rounds=20``. Raises `DataError`. Needs PyTorch.
    """
    if split not in SPLITS:
        raise DataError(f"Fashion-MNIST is split by {', '.join(map(repr, SPLITS))}, not by {split!r}")
    place = idx_folder("fashion-mnist", folder)
    net = NETS[model]
    settings: dict[str, Any] = {
        "name": f"Fashion-MNIST, {split}",
        "client": classifier(partial(_load, place), net),
        "model": partial(_initial, net),
        "clients": partial(sources, place, split, clients),
        "test": partial(_test, place, net),
        "also": ("evaluate.accuracy",),
        "cohort": min(10, clients),
        "rounds": 60,
        "config": {"epochs": 1, "batch": 20},
        "rates": (0.01, 0.03, 0.1, 0.3),
        "evaluate_every": 5,
        "depends": {"data": idx_digest(place)},
    }
    return Problem(**{**settings, **changes})


def sources(folder: str, split: str, clients: int, seed: int) -> list[dict[str, npt.NDArray[np.int64]]]:
    """The items of each client, in its parts."""
    labels = images(folder, "train")[1][:-HELD]
    held = SPLITS[split](labels, clients, seed)
    key = Key.from_seed(seed).derive("bench", "fashion")
    return [parted(mine, key.derive("parts", i).draws().permutation(len(mine))) for i, mine in enumerate(held)]


def _logistic() -> nn.Module:
    from torch import nn

    return nn.Linear(784, 10)


def _perceptron() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


NETS: dict[str, Callable[[], nn.Module]] = {"logistic": _logistic, "mlp": _perceptron}


def _initial(net: Callable[[], nn.Module]) -> Arrays:
    from ..torch import arrays

    return arrays(net())


def _load(folder: str, source: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Items]:
    pixels, labels = images(folder, "train")
    return {part: (_scaled(pixels[items]), labels[items]) for part, items in source.items()}


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return pixels.reshape(-1, 784).astype(np.float32) / np.float32(255)


def _test(folder: str, net: Callable[[], nn.Module], model: Arrays, part: str) -> dict[str, float]:
    from ..torch import load_

    return scores(load_(net(), model), *_held(folder, part))


@cache
def _held(folder: str, part: str) -> Any:
    import torch

    pixels, labels = images(folder, "t10k" if part == "test" else "train")
    some = slice(None) if part == "test" else slice(-HELD, None)
    return torch.from_numpy(_scaled(pixels[some])), torch.from_numpy(labels[some])


@cache
def images(folder: str, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels [n, 28, 28], mapped, and classes [n] of "train" or "t10k". Raises `DataError`."""
    return idx_part(folder, part)
