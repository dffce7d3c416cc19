"""Apps whose model shows every task that was lost, done twice or begun with another state; for six clients."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

import umbel
from umbel.entropy import Entropy
from umbel.privacy import central_gaussian

client = umbel.Client()

CLIENTS = 6
TARDY = 5
"""The client whose answers are late in every other round; the last, for a simulation takes answers in their order."""


@client.data
def data(source):
    """A handful of numbers around the client's index, and, in a deployment, where clients see how far others are."""
    return np.random.default_rng(source["index"]).normal(source["index"], 1.0, 20), source.get("meeting")


def wait_for_the_next_round(meeting, ctx):
    """Be late where one has to be: until others are at the next round, which is when the ask of this one is closed."""
    (meeting / str(ctx.round)).touch()
    while ctx.client == TARDY and ctx.round % 2 and not (meeting / str(ctx.round + 1)).exists():
        ctx.step()
        threading.Event().wait(0.005)


def wait_to_be_let_go(meeting, ctx):
    """Do not come to the end before whoever watches allows it."""
    while ctx.round == ctx.config["hold"] and not (meeting / "go").exists():
        ctx.step()
        threading.Event().wait(0.005)


@client.train
def train(model, data, ctx):
    data, meeting = data
    if ctx.config["meets"] and meeting is not None:
        wait_for_the_next_round(Path(meeting), ctx)
        wait_to_be_let_go(Path(meeting), ctx)
    for _ in range(4):  # so that whoever is killed is often at work
        hashlib.sha256(bytes(4 << 20))
        ctx.step()
    step = 0.5 * (model["w"] - data.mean())
    noise = ctx.rng.normal(size=model["w"].shape) * 1e-3
    if ctx.config["keeps"]:
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        ctx.state["sum"] = ctx.state.get("sum", 0.0) + float(model["w"].mean())
        step = step - 0.01 * ctx.state["n"] + 0.01 * ctx.state["sum"]  # that grows no model without bounds
    return umbel.Update({"w": model["w"] - step + noise}, weight=len(data), metrics={"noise": float(noise[0])})


@client.evaluate
def evaluate(model, data, ctx):
    data, _ = data
    return umbel.Metrics({"error": float(((model["w"] - data.mean()) ** 2).mean())}, weight=20)


class Tardy(umbel.FedAvg):
    """Leaves one client's answer out in odd rounds, and waits for it in even ones: which tasks are late, and how late,
    is the same however fast anybody is.
    """

    def ask(self, state, r):
        left = umbel.Window(close_after=CLIENTS - 1, late="keep") if r % 2 else umbel.Window(late="keep")
        return replace(super().ask(state, r), window=left)


class Pinned(central_gaussian):
    """Noise that a test can expect: drawn from the run's key."""

    def finish(self, answer, state, key, own=None):
        return super().finish(answer, state, key, Entropy(key.draws().words))


def app(strategy, size=10, keeps=False, meets=False, **more):
    config = {"meets": meets, "hold": 0, "keeps": keeps}
    return umbel.App(client, model={"w": np.zeros(size)}, strategy=strategy, rounds=40, config=config, **more)


plain = app(umbel.FedAvg(cohort=4), size=3000)  # so large that it travels as blobs
stateful = app(umbel.FedAvg(cohort=umbel.Everyone()), keeps=True)
sparse = app(umbel.FedAvg(cohort=umbel.Everyone(), transforms=(umbel.top_k(0.3, error_feedback=True),)), size=30)
late = app(
    Tardy(cohort=umbel.Everyone(), fold=umbel.mean()), size=3000, keeps=True, meets=True, evaluate_every=0
)  # a node that waits for others must not have to evaluate meanwhile
noise = Pinned(norm=1.0, noise=0.1, expected=CLIENTS)
private = app(umbel.FedAvg(cohort=umbel.Everyone(), fold=umbel.total(), transforms=noise), keeps=True, evaluate_every=0)
