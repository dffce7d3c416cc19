"""FedPer (Arivazhagan et al. 2019): the base is shared, the head is personal: it never leaves, and its holder finds it
again.
"""

import numpy as np

import umbel
from umbel import Arrays, FedAvg, Metrics, Update

client = umbel.Client()
SHARED = np.array([2.0, -1.0])
HEAD = np.zeros(1)  # where everyone's own part begins: no personal array comes with the model
x = np.random.default_rng(5).normal(size=(40, 2))


@client.data
def data(source):
    return x @ SHARED + 10.0 * source["index"]  # everyone's own offset


@client.train
def train(model, y, ctx):
    base, head = model["base"], ctx.state.get("head", HEAD)
    for _ in range(10):
        error = (x @ base + head - y) / len(y)
        base, head = base - 0.3 * x.T @ error, head - 0.3 * error.sum()
    ctx.state["head"] = head
    return Update({"base": base, "head": head}, weight=len(y))


@client.evaluate
def evaluate(model, y, ctx):
    head = ctx.state.get("head", HEAD)
    return Metrics({"error": float(np.abs(x @ model["base"] + head - y).mean())})


def test_heads_differ_the_base_is_common_and_no_head_reaches_the_server():
    start = Arrays({"base": np.zeros(2), "head": np.zeros(1)}, {"head": "personal"})
    app = umbel.App(client, model=start, strategy=FedAvg(cohort=1.0), rounds=20)
    result = umbel.run(app, on=umbel.Simulation(clients=5), folder=None)
    assert result.model["head"] == 0.0
    assert np.allclose(result.model["base"], SHARED, atol=1e-3)
    assert result.metrics["evaluate.error"] < 1e-2
