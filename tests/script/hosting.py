"""Scripts of tests, and what is done with them."""

from __future__ import annotations

import os
from pathlib import Path

from umbel.core.client import Context
from umbel.core.randomness import Key
from umbel.core.update import NO_ARRAYS
from umbel.script import client

STEPS = """
import os, random, signal, sys, threading
from pathlib import Path
import numpy as np
import umbel.script as fl

net = {"w": np.zeros(4)}
data = np.random.default_rng(fl.source({"index": 0})["index"]).normal(size=4)
for task in fl.tasks(net, alone=3):
    MORE
    net["w"] += 0.5 * (data - net["w"])
    noise = 0.001 * random.random() if task.seed else 0.0
    fl.answer(examples=3 + data[0] ** 2, noise=noise, error=np.abs(data - net["w"]).mean())
    net["w"] += noise
"""
"""A script that trains, with room for what else it does with its task."""


def script(folder: Path, more: str = "pass", text: str = STEPS) -> Path:
    """A script in a file."""
    path = folder / "train.py"
    path.write_text(text.replace("MORE", more.strip().replace("\n", "\n    ")))
    return path


def hosted(folder: Path, more: str = "pass", text: str = STEPS, **settings):
    """The client of a script."""
    return client(script(folder, more, text), **settings)


def context(name=0, round=1, kind="train", on_step=None, **config) -> Context:
    key = Key.from_seed(1).derive(name, round)
    given = {"config": config, "key": key, "inbox": NO_ARRAYS, "state": {}, "on_step": on_step}
    return Context(client=name, round=round, kind=kind, **given)


def processes_of(path: Path) -> list[int]:
    """The processes whose command line names a script, or one in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().split(b"\0")
            if any(part.startswith(str(path).encode()) for part in said):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_until_gone(path: Path) -> None:
    """Come back once no process runs a script; the test's time limit ends this."""
    while processes_of(path):
        os.sched_yield()
