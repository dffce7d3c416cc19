"""Starting a side as a process of its own, watching what memory it and its children take, and leaving none behind."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from . import meter
from .figures import ROOT
from .workloads import Model, Workload

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PATIENCE = 5.0
"""Seconds that the processes which a side leaves behind have to end by themselves."""


class SideFailed(RuntimeError):
    """A process of the benchmark has failed; it says why."""


@dataclass(frozen=True)
class Side:
    """Something that is measured in a process of its own: a module with `main` in peers/, and the Python that runs it;
    Umbel's own by default.
    """

    name: str
    title: str
    module: str
    settings: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""

    @property
    def python(self) -> str:
        """The Python of the peer's own environment, or this one."""
        default = str(ROOT / f".venv-{self.peer}" / "bin" / "python") if self.peer else sys.executable
        return os.environ.get(f"BENCH_{self.peer.upper()}") or default

    def command(self) -> list[str]:
        """Import the module, rather than run it as a script, so that its functions travel by name."""
        return [self.python, "-c", f"from benchmarks.peers import {self.module}; {self.module}.main()"]


@dataclass(frozen=True)
class Outcome:
    """What came of one process: what it said last, the model it left, seconds from start to exit, CPU-seconds of it
    and its children, the bytes of memory that all of them held at once at most, and how many clients a round had.
    """

    said: Any
    model: Model | None = None
    whole: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    clients: int = 1

    @property
    def wall(self) -> float:
        """Seconds a client: the mean of the rounds that count, over the cohort."""
        return fmean(self.said["seconds"]) / self.clients

    @property
    def spent(self) -> float:
        """CPU-seconds a client, of all processes of the side."""
        return float(self.said["cpu"]) / self.clients

    @property
    def outside(self) -> float:
        """The same less what the clients' own handlers have used."""
        return float(self.said["cpu"] - self.said["handled"]) / self.clients


def launch(side: Side, workload: Workload | None = None, *, quick: bool = False, **settings: object) -> Outcome:
    """Run a side, on a workload where it does one. SideFailed, with what it said, if it fails."""
    if not Path(side.python).exists():
        raise SideFailed(f"{side.python} does not exist; `make bench-peers` makes it")
    told = {**side.settings, **{f"BENCH_{name.upper()}": str(value) for name, value in settings.items()}}
    told |= {"BENCH_WORKLOAD": workload.name} if workload is not None else {}
    done = run(side.command(), told | ({"BENCH_QUICK": "1"} if quick else {}))
    return done if workload is None else replace(done, clients=workload.cohort)


def call(function: Any, *arguments: Any) -> Outcome:
    """What a function of a module here prints last, in JSON, in a fresh process."""
    code = f"import sys, json; from {function.__module__} import {function.__name__} as f; f(*json.loads(sys.argv[1]))"
    return run([sys.executable, "-c", code, json.dumps(arguments)])


def run(command: Sequence[str], settings: Mapping[str, str] | None = None, limit: float = 1_800.0) -> Outcome:
    """Run a command that prints a report in JSON on its last line, or nothing, and may leave `model.npz` in its folder.

    SideFailed, with what it said, if it fails or takes longer than `limit` seconds.
    """
    token, folder = secrets.token_hex(8), Path(tempfile.mkdtemp(prefix="umbel-side-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BENCH_", "PYTHON"))}
    environment |= {**ONE_THREAD, **(settings or {}), meter.TOKEN: token, "BENCH_FOLDER": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    watch = meter.Watch(token)
    try:
        with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
            began, before = time.perf_counter(), os.times()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=ROOT
            )
            try:
                in_time = _wait(process, watch, began + limit)
                whole, after = time.perf_counter() - began, os.times()
            finally:
                _end(process, token)
            out.seek(0)
            err.seek(0)
            if not in_time:
                raise SideFailed(f"it did not end within {limit:.0f} s")
            cpu = sum(after[2:4]) - sum(before[2:4])
            return _outcome(process.returncode, out.read(), err.read(), folder, (whole, cpu, watch.all))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(code: int, out: str, err: str, folder: Path, took: tuple[float, float, int]) -> Outcome:
    if code:
        raise SideFailed(f"exit code {code}: {reason(err)}")
    said = None
    with suppress(IndexError, ValueError):
        said = json.loads(out.strip().splitlines()[-1])
    model: Model | None = None
    if (file := folder / "model.npz").exists():
        with np.load(file) as saved:
            model = dict(saved)
    whole, cpu, peak = took
    return Outcome(said, model, whole, cpu, max(peak, said.get("memory", 0) if isinstance(said, dict) else 0))


def reason(err: str) -> str:
    """What a process said about its end: its last line that names an error, or else its last line."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"(\[rank\d\]: )?[\w.]*(Error|Exception|Interrupt|[a-z]Failed)\b", line)
    ]
    return (named or lines or ["it said nothing"])[-1][:200]


def _wait(process: subprocess.Popen[bytes], watch: meter.Watch, deadline: float) -> bool:
    """Whether it ended in time."""
    while process.poll() is None:
        if time.perf_counter() > deadline:
            return False
        pause = watch.look()
        with suppress(subprocess.TimeoutExpired):
            process.wait(pause)
    return True


def _end(process: subprocess.Popen[bytes], token: str) -> None:
    """End what is left of a side, by process id; its children get a moment to end by themselves."""
    if process.poll() is None:
        process.kill()
    process.wait()
    until = time.perf_counter() + PATIENCE
    while left := meter.members(token):
        if time.perf_counter() > until:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
