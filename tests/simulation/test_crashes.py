"""Whatever ends a worker, or the run itself: the run goes on, or is resumed, to the same bits, and nothing is left."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import PATIENCE, open_files, some
from tests.simulation.test_workers import (
    ASKS,
    ASYNC,
    FLEETS,
    LATE,
    MEAN,
    SOURCE,
    STRATEGIES,
    WINDOWS,
    Died,
    Moving,
    app_of,
    asked,
    run,
    train,
)
from tests.test_resume import MAKE, learned

import umbel
from umbel import App, Client, FedAvg, Simulation, Window, mean, top_k
from umbel.errors import AppError, RunInterrupted
from umbel.runs.events import RoundCommitted, TaskEnded
from umbel.simulation import hosts, pool, processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")

WRITTEN_WITH = ["hypothesis", "pytest"]
ENDLESS = 1000
"""So many attempts that no client is given up for being near when its worker was killed."""


def children(pid: int) -> list[int]:
    """The processes that another one has started and that run."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(place.parent.name))
    return found


def forkserver(pid: int) -> int:
    """The process that makes the workers of another one."""
    found = []
    for child in children(pid):
        with suppress(OSError):
            if b"umbel.simulation.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    (server,) = found
    return server


def workers() -> list[int]:
    """The workers that run here and now."""
    return children(forkserver(os.getpid()))


def killed(pid: int) -> bool:
    """Kill a process, and say whether it was alive and has died of that."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    if select.select([process], [], [], 0)[0]:  # it was dead before
        os.close(process)
        return False
    signal.pidfd_send_signal(process, signal.SIGKILL)
    return gone([process])


def watched(pids: list[int]) -> list[int]:
    """Descriptors of processes, of those that have not ended since they were seen."""
    descriptors = []
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
    return descriptors


def gone(descriptors: list[int], seconds: float = PATIENCE) -> bool:
    """Wait for the ends of processes, given by `os.pidfd_open`, and close these descriptors."""
    left = list(descriptors)
    while left:
        ended, _, _ = select.select(left, [], [], seconds)
        if not ended:
            return False
        left = [fd for fd in left if fd not in ended]
    for fd in descriptors:
        os.close(fd)
    return True


class Killer:
    """Watches a run and kills one of its workers at these of its events, by number; where none is up just then, at the
    next event at which one is.
    """

    def __init__(self, moments=(), seed=0):
        self.moments = set(moments)
        self.random = random.Random(seed)
        self.events = 0
        self.due = 0
        self.kills = 0

    def __call__(self, event):
        self.events += 1
        self.due += self.events in self.moments
        if self.due and (alive := workers()) and killed(self.random.choice(alive)):
            self.due -= 1
            self.kills += 1


def killed_at_random(made, clients, count, kills, seed, **on):
    """Run something with its workers killed at random moments, and return what it comes to, and how many there were."""
    watch = Killer()
    run(made(), count, clients, observers=[watch], **on)
    chosen = random.Random(seed).sample(range(3, watch.events), min(kills, watch.events - 3))
    killer = Killer(chosen, seed)
    return learned(run(made(), count, clients, observers=[killer], attempts=ENDLESS, **on)), killer.kills


@pytest.mark.parametrize("name", some(STRATEGIES, 5))
def test_workers_killed_at_random_moments(name):
    made = lambda: app_of(STRATEGIES[name](), evaluate_every=1)  # noqa: E731
    found, kills = killed_at_random(made, 10, 1 + len(name) % 3, kills=4, seed=name)
    assert found == learned(run(made(), 0))
    assert kills >= (1 if name == "all clients fail" else 2)  # that one ends with its first round


@pytest.mark.parametrize("name", ["client state", "transform state", "asynchronous"])
def test_workers_killed_again_and_again(name):
    found, kills = killed_at_random(MAKE[name], 6, 2, kills=8, seed=3)
    assert found == learned(run(MAKE[name](), 0, 6))
    assert kills >= 5


@pytest.mark.parametrize(("fleet", "window"), some(itertools.product(["alike", "spread"], WINDOWS), 4))
def test_workers_killed_in_virtual_time(window, fleet):
    on = {"devices": FLEETS[fleet]()}
    made = lambda: app_of(FedAvg(cohort=8, window=WINDOWS[window], fold=mean()), evaluate_every=1, rounds=2)  # noqa: E731
    found, kills = killed_at_random(made, 20, 2, kills=3, seed=len(window), **on)
    assert found == learned(run(made(), 0, 20, **on))
    assert kills >= 2


POINTS = [
    (moment, name)
    for name in ("do", "reported", "admit", "ask_to_close", "forget")
    for moment in ("before", "after")
    if (moment, name) != ("before", "admit")
]
SCENARIOS = {
    "plain": (lambda: app_of(FedAvg(cohort=7, transforms=top_k(0.5)), rounds=3), {}),
    "in turn": (lambda: app_of(Moving(train(clients=7, window=Window(close_after=4)), MEAN), rounds=3), {}),
    "asynchronous": (lambda: app_of(Moving(LATE, MEAN), evaluate_every=1), {}),
    "virtual": (
        lambda: app_of(FedAvg(cohort=8, window=WINDOWS["buffered"], fold=mean()), evaluate_every=1),
        {"devices": FLEETS["spread"]()},
    ),
}


@pytest.mark.parametrize("scenario", some(SCENARIOS, 1))
def test_workers_killed_just_when_they_are_spoken_to(scenario, monkeypatch):
    made, on = SCENARIOS[scenario]
    whole = learned(run(made(), 0, **on))
    total = 0
    for moment, name in POINTS:
        original, calls, kills = getattr(hosts.HostedWorker, name), [], []

        def deadly(self, *args, moment=moment, original=original, calls=calls, kills=kills):
            calls.append(self)
            kill = len(calls) in (2, 3) and self.alive
            if kill and moment == "before":
                kills += [self] if killed(self.host.pid) else []
            result = original(self, *args)
            if kill and moment == "after":
                kills += [self] if killed(self.host.pid) else []
            return result

        with monkeypatch.context() as patch:
            patch.setattr(hosts.HostedWorker, name, deadly)
            assert learned(run(made(), 2, attempts=ENDLESS, **on)) == whole, (moment, name)
        total += len(kills)
    assert total >= 12


def test_a_worker_that_dies_after_others_gave_what_they_held_of_an_ask(monkeypatch):
    """What it held is done again by workers that have closed the ask already."""
    made = lambda: app_of(FedAvg(cohort=9, transforms=top_k(0.5)), rounds=3)  # noqa: E731
    whole = learned(run(made(), 0))
    take, kills = pool.WorkerPool._take, []

    def deadly(self, closed, contents, kills=kills):
        take(self, closed, contents)
        for worker in self.workers:
            if worker.alive and worker.tickets:
                kills += [worker] if killed(worker.host.pid) else []

    monkeypatch.setattr(pool.WorkerPool, "_take", deadly)
    for count in (2, 3):
        assert learned(run(made(), count, attempts=ENDLESS)) == whole
    assert len(kills) >= 6


@pytest.mark.slow
@given(
    asks=st.lists(ASKS, min_size=1, max_size=3),
    fleet=st.sampled_from([None, None, *FLEETS]),
    count=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_any_scenario_with_kills(asks, fleet, count, seed):
    on = {"devices": FLEETS[fleet]()} if fleet else {}
    made = lambda: app_of(Moving(*(asked(*ask) for ask in asks)), evaluate_every=2)  # noqa: E731
    moments = random.Random(seed).sample(range(2, 30), 4)
    whole = learned(run(made(), 0, 8, **on))
    assert learned(run(made(), count, 8, observers=[Killer(moments, seed)], attempts=ENDLESS, **on)) == whole


@pytest.mark.parametrize("name", ["asynchronous before another", "two at once", "transforms with state"])
def test_workers_and_the_run_itself_die_in_turns(name, tmp_path):
    made = lambda: app_of(STRATEGIES[name](), evaluate_every=1, rounds=3)  # noqa: E731
    whole = learned(run(made(), 0))
    seen, killer = [], Killer(range(3, 1000, 9), seed=1)

    def die(event):
        killer(event)
        seen.append(event)
        if event.logged and len(seen) % 13 < 3:
            seen.append(event)
            raise Died

    result, deaths = None, 0
    while result is None:
        places = list(tmp_path.iterdir())
        on = Simulation(10, workers=1 + deaths % 3, attempts=ENDLESS)
        try:
            if places:
                result = umbel.resume(made(), places[0], on=on, observers=[die])
            else:
                result = umbel.run(made(), on=on, seed=5, folder=tmp_path, observers=[die])
        except Died:
            deaths += 1
            assert deaths < 40
    assert learned(result) == whole
    assert deaths >= 1
    assert killer.kills >= 2


def test_the_process_that_makes_workers_is_killed():
    made = lambda: app_of(FedAvg(cohort=7, transforms=top_k(0.5)))  # noqa: E731
    whole = learned(run(made(), 0))
    for stall in (None, 60.0):
        kills = []

        def kill(event, kills=kills):
            if isinstance(event, RoundCommitted) and event.round in (1, 2, 3):
                ended = os.pidfd_open(forkserver(os.getpid()))
                os.kill(forkserver(os.getpid()), signal.SIGKILL)
                kills.append(ended)
                assert gone([ended])

        assert learned(run(made(), 2, observers=[kill], stall=stall, attempts=ENDLESS)) == whole
        assert len(kills) >= 3


@pytest.mark.slow
def test_workers_with_an_interpreter_of_their_own_are_killed():
    made = lambda: app_of(FedAvg(cohort=7, transforms=top_k(0.5)), rounds=3)  # noqa: E731
    kills = []

    def kill(event):
        if isinstance(event, RoundCommitted) and event.round < 3:
            own = [p for p in children(os.getpid()) if b"simulation.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]
            if killed(own[0]):
                kills.append(own)

    assert learned(run(made(), 2, observers=[kill], start="spawn", attempts=ENDLESS)) == learned(run(made(), 0))
    assert len(kills) == 2


# What handlers do


def doing(what, *, times=ENDLESS, clients=(2,), folder=None):
    """An app some of whose clients do something, at most so many times each; it is counted in the folder."""

    def hook(ctx):
        if ctx.client in clients and ctx.round == 2:
            with (folder / str(ctx.client)).open("ab") as file:
                file.write(b"x")
                file.flush()
                if file.tell() > times:
                    return
            what(ctx)

    return app_of(FedAvg(cohort="all", transforms=top_k(0.5)), hook=hook, rounds=3, evaluate_every=0)


def leave(ctx):
    os._exit(3)


def segfault(ctx):
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(ctx):
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error(ctx):
    raise OSError("no such table")


def wait_for_ever(ctx):
    read, _ = os.pipe()
    os.read(read, 1)


def take_too_much(ctx):
    np.ones(1 << 30)


REASONS = {
    leave: "its process ended with exit code 3",
    segfault: "its process was killed by SIGSEGV, a segmentation fault",
    be_killed: "its process was killed by SIGKILL, perhaps because memory ran out",
}


@pytest.mark.parametrize(("what", "count"), [(leave, 1), (leave, 2), (segfault, 2), (be_killed, 2)])
def test_a_client_that_ends_its_worker_is_tried_again(what, count, tmp_path):
    quiet = learned(run(app_of(FedAvg(cohort="all", transforms=top_k(0.5)), rounds=3, evaluate_every=0), 0))
    clients = (2, 7)
    assert learned(run(doing(what, times=2, clients=clients, folder=tmp_path), count)) == quiet
    assert min((tmp_path / str(c)).stat().st_size for c in clients) == 3  # more where a fold was lost with a worker


def failed_in(result_folder):
    log = [json.loads(line) for line in (result_folder / "events.jsonl").read_text().splitlines()]
    rows = [event["failed"] for event in log if event["event"] == "ask_closed"]
    return [{client: reason for reason, _, clients in each for client in clients} for each in rows]


@pytest.mark.parametrize(("what", "attempts"), [(leave, 1), (leave, 5), (segfault, 3), (be_killed, 2)])
def test_a_client_that_always_ends_its_worker_fails_with_the_reason(what, attempts, tmp_path):
    count = tmp_path / "count"
    count.mkdir()
    result = run(doing(what, folder=count), 2, folder=tmp_path / "runs", attempts=attempts)
    assert (count / "2").stat().st_size == attempts
    assert failed_in(result.folder) == [{}, {2: REASONS[what]}, {}]
    as_failed = learned(run(doing(raise_error, folder=tmp_path), 0))
    assert learned(result) == as_failed


def test_a_client_that_takes_too_much_memory_fails_alone(tmp_path):
    result = run(doing(take_too_much, folder=tmp_path), 2, folder=tmp_path / "runs", memory=1 << 30)
    _, failed, _ = failed_in(result.folder)
    assert "raised MemoryError" in failed[2] or "raised _ArrayMemoryError" in failed[2]
    assert len(failed) == 1
    assert (tmp_path / "2").stat().st_size == 1
    assert learned(result) == learned(run(doing(raise_error, folder=tmp_path), 0))


def test_a_client_that_hangs_is_ended(tmp_path, monkeypatch):
    """And no other, however slow the machine is: but for the one that hangs, workers seem to get on all the time."""

    def hang(ctx):
        (tmp_path / f"hangs {os.getpid()}").touch()
        wait_for_ever(ctx)

    spent, ticks = processes.Process.processor_time, itertools.count()
    hanging = lambda self: (tmp_path / f"hangs {self.pid}").exists()  # noqa: E731
    monkeypatch.setattr(processes.Process, "processor_time", lambda self: spent(self) if hanging(self) else next(ticks))
    result = run(doing(hang, folder=tmp_path), 2, folder=tmp_path / "runs", stall=0.7, attempts=2)
    reason = "its process showed no progress for 0.7 seconds and was ended"
    assert failed_in(result.folder) == [{}, {2: reason}, {}]
    assert (tmp_path / "2").stat().st_size == 2
    assert learned(result) == learned(run(doing(raise_error, folder=tmp_path), 0))


def test_an_endless_loop_ends_although_it_uses_the_processor(tmp_path, monkeypatch):
    def spin(ctx):
        (tmp_path / f"spins {os.getpid()}").touch()
        while True:
            pass

    real = hosts.HostedWorker.steps_since
    spins = lambda self: (tmp_path / f"spins {self.host.usage.pid}").exists()  # noqa: E731
    monkeypatch.setattr(
        hosts.HostedWorker, "steps_since", lambda self, now: 1e9 if spins(self) else min(real(self, now), 0)
    )
    monkeypatch.setattr(pool, "LONGEST_WAIT", 0.05)
    result = run(doing(spin, folder=tmp_path), 2, folder=tmp_path / "runs", attempts=2)
    ((_, failed, _)) = failed_in(result.folder)
    assert "took more than 1800 seconds without a ctx.step() and was ended" in failed[2]
    assert "longest_step" in failed[2]
    assert learned(result) == learned(run(doing(raise_error, folder=tmp_path), 0))


class Clock:
    """Stands still until so many more tasks have ended, and is past every deadline then."""

    def __init__(self, tasks):
        self.now, self.tasks, self.ended = 0.0, tasks, 0

    def __call__(self):
        return self.now

    def watch(self, event):
        if isinstance(event, TaskEnded):
            self.ended += 1
            if self.ended % self.tasks == 0:
                self.now += 10.0


def test_a_deadline_does_not_wait_for_a_client_that_hangs(monkeypatch):
    """Not even where it hangs in the worker that holds what others have done."""
    monkeypatch.setattr(pool, "PATIENCE", 1e9)  # it waits as long as it takes to do without, and no longer
    hook = lambda ctx: wait_for_ever(ctx) if ctx.client == 2 else None  # noqa: E731
    strategy = FedAvg(cohort=[0, 1, 2], window=Window(deadline=0.1))
    app, clock = app_of(strategy, hook=hook, rounds=2, evaluate_every=0), Clock(2)
    on = Simulation(10, workers=1)
    result = umbel.run(app, on=on, seed=5, folder=None, clock=clock, observers=[clock.watch])
    assert [r.clients for r in result.history] == [2, 2]
    alone = run(app_of(FedAvg(cohort=[0, 1]), rounds=2, evaluate_every=0), 0)
    assert result.model_sha256 == alone.model_sha256


def test_late_tasks_do_not_keep_what_is_done_from_a_deadline(tmp_path):
    os.mkfifo(tmp_path / "gate")
    clock = Clock(2)

    def hook(ctx):
        if ctx.client == 0:
            (tmp_path / "gate").read_bytes()

    class Slow(umbel.Strategy):
        def round(self, state, r):
            clients = [0, 1, 2] if r == 1 else [1, 2]
            answer = yield umbel.Ask(
                clients=clients, model=state.model, fold=mean(), window=Window(deadline=0.1, late="keep")
            )
            if r == 2:
                clock.tasks = 100
                (tmp_path / "gate").write_bytes(b"go on")
            return state.replace(model=state.model.replace({"w": state.model["w"] + answer.value["w"]}))

    app, on = app_of(Slow(), hook=hook, rounds=3, evaluate_every=0), Simulation(10, workers=2)
    result = umbel.run(app, on=on, seed=5, folder=None, clock=clock, observers=[clock.watch])
    assert [r.clients for r in result.history] == [2, 2, 3]


class Deadly:
    """Ends the process that loads it."""

    def __reduce__(self):
        return os._exit, (7,)


def test_workers_that_never_come_to_work_are_given_up():
    client = Client()
    deadly = Deadly()
    client.train(lambda model, data, ctx: deadly)
    app = App(client, model={"w": np.zeros(2)}, strategy=FedAvg(cohort=2), rounds=1, evaluate_every=0)
    with pytest.raises(AppError, match=r"worker processes end before they can do anything.*exit code 7"):
        run(app, 2, 2)
    assert learned(run(MAKE["server state"](), 2, 6)) == learned(run(MAKE["server state"](), 0, 6))


# Interrupts


def interrupted_at(line: int, app, folder, on):
    """Run an app and press Ctrl-C as so many lines of the simulation have been run since its first ask; how many
    there were if it was over before.
    """
    count = 0
    package = str(Path(pool.__file__).parent)

    def trace(frame, what, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(package) or frame.f_code.co_name == "disconnect":
            return None
        if what == "line" and (count or frame.f_code.co_name == "open"):
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        umbel.run(app, on=on, seed=5, folder=folder)
    except (KeyboardInterrupt, RunInterrupted):
        return True
    finally:
        sys.settrace(before)
    return count


@pytest.mark.slow
@pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a __del__
def test_an_interrupt_anywhere_leaves_a_run_that_resumes_and_nothing_else(tmp_path):
    made = lambda: app_of(Moving(LATE, MEAN), rounds=2, evaluate_every=0)  # noqa: E731
    on = Simulation(10, workers=2)
    whole = learned(run(made(), 0))
    lines = interrupted_at(-1, made(), None, on)
    assert lines > 1000
    interrupts = 0
    for line in random.Random(7).sample(range(1, lines), 14):
        folder = tmp_path / str(line)
        interrupts += interrupted_at(line, made(), folder, on) is True
        left = watched(workers())
        assert gone(left), line
        for place in folder.iterdir():
            if (place / "events.jsonl").exists() and (place / "events.jsonl").stat().st_size:
                assert learned(umbel.resume(made(), place, on=on)) == whole, line
    assert interrupts > 6
    gc.collect()  # what an interrupt has left open complains here, and not in a test after this one


APP = """
import os, pathlib
import numpy as np
import umbel

client = umbel.Client()

@client.train
def train(model, data, ctx):
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    if ctx.round == 3 and ctx.client == 4 and os.path.exists("ready"):
        pathlib.Path("ready").write_text("here")
        pathlib.Path("gate").read_bytes()
    return umbel.Update({"w": model["w"] + ctx.rng.normal() + ctx.state["n"] + np.zeros(20_000)})

window = umbel.Window(in_flight=5, close_after=3, late="keep")
app = umbel.App(
    client,
    model={"w": np.zeros(20_000)},
    strategy=umbel.FedAvg(cohort=[4, 0, 1, 2, 3], fold=umbel.mean(), window=window),
    rounds=5,
    evaluate_every=0,
    federation=umbel.Simulation(6, workers=2),
)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def umbel_command(place, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(place / "temporary"), "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "umbel.cli", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(place, *arguments):
    with umbel_command(place, *arguments, "--json") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return json.loads(out)["model_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("number", some([signal.SIGINT, signal.SIGKILL, signal.SIGTERM], 1))
def test_a_command_that_is_stopped_leaves_a_run_that_resumes_and_no_process(number, place):
    whole = finished(place, "run", "app.py", "--seed", "3", "--folder", "whole")
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    os.mkfifo(place / "ready")
    os.mkfifo(place / "gate")
    with umbel_command(place, "run", "app.py", "--seed", "3") as process:
        assert (place / "ready").read_text() == "here"  # a worker is in the middle of round 3
        server = forkserver(process.pid)
        family = [os.pidfd_open(pid) for pid in (server, *children(server))]
        assert len(family) == 3
        (place / "ready").unlink()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal tells everybody
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], err
    assert "Traceback" not in err
    assert gone(family)
    assert list((place / "temporary").iterdir()) == []
    assert not os.path.isdir("/dev/shm") or not {n for n in set(os.listdir("/dev/shm")) - shared if "umbel" in n}
    assert finished(place, "resume", "last") == whole


def test_several_runs_in_threads_share_the_process_that_makes_workers():
    made = lambda: app_of(FedAvg(cohort=6, fold=mean(), window=ASYNC), rounds=3)  # noqa: E731
    whole, found = learned(run(made(), 0)), []

    def work():
        federation = Simulation(10, workers=2)
        found.append(learned(umbel.run(made(), on=federation, seed=5, folder=None)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [whole] * 3


def test_nothing_is_left_when_a_run_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(app_of(FedAvg(cohort=4)), 2)
    before = open_files()  # the socket of the process that makes workers among them
    for _ in range(3):
        run(app_of(FedAvg(cohort=4, window=ASYNC, fold=mean()), model={"w": np.zeros(50_000)}), 2)
        left = watched(workers())
        assert gone(left)
    assert not open_files() - before
    assert list(tmp_path.iterdir()) == []
    assert processes._known[0].alive
