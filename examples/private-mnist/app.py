"""A thousand holders of handwritten digits learn a CNN that tells nobody whether one of them took part.

umbel run examples/private-mnist/app.py
python examples/private-mnist/report.py
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

import umbel
import umbel.torch
from umbel.data import iid, mnist
from umbel.privacy import central_gaussian

CLIENTS, COHORT = 1_000, 100
torch.set_num_threads(1)


class Net(nn.Sequential):
    """A small convolutional network for images of 28x28 pixels; 3,946 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 5, stride=2), nn.Tanh(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip


images = cache(mnist)  # (train images, train labels, test images, test labels)
client = umbel.Client()


@client.data
def data(source):
    x, y, _, _ = images()
    mine = iid()(y, source["count"], seed=0)[source["index"]]
    return torch.from_numpy(x[mine]), torch.from_numpy(y[mine])


@client.train
def train(model, data, ctx):
    return umbel.torch.fit(umbel.torch.load_(Net(), model), data, ctx)


app = umbel.App(
    client,
    model=umbel.torch.model(Net),
    strategy=umbel.FedAvg(
        cohort=umbel.Poisson(COHORT / CLIENTS),  # each holder by its own throw of the dice
        fold=umbel.total(),
        transforms=central_gaussian(norm=1.0, noise=1.0, expected=COHORT),
    ),
    rounds=40,
    config={"lr": 0.3, "batch": 20},
    evaluate_every=40,
    federation=umbel.Simulation(clients=CLIENTS),
)


@app.test
@torch.inference_mode()
def test(model):
    _, _, x, y = images()
    scores = umbel.torch.load_(Net(), model)(torch.from_numpy(x))
    return {"accuracy": (scores.argmax(1) == torch.from_numpy(y)).float().mean().item()}
