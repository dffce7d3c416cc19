"""The shape of FLUTE's experiment LR-MNIST: 1,000 clients of 60 images, 10 a round, batches of 10, one epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import umbel
import umbel.torch

CLIENTS, EXAMPLES = 1_000, 60
client = umbel.Client()
net = torch.nn.Linear(784, 10)


def made(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in which the label's own pixels are bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, count)
    x = rng.random((count, 784), np.float32) * 0.3
    x[np.arange(count)[:, None], y[:, None] * 78 + np.arange(78)] += rng.random((count, 78), np.float32) * 0.2
    return torch.from_numpy(x), torch.from_numpy(y)


@client.data
def data(source: Any) -> Any:
    """A client's images."""
    return made(source["index"], EXAMPLES)


@client.train
def train(model: umbel.Arrays, data: Any, ctx: umbel.Context) -> umbel.Update:
    """One epoch."""
    umbel.torch.load_(net, model)
    x, y = data
    optimizer = torch.optim.SGD(net.parameters(), lr=ctx.config["lr"])
    for start in range(0, EXAMPLES, 10):
        optimizer.zero_grad()
        cross_entropy(net(x[start : start + 10]), y[start : start + 10]).backward()
        optimizer.step()
    return umbel.Update(umbel.torch.arrays(net), weight=EXAMPLES)


app = umbel.App(
    client, model=lambda: umbel.torch.arrays(net), strategy=umbel.FedAvg(cohort=10), rounds=100, config={"lr": 0.03},
    evaluate_every=20, federation=umbel.Simulation(CLIENTS),
)  # fmt: skip


@app.test
def test(model: umbel.Arrays) -> dict[str, float]:
    """Accuracy on 10,000 other images."""
    umbel.torch.load_(net, model)
    x, y = made(CLIENTS, 10_000)
    with torch.no_grad():
        return {"accuracy": (net(x).argmax(1) == y).float().mean().item()}
