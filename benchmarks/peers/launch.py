"""Starting a side as a process of its own, watching what memory it and its children take, and leaving none behind."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import ONE_THREAD, ROOT
from . import meter
from .workloads import Model, Workload

INTERVAL = 0.2
"""Seconds between two looks at the memory."""

PATIENCE = 5.0
"""Seconds that the processes which a side leaves behind have to end by themselves."""

SHARE = 0.05
"""How much of the time looking may take: with many processes it happens less often."""


@dataclass(frozen=True)
class Side:
    """Something that simulates: a module with `main` here, and the Python that runs it."""

    name: str
    title: str
    module: str
    python: str
    settings: Mapping[str, str]

    def command(self) -> list[str]:
        """Import the module, rather than run it as a script, so that its functions travel by name."""
        return [self.python, "-c", f"from benchmarks.peers import {self.module}; {self.module}.main()"]


@dataclass(frozen=True)
class Outcome:
    """What came of one process: what it said, the model it left, seconds from start to exit, and bytes of memory of it
    and all its children at once at most; or why it failed.
    """

    why: str | None = None
    said: Mapping[str, Any] | None = None
    model: Model | None = None
    whole: float = 0.0
    peak: int = 0


def launch(side: Side, workload: Workload, *, quick: bool = False, limit: float = 1_800.0) -> Outcome:
    """Run a side on a workload."""
    if not Path(side.python).exists():
        return Outcome(why=f"{side.python} does not exist; `make bench-peers` makes it")
    settings = {**side.settings, "PEERS_WORKLOAD": workload.name, **({"PEERS_QUICK": "1"} if quick else {})}
    return run(side.command(), settings, limit)


def run(command: Sequence[str], settings: Mapping[str, str], limit: float) -> Outcome:
    """Run a command that prints a report in JSON on its last line and may leave `model.npz` in PEERS_FOLDER."""
    token, folder = secrets.token_hex(8), Path(tempfile.mkdtemp(prefix="peers-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PEERS_", "PYTHON"))}
    environment |= {**ONE_THREAD, **settings, "PEERS_TOKEN": token, "PEERS_FOLDER": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    try:
        with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
            began = time.perf_counter()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=ROOT
            )
            try:
                peak, in_time = _watch(process, token, began + limit)
                whole = time.perf_counter() - began
            finally:
                _end(process, token)
            out.seek(0)
            err.seek(0)
            if not in_time:
                return Outcome(why=f"it did not end within {limit:.0f} s", whole=whole, peak=peak)
            return _outcome(process.returncode, out.read(), err.read(), folder, whole, peak)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(code: int, out: str, err: str, folder: Path, whole: float, peak: int) -> Outcome:
    lines = out.strip().splitlines()
    if code:
        return Outcome(why=f"exit code {code}: {reason(err)}", whole=whole, peak=peak)
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return Outcome(why="it ended well, but without a report", whole=whole, peak=peak)
    model: Model | None = None
    if (file := folder / "model.npz").exists():
        with np.load(file) as saved:
            model = dict(saved)
    return Outcome(said=said, model=model, whole=whole, peak=max(peak, int(said.get("memory", 0))))


def reason(err: str) -> str:
    """What a process said about its end: its last line that names an error, or else its last line."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"(\[rank\d\]: )?[\w.]*(Error|Exception|Interrupt|[a-z]Failed)\b", line)
    ]
    return (named or lines or ["it said nothing"])[-1][:200]


def _watch(process: subprocess.Popen[bytes], token: str, deadline: float) -> tuple[int, bool]:
    """The peak of its memory, and whether it ended in time."""
    peak = 0
    while process.poll() is None:
        now = time.perf_counter()
        if now > deadline:
            return peak, False
        peak = max(peak, meter.memory(meter.members(token)))
        took = time.perf_counter() - now
        try:
            process.wait(max(INTERVAL, took / SHARE))
        except subprocess.TimeoutExpired:
            continue
    return peak, True


def _end(process: subprocess.Popen[bytes], token: str) -> None:
    """End what is left of a side, by process id; its children get a moment to end by themselves."""
    if process.poll() is None:
        process.kill()
    process.wait()
    until = time.perf_counter() + PATIENCE
    while left := meter.members(token):
        if time.perf_counter() > until:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.05)
