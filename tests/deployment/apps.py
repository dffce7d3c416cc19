"""Small apps: states, randomness, metrics, and each way of asking."""

import os
import threading
from pathlib import Path

import numpy as np

import umbel
from umbel import folds, transforms
from umbel.entropy import Entropy
from umbel.privacy import central_gaussian
from umbel.privacy import secure as secured
from umbel.samplers import FairRate
from umbel.strategies import AFL, FedNova, Scaffold

client = umbel.Client()


@client.data
def data(source):
    """A handful of numbers around the client's index, and what else its source says."""
    values = np.random.default_rng(source["index"]).normal(source["index"], 1.0, 20)
    return {"values": values, **source}


def misfortune(data, round):
    """Kill this process, or wait to be killed, once, in the round that the client's source says."""
    if data.get("dies_in") == round and not Path(data["flag"]).exists():
        Path(data["flag"]).touch()
        if data["who"] == "child":
            os.kill(os.getpid(), 9)
        threading.Event().wait()


def wait_at(gate, ctx):
    """Begin the second round once the file is there."""
    while gate and ctx.round == 2 and not Path(gate).exists():
        ctx.step()
        threading.Event().wait(0.005)


@client.train
def train(model, data, ctx):
    misfortune(data, ctx.round)
    wait_at(ctx.config.get("gate"), ctx)
    n = ctx.state.get("n", 0) + 1
    ctx.state["n"] = n
    ctx.state["sum"] = ctx.state.get("sum", 0.0) + float(model["w"].sum())
    slope = lambda at: {"w": ctx.config.get("rate", 0.5) * (at["w"] - data["values"].mean())}  # noqa: E731
    step, told = slope(model)["w"], {}
    if ctx.correction is not None:
        told = {"steps": 1, "lr": 1.0, "initial_loss": float((data["values"] ** 2).mean())}
        step = ctx.correction.corrected(slope, {"w": model["w"]})["w"]
    noise = ctx.rng.normal(size=model["w"].shape) * 1e-3
    new = model["w"] - step + 0.01 * n + 1e-3 * ctx.state["sum"] + noise
    return umbel.Update({"w": new}, weight=len(data["values"]) + n, metrics={"n": n, "noise": float(noise[0]), **told})


@client.evaluate
def evaluate(model, data, ctx):
    return umbel.Metrics({"error": float(((model["w"] - data["values"].mean()) ** 2).mean())}, weight=20)


@client.query("large")
def large(model, data, ctx):
    return umbel.Update({"w": model["w"] + np.arange(len(model["w"])) % 1000})


@client.query("facts")
def facts(model, data, ctx):
    letter = ctx.inbox["letter"] if "letter" in ctx.inbox else np.zeros(2)
    aux = {"most": data["values"][:2] + letter}
    return umbel.Update({"sum": data["values"].sum(), "n": np.int64(len(data["values"]))}, aux=aux)


@client.query("every")
def every(model, data, ctx):
    assert "own" not in model
    own = ctx.state["own"] = ctx.state.get("own", np.zeros(2)) + 1
    arrays = {n: (a * 0.5 + data["values"].mean() + own.sum()).astype(a.dtype) for n, a in model.items()}
    return umbel.Update({**arrays, "own": own}, weight=1 + len(ctx.state))


class Shapes(umbel.Strategy):
    """Asks in many ways, and mixes all that it is told into the model."""

    def round(self, state, r):
        model, everyone = state.model, "all"
        told = yield umbel.Ask(
            kind="query:facts", clients=everyone, inbox=lambda c: {"letter": np.full(2, r)} if c % 2 else None,
            expects=umbel.Free(aux=umbel.Free()), fold=umbel.collect(),
        )  # fmt: skip
        scores = yield umbel.Ask(kind="evaluate", clients=everyone, model=model)
        chain = (umbel.top_k(0.2), umbel.clip_by_norm(3.0))
        sparse = {"kind": "query:every", "clients": everyone, "transforms": umbel.top_k(0.3), "lane": "one"}
        mine = yield umbel.Ask(model=model, expects=umbel.Like(names=("w", "mean")), **sparse)
        wider = umbel.Arrays({"w": np.ones(20), "own": np.zeros(1)}, {"own": "personal"})
        other = yield umbel.Ask(model=wider, **sparse)
        again = yield [
            umbel.Ask(model=model, **{**sparse, "transforms": chain}, fold=umbel.mean()),
            umbel.Ask(
                kind="query:every", clients=everyone, model=lambda c: model.replace({"w": model["w"] + c}),
                expects=umbel.Like(delta=False), fold=umbel.total(), window=umbel.Window(in_flight=2),
            ),
        ]  # fmt: skip
        mixed = [update.arrays["sum"] + update.aux["most"].sum() for update in told.value.values()]
        step = mine.value["w"] + other.value["w"][:10] + again[0].value["w"] + 0.1 * again[1].value["w"]
        w = model["w"] + 0.01 * (step + sum(mixed) + scores.metrics["error"])
        return umbel.State(model.replace({"w": w, "mean": mine.value["mean"] + again[1].value["mean"].astype("f4")}))


class Large(umbel.Strategy):
    """Asks for an update as large as the model."""

    def start(self, model):
        return umbel.State(model)

    def round(self, state, r):
        answer = yield umbel.Ask(kind="query:large", clients=umbel.Everyone(), model=state.model, expects=umbel.Like())
        return umbel.State(umbel.Arrays({"w": state.model["w"] + answer.value["w"]}))


class Own(umbel.Strategy):
    """Asks each client with a setting and a model of its own."""

    def start(self, model):
        return umbel.State(model)

    def round(self, state, r):
        answer = yield umbel.Ask(
            clients=umbel.Everyone(),
            model=lambda c: umbel.Arrays({"w": state.model["w"] + 0.1 * c}),
            config=lambda c: {"rate": 0.1 * (1 + c)},
            fold=umbel.mean(),
        )
        return umbel.State(umbel.Arrays({"w": state.model["w"] + answer.value["w"]}))


class Pinned(central_gaussian):
    """Noise that a test can expect: drawn from the run's key."""

    def finish(self, answer, state, key, own=None):
        return super().finish(answer, state, key, Entropy(key.draws().words))


def app(strategy, rounds=4, **more):
    return umbel.App(client, model={"w": np.zeros(10)}, strategy=strategy, rounds=rounds, **more)


plain = app(umbel.FedAvg(cohort=3))
long = app(umbel.FedAvg(cohort=3), rounds=40)
own = app(Own())
sparse = app(umbel.FedAvg(cohort=4, transforms=(umbel.top_k(0.3, error_feedback=True),)))
secure = app(secured(umbel.FedAvg(cohort=4, transforms=transforms.rotate()), weight=1000.0, metrics=["noise"]))
variates = app(Scaffold(cohort="all", transforms=umbel.top_k(0.5)))
steps = app(FedNova(cohort="all"))
shares = app(AFL(lr=0.01))
robust = app(umbel.FedAvg(cohort=FairRate(3), fold=folds.median(), transforms=transforms.quantise(8)))
windowed = app(umbel.FedAvg(cohort=4, window=umbel.Window(close_after=3, deadline=600.0, in_flight=2)))
late = app(umbel.FedAvg(cohort=4, fold=umbel.mean(), window=umbel.Window(close_after=2, late="keep")))
whole = app(umbel.FedAvg(cohort=umbel.Everyone()), rounds=6)
gated = app(umbel.FedAvg(cohort=umbel.Everyone()), rounds=3, config={"gate": ""})
big = umbel.App(client, model={"w": np.ones(30_000_000 // 8)}, strategy=Large(), rounds=1, evaluate_every=0)
huge = umbel.App(
    client,
    model={"w": np.ones(9_000_000)},
    strategy=umbel.FedAdam(cohort=2),
    rounds=3,
    evaluate_every=0,
)
noised = app(
    umbel.FedAvg(cohort=umbel.Everyone(), fold=umbel.total(), transforms=Pinned(norm=1.0, noise=0.1, expected=4)),
    rounds=12,
    evaluate_every=0,
)
shapes = umbel.App(
    client,
    model=umbel.Arrays(
        {"own": np.full(2, 9.0), "w": np.zeros(10), "mean": np.ones(3, np.float32)},
        {"mean": "buffer", "own": "personal"},
    ),
    strategy=Shapes(),
    rounds=2,
)
