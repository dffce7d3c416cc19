"""Patients of four hospitals, behind noise of which each adds a share to its update, and masks that cancel in the sum:
of a server that follows the protocol, nobody has to believe that it adds noise.

HEART=FOLDER umbel run examples/secure-hospitals/app.py
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np

import umbel
from umbel.data import HOSPITALS, heart
from umbel.privacy import secure

PATIENTS = 644
# Round figures of the columns, and not means of these patients: those would be a release of their own.
CENTRE = np.array([50, 0.5, 3, 130, 240, 0.2, 0.6, 140, 0.4, 1, 2, 1, 5])
SCALE = np.array([10, 0.5, 1, 20, 60, 0.4, 0.8, 25, 0.5, 1, 0.6, 1, 2])

client = umbel.Client()


@cache
def patients(folder):
    """All hospitals' patients, in an order that tells nothing: 644 to train on, and the others to test."""
    x, y = map(np.concatenate, zip(*(heart(folder)[name] for name in HOSPITALS), strict=True))
    x = np.where((x == 0) & np.isin(np.arange(13), (3, 4)), np.nan, x)  # no pressure, no cholesterol: never measured
    order = np.random.default_rng(0).permutation(len(y))
    x, y = np.nan_to_num((x - CENTRE) / SCALE)[order], y[order].astype(float)
    return (x[:PATIENTS], y[:PATIENTS]), (x[PATIENTS:], y[PATIENTS:])


@client.data
def data(source):
    x, y = patients(os.environ.get("HEART", "data/heart"))[0]
    return x[source["index"]], y[source["index"]]


@client.train
def train(model, data, ctx):
    x, y = data
    error = 1 / (1 + np.exp(-x @ model["weights"] - model["bias"])) - y
    return umbel.Update({"weights": -ctx.config["lr"] * x * error, "bias": -ctx.config["lr"] * error}, delta=True)


app = umbel.App(
    client,
    model={"weights": np.zeros(13), "bias": np.zeros(1)},
    strategy=secure(
        umbel.FedAvg(cohort="all", fold=umbel.mean()),
        clip=1.0,
        noise=2.75,  # of the fewest who have to stay: an epsilon of 3 over 5 rounds
        corrupt=0.05,
        dropped=0.05,
    ),
    rounds=5,
    config={"lr": 0.5},
    federation=umbel.Simulation(PATIENTS),
)


@app.test
def test(model):
    x, y = patients(os.environ.get("HEART", "data/heart"))[1]
    return {"accuracy": ((x @ model["weights"] + model["bias"] > 0) == y).mean()}
