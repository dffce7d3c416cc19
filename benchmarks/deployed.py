"""A deployment on this machine, to be measured: real processes of the server, nodes and runs, in a folder of their own.

TLS is on, as in every deployment; everything listens on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from umbel.testing.machines import MachineProcess, Machines

from .measure import ONE_THREAD, ROOT, family

OPEN_FILES = 16_000

HOLDER = """
import umbel

client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update(model)
"""
APP = """
import numpy as np
import umbel
from holder import client


def model():
    draws = np.random.default_rng(0)
    return {{f"w{{i}}": draws.random({size}, dtype=np.float32) for i in range({arrays})}}


app = umbel.App(client, model=model, strategy=umbel.FedAvg(cohort=1.0), rounds={rounds}, evaluate_every=0)
"""


class Deployment(Machines):
    """Processes in a temporary folder; all are ended, and the folder is removed, at the end of the block.

    `site` is a folder that all of them import `sitecustomize` from, and the file that runs execute: see
    `deployment_profile`.
    """

    def __init__(self, site: Path | None = None) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="umbel-bench-")))
        self._site = site
        path = [self.environment["PYTHONPATH"], str(ROOT)]
        if site is not None:
            path.insert(0, str(site))
        self.environment |= {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
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

    def join(self, count: int) -> tuple[list[MachineProcess], list[float]]:
        """Start so many nodes, called by their numbers, and wait until they are connected; how long each took, at the
        most.
        """
        lines = [self.invitation() for _ in range(count)]
        nodes = [self.start_node(str(number), join=line) for number, line in enumerate(lines)]
        seconds = []
        for node in nodes:
            node.wait_for("connected to")
            seconds.append(time.perf_counter() - node.began)
        return nodes, seconds

    def run(self, *, floats: int, rounds: int, arrays: int = 1, first: str = "") -> Path:
        """Have the server begin a run with a model of so many numbers; its folder. The app begins with `first`."""
        app = Path(tempfile.mkdtemp(prefix="app-", dir=self.folder))
        (app / "holder.py").write_text(HOLDER)
        if self._site is not None:
            first = f"exec(open({str(self._site / 'sitecustomize.py')!r}).read())\n{first}"
        (app / "app.py").write_text(first + APP.format(size=floats // arrays, arrays=arrays, rounds=rounds))
        return self.place / "runs" / self.submit(str(app / "app.py"))

    def followed(self, run: Path, seconds: float = 600.0, between: Callable[[int], object] | None = None) -> list[Any]:
        """Wait until a run is over, and return its log. `between` is called now and then with the size of the log.

        RuntimeError where it fails.
        """
        log = run / "run" / "events.jsonl"
        until = time.monotonic() + seconds
        while True:
            if (run / "home" / "error.json").exists():
                raise RuntimeError(f"the run failed: {(run / 'home' / 'error.json').read_text()}")
            size = log.stat().st_size if log.exists() else 0
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
            time.sleep(0.1)
        return [json.loads(line) for line in log.read_text().splitlines()]


class Memory:
    """The most that all processes but this one held together, looked at every so often: `all` with what they share, by
    its share (PSS); `own` what is backed by no file.
    """

    def __init__(self) -> None:
        self.all = self.own = 0

    def look(self) -> dict[int, int]:
        """Look once; what each process holds."""
        held, anonymous = {}, 0
        for pid in family().keys() - {os.getpid()}:
            with suppress(OSError, ValueError):
                fields = dict(
                    line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                )
                held[pid] = int(fields["Pss"].split()[0]) * 1024
                anonymous += int(fields["Anonymous"].split()[0]) * 1024
        self.all, self.own = max(self.all, sum(held.values())), max(self.own, anonymous)
        return held

    @contextmanager
    def watched(self, every: float = 0.2) -> Iterator[None]:
        """Look every so many seconds while in the block."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def many_open_files() -> int:
    """Let processes that are started here have as many connections as may be; how many that is."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
