"""kill -9 of anything at any moment, and `umbel stop` at any: a run ends with the model that nothing has disturbed.

Each *life* of a run is drawn from a seed: its app, who dies, when, two at once or again during recovery. When is a
number of things that were seen to happen (`strikes.Moment`), and a death counts only if that process, by its id and the
time it began, was alive just before, died of the signal, and the run was not over (`deaths.kill`). What died is started
again, as a supervisor would: servers, relays, nodes and runs of a user's own by the test, processes of runs by their
server, children by their node.

A failing life prints its seed, what was done to it, and the last that every process printed. It is lived again by

    UMBEL_KILLS=SEED python -m pytest -n 0 tests/deployment/test_kills.py -k hundred
    UMBEL_STOPS=SEED python -m pytest -n 0 tests/deployment/test_kills.py -k twenty

with the same draws; real processes come to these moments by other ways each time, so several tries (``SEED,SEED,SEED``)
may be needed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.deployment import lives
from tests.deployment.conftest import APP, app_of
from tests.deployment.lives import HOW, Stop, lived, populate

import umbel
from umbel.cli.ledger import NodeLedger
from umbel.core.encoding import named_files
from umbel.office.operator import Operator
from umbel.testing.machines import SECONDS, MachineProcess, Machines
from umbel.testing.strikes import KINDS

LIVES = (("plain", False), ("stateful", False), ("sparse", False), ("late", False), ("stateful", True))
"""The apps of lives, one after the other, and whether their user drives them."""
ROUNDS = 24
POINTS = Path(__file__).with_name("points.py")


@contextmanager
def fresh(factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A server, a relay and four nodes, of which nothing is left in the end."""
    machines = Machines(factory.mktemp("kills"))
    try:
        yield populate(machines)
        machines.stop()
    finally:
        machines.kill()


def seeds(variable: str) -> Iterator[int]:
    """Those that are asked for, or 1, 2, ..."""
    asked = os.environ.get(variable)
    return itertools.count(1) if not asked else iter([int(seed) for seed in asked.split(",")])


@pytest.mark.slow
def test_some_kills_and_a_stop(tmp_path_factory):
    """A small part of what the slow tests do."""
    with fresh(tmp_path_factory) as machines, lived(machines, "late", 1, 8, held=True) as life:
        life.be_killed(3)
        life.be_stopped(1)
        life.let_go()
    assert life.deaths.total() >= 3, life.report()
    assert len(life.stops) == 1, life.report()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path_factory):
    died: Counter[str] = Counter()
    failed: list[str] = []
    for seed in seeds("UMBEL_KILLS"):
        app, own = LIVES[seed % len(LIVES)]
        try:
            with fresh(tmp_path_factory) as machines, lived(machines, app, seed, ROUNDS, own) as life:
                life.be_killed(10)
        except pytest.fail.Exception as error:
            failed.append(f"UMBEL_KILLS={seed}: {error}")
        died += life.deaths
        print(f"{life.report()}\n{dict(died)}, {len(failed)} lives failed", flush=True)
        if died.total() >= 100 and not os.environ.get("UMBEL_KILLS"):
            break
    assert not failed, "\n\n".join(failed)
    if not os.environ.get("UMBEL_KILLS"):
        assert died.total() >= 100
        assert min(died[kind] for kind in KINDS) >= 5, died


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_a_noised_run_with_each_release_in_a_ledger_once(tmp_path_factory):
    for seed in (1, 2):
        with fresh(tmp_path_factory) as machines, lived(machines, "private", seed, ROUNDS) as life:
            life.be_killed(10)
        print(life.report(), flush=True)
        assert life.deaths["node"] + life.deaths["child"] >= 3, life.report()
        found = [
            (entry.client, entry.task)
            for home in lives.LAYOUT.homes
            for entry, _ in NodeLedger.read(machines.folder / f"node-{home.name}").entries
        ]
        tasks = [(str(client), f"{ask}.{client}") for ask in range(ROUNDS) for client in range(lives.CLIENTS)]
        assert sorted(found) == sorted(tasks)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_stops(tmp_path_factory):
    stops: list[Stop] = []
    failed: list[str] = []
    for seed in seeds("UMBEL_STOPS"):
        app, _ = LIVES[seed % 4]
        try:
            with fresh(tmp_path_factory) as machines, lived(machines, app, seed, ROUNDS) as life:
                life.be_stopped(5)
        except pytest.fail.Exception as error:
            failed.append(f"UMBEL_STOPS={seed}: {error}")
        stops += life.stops
        print(f"{life.report()}\n{len(stops)} stops, {len(failed)} lives failed", flush=True)
        if len(stops) >= 20 and not os.environ.get("UMBEL_STOPS"):
            break
    assert not failed, "\n\n".join(failed)
    if not os.environ.get("UMBEL_STOPS"):
        assert {stop.how for stop in stops} == set(HOW)
        assert sum(stop.amid for stop in stops) >= 5, [str(stop) for stop in stops]


NODES = ("0", "1", "2", "3")


def undisturbed(name: str, seed: int, rounds: int | None = None, clients: int = 4) -> str:
    app = app_of(name)
    return umbel.run(app, on=umbel.Simulation(clients), seed=seed, folder=None, rounds=rounds).model_sha256


@pytest.fixture(scope="module")
def four(machines: Machines) -> Iterator[Machines]:
    """A server and four nodes. In the end no error was printed, and no run is going on."""
    machines.start_server()
    machines.start_nodes(4)
    yield machines
    with machines.office() as office:
        assert {row["status"] for row in office.call("runs.list")["runs"]} <= {"finished"}
    for process in machines.ended:
        assert "Traceback" not in process.output, process.output
    for log in machines.folder.glob("server/runs/*/run.log"):
        assert "Traceback" not in log.read_text(), log.read_text()


class Points:
    """Points at which a process is killed, one after the other."""

    def __init__(self, machines: Machines, who: str, points: Sequence[tuple[str, str, int, str]]) -> None:
        self._file = machines.folder / f"points-{who}.json"
        self._file.write_text(json.dumps(points))
        Path(f"{self._file}.done").unlink(missing_ok=True)  # of another test
        self._count = len(points)
        self.arguments = (str(POINTS), str(self._file), "run" if who == "run" else "self", "--")

    def watch(self, start: Callable[[], MachineProcess]) -> None:
        """Start it, and again whenever it is killed."""
        self._thread = threading.Thread(target=self._watch, args=(start,), daemon=True)
        self._thread.start()

    def _watch(self, start: Callable[[], MachineProcess]) -> None:
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
    ("umbel.node.spool:Spool.write", "before", 3, "StoredAnswer("),
    ("umbel.node.spool:Spool.write", "after", 2, "StoredAnswer("),
    ("umbel.transport.connection:Connection.post", "before", 2, ", result {"),
    ("umbel.transport.connection:Connection.post", "after", 3, ", result {"),
    ("umbel.node.machine:NodeMachine.handle", "after", 2, "ack {"),
]
LEDGER = [
    ("umbel.node.ledger:PrivacyLedger.done", "after", 1, ""),
    ("umbel.node.ledger:PrivacyLedger.commit", "before", 2, ""),
    ("umbel.node.ledger:PrivacyLedger.commit", "after", 1, ""),
    ("umbel.node.spool:Spool.write", "before", 1, "privacy.spent"),
    ("umbel.node.spool:Spool.write", "after", 2, "privacy.spent"),
    ("umbel.trust.audit:Audit.settle", "before", 5, ""),
    ("umbel.transport.connection:Connection.post", "before", 1, ", result {"),
    ("umbel.transport.connection:Connection.post", "after", 1, ", result {"),
]
RUN = [
    ("umbel.runs.journal:Journal.append", "before", 3, "AskClosed("),
    ("umbel.runs.journal:Journal.append", "after", 4, "AskClosed("),
    ("umbel.runs.journal:Journal.append", "before", 2, "RoundCommitted("),
    ("umbel.runs.journal:Journal.append", "after", 2, "RoundCommitted("),
    ("umbel.remote.session:RemoteSession._answered", "after", 9, ""),
    ("umbel.remote.session:RemoteSession.close", "after", 3, ""),
    ("umbel.runs.journal:Journal.append", "after", 1, "RunFinished("),
]

HUGE = [
    ("umbel.runs.journal:Journal.append", "after", 1, "AskClosed("),  # no file has its answer
    ("umbel.core.arrays:Unmade.pieces", "after", 2, ""),  # in the middle of a next state
    ("umbel.runs.journal:Journal.append", "before", 1, "RoundCommitted(round=2"),
    ("umbel.runs.journal:Journal._write", "after", 2, ""),
    ("umbel.runs.journal:Journal._collect", "before", 1, ""),
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


@pytest.mark.slow
def test_of_the_server_at_points_of_its_code(four):
    points = Points(four, "server", SERVER)
    run = begun(four, "long", 11)
    four.server.kill()
    points.watch(lambda: four.start_server(ready=False, point=points.arguments))
    finishes_undisturbed(four, run, "long", 11)
    points.passed()


@pytest.mark.slow
def test_of_a_node_at_points_of_its_code(four):
    four.nodes["2"].stop()
    points = Points(four, "node", NODE)
    points.watch(lambda: four.start_node_again("2", points.arguments))
    run = begun(four, "long", 12)
    finishes_undisturbed(four, run, "long", 12)
    points.passed()


@pytest.mark.slow
def test_of_a_node_at_points_of_its_ledger(four):
    four.nodes["2"].stop()
    points = Points(four, "node", LEDGER)
    points.watch(lambda: four.start_node_again("2", points.arguments))
    run = begun(four, "noised", 15)
    finishes_undisturbed(four, run, "noised", 15)
    points.passed()
    for name in NODES:
        found = [entry.task for entry, _ in NodeLedger.read(four.folder / f"node-{name}").entries if entry.run == run]
        assert found == [f"{ask}.{name}" for ask in range(12)]


@pytest.mark.slow
def test_of_the_runs_process_at_points_of_its_code(four):
    four.server.stop()
    points = Points(four, "run", RUN)
    four.start_server(point=points.arguments)
    run = begun(four, "long", 13)
    finishes_undisturbed(four, run, "long", 13)
    points.passed()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_the_process_of_a_run_with_a_large_model(four):
    four.server.stop()
    points = Points(four, "run", HUGE)
    four.start_server(point=points.arguments)
    run = begun(four, "huge", 14)
    finishes_undisturbed(four, run, "huge", 14)
    points.passed()
    kept = {path.stem for path in (four.folder / "server" / "runs" / run / "run" / "arrays").iterdir()}
    named = four.folder.glob(f"server/runs/{run}/run/**/[ir]*.safetensors")
    assert kept == set().union(*map(named_files, named))


@pytest.mark.slow
def test_in_the_middle_of_a_task(four):
    died = {}
    for who, name in (("child", "0"), ("node", "1")):
        four.nodes[name].stop()
        dies = {"index": name, "flag": str(four.folder / "shared" / f"died-{who}"), "who": who, "dies_in": 2}
        given = [f"--source={key}={value}" for key, value in dies.items()]
        died[who] = four.start_node(name, *given)

    def die() -> None:
        while not (four.folder / "shared" / "died-node").exists():
            threading.Event().wait(0.005)
        died["node"].kill()
        four.start_node_again("1")

    again = threading.Thread(target=die)
    again.start()
    run = begun(four, "plain", 31)
    finishes_undisturbed(four, run, "plain", 31)
    again.join(SECONDS)
    assert {path.name for path in four.folder.glob("shared/died-*")} == {"died-child", "died-node"}
