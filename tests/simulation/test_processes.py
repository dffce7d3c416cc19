"""Worker processes: how they start, how they end, and that none of them outlives the main process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.conftest import PATIENCE

from umbel import App, Arrays, Client, FedAvg, Simulation, Update, run
from umbel.errors import InternalError
from umbel.simulation import processes
from umbel.simulation.status import Status

posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks")
linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
STARTS = ["forkserver", "spawn"] if processes.default_start() == "forkserver" else ["spawn"]
BUSY = "was killed together with the process that had started it"


class Does:
    """Calls a function where it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def exits(code):
    """A message upon which a worker ends with what an expression gives as its exit code."""
    return Does(exec, f"import os, sys, signal; os._exit({code})")


@pytest.fixture
def start():
    """Starts workers, and lets go of them in the end."""
    status, started = Status(3, named=os.name == "nt"), []

    def start(how, index=0):
        started.append(processes.start(index, status.descriptor, status.file, how))
        return started[-1]

    yield start
    for process in started:
        process.channel.close()
        process.kill()
        process.dismiss()
    status.close()


@pytest.mark.parametrize("how", STARTS)
def test_a_worker_ends_when_its_channel_closes(start, how):
    process = start(how)
    assert process.pid != os.getpid()
    process.channel.close()
    assert process.ended() == "ended with exit code 0"


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize(
    ("message", "words"),
    [(exits(3), "ended with exit code 3"),
     (Does(signal.raise_signal, signal.SIGSEGV), "was killed by SIGSEGV, a segmentation fault")],
)  # fmt: skip
@posix
def test_how_a_worker_ended_is_told_in_words(start, how, message, words):
    process = start(how)
    process.channel.send(message)
    with pytest.raises(EOFError):
        process.channel.receive()
    assert process.ended() == words


@pytest.mark.parametrize("how", STARTS)
@posix
def test_a_worker_that_is_killed(start, how):
    process = start(how)
    process.kill()
    process.kill()
    assert process.ended() == "was killed by SIGKILL, perhaps because memory ran out"
    process.kill()


@linux
def test_what_the_system_says_of_a_worker(start):
    process = start(STARTS[0])
    process.channel.send(Does(exec, "for _ in iter(int, 1): pass"))
    for _ in range(1_000_000):
        if process.usage.processor_time() > 0:
            break
    else:
        pytest.fail("it never passed")
    assert 1 << 20 < process.usage.peak_memory() < 1 << 40
    process.kill()
    process.ended()
    assert process.usage.processor_time() == 0
    assert process.usage.peak_memory() == 0


def test_where_the_system_is_another_it_says_nothing(start, monkeypatch):
    process = start(STARTS[0])
    monkeypatch.setattr(processes, "sys", SimpleNamespace(platform="elsewhere"))
    assert process.usage is None


@pytest.mark.parametrize("how", STARTS)
def test_workers_are_known_apart(start, how):
    workers = [start(how, index) for index in range(2)]
    assert len({worker.pid for worker in workers}) == 2
    for code, worker in enumerate(workers):
        worker.channel.send(exits(code))
    for code in (1, 0):
        assert workers[code].ended() == f"ended with exit code {code}"


FACTS = (
    "os.environ['OMP_NUM_THREADS'] == os.environ['OPENBLAS_NUM_THREADS'] == '1'",
    "signal.getsignal(signal.SIGINT) is signal.SIG_IGN",
    "'umbel' in sys.modules and 'hypothesis' not in sys.modules and 'pytest' not in sys.modules",
)


@pytest.mark.parametrize("how", STARTS)
def test_what_holds_in_a_worker(start, how):
    process = start(how)
    process.channel.send(exits(" + ".join(f"{2**bit} * ({fact})" for bit, fact in enumerate(FACTS))))
    assert process.ended() == "ended with exit code 7"  # one bit for each


def test_how_workers_start_on_this_system(monkeypatch):
    assert processes.default_start() in STARTS
    monkeypatch.setattr(processes, "SHARES", False)
    assert processes.default_start() == "spawn"


def test_an_interpreter_that_does_not_come_up(start, monkeypatch):
    monkeypatch.setattr(processes, "_SPAWNED", "raise SystemExit(5);")
    with pytest.raises(InternalError, match="a worker process ended with exit code 5"):
        start("spawn")


@pytest.mark.parametrize("how", STARTS)
def test_the_path_may_hold_what_is_no_text(start, how, monkeypatch):
    processes._close()  # so that a forkserver has to start
    monkeypatch.setattr(sys, "path", [Path("/somewhere"), *sys.path])
    process = start(how)
    process.channel.close()
    assert process.ended() == "ended with exit code 0"


forked = pytest.mark.skipif("forkserver" not in STARTS, reason="there is no fork here")


@forked
def test_modules_that_are_slow_to_import_are_loaded_before(start):
    processes.prepare("forkserver", ["colorsys", "no_such_module", "colorsys"])
    process = start("forkserver")
    process.channel.send(exits("7 if 'colorsys' in sys.modules else 1"))
    assert process.ended() == "ended with exit code 7"


@forked
def test_what_each_task_needs_is_loaded_before(start):
    process = start("forkserver")
    process.channel.send(exits("7 if {'cloudpickle', 'numpy.random'} <= sys.modules.keys() else 1"))
    assert process.ended() == "ended with exit code 7"


def parent(process):
    """The process that made a worker, as the worker itself tells it by its exit code, modulo 251."""
    process.channel.send(exits("os.getppid() % 251"))
    return process.ended()


@forked
def test_one_forkserver_makes_all_workers(start):
    assert parent(start("forkserver")) == parent(start("forkserver"))


@forked
def test_a_forkserver_that_was_killed_is_replaced(start):
    worker = start("forkserver")
    assert worker.pid
    first = processes._server()
    first._process.kill()
    with pytest.raises(EOFError):
        worker.channel.receive()  # it is killed too
    assert worker.ended() == BUSY
    first._process.wait()
    again = start("forkserver")
    assert processes._server() is not first
    again.channel.close()
    assert again.ended() == "ended with exit code 0"
    worker.kill()
    worker.dismiss()


@forked
def test_a_forkserver_that_dies_just_now_is_replaced(start):
    first = processes._server()
    first._socket.shutdown(2)  # all that can be seen of it at that moment
    again = start("forkserver")
    again.channel.close()
    assert again.ended() == "ended with exit code 0"
    assert first._process.returncode == 0
    assert not first.alive


@forked
@pytest.mark.parametrize("asked", ["pid", "ended"])
def test_an_interrupt_that_loses_an_answer_confuses_nobody(start, asked, monkeypatch):
    worker, first = start("forkserver"), processes._server()
    if asked == "ended":
        assert worker.pid
        worker.channel.close()
    answer = processes._Forkserver._answer

    def interrupted(self):
        answer(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(processes._Forkserver, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker._server.read_until(worker) if asked == "pid" else worker.ended()
    again = start("forkserver")
    assert processes._server() is not first
    again.channel.close()
    assert again.ended() == "ended with exit code 0"


def federation(train, size=2, **config):
    """A function of the number of workers that does a run."""
    client = Client()
    client.train(train)
    model = Arrays({"w": np.zeros(size)})
    app = App(client, model=lambda: model, strategy=FedAvg(cohort=4), rounds=2, config=config)
    return lambda workers, **more: run(app, on=Simulation(6, workers=workers, **more), folder=None)


def test_spawned_workers_come_to_the_same_result():
    federated = federation(lambda model, data, ctx: Update({"w": model["w"] + data["index"]}), size=50_000)
    assert federated(2, start="spawn").model_sha256 == federated(0).model_sha256


@forked
@posix
def test_a_run_survives_the_end_of_the_forkserver(tmp_path):
    def train(model, data, ctx):
        marker = Path(ctx.config["marker"])
        if ctx.config["kill"]:
            with suppress(FileExistsError):  # of two workers one: the other might have another parent by then
                marker.touch(exist_ok=False)
                os.kill(os.getppid(), signal.SIGKILL)
        return Update({"w": model["w"] + ctx.client})

    marker = str(tmp_path / "killed")
    here = federation(train, marker=marker, kill=False)(0)
    there = federation(train, marker=marker, kill=True)(2)
    assert Path(marker).exists()
    assert there.model_sha256 == here.model_sha256


MAIN = """
import os, threading
import numpy as np
import umbel

client = umbel.Client()

@client.train
def train(model, data, ctx):
    print(os.getpid(), os.getppid())
    if ctx.config["busy"]:
        while True:
            pass
    threading.Event().wait()

app = umbel.App(
    client, model=lambda: umbel.Arrays({"w": np.zeros(50_000)}), strategy=umbel.FedAvg(cohort=2), rounds=1,
    config={"busy": BUSY},
)
if __name__ == "__main__":
    umbel.run(app, on=umbel.Simulation(2, workers=2, start="START"), folder=None)
"""


def shared_memory():
    place = Path("/dev/shm")
    return {path.name for path in place.iterdir() if "umbel" in path.name} if place.is_dir() else set()


@pytest.mark.parametrize(("how", "busy"), [(how, busy) for how in STARTS for busy in (True, False)][:3])
@linux
def test_nothing_is_left_of_a_main_process_that_is_killed(tmp_path, how, busy):
    script = tmp_path / "main.py"
    script.write_text(MAIN.replace("START", how).replace("BUSY", str(busy)))
    (tmp_path / "tmp").mkdir()
    before = shared_memory()
    source = str(Path(processes.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, text=True) as main:
        told = [tuple(map(int, main.stdout.readline().split())) for _ in range(2)]
        pids = {pid for pair in told for pid in pair} - {main.pid}
        assert len(pids) == (3 if how == "forkserver" else 2)
        watched = [os.pidfd_open(pid) for pid in pids]
        main.kill()
        left = set(watched)
        while left:
            ended, _, _ = select.select(left, [], [], PATIENCE)
            if not ended:
                break
            left -= set(ended)
    for descriptor in watched:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    assert not left, "these processes went on"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert shared_memory() <= before
