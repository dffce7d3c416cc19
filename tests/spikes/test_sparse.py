"""Top-k with error feedback: what one round leaves out the next rounds send, so sparse training gets where dense
training gets.
"""

import numpy as np
import pytest

import umbel
from umbel import FedAvg, Update, top_k

client = umbel.Client()


@client.data
def data(source):
    return np.random.default_rng(source["index"]).normal(loc=np.arange(50.0), size=50)


@client.train
def train(model, data, ctx):
    return Update({"w": model["w"] - 0.3 * (model["w"] - data)})


def final(transforms):
    app = umbel.App(client, model={"w": np.zeros(50)}, strategy=FedAvg(cohort=1.0, transforms=transforms), rounds=60)
    return umbel.run(app, on=umbel.Simulation(clients=8), folder=None).model["w"]


@pytest.mark.slow
def test_feedback_finds_the_dense_answer_and_its_absence_does_not():
    dense = final(())
    assert np.abs(final(top_k(0.2)) - dense).max() < 0.5
    assert np.abs(final(top_k(0.02, error_feedback=False)) - dense).max() > 5
