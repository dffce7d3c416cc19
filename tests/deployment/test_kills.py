"""kill -9 of anything at any moment: the run goes on, and ends with the model that nothing has disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.deployment.conftest import APP, app_of
from tests.deployment.machines import SECONDS, Machines, Process

import umbel
from umbel.remote.operator import Operator

NODES = ("0", "1", "2", "3")
VICTIMS = ("server", "run", "node", "child", "all", "run", "node", "child", "server and node", "two nodes")
LATEST = 8
"""So many events after a round was committed, at most, something is killed: there are about 14 in a round."""


def undisturbed(name: str, seed: int, rounds: int | None = None) -> str:
    app = app_of(name)
    return umbel.run(app, on=umbel.Simulation(clients=4), seed=seed, folder=None, rounds=rounds).model_sha256


@pytest.fixture(scope="module")
def four(machines: Machines) -> Machines:
    machines.start_server()
    machines.start_nodes(4)
    return machines


class Killer:
    """Kills processes while a run goes on, each when a round was committed since the last and some events have come."""

    def __init__(self, machines: Machines, run: str, seed: int, kills: int) -> None:
        self.done: list[str] = []
        self._machines, self._run, self._kills = machines, run, kills
        self._draw = random.Random(seed)
        self._victims = self._draw.sample(VICTIMS, len(VICTIMS))
        self._round = self._seen = 0
        self._left: int | None = None

    def saw(self, record: dict[str, Any]) -> None:
        """Take in an event of the run."""
        if record["event"] == "round_committed" and record["round"] > self._seen:
            self._seen = record["round"]
        if self._left is None and self._seen > self._round and len(self.done) < self._kills:
            self._round, self._left = self._seen, self._draw.randint(0, LATEST)
        if self._left is not None:
            if self._left <= 0 and self._kill(self._victims[len(self.done) % len(VICTIMS)]):
                self._left = None
            else:
                self._left -= 1

    def _kill(self, victim: str) -> bool:
        """Kill and start again; False where there is no such process now."""
        machines, name = self._machines, self._draw.choice(NODES)
        if victim in ("child"):
            pid = machines.run_process(self._run) if victim == "run" else next(iter(machines.children(name)), None)
            try:
                if pid is None:
                    return False
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        elif victim == "all":
            for process in (machines.server, *machines.nodes.values()):
                process.kill()
            machines.start_server(ready=False)
            for each in NODES:
                machines.start_node_again(each)
        else:
            if "server" in victim:
                machines.server.kill()
            names = self._draw.sample(NODES, 2 if "two" in victim else 1) if "node" in victim else []
            for each in names:
                machines.nodes[each].kill()
                machines.start_node_again(each)
            if "server" in victim:
                machines.start_server(ready=False)
        self.done.append(victim)
        return True


@pytest.mark.parametrize("seed", [1, 2])
def test_at_random_moments(four, seed):
    run = begun(four, "long", seed)
    killer = Killer(four, run, seed, 10)
    with follower(four) as office:
        last: dict[str, Any] = {}
        for number, record in office.logs(run):
            last = record if number else last
            killer.saw(record)
        assert last["event"] == "run_finished", (last, office.call("runs.show", run=run))
    assert len(killer.done) == 10, killer.done
    assert (last["error"], last["model_sha256"]) == (None, undisturbed("long", seed))


class Points:
    """Points at which a process is killed, one after the other."""

    def __init__(self, machines: Machines, who: str, points: Sequence[tuple[str, str, int, str]]) -> None:
        self._file = machines.folder / f"points-{who}.json"
        self._file.write_text(json.dumps(points))
        self._count = len(points)
        self.arguments = (str(self._file), "run" if who == "run" else "self")

    def watch(self, start: Callable[[], Process]) -> None:
        """Start it, and again whenever it is killed."""
        self._thread = threading.Thread(target=self._watch, args=(start,), daemon=True)
        self._thread.start()

    def _watch(self, start: Callable[[], Process]) -> None:
        for _ in range(self._count):
            if start().wait() != -signal.SIGKILL:
                return
        start()

    def passed(self) -> None:
        """See to it that all of them were come to."""
        done = self._file.with_name(f"{self._file.name}.done")
        assert done.exists()
        assert done.stat().st_size == self._count


SERVER = [
    ("umbel.store.sql:SqlStore.write", "before", 5, ""),
    ("umbel.store.sql:SqlStore.write", "after", 8, ""),
    ("umbel.server.router:Router.handle", "before", 3, "result {"),
    ("umbel.server.router:Router.handle", "after", 4, "result {"),
    ("umbel.transport.connection:Connection.post", "after", 2, ", ack {"),
    ("umbel.server.router:Router.handle", "after", 1, "close_ask {"),
]
NODE = [
    ("umbel.node.spool:SqliteSpool.write", "before", 3, "Answered("),
    ("umbel.node.spool:SqliteSpool.write", "after", 2, "Answered("),
    ("umbel.transport.connection:Connection.post", "before", 2, ", result {"),
    ("umbel.transport.connection:Connection.post", "after", 3, ", result {"),
    ("umbel.node.machine:NodeMachine.handle", "after", 2, "ack {"),
]
RUN = [
    ("umbel.journal:Journal.append", "before", 3, "AskClosed("),
    ("umbel.journal:Journal.append", "after", 4, "AskClosed("),
    ("umbel.journal:Journal.append", "before", 2, "RoundCommitted("),
    ("umbel.journal:Journal.append", "after", 2, "RoundCommitted("),
    ("umbel.remote.session:Session._answered", "after", 9, ""),
    ("umbel.remote.session:Session.close", "after", 3, ""),
    ("umbel.journal:Journal.append", "after", 1, "RunFinished("),
]


def follower(machines: Machines) -> Operator:
    """Follows a run closely, also while the server dies and comes back."""
    waiting = threading.Event()
    return Operator(machines.credentials(), pause=lambda seconds: waiting.wait(min(seconds, 0.1)))


def begun(machines: Machines, name: str, seed: int) -> str:
    return machines.submit(f"{APP}:{name}", seed, *(f"--only={client}" for client in NODES))


def finishes_undisturbed(machines: Machines, run: str, name: str, seed: int) -> None:
    with follower(machines) as office:
        assert machines.finished(run, office)["model_sha256"] == undisturbed(name, seed)


def test_of_the_server_at_points_of_its_code(four):
    points = Points(four, "server", SERVER)
    run = begun(four, "long", 11)
    four.server.kill()
    points.watch(lambda: four.start_server(ready=False, point=points.arguments))
    finishes_undisturbed(four, run, "long", 11)
    points.passed()


def test_of_a_node_at_points_of_its_code(four):
    four.nodes["2"].stop()
    points = Points(four, "node", NODE)
    points.watch(lambda: four.start_node_again("2", points.arguments))
    run = begun(four, "long", 12)
    finishes_undisturbed(four, run, "long", 12)
    points.passed()


def test_of_the_runs_process_at_points_of_its_code(four):
    four.server.stop()
    points = Points(four, "run", RUN)
    four.start_server(point=points.arguments)
    run = begun(four, "long", 13)
    finishes_undisturbed(four, run, "long", 13)
    points.passed()


def test_in_the_middle_of_a_task(four):
    died = {}
    for who, name in (("child", "0"), ("node", "1")):
        four.nodes[name].stop()
        dies = {"index": name, "flag": str(four.folder / f"died-{who}"), "who": who, "dies_in": 2}
        given = [f"--source={key}={value}" for key, value in dies.items()]
        died[who] = four.start_node(name, *given)
    again = threading.Thread(target=lambda: died["node"].wait() and four.start_node_again("1"))
    again.start()
    run = begun(four, "plain", 31)
    finishes_undisturbed(four, run, "plain", 31)
    again.join(SECONDS)
    assert {path.name for path in four.folder.glob("died-*")} == {"died-child", "died-node"}


def test_in_the_end_everything_is_as_it_was(four):
    """No error was printed, no run is going on, and nothing was answered twice."""
    with four.office() as office:
        assert {row["status"] for row in office.call("runs.list")["runs"]} == {"finished"}
    for process in four.ended:
        assert "Traceback" not in process.output, process.output
    for log in four.folder.glob("server/runs/*/run.log"):
        assert "Traceback" not in log.read_text(), log.read_text()
