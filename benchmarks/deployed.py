"""A deployment on this machine, to be measured: real processes of the server, nodes and runs, in a folder of their own.

TLS is on, as in every deployment; everything listens on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .measure import ONE_THREAD, ROOT, family

UMBEL = (sys.executable, "-m", "umbel.cli")
PATIENCE = 120.0
"""Seconds after which a process that has not said what was waited for is taken to hang."""
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


class Program:
    """A process that was started here, and what it prints."""

    def __init__(self, command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, pattern: str, seconds: float = PATIENCE) -> tuple[re.Match[str], float]:
        """The first line with this pattern, and how many seconds after the process's start it was there at the latest.

        RuntimeError, with what was printed, where there is none in time.
        """
        until = time.monotonic() + seconds
        with self._said:
            looked = 0
            while True:
                for line in self.lines[looked:]:
                    if found := re.search(pattern, line):
                        return found, time.perf_counter() - self.began
                looked = len(self.lines)
                if not self._reader.is_alive() or not self._said.wait(max(0.0, until - time.monotonic())):
                    raise RuntimeError(f"{self._process.args!r:.200} did not say {pattern!r}: {self.lines[-5:]}")

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def ask_to_end(self) -> None:
        """Have it end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until it has ended; it is killed where it takes long."""
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()


class Deployment:
    """Processes in a temporary folder; all are ended, and the folder is removed, at the end of the block.

    `site` is a folder that all of them import `sitecustomize` from, and the file that runs execute: see
    `deployment_profile`.
    """

    def __init__(self, site: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="umbel-bench-"))
        self.address = ""
        self.server: Program | None = None
        self._site = site
        self._lines: list[str] = []
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Nodes first: they would try to connect again.
        for program in reversed(self._programs):
            program.ask_to_end()
        for program in reversed(self._programs):
            program.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def place(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    def started(self, *command: str) -> Program:
        """Start a process."""
        from umbel import __file__ as package

        path = [str(Path(package).resolve().parent.parent), str(ROOT)]
        if self._site is not None:
            path.insert(0, str(self._site))
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        environment |= {"UMBEL_HOME": str(self.folder / "home"), "COLUMNS": "400"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        program = Program(command, self.folder, environment)
        self._programs.append(program)
        return program

    def serve(self) -> float:
        """Start the server as its owner does; how many seconds it took to be ready."""
        self.server = self.started(*UMBEL, "server", "--dir", "server", "--listen", "127.0.0.1:0", "--http", "no")
        return self._ready(self.server)

    def serve_otherwise(self, **how: Any) -> list[str]:
        """Start the server by `served`, with its arguments; the further lines that it says."""
        code = "import sys, json; from benchmarks import deployed; deployed.served(**json.loads(sys.argv[1]))"
        self.server = self.started(sys.executable, "-c", code, json.dumps({"folder": str(self.place), **how}))
        self._ready(self.server)
        return [line.split(" ", 1)[1] for line in self.server.lines if line.startswith("run ")]

    def join(self, count: int) -> tuple[list[Program], list[float]]:
        """Start so many nodes, called by their numbers, and wait until they are connected; how long each took."""
        lines = self._invitations(count)
        nodes = []
        for number, line in enumerate(lines):
            how = ("--join", line, "--name", str(number), "--dir", f"node-{number}", "--allow", "any")
            nodes.append(self.started(*UMBEL, "node", self.address, *how))
        return nodes, [node.line("connected to")[1] for node in nodes]

    def run(self, *, floats: int, rounds: int, arrays: int = 1, first: str = "") -> Path:
        """Have the server begin a run with a model of so many numbers; its folder. The app begins with `first`."""
        app = Path(tempfile.mkdtemp(prefix="app-", dir=self.folder))
        (app / "holder.py").write_text(HOLDER)
        if self._site is not None:
            first = f"exec(open({str(self._site / 'sitecustomize.py')!r}).read())\n{first}"
        (app / "app.py").write_text(first + APP.format(size=floats // arrays, arrays=arrays, rounds=rounds))
        program = self.started(
            *UMBEL, "run", str(app / "app.py"), "--on", self.address, "--token", str(self.place / "operator.json"),
            "--detach", "--json",
        )  # fmt: skip
        found = program.line(r"^\{.*\}$")[0]
        return self.place / "runs" / str(json.loads(found[0])["run"])

    def finished(self, run: Path, seconds: float = 600.0, between: Callable[[int], object] | None = None) -> list[Any]:
        """Wait until a run is over, and return its log. `between` is called now and then with the size of the log.

        RuntimeError where it fails.
        """
        log = run / "run" / "events.jsonl"
        until = time.monotonic() + seconds
        while True:
            if (run / "error.json").exists():
                raise RuntimeError(f"the run failed: {(run / 'error.json').read_text()}")
            size = log.stat().st_size if log.exists() else 0
            if size:
                with open(log, "rb") as file:
                    file.seek(max(0, size - 4096))
                    if b'"event":"run_finished"' in file.read():
                        break
                if between is not None:
                    between(size)
            if time.monotonic() > until or (self.server is not None and self.server.over):
                told = (run / "run.log").read_text()[-500:] if (run / "run.log").exists() else ""
                raise RuntimeError(f"the run was not over after {seconds:.0f} s: {told}")
            time.sleep(0.1)
        return [json.loads(line) for line in log.read_text().splitlines()]

    def _ready(self, server: Program) -> float:
        found, seconds = server.line(r"umbel node (\S+) --join (\S+)")
        self.address = found[1]
        self._lines = [found[2]]
        return seconds

    def _invitations(self, count: int) -> list[str]:
        from umbel.office.operator import Operator
        from umbel.trust.credentials import find

        with Operator.connect(find(None, None, self.place)) as office:
            while len(self._lines) < count:
                self._lines.append(office.call("nodes.invite")["line"].split()[-1])
        taken, self._lines = self._lines[:count], self._lines[count:]
        return taken


def served(folder: str, delay: float = 0.0, memory: int = 0, share: int = 0, runs: list[str] | None = None) -> None:
    """Be a server that is slower, has less memory, or lets in runs that it has not started.

    `delay` is how many seconds longer each commit takes; `memory` the bytes of data (RLIMIT_DATA) that it and a run of
    its may have, of which `share` are its own; `runs` are those that get a token, each printed as ``run`` and its line.
    """
    import asyncio

    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (share, memory - share))
    asyncio.run(_served(Path(folder), delay, runs or []))


async def _served(folder: Path, delay: float, runs: list[str]) -> None:
    import asyncio

    from umbel.server.service import running
    from umbel.server.settings import ServerSettings

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    settings = ServerSettings(folder, listen="127.0.0.1:0", http="")
    wait = (lambda: time.sleep(delay)) if delay else None
    async with running(settings, after_commit=wait) as service:
        for run in runs:
            print("run", service.line(service.registry.tokens.issue_run("benchmark", run)))
        token = service.registry.invite("benchmark", None)
        await service.commit()
        print(service.invitation(token), flush=True)
        await stopping.wait()


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
