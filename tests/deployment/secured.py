"""An app whose updates are summed securely; clients of a node wait to be killed where the settings say so."""

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


def wait_in(phase):
    """Have the clients wait in an ask of this kind: there is nothing of theirs in a phase that could."""
    handle = Executor._handle

    def waiting(self, job, *rest):
        ctx = job.ctx
        if ctx.kind == ctx.config["at"] and ctx.round == 2 and ctx.client in WHO:
            Path(ctx.config["flags"], f"{ctx.client}").touch()
            while True:
                ctx.step()
                threading.Event().wait(0.05)
        return handle(self, job, *rest)

    Executor._handle = waiting


wait_in("at")
strategy = secure(umbel.FedAvg(cohort="all", window=umbel.Window(deadline=15.0)), weight=100.0)
app = umbel.App(
    client, model={"w": np.zeros(1000)}, strategy=strategy, rounds=2, config={"at": "", "flags": "", "gone": False}
)
