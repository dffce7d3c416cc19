"""flwr deployed on this machine: its SuperLink, SuperNodes and an app, without TLS, its state in memory, by its own
programs with their defaults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

from ..meter import say
from .pfl_side import free_ports

PATIENCE = 600.0
PROJECT = """
[project]
name = "bench"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "umbel"
[tool.flwr.app.components]
serverapp = "bench.app:server"
clientapp = "bench.app:client"
"""
APP = """
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == NODES and not any(reply.has_error() for reply in replies)
        answer = super().aggregate_train(server_round, replies)
        ends.append(time.time())
        return answer


ends = []


@server.main()
def main(grid, context):
    if hasattr(grid, "pull_interval"):
        grid.pull_interval = 0.02
    draws = np.random.default_rng(0)
    model = {f"w{i}": Array(draws.random(FLOATS // ARRAYS, dtype=np.float32)) for i in range(ARRAYS)}
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(0.1)
    ends.append(time.time())
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
    strategy.start(grid, ArrayRecord(model), num_rounds=ROUNDS, timeout=3600)
    with open(OUT + ".part", "w") as file:
        json.dump(ends, file)
    os.rename(OUT + ".part", OUT)
"""


def main() -> None:
    """Print the seconds of each round."""
    folder = Path(os.environ["BENCH_FOLDER"])
    nodes, floats, rounds, arrays = (
        int(os.environ[f"BENCH_{name}"]) for name in ("NODES", "FLOATS", "ROUNDS", "ARRAYS")
    )
    link, *ports = free_ports(nodes + 1)
    out = folder / "rounds.json"
    app, home = folder / "app", folder / "home"
    (app / "bench").mkdir(parents=True)
    home.mkdir()
    facts = {"NODES": nodes, "FLOATS": floats, "ROUNDS": rounds, "ARRAYS": arrays, "OUT": str(out)}
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "bench" / "__init__.py").touch()
    (app / "bench" / "app.py").write_text("\n".join(f"{k} = {v!r}" for k, v in facts.items()) + dedent(APP))
    address = f"127.0.0.1:{link}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    bin = Path(sys.executable).parent
    os.environ |= {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    os.environ.pop("PYTHONPATH", None)

    def begin(name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([bin / program, *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=folder)

    began = [
        begin(
            "link", "flower-superlink", "--insecure", "--port", str(link), "--disable-runtime-dependency-installation"
        )
    ]
    _until(lambda: "running on" in (folder / "link.log").read_text(), "the SuperLink is not up")
    for number, port in enumerate(ports):
        began.append(
            begin(f"node{number}", "flower-supernode", "--insecure", "--superlink", address, "--port", str(port))
        )
    subprocess.run([bin / "flwr", "run", str(app), "here"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    _until(out.exists, "its rounds were not over")
    ends = json.loads(out.read_text())
    for process in began:
        process.terminate()
    say([after - before for before, after in pairwise(ends)])


def _until(true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > until:
            raise RuntimeError(f"{otherwise} after {PATIENCE:.0f} s")
        time.sleep(0.1)
