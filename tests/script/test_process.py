"""A script's process: what goes wrong in it is said of it, and nothing of it stays."""

from __future__ import annotations

import os
import random
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tests.conftest import open_files, some
from tests.script.hosting import STEPS, context, hosted, processes_of, script, wait_until_gone

import umbel
from umbel.core.arrays import Arrays
from umbel.core.client import Unwanted
from umbel.errors import AppError, ClientCrashed, HandlerFailed
from umbel.script import process
from umbel.work.confinement import below
from umbel.work.seeding import seed_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")

MODEL = Arrays({"w": np.zeros(4)})
ENDLESS = "threading.Event().wait()"


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path):
    before = open_files()
    yield
    wait_until_gone(tmp_path / "train.py")
    assert open_files() - before == set()


def ask(client, round=1, **more):
    return client.handlers["train"](MODEL, {"index": 0}, context(round=round, **more))


@pytest.mark.parametrize(
    ("more", "said", "error"),
    some(
        [
            ("print('at it'); print('oh', file=sys.stderr); raise ValueError('no data')",
             r"ended with exit code 1 while it had a task: ValueError: no data \(train.py:10\)$", HandlerFailed),
            ("print('a row', file=sys.stderr); sys.exit('enough')", "1 while it had a task: enough$", HandlerFailed),
            ("print('row', file=sys.stderr); os.kill(os.getpid(), 15)", "SIGTERM while it had a task$", ClientCrashed),
            ("fl.answer(); fl.answer()", "exit code 1 .*twice for one task", HandlerFailed),
            ("continue", "exit code 1 .*its task was not answered", HandlerFailed),
            ("break", r"ended with exit code 0 while it had a task", HandlerFailed),
            ("sys.exit(3)", "ended with exit code 3 while", HandlerFailed),
            ("os.kill(os.getpid(), 9)", "was killed by SIGKILL", ClientCrashed),
            ("os.write(fl.loop._host._socket.fileno(), b'8' * 99)", "says what cannot be understood", HandlerFailed),
            ("fl.loop._host._socket.close(); threading.Event().wait()", "let go of its host", HandlerFailed),
            (ENDLESS, "showed no sign of life for 0.01 seconds, and was ended", HandlerFailed),
            ("net.clear()", r"exit code 1 .*KeyError: 'w'", HandlerFailed),
            ("fl.answer(note='va.csv')", r"fl.answer\(note=...\) got a str, which is not one number", HandlerFailed),
        ],
        2,
    ),
)  # fmt: skip
def test_what_goes_wrong_is_said_of_the_script(tmp_path, monkeypatch, more, said, error):
    monkeypatch.setattr(process, "GRACE", 1.0 if "let go" in said else process.GRACE)
    client = hosted(tmp_path, more, stall=0.01 if more == ENDLESS else 600)
    with pytest.raises(error, match=f"(?s)the script train.py .*{said}") as caught:
        ask(client)
    assert more != "break" or "no break" in caught.value.hint
    assert caught.value.retry == (error is ClientCrashed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [("print('no loop')", "ended with exit code 0 while"), ("1 + '1'", r": TypeError: .* \(train.py:1\)"),
     ("import nothing_at_all", "No module named 'nothing_at"),
     (STEPS.replace("net = {", "net = 3 # {"), "which is no model that it knows")],
)  # fmt: skip
def test_a_script_that_does_not_come_to_its_tasks(tmp_path, text, said):
    client = hosted(tmp_path, text=text)
    with pytest.raises(HandlerFailed, match=f"(?s)the script train.py .*{said}"):
        ask(client)
    with pytest.raises(AppError, match=f"(?s)the script train.py .*{said.replace(' while', ' before')}") as caught:
        umbel.App(client, model=client.model, strategy=umbel.FedAvg(), rounds=1).initial_model()
    assert "python train.py" in caught.value.hint


@pytest.mark.slow
def test_after_one_that_failed_or_was_killed_while_it_waited_there_is_a_new_one(tmp_path):
    client = hosted(tmp_path, "if task.round == 2: sys.exit('enough')")
    first = ask(client)
    with pytest.raises(HandlerFailed, match="exit code 1 while it had a task: enough"):
        ask(client, 2)
    assert ask(client).metrics == first.metrics
    (pid,) = processes_of(tmp_path / "train.py")
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(tmp_path / "train.py")
    assert ask(client).metrics == first.metrics
    client.release()


def test_what_it_prints_is_printed_and_it_ends_with_its_loop(tmp_path, capsys):
    tail = "\nprint('after the loop')\n"
    client = hosted(
        tmp_path, "print('ü' * task.round); print('x' * 200_000, file=sys.stderr)\ntask.state['n'] = 1", STEPS + tail
    )
    update, data = (
        client.handlers["train"](MODEL, {"index": 0}, ctx := context()),
        np.random.default_rng(0).normal(size=4),
    )
    noise = 0.001 * random.Random(seed_of(context().key)).random()
    assert (update.weight, update.metrics["noise"]) == (3 + data[0] ** 2, noise)
    np.testing.assert_allclose(update.arrays["w"], data / 2)
    assert ctx.state == {"n": 1}
    said = capsys.readouterr()
    assert (said.out, said.err) == ("ü\n", "x" * 200_000 + "\n")
    (child,) = processes_of(tmp_path / "train.py")
    ask(client, 2)
    client.release()
    client.release()
    assert capsys.readouterr().out == "üü\n"
    assert child not in below(os.getpid()), "not even as a zombie"


def test_a_task_that_nobody_wants_is_ended_and_life_is_seen(tmp_path):
    steps = []

    def step():
        steps.append(1)
        raise Unwanted

    with pytest.raises(Unwanted):
        ask(hosted(tmp_path, "while True: pass"), on_step=step)
    assert steps == [1]


def test_one_that_prints_without_end_is_not_read_for_ever(tmp_path, monkeypatch, capsys):
    client, reads = hosted(tmp_path, "print('begun')"), []
    ask(client)
    monkeypatch.setattr(process._Printed, "pass_on", lambda printed, more=False: not reads.append(printed))
    next(iter(client._warm.values())).pass_on()
    assert len(reads) == 2 * process.MOST_READS
    monkeypatch.undo()
    client.release()
    assert "begun" in capsys.readouterr().out


def test_where_it_cannot_be_started(tmp_path, monkeypatch):
    with pytest.raises(AppError, match=r"train.py cannot be started with nowhere/python: No such file"):
        ask(hosted(tmp_path, python="nowhere/python"))
    monkeypatch.setattr(process, "os", SimpleNamespace(name="nt", getpid=os.getpid))
    with pytest.raises(AppError, match="POSIX systems only"):
        ask(hosted(tmp_path))
    assert script(tmp_path).exists()
