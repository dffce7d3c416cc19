"""Patients of four hospitals hide behind noise. Each patient is a client, and what is hidden is whether it took part.

HEART=FOLDER umbel run examples/private-hospitals/app.py
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np

import umbel
from umbel.data import HOSPITALS, heart
from umbel.privacy import central_gaussian

PATIENTS, ROUNDS, DELTA = 644, 20, 1e-4
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
    """One patient, and one that nobody trains on, as far as these go, for the attack to compare."""
    here, own = slice(source["index"], source["index"] + 1), patients(os.environ.get("HEART", "data/heart"))
    return [(x[here], y[here]) for x, y in own]


def likelihood(model, x, y):
    """The logit of the probability that the model gives to what is true."""
    return (2 * y - 1) * (x @ model["weights"] + model["bias"])


@client.train
def train(model, data, ctx):
    (x, y), _ = data
    error = 1 / (1 + np.exp(-x @ model["weights"] - model["bias"])) - y
    step = {"weights": -ctx.config["lr"] * (x.T @ error), "bias": -ctx.config["lr"] * error}
    return umbel.Update(step, delta=True)


@client.query("attack")
def attack(model, data, ctx):
    (x, y), other = data
    return umbel.Update({"members": likelihood(model, x, y), "others": likelihood(model, *other), "inputs": x})


# umbel privacy plan --epsilon 3 --delta 1e-4 --rounds 20 --population 644 --cohort 644
private = central_gaussian(norm=1.0, noise=5.471, expected=PATIENTS)


def app_of(transforms, fold):
    strategy = umbel.FedAvg(cohort="all", fold=fold, transforms=transforms)
    model = {"weights": np.zeros(13), "bias": np.zeros(1)}
    return umbel.App(
        client, model=model, strategy=strategy, rounds=ROUNDS, config={"lr": 1.0}, federation=umbel.Simulation(PATIENTS)
    )


app, unprotected = app_of(private, umbel.total()), app_of((), umbel.mean())


@app.test
@unprotected.test
def test(model):
    x, y = patients(os.environ.get("HEART", "data/heart"))[1]
    return {"accuracy": (likelihood(model, x, y) > 0).mean()}
