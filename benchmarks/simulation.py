"""Simulations at the machine's speed: worker processes, millions of clients, device models, virtual time.

Every figure is taken in a fresh process. Where something is compared, both sides take turns in that process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .measure import ROOT, Row, beyond, child, family, memory_of_all, over

WORKERS = 2
COMMAND = [sys.executable, "-m", "umbel.cli"]


def rows(quick: bool) -> list[Row]:
    """Measure simulations."""
    found = [*_noop(quick), *_millions(quick), *_devices(quick), *_start(quick), _same_bits(quick), _growth(quick)]
    if find_spec("torch") is None:
        return found
    return [*_training(quick), _command(quick), *found]


def call(function: Callable[..., None], *arguments: Any) -> Any:
    """What a function of this module prints in a fresh process."""
    code = (
        f"import sys, json; from benchmarks import simulation; simulation.{function.__name__}(*json.loads(sys.argv[1]))"
    )
    return child(code, json.dumps(arguments)).said


class Laps:
    """Observes a run: when its rounds were committed, and the most memory that all processes held together."""

    def __init__(self, *, memory: bool = False) -> None:
        self.ends = [time.perf_counter()]
        self.bytes = 0
        self._memory = memory

    def __call__(self, event: Any) -> None:
        if event.name == "round_committed":
            self.ends.append(time.perf_counter())
            if self._memory:
                self.bytes = max(self.bytes, memory_of_all())
                self.ends[-1] = time.perf_counter()

    @property
    def seconds(self) -> list[float]:
        """Of each round; the first begins with the run."""
        return [after - before for before, after in pairwise(self.ends)]


# Training: beside the plain loop in two processes


def _training(quick: bool) -> Iterator[Row]:
    said = call(train_beside_loop, "linear", 20 if quick else 60, 2 if quick else 9)
    added = beyond(said["umbel"], said["loop"]) / WORKERS * 1e6
    what = "logistic regression 784x10, 100 of 1,000 clients, 2 workers: time a client beyond the loop in 2 processes"
    yield Row(
        what,
        f"{added:.0f} us",
        "<= 50 us",
        added <= 50,
        f"CPU-seconds of all processes, halved; {_sides(said, 1e6, 'us')}",
    )
    said = call(train_beside_loop, "convolutional", 2 if quick else 4, 1 if quick else 3)
    ratio = over(said["umbel"], said["loop"])
    what = "CNN of 1.2 M parameters, 50 clients of 100 images, batch 20, 2 workers: time over the loop in 2 processes"
    yield Row(
        what, f"{ratio:.2f}", "<= 1.06", ratio <= 1.06, f"CPU-seconds of all processes; {_sides(said, 1e3, 'ms')}"
    )


def _sides(said: dict[str, list[float]], scale: float, unit: str) -> str:
    figures = {name: median(values) * scale for name, values in said.items()}
    return (
        f"a client: the loop {figures['loop']:.0f} {unit}, Umbel {figures['umbel']:.0f} {unit}; "
        f"wall {figures['loop wall']:.0f} {unit} and {figures['umbel wall']:.0f} {unit}"
    )


def train_beside_loop(shape: str, rounds: int, times: int) -> None:
    """Print the seconds a client of the plain loop in two processes and of Umbel with two workers, by turns.

    CPU-seconds of all processes, and on the wall. The first rounds, in which everything is loaded, do not count.
    """
    import umbel
    import umbel.torch

    from . import networks

    made = networks.Shape.named(shape)
    app = umbel.App(
        networks.client, model=made.initial, strategy=umbel.FedAvg(cohort=made.cohort), rounds=rounds,
        config={"shape": shape},
    )  # fmt: skip
    loop = networks.Loop(made, WORKERS)
    first = 1 if rounds < 10 else 5
    clients = made.cohort * (rounds - first)
    seconds: dict[str, list[float]] = {"umbel": [], "loop": [], "umbel wall": [], "loop wall": []}
    for turn in range(times + 1):
        marks: list[tuple[float, float]] = []

        def mark(event: Any, marks: list[tuple[float, float]] = marks) -> None:
            if event.name == "round_committed" and event.round in (first, rounds):
                marks.append((sum(family().values()), time.perf_counter()))

        umbel.run(app, on=umbel.Simulation(made.clients, workers=WORKERS), folder=None, observers=[mark])
        loop.rounds(first)
        marks.append((sum(family().values()), time.perf_counter()))
        loop.rounds(rounds - first)
        marks.append((sum(family().values()), time.perf_counter()))
        for side, start, end in (("umbel", *marks[:2]), ("loop", *marks[2:])):
            if turn:
                seconds[side].append((end[0] - start[0]) / clients)
                seconds[f"{side} wall"].append((end[1] - start[1]) / clients)
    loop.close()
    print(json.dumps(seconds))


def _command(quick: bool) -> Row:
    rounds = 10 if quick else 100
    app = ROOT / "benchmarks" / "lr_mnist.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, "run", str(app), "--rounds", str(rounds), "--folder", folder, "--json"]
        for _ in range(1 if quick else 4):
            began = time.perf_counter()
            _, said = _finished(command, environment)
            seconds.append(time.perf_counter() - began)
    wall = median(seconds[1:] or seconds)
    what = "FLUTE's LR-MNIST shape, 1,000 clients of 60, 10 a round, 100 rounds, tested every 20: the whole command"
    return Row(what, f"{wall:.1f} s", "<= 8 s", wall <= 8, f"test accuracy {said['metrics']['test.accuracy']:.3f}")


def _finished(command: list[str], environment: dict[str, str]) -> tuple[int, Any]:
    import subprocess

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a command of the benchmark failed: {done.stderr[-500:]}")
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1])


# No-op clients


def _noop(quick: bool) -> Iterator[Row]:
    said = call(noop, 3_000, 3_000, 3 if quick else 12)
    later = median(said["seconds"][2:])
    what = "no-op clients, 3,000 a round, 4 kB model, 2 workers: a round"
    yield Row(what, f"{later:.3f} s", "<= 0.15 s", later <= 0.15, f"the first: {said['seconds'][0]:.2f} s")


def _millions(quick: bool) -> Iterator[Row]:
    said = call(noop, 15_000_000, 1_000, 3 if quick else 12)
    first, later, memory = said["seconds"][0], median(said["seconds"][2:]), said["bytes"] / 1e6
    what = "15,000,000 clients, 1,000 a round, no-op, 2 workers, no torch: "
    yield Row(f"{what}first round after import", f"{first:.2f} s", "<= 3 s", first <= 3, "start of workers included")
    yield Row(f"{what}each later round", f"{later:.3f} s", "<= 0.08 s", later <= 0.08)
    yield Row(f"{what}all processes", f"{memory:.0f} MB", "<= 400 MB", memory <= 400, "PSS, at the ends of rounds")


def noop(clients: int, cohort: int, rounds: int, devices: str = "") -> None:
    """Print the seconds of each round and the bytes that all processes held at most."""
    import umbel

    laps = Laps(memory=True)
    app = umbel.App(
        noop_client(), model=_model(1_000), strategy=umbel.FedAvg(cohort=cohort), rounds=rounds, max_failed_rounds=9
    )
    federation = umbel.Simulation(clients, workers=WORKERS, devices=devices or None)
    umbel.run(app, on=federation, folder=None, observers=[laps])
    assert "torch" not in sys.modules
    print(json.dumps({"seconds": laps.seconds, "bytes": laps.bytes}))


def noop_client() -> Any:
    """A client that returns what it was sent."""
    import umbel

    client = umbel.Client()

    @client.train
    def train(model: umbel.Arrays, data: object, ctx: umbel.Context) -> umbel.Update:
        return umbel.Update(model)

    return client


def _model(size: int) -> Any:
    import numpy as np

    return {"w": np.zeros(size, np.float32)}


# Devices and virtual time


def _devices(quick: bool) -> Iterator[Row]:
    said = call(noop, 50_000_000, 1_000, 2 if quick else 5, "phones")
    seconds, memory = sum(said["seconds"]) / len(said["seconds"]), said["bytes"] / 1e6
    first = said["seconds"][0]
    what = "50,000,000 clients with a device model, 1,000 a round, no-op, 2 workers: "
    yield Row(f"{what}first round after import", f"{first:.2f} s", "<= 5 s", first <= 5, f"mean round: {seconds:.2f} s")
    yield Row(f"{what}all processes", f"{memory:.0f} MB", "<= 600 MB", memory <= 600, "PSS, at the ends of rounds")
    said = call(fedbuff, 20 if quick else 200)
    what = "40,000 devices, FedBuff, 200 in flight, 200 versions of 10 updates, logistic regression, virtual time: "
    hours = f"{said['virtual'] / 3600:.1f} virtual hours"
    yield Row(f"{what}the run", f"{said['seconds']:.1f} s", "<= 15 s", said["seconds"] <= 15, hours)
    memory = said["bytes"] / 1e6
    yield Row(f"{what}all processes", f"{memory:.0f} MB", "<= 1,000 MB", memory <= 1000, "PSS, at the ends of rounds")


def fedbuff(versions: int) -> None:
    """Print the seconds and the memory of an asynchronous run in virtual time."""
    import umbel
    from umbel.simulation import Fleet

    from . import regression

    window = umbel.Window(in_flight=200, close_after=10, late="keep")
    strategy = umbel.FedAvg(cohort=umbel.Uniform(220), fold=umbel.mean(), window=window)
    app = umbel.App(regression.client, model=regression.initial, strategy=strategy, rounds=versions, evaluate_every=0)
    laps = Laps(memory=True)
    began = time.perf_counter()
    devices = Fleet.preset("phones", work=30.0)
    result = umbel.run(
        app, on=umbel.Simulation(40_000, workers=WORKERS, devices=devices), folder=None, observers=[laps]
    )
    print(
        json.dumps(
            {"seconds": time.perf_counter() - began, "bytes": laps.bytes, "virtual": result.history[-1].clock or 0.0}
        )
    )


# Start, bits, memory


def _start(quick: bool) -> Iterator[Row]:
    times = 1 if quick else 5
    bare = median(call(start, False)["seconds"] for _ in range(times))
    yield Row("start of 2 workers, without torch", f"{bare:.2f} s", "<= 0.5 s", bare <= 0.5, "to their first answers")
    if find_spec("torch") is None:
        return
    said = [call(start, True) for _ in range(times)]
    ratio = median(s["seconds"] / s["torch"] for s in said)
    beside = (
        f"one import: {median(s['torch'] for s in said):.2f} s, the start: {median(s['seconds'] for s in said):.2f} s"
    )
    yield Row("start of 2 workers with torch, over one `import torch`", f"{ratio:.2f}", "<= 1.3", ratio <= 1.3, beside)


def start(torch: bool) -> None:
    """Print how long an import of torch took here, and the start of workers to the end of a round of no-op clients."""
    import umbel

    began = time.perf_counter()
    if torch:
        import torch as _  # noqa: F401
    imported = time.perf_counter() - began
    app = umbel.App(noop_client(), model=_model(10), strategy=umbel.FedAvg(cohort=2), rounds=1)
    began = time.perf_counter()
    umbel.run(app, on=umbel.Simulation(2, workers=WORKERS), folder=None)
    print(json.dumps({"seconds": time.perf_counter() - began, "torch": imported}))


def _same_bits(quick: bool) -> Row:
    hashes = call(same_bits, 2 if quick else 4)
    distinct = sorted({h[:12] for h in hashes})
    what = "model_sha256 for workers 0, 1, 2, 3: stateful clients that finish out of order, two asks a round, 7 of 23"
    return Row(
        what, "the same" if len(distinct) == 1 else "differ", "the same", len(distinct) == 1, ", ".join(distinct)
    )


def same_bits(rounds: int) -> None:
    """Print the hash of the model for each number of workers."""
    import umbel

    from . import regression

    app = umbel.App(regression.uneven_client(), model=_model(100), strategy=regression.TwoAsks(), rounds=rounds)
    federations = [umbel.Simulation(23, workers=workers) for workers in range(4)]
    print(json.dumps([umbel.run(app, on=federation, folder=None).model_sha256 for federation in federations]))


def _growth(quick: bool) -> Row:
    said = call(growth, 20 if quick else 100)
    worst = max(said, key=lambda row: row["last"] / row["tenth"])
    share = worst["last"] / worst["tenth"] - 1
    what = "100 rounds of 1,000 clients: growth of any process's memory after round 10"
    beside = f"{worst['tenth'] / 1e6:.1f} to {worst['last'] / 1e6:.1f} MB, of {len(said)} processes"
    return Row(what, f"{share:.1%}", "<= 2 %", share <= 0.02, beside)


def growth(rounds: int) -> None:
    """Print for each process how much memory it held after round 10 and at the end."""
    import umbel

    from .measure import resident

    tenth: dict[int, int] = {}
    last: dict[int, int] = {}

    def see(event: Any) -> None:
        if event.name == "round_committed" and event.round == 10:
            tenth.update(resident())
        if event.name == "round_committed" and event.round == rounds:
            last.update(resident())

    with tempfile.TemporaryDirectory() as folder:
        app = umbel.App(noop_client(), model=_model(1_000), strategy=umbel.FedAvg(cohort=1_000), rounds=rounds)
        umbel.run(app, on=umbel.Simulation(100_000, workers=WORKERS), folder=Path(folder), observers=[see])
    print(json.dumps([{"tenth": tenth[pid], "last": last[pid]} for pid in tenth if pid in last]))
