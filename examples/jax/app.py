"""JAX with Flax and optax: ten holders of handwritten digits train a network.

umbel run examples/jax/app.py
"""

from __future__ import annotations

from functools import cache, partial

import jax
import numpy as np
import optax
from flax import linen

import umbel
import umbel.jax
from umbel.data import digits, iid


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(16, (3, 3), padding="VALID")(x.reshape(-1, 8, 8, 1)))
        return linen.Dense(10)(x.reshape(len(x), -1))


net = Net()
optimizer = partial(optax.sgd, momentum=0.9)


def start():
    return net.init(jax.random.key(0), np.zeros((1, 64), np.float32))


def loss(variables, batch, key):
    return optax.softmax_cross_entropy_with_integer_labels(net.apply(variables, batch[0]), batch[1]).mean()


images = cache(digits)  # (train images, train labels, test images, test labels)
client = umbel.Client()


@client.data
def data(source):
    x, y, _, _ = images()
    mine = iid()(y, source["count"], seed=0)[source["index"]]
    return x[mine], y[mine]


@client.train
def train(model, data, ctx):
    variables = umbel.jax.load_(start(), model)
    return umbel.jax.fit(variables, data, ctx, loss, optimizer=optimizer)


app = umbel.App(
    client,
    model=umbel.jax.model(start),
    strategy=umbel.FedAvg(cohort="all"),  # or FedProx(cohort="all", mu=0.01), Scaffold(cohort="all"), ...
    rounds=10,
    config={"lr": 0.1, "epochs": 2, "batch": 16},
    federation=umbel.Simulation(clients=10),
)


@app.test
def test(model):
    _, _, x, y = images()
    scores = net.apply(umbel.jax.load_(start(), model), x)
    return {"accuracy": float((scores.argmax(1) == y).mean())}
