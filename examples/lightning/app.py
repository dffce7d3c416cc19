"""Lightning: ten holders of handwritten digits train a LightningModule, each with a Trainer of its own.

umbel run examples/lightning/app.py
"""

from __future__ import annotations

from functools import cache

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import umbel
import umbel.lightning
from umbel.data import digits, iid


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
        )

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@cache
def images():
    """Tensors: images to train on, their labels, and 297 images, with theirs, that no client has."""
    return [torch.from_numpy(part) for part in digits()]


client = umbel.Client()


@client.data
def data(source):
    x, y, _, _ = images()
    mine = iid()(y.numpy(), source["count"], seed=0)[source["index"]]
    return TensorDataset(x[mine], y[mine])


@client.train
def train(model, data, ctx):
    net = umbel.lightning.load_(Net(), model)
    return umbel.lightning.fit(net, DataLoader(data, batch_size=16, shuffle=True), ctx)


app = umbel.App(
    client,
    model=umbel.lightning.model(Net),
    strategy=umbel.FedAvg(cohort="all"),
    rounds=10,
    config={"epochs": 2},
    federation=umbel.Simulation(clients=10),
)


@app.test
@torch.inference_mode()
def test(model):
    _, _, x, y = images()
    return {"accuracy": (umbel.lightning.load_(Net(), model)(x).argmax(1) == y).float().mean().item()}
