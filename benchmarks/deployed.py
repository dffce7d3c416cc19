"""A deployment on this machine, to be measured: real processes of the server, nodes and runs, in a folder of their own.

TLS is on, as in every deployment; everything listens on loopback.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from umbel.testing.machines import MachineProcess, Machines

from .figures import ROOT
from .launch import ONE_THREAD
from .meter import TOKEN

OPEN_FILES = 16_000
SILENT = 5.0
"""Of a run whose log does not grow for so many seconds the server is asked whether it has failed."""

HOLDER = """
import umbel

client = umbel.Client()


@client.train
def train(model, data, ctx):
    changed = {{name: model[name] + 1 for name in list(model)[:{changed}]}}
    return umbel.Update({{**model, **changed}} if changed else model, delta={delta})
"""
APP = """
import mmap
import tempfile

import numpy as np
import umbel
from holder import client


def model():
    draws = np.random.default_rng({seed})
    with tempfile.TemporaryFile() as file:  # it may be larger than the memory
        for _ in range({arrays}):
            file.write(draws.random({size}, dtype=np.float32))
        file.flush()
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)
    return {{f"w{{i}}": mapped[i * {size} : (i + 1) * {size}] for i in range({arrays})}}


app = umbel.App(client, model=model, strategy=umbel.FedAvg(cohort=1.0), rounds={rounds}, evaluate_every=0)
"""


class Deployment(Machines):
    """Processes in a temporary folder; all are ended, and the folder is removed, at the end of the block. The meter
    finds them by their `mark`.

    `site` is a folder that all of them import `sitecustomize` from, and the file that runs execute: see
    `deployment_profile`.
    """

    def __init__(self, site: Path | None = None) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="umbel-bench-")))
        self._site = site
        self.mark = secrets.token_hex(8)
        path = [self.environment["PYTHONPATH"], str(ROOT)]
        if site is not None:
            path.insert(0, str(site))
        self.environment |= {
            **ONE_THREAD,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            TOKEN: self.mark,
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in reversed(self.ended):  # nodes before their server: they would try to connect again
            process.ask_to_end()
        for process in reversed(self.ended):
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def place(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    def serve(self) -> float:
        """Start the server as its owner does; how many seconds it took to be ready."""
        server = self.start_server()
        return time.perf_counter() - server.began

    def serve_otherwise(self, **how: Any) -> list[str]:
        """Start the server by `served`, with its arguments; the further lines that it says."""
        code = "import sys, json; from benchmarks import served; served.served(**json.loads(sys.argv[1]))"
        self._server = self.program("-c", code, json.dumps({"folder": str(self.place), **how}))
        self.address = self._server.wait_for(r"umbel node (\S+) --join")[1]
        return re.findall("^run (.*)$", self._server.output, re.MULTILINE)

    def join(self, count: int, clients: int = 0) -> tuple[list[MachineProcess], list[float]]:
        """Start so many nodes, called by their numbers, each with so many clients, and wait until they are connected;
        how long each took, at the most.
        """
        nodes = []
        for number in range(count):
            given = []
            if clients:
                hosted = self.folder / f"clients-{number}.json"
                hosted.write_text(json.dumps({f"{number}-{client}": {} for client in range(clients)}))
                given = ["--clients", str(hosted)]
            nodes.append(self.start_node(str(number), *given, join=self.invitation()))
        seconds = []
        for node in nodes:
            node.wait_for("connected to")
            seconds.append(time.perf_counter() - node.began)
        return nodes, seconds

    def run(
        self, *, floats: int, rounds: int, arrays: int = 1, seed: int = 0, changed: int = 0, delta: bool = False
    ) -> Path:
        """Have the server begin a run with a model of so many numbers, drawn from a seed; its folder. So many of its
        arrays change in each round; with `delta` all do: an update is the model itself, of which nothing is zero.
        """
        app = Path(tempfile.mkdtemp(prefix="app-", dir=self.folder))
        # Runs and clients are confined: they cannot read the site.
        first = "" if self._site is None else (self._site / "sitecustomize.py").read_text() + "\n"
        (app / "holder.py").write_text(first + HOLDER.format(changed=changed, delta=delta))
        drawn = APP.format(size=floats // arrays, arrays=arrays, rounds=rounds, seed=seed)
        (app / "app.py").write_text(first + drawn)
        return self.place / "runs" / self.submit(str(app / "app.py"))

    def followed(
        self, run: Path, seconds: float = 600.0, between: Callable[[int], object] | None = None, every: float = 0.1
    ) -> list[Any]:
        """Wait until a run is over, and return its log. `between` is called every so many seconds with the size of the
        log. RuntimeError where it fails.
        """
        log = run / "run" / "events.jsonl"
        since = time.monotonic()
        until, seen = since + seconds, 0
        while True:
            size = log.stat().st_size if log.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > SILENT:
                since = time.monotonic()
                with self.office() as office:
                    shown = office.call("runs.show", run=run.name)
                if shown["status"] == "failed":
                    raise RuntimeError(f"the run failed: {shown['exit']}")
            if size:
                with open(log, "rb") as file:
                    file.seek(max(0, size - 4096))
                    if b'"event":"run_finished"' in file.read():
                        break
                if between is not None:
                    between(size)
            if time.monotonic() > until or not self.server.running:
                told = (run / "run.log").read_text()[-500:] if (run / "run.log").exists() else ""
                raise RuntimeError(f"the run was not over after {seconds:.0f} s: {told}")
            time.sleep(every)
        return [json.loads(line) for line in log.read_text().splitlines()]


def many_open_files() -> int:
    """Let processes that are started here have as many connections as may be; how many that is."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
