"""Two networks, their clients' made data, and the plain PyTorch loop that trains them in several processes."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import umbel
import umbel.torch

RATE = 0.1
torch.set_num_threads(1)


@dataclass(frozen=True)
class Shape:
    """A network, how many clients there are and are asked, and what each holds."""

    name: str
    clients: int
    cohort: int
    examples: int
    batch: int

    @classmethod
    def named(cls, name: str) -> Shape:
        """`linear` or `convolutional`."""
        return {
            "linear": cls("linear", clients=1_000, cohort=100, examples=10, batch=10),
            "convolutional": cls("convolutional", clients=100, cohort=50, examples=100, batch=20),
        }[name]

    def initial(self) -> umbel.Arrays:
        """The model to start from."""
        torch.manual_seed(0)
        return umbel.torch.arrays(network(self.name))


_networks: dict[str, nn.Module] = {}


def network(name: str) -> nn.Module:
    """The network of this process."""
    if name not in _networks:
        _networks[name] = nn.Linear(784, 10) if name == "linear" else convolutional()
    return _networks[name]


def convolutional() -> nn.Module:
    """Two convolutions and two layers, 1.2 million parameters, for images of 28x28."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


_data: dict[tuple[str, int], Any] = {}


def partition(shape: Shape, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's data, made from its number, and kept."""
    key = shape.name, client
    if key not in _data:
        made = torch.Generator().manual_seed(client)
        size = (784,) if shape.name == "linear" else (28, 28)
        _data[key] = (
            torch.randn(shape.examples, *size, generator=made),
            torch.randint(10, (shape.examples,), generator=made),
        )
    return _data[key]


def train(net: nn.Module, shape: Shape, client: int) -> float:
    """One epoch on a client's data; the last loss."""
    x, y = partition(shape, client)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    loss = torch.zeros(())
    for start in range(0, len(x), shape.batch):
        optimizer.zero_grad()
        loss = cross_entropy(net(x[start : start + shape.batch]), y[start : start + shape.batch])
        loss.backward()
        optimizer.step()
    return loss.item()


client = umbel.Client()


@client.train
def train_client(model: umbel.Arrays, data: Any, ctx: umbel.Context) -> umbel.Update:
    """The same epoch as the loop's."""
    shape = Shape.named(ctx.config["shape"])
    net = network(shape.name)
    umbel.torch.load_(net, model)
    loss = train(net, shape, data["index"])
    return umbel.Update(umbel.torch.arrays(net), weight=shape.examples, metrics={"loss": loss})


class Loop:
    """Federated averaging by hand: half of each cohort in each of two processes, sums sent back and added."""

    def __init__(self, shape: Shape, processes: int) -> None:
        self._shape = shape
        self._ends = []
        context = multiprocessing.get_context("fork")  # no thread of PyTorch has run yet
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs, shape), daemon=True).start()
            self._ends.append(ours)

    def rounds(self, count: int) -> list[float]:
        """Train from the start for so many rounds; the seconds of each."""
        torch.manual_seed(0)
        model = {name: value.clone() for name, value in network(self._shape.name).state_dict().items()}
        draw, seconds = random.Random(0), []
        for _ in range(count):
            began = time.perf_counter()
            cohort = draw.sample(range(self._shape.clients), self._shape.cohort)
            for place, end in enumerate(self._ends):
                end.send(({name: value.numpy() for name, value in model.items()}, cohort[place :: len(self._ends)]))
            sums = [end.recv() for end in self._ends]
            weight = self._shape.examples * self._shape.cohort
            model = {name: torch.from_numpy(sum(s[name] for s in sums) / weight) for name in model}
            seconds.append(time.perf_counter() - began)
        return seconds

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.send(None)


def _serve(end: Any, shape: Shape) -> None:
    net = network(shape.name)
    while (order := end.recv()) is not None:
        model, clients = order
        start = {name: torch.from_numpy(value) for name, value in model.items()}
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        for number in clients:
            net.load_state_dict(start)
            train(net, shape, number)
            for name, value in net.state_dict().items():
                total[name].add_(value, alpha=shape.examples)
        end.send({name: value.numpy() for name, value in total.items()})
