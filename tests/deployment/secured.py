"""An app whose updates are summed securely; clients of a node wait to be killed where the settings say so."""

import sys
import threading
from pathlib import Path

import numpy as np

import umbel
from umbel.privacy import secure
from umbel.work.executor import Executor

WHO = (2, 7)
"""Whose nodes are killed, in the second round."""
client = umbel.Client()


@client.train
def train(model, data, ctx):
    if ctx.round == 2 and ctx.client in WHO and ctx.config["gone"]:
        raise RuntimeError("gone")
    step = ctx.rng.normal(size=model["w"].shape) * 0.1
    return umbel.Update({"w": model["w"] + step}, weight=ctx.client + 1)


def have_wait():
    """Have these clients wait in asks of the kind that the settings say: nothing of an app's own is in a phase."""
    handle = Executor._handle

    def waiting(self, job, *rest):
        ctx = job.ctx
        if ctx.kind == ctx.config.get("at") and ctx.round == 2 and ctx.client in WHO:
            Path(ctx.config["flags"], f"{ctx.client}").touch()
            while True:
                ctx.step()
                threading.Event().wait(0.05)
        return handle(self, job, *rest)

    Executor._handle = waiting


if getattr(sys.modules["__main__"].__spec__, "name", "") == "umbel.node.child":
    have_wait()
strategy = secure(umbel.FedAvg(cohort="all", window=umbel.Window(deadline=15.0)), weight=100.0)
app = umbel.App(
    client, model={"w": np.zeros(1000)}, strategy=strategy, rounds=2, config={"at": "", "flags": "", "gone": False}
)
