"""Split learning (Vepakomma et al. 2018): one client holds features and the lower layer, another labels and the
upper.
"""

import numpy as np
import pytest

import umbel
from umbel import Ask, Free, State, Strategy, Update, collect

client = umbel.Client()
rng = np.random.default_rng(0)
X = rng.normal(size=(64, 4))
Y = X @ np.array([1.0, -2.0, 0.5, 3.0])
LR = 0.05


@client.query("forward")
def forward(model, data, ctx):
    lower = ctx.state.setdefault("lower", np.full((4, 3), 0.3) * np.array([1.0, -1.0, 0.5]))
    return Update({"activations": X @ lower})


@client.query("head")
def head(model, data, ctx):
    upper, h = ctx.state.get("upper", np.array([0.2, 0.1, -0.3])), ctx.inbox["activations"]
    error = (h @ upper - Y) / len(Y)
    ctx.state["upper"] = upper - LR * (h.T @ error)
    return Update({"gradient": np.outer(error, upper)}, metrics={"loss": float((error**2).sum() * len(Y))})


@client.query("backward")
def backward(model, data, ctx):
    ctx.state["lower"] = ctx.state["lower"] - LR * X.T @ ctx.inbox["gradient"]
    return Update()


class Split(Strategy):
    def round(self, state, r):
        free = dict(expects=Free(), fold=collect())
        lower = yield Ask(kind="query:forward", clients=["features"], **free)
        upper = yield Ask(kind="query:head", clients=["labels"], inbox=lower.value["features"].arrays, **free)
        yield Ask(kind="query:backward", clients=["features"], inbox=upper.value["labels"].arrays, **free)
        return State(state.model, loss=upper.metrics["loss"])


@pytest.mark.slow
def test_neither_sees_the_others_part_and_the_loss_vanishes():
    app = umbel.App(client, model={"unused": np.zeros(1)}, strategy=Split(), rounds=400, evaluate_every=0)
    result = umbel.run(app, on=umbel.Simulation(clients={"features": None, "labels": None}), folder=None)
    losses = [value for _, value in result.history.series("train.loss")]
    assert losses[-1] < 1e-3 < 1.0 < losses[0]
