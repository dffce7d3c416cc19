"""Keras: ten holders of handwritten digits train a network, each by `model.fit`.

umbel run examples/keras/app.py
"""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
from keras import layers

import umbel
import umbel.keras
from umbel.data import iid, mnist5k

images = cache(mnist5k)  # (train images, train labels, test images, test labels)


def make():
    net = keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10)])
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return net


network = cache(make)  # compiled once in a process, and then for all its tasks
client = umbel.Client()


@client.data
def data(source):
    x, y, _, _ = images()
    mine = iid()(y, source["count"], seed=0)[source["index"]]
    return x[mine].reshape(-1, 28, 28), y[mine]


@client.train
def train(model, data, ctx):
    return umbel.keras.fit(umbel.keras.load_(network(), model), data, ctx)


app = umbel.App(
    client,
    model=umbel.keras.model(make),
    strategy=umbel.FedAvg(cohort="all"),  # or FedProx(cohort="all", mu=0.01), ...
    rounds=10,
    config={"lr": 0.003, "epochs": 2, "batch": 32},
    federation=umbel.Simulation(clients=10),
)


@app.test
def test(model):
    _, _, x, y = images()
    scores = umbel.keras.load_(network(), model).predict(x.reshape(-1, 28, 28), verbose=0)
    return {"accuracy": float((np.argmax(scores, 1) == y).mean())}
