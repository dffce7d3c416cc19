"""SCAFFOLD (Karimireddy et al. 2020): control variates in client state and in aux arrays, taken by the loop through the
context.
"""

import numpy as np
import pytest

import umbel
from umbel import Arrays, Ask, Like, State, Strategy, Update, mean

client = umbel.Client()
CURVATURE, OPTIMUM = (1.0, 3.0, 2.0, 0.5), (1.0, -2.0, 4.0, 9.0)  # client i minimises a_i / 2 (w - t_i)**2
LR, STEPS = 0.1, 5


@client.train
def train(model, data, ctx):
    i = data["index"]
    w = model["w"].astype(np.float64)
    own, common = ctx.state.get("variate", np.zeros(1)), ctx.inbox.get("variate", np.zeros(1))
    for _ in range(STEPS):
        w = w - LR * (CURVATURE[i] * (w - OPTIMUM[i]) + ctx.config["scaffold"] * (common - own))
    new = own - common + (model["w"] - w) / (STEPS * LR)
    ctx.state["variate"] = new
    return Update({"w": w}, aux={"variate": new - own})


class Scaffold(Strategy):
    def __init__(self, on=1.0):
        self.on = on

    def start(self, model):
        return State(model, variate=Arrays({"variate": np.zeros(1)}))

    def round(self, state, r):
        answer = yield Ask(
            clients=2, model=state.model, inbox=state.variate, config={"scaffold": self.on}, fold=mean(),
            expects=Like(aux=Like(state.variate)),
        )  # fmt: skip
        variate = {"variate": state.variate["variate"] + answer.count / 4 * answer.aux["variate"]}
        return State(Arrays({"w": state.model["w"] + answer.value["w"]}), variate=Arrays(variate))


def distance(strategy):
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=strategy, rounds=150, evaluate_every=0)
    model = umbel.run(app, on=umbel.Simulation(clients=4), seed=3, folder=None).model
    return abs(model["w"][0] - np.dot(CURVATURE, OPTIMUM) / sum(CURVATURE))


@pytest.mark.slow
def test_it_finds_the_optimum_of_the_sum_where_averaging_drifts():
    assert distance(Scaffold()) < 1e-6
    assert distance(Scaffold(on=0.0)) > 0.05
