"""What one result costs the state machines of run, router and node, with few tasks in flight and with many.

A whole deployment lives in one thread (`umbel.testing.deployment`), and the CPU time of each machine is taken where it
is entered: no socket, no disk and no scheduler is in it, whatever the messages between them look like. What is on its
way arrives before anybody works, so that as many tasks are in flight as may be.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import umbel

from .figures import Row, turns
from .launch import call
from .meter import say
from .simulated import each

FEW, MANY, BAR = 200, 3_000, 1.2
PARTS = ("run", "router", "node")


class Stopwatch:
    """The CPU-seconds of parts, each without those of parts that it has entered."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = ["outside"]
        self._since = time.process_time()

    def timed(self, owner: type, name: str, part: str) -> None:
        """Take the time of a method from now on."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def within(*arguments: Any, **named: Any) -> Any:
            self._change()
            self._inside.append(part)
            try:
                return method(*arguments, **named)
            finally:
                self._change()
                self._inside.pop()

        setattr(owner, name, within)

    def _change(self) -> None:
        now = time.process_time()
        self.spent[self._inside[-1]] += now - self._since
        self._since = now


def results(in_flight: int, clients: int) -> None:
    """Print the CPU microseconds of each part for a result, of so many clients with so many tasks in flight."""
    from umbel.node.machine import NodeMachine
    from umbel.remote.session import RemoteSession
    from umbel.runs.coordinator import Coordinator
    from umbel.server.router import Router
    from umbel.testing.deployment import Deployment, Faults
    from umbel.testing.link import RunLink

    watch = Stopwatch()
    watch.timed(Router, "handle", "router")
    watch.timed(NodeMachine, "handle", "node")
    watch.timed(Coordinator, "handle", "run")
    for name in ("do", "next_event"):
        watch.timed(RemoteSession, name, "run")
    for name in ("receive", "send"):
        watch.timed(RunLink, name, "network")
    client = umbel.Client()

    @client.train
    def train(model: umbel.Arrays, data: Any, ctx: umbel.Context) -> umbel.Update:
        return umbel.Update(model)

    strategy = umbel.FedAvg(cohort=1.0, window=umbel.Window(in_flight=in_flight))
    app = umbel.App(client, model={"w": np.zeros(10, np.float32)}, strategy=strategy, rounds=1, evaluate_every=0)
    with tempfile.TemporaryDirectory() as folder:
        nodes: dict[str, dict[str, Any]] = {"one": {f"{number}": {} for number in range(clients)}}
        deployment = Deployment(app, nodes, seed=1, faults=Faults.none(), slots=in_flight, scratch=Path(folder))
        deployment._chance.pick = next_of  # type: ignore[method-assign, assignment]
        assert deployment.run(Path(folder) / "runs").history[0].clients == clients
        deployment.close()
    say({part: 1e6 * watch.spent[part] / clients for part in PARTS})


def next_of(actions: Sequence[Any]) -> Any:
    """The first of what can be done: wires deliver, then stations act, and nodes work last."""
    return actions[0]


def rows(smoke: bool, times: int) -> Iterator[Row]:
    """A result with many tasks in flight over one with few."""
    few, many = (20, 100) if smoke else (FEW, MANY)
    sides: dict[str, Callable[[], Any]] = {
        f"{count} in flight": functools.partial(call, results, count, many) for count in (few, many)
    }
    some, all_ = turns(sides, times).values()
    for part in PARTS:
        of = functools.partial(_part, part)
        yield Row(
            f"result-{part}", f"one result of a task in the {part}, {many:,} in flight: CPU", "us", BAR, each(all_, of),
            each(some, of), limit_is=f"({few} in flight)", judged="over",
        )  # fmt: skip


def _part(part: str, outcome: Any) -> float:
    return float(outcome.said[part])
