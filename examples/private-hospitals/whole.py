"""What is left of the model where noise is to hide a whole hospital, one of four, with the same epsilon.

HEART=FOLDER python examples/private-hospitals/whole.py
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
from app import PATIENTS, ROUNDS, likelihood, patients, private

import umbel
from umbel.data import HOSPITALS, heart

RUNS = 20
FOLDER = os.environ.get("HEART", "data/heart")
client = umbel.Client()


@client.data
def data(source):
    """The patients of one hospital, of those whom app.py trains on."""
    sizes = [len(y) for _, y in (heart(FOLDER)[name] for name in HOSPITALS)]
    whose = np.repeat(np.arange(4), sizes)[np.random.default_rng(0).permutation(sum(sizes))][:PATIENTS]
    (x, y), _ = patients(FOLDER)
    return x[whose == source["index"]], y[whose == source["index"]]


@client.train
def train(model, data, ctx):
    x, y = data
    error = 1 / (1 + np.exp(-x @ model["weights"] - model["bias"])) - y
    return umbel.Update({"weights": -x.T @ error / len(y), "bias": -error.mean(keepdims=True)}, delta=True)


def accuracy(noise):
    hidden = replace(private, noise=noise, expected=4)
    strategy = umbel.FedAvg(cohort="all", fold=umbel.total(), transforms=hidden)
    app = umbel.App(client, model={"weights": np.zeros(13), "bias": np.zeros(1)}, strategy=strategy, rounds=ROUNDS)
    model = umbel.run(app, on=umbel.Simulation(4, workers=0), folder=None).model
    x, y = patients(FOLDER)[1]
    return (likelihood(model, x, y) > 0).mean()


def main():
    found = [accuracy(private.noise) for _ in range(RUNS)]
    low, high = min(found), max(found)
    print(f"accuracy with next to no noise {accuracy(1e-3):.2f}")
    print(f"with noise {np.mean(found):.2f} on average of {RUNS} runs, from {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    try:
        main()
    except umbel.UmbelError as error:
        sys.exit(str(error))
