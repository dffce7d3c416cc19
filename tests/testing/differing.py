"""Apps for a drill: one whose clients do the same everywhere, and one whose clients do not."""

import numpy as np

import umbel

client = umbel.Client()


@client.data
def data(source):
    """The client's index, and whether this is a simulation."""
    return float(source["index"]), "meeting" not in source


@client.train
def train(model, data, ctx):
    index, simulated = data
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    error = 0.0 if simulated or not ctx.config["differs"] else 1e-12
    return umbel.Update({"w": model["w"] * 0.5 + index + 0.1 * ctx.state["n"] + error})


def app(differs):
    given = {"model": {"w": np.zeros(8)}, "strategy": umbel.FedAvg(cohort=umbel.Everyone()), "evaluate_every": 0}
    return umbel.App(client, **given, rounds=3, config={"differs": differs})


same, other = app(False), app(True)
