"""A script's side of the conversation, in this process."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.core.arrays import Arrays
from umbel.errors import AppError, CorruptFile
from umbel.script import line, loop, natives

TASK = {
    "says": "task", "client": 3, "kind": "train", "round": 2, "seed": 5, "config": {"lr": 0.5}, "device": "cpu",
    "model": Arrays({"w": np.arange(3.0)}), "state": {"n": 1, "kept": np.zeros(2)}, "personal": (),
}  # fmt: skip


@pytest.fixture
def host(monkeypatch):
    """The other end of the socket; what the script does is that of this process."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(loop, "die_with", lambda: None)
    monkeypatch.setattr(loop.os, "register_at_fork", lambda **do: None)
    say(ours, {"says": "begin", "client": 3, "source": {"index": 3}})
    joined = loop.Joined(theirs.detach())
    monkeypatch.setattr(loop, "_host", joined)
    yield ours
    ours.close()
    joined._socket.close()


def say(connection, message):
    connection.sendall(b"".join(line.packed(message)))


def hear(connection):
    inbox = line.Inbox()
    while (message := inbox.take(connection)) is None:
        pass
    return message


def test_a_task_comes_and_is_answered_once_the_loop_comes_round(host):
    net = {"w": np.ones(3)}
    say(host, {"says": "model"})
    say(host, TASK)
    tasks = loop.tasks(net)
    task = next(tasks)
    assert hear(host)["arrays"] == Arrays({"w": np.ones(3)})
    assert task.model is net
    assert net["w"].tolist() == [0, 1, 2]
    assert (task.client, task.round, task.kind, task.config["lr"], task.source) == (3, 2, "train", 0.5, {"index": 3})
    assert loop.source() == {"index": 3}
    drawn = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    assert drawn == (random.random(), np.random.random())
    net["w"] += 1
    loop.answer(examples=7, loss=np.float32(0.5))
    net["w"] += 1  # too late
    task.state["n"] += 1
    task.state["kept"] += 1
    say(host, {**TASK, "kind": "evaluate"})
    assert next(tasks).kind == "evaluate"
    said = hear(host)
    assert said["arrays"] == Arrays({"w": np.arange(1.0, 4.0)})
    assert (said["examples"], said["metrics"]) == (7.0, {"loss": 0.5})
    assert (said["state"]["n"], said["state"]["kept"].tolist()) == (2, [1, 1])
    loop.answer(examples=2, accuracy=1)
    host.shutdown(socket.SHUT_WR)
    with pytest.raises(SystemExit):
        next(tasks)
    assert "arrays" not in hear(host)


def test_another_object_may_be_answered_with(host):
    say(host, TASK)
    tasks = loop.tasks({"w": np.ones(3)})
    next(tasks)
    loop.answer({"w": np.full(3, 9.0)})
    say(host, TASK)
    next(tasks)
    assert hear(host)["arrays"]["w"].tolist() == [9, 9, 9]


def test_personal_arrays_are_kept_in_the_state_and_loaded_again(host):
    net = {"w": np.ones(3), "own": np.ones(1)}
    tasks = loop.tasks(net)
    say(host, {**TASK, "personal": ("own",)})
    next(tasks)
    assert net["own"].tolist() == [1]
    net["own"] += 4
    loop.answer()
    say(host, {**TASK, "personal": ("own",), "state": {"personal": {"own": np.full(1, 8.0)}}})
    next(tasks)
    said = hear(host)
    assert list(said["arrays"]) == ["w"]
    assert said["state"]["personal"]["own"].tolist() == [5]
    assert net["own"].tolist() == [8]


def test_what_a_loop_does_wrong_is_said(host):
    with pytest.raises(AppError, match="where there is no task"):
        loop.answer()
    tasks = loop.tasks({"w": np.ones(3)})
    say(host, TASK)
    next(tasks)
    loop.answer()
    with pytest.raises(AppError, match="twice for one task"):
        loop.answer()
    say(host, TASK)
    next(tasks)
    with pytest.raises(AppError, match="its task was not answered"):
        next(tasks)


@pytest.mark.slow
def test_an_optimizers_moments_are_kept_in_the_state(host):
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("umbel.torch")
    net = torch.nn.Linear(3, 1, bias=False)
    model, made = adapter.arrays(net), torch.optim.Adam(net.parameters())
    net(torch.ones(3)).backward()
    made.step()
    tasks, kept = loop.tasks(net), made.state_dict()
    say(host, {**TASK, "model": model})
    next(tasks).state["optimizer"] = kept
    loop.answer()
    say(host, {**TASK, "model": model})
    next(tasks)
    state = hear(host)["state"]["optimizer"]
    again = adapter.load_optimizer_(torch.optim.Adam(net.parameters()), state).state_dict()
    for name, tensor in kept["state"][0].items():
        assert torch.equal(again["state"][0][name], tensor)


def test_metrics_are_numbers(host):
    say(host, TASK)
    tasks = loop.tasks({"w": np.ones(3)})
    next(tasks)
    for wrong in ({"error": np.ones(2)}, {"error": "a row of the data"}, {"examples": None}):
        with pytest.raises(AppError, match=rf"fl.answer\({next(iter(wrong))}=...\) got a .* not one number") as caught:
            loop.answer(**wrong)
        assert "row" not in str(caught.value)
    loop.answer(error=np.ones(1)[0], examples=np.int64(3))


def test_an_evaluation_is_for_those_who_look(host):
    say(host, {**TASK, "kind": "evaluate"})
    next(loop.tasks({"w": np.ones(3)}))
    with pytest.raises(AppError, match=r"never looked at task.kind"):
        loop.answer(accuracy=1.0)


def test_alone_there_is_one_task_or_as_many_as_are_wanted_and_nothing_is_changed():
    net = {"w": np.ones(3)}
    random.seed(1)
    before = random.getstate()
    (task,) = loop.tasks(net)
    assert (task.model, task.round, task.kind, task.seed, task.state) == (net, 1, "train", None, {})
    assert [task.round for task in loop.tasks(net, alone=3)] == [1, 2, 3]
    assert loop.answer(examples=2, loss=0.5) is None
    assert loop.source("here") == "here"
    assert random.getstate() == before
    with pytest.raises(AppError, match="no model that it knows"):
        loop.tasks(object())
    assert [task.model for task in loop.tasks(3, adapter=natives)] == [3]


def test_what_is_no_message_is_not_taken_for_one():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((8).to_bytes(8, "little") + b"\xff" * 8)
        inbox = line.Inbox()
        assert inbox.take(theirs) is None
        with pytest.raises(CorruptFile):
            inbox.take(theirs)


def test_it_is_quick_to_import():
    slow = {"asyncio", "subprocess", "torch", "grpc", "rich", "cloudpickle", "umbel.script.host"}
    code = f"import sys, umbel.script; sys.exit(sorted({slow!r} & set(sys.modules)) or None)"
    environment = {"PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
