"""The federations of the baselines: labelled items, split over clients that train a module by SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import umbel
import umbel.data
import umbel.torch
from umbel import bench
from umbel.bench.classifiers import scores

from .clients import trainer

HELD = 5000
"""So many of the training items no client gets, where settings are chosen on them."""
Arrays4 = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Data:
    """Labelled items: features and classes to train on, and to test on."""

    name: str
    load: Callable[[], Arrays4]

    def part(self, name: str, held: int) -> tuple[Tensor, Tensor]:
        """All items of the test, those held out for validation, or those that clients may have."""
        x, y, tx, ty = self.load()
        chosen = {"test": (tx, ty), "validation": (x[len(x) - held :], y[len(x) - held :])}
        x, y = chosen.get(name, (x[: len(x) - held], y[: len(x) - held]))
        return torch.from_numpy(x), torch.from_numpy(y)


@cache
def items(load: Callable[[], Arrays4], count: int | None = None) -> Arrays4:
    """The images of MNIST or Fashion-MNIST as features float32 [n, 784] from 0 to 1, or the first of each part."""
    x, y, tx, ty = load()
    return x[:count].reshape(-1, 784), y[:count], tx[:count].reshape(-1, 784), ty[:count]


def mnist(count: int | None = None) -> Data:
    """MNIST, or its first items."""
    return Data("MNIST", partial(items, umbel.data.mnist, count))


def fashion(count: int | None = None) -> Data:
    """Fashion-MNIST, or its first items."""
    return Data("Fashion-MNIST", partial(items, umbel.data.fashion_mnist, count))


Split = Callable[[np.ndarray, int], Sequence[np.ndarray]]
"""The items of each client, of labels and a seed."""
Net = Callable[[], nn.Module]


def problem(name: str, data: Data, split: Split, net: Net, *, held: int = 0, **fields: Any) -> bench.Problem:
    """The problem: each client has the items that `split` gives it, and the server tests."""
    return bench.Problem(
        name=name,
        client=trainer(partial(_mine, data, held), net),
        model=partial(_initial, net),
        clients=partial(_sources, data, held, split),
        test=partial(_test, data, held, net),
        depends=data.name,
        **fields,
    )


def _sources(data: Data, held: int, split: Split, seed: int) -> list[dict[str, np.ndarray]]:
    return [{"items": np.sort(items)} for items in split(data.part("train", held)[1].numpy(), seed)]


def _mine(data: Data, held: int, source: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    x, y = data.part("train", held)
    items = np.array(source["items"])  # torch warns of memory that it may not write to, such as a worker's sources
    return x[items], y[items]


def _initial(net: Net) -> umbel.Arrays:
    return umbel.torch.arrays(net())


def _test(data: Data, held: int, net: Net, model: umbel.Arrays, part: str) -> dict[str, float]:
    return scores(umbel.torch.load_(net(), model), *data.part(part, held))
