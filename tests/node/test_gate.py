"""What a node lets in: the contract of a run, and what single clients would get."""

from __future__ import annotations

import json

import numpy as np
import pytest

from umbel import Arrays
from umbel.core import encoding
from umbel.node.gate import against_client, against_start
from umbel.node.signals import HostReady, Start
from umbel.wire import messages as m

READY = HostReady("r", frozenset({"train"}), frozenset())
MODEL = Arrays({"w": np.zeros(2, dtype=np.float32)})


class Gate:
    """Notes what it is asked to judge."""

    judges_tasks = True

    def against_task(self, ask, sent):
        self.sent = sent
        return "no"


def tree(**values):
    return m.Payload(inline=encoding.encode(values))


def start(own=None, shared=None, model=None):
    return Start("r", m.Task(own=own), m.AskSpec(shared=shared, model=model), None)


def test_a_client_is_held_against_the_contract():
    contract = {"version": 1, "kinds": ["train"], "transforms": [], "model": {}}
    assert against_client("", READY) == against_client(json.dumps(contract), READY) == ""
    assert "evaluate" in against_client(json.dumps({**contract, "kinds": ["evaluate"]}), READY)
    for broken in ("{", "[]"):
        assert against_client(broken, READY).startswith("the run's contract cannot be read: ")


def test_what_all_get_is_not_replaced_by_what_one_gets_and_settings_add_to_the_runs():
    gate = Gate()
    sent = start(own=tree(config={"lr": 0.1}, n=1), shared=tree(config={"lr": 5.0}))
    assert against_start(gate, sent, '{"lr": 1.0, "steps": 3}', lambda sha: None) == "no"
    assert gate.sent == {"config": {"lr": 5.0, "steps": 3}, "n": 1}


def test_blobs_are_read_from_their_files(tmp_path):
    gate, files = Gate(), {b"m": tmp_path / "model", b"t": tmp_path / "tree", b"x": None}
    files[b"m"].write_bytes(MODEL.to_bytes())
    files[b"t"].write_bytes(encoding.encode({"n": 2}))
    blob = {sha: m.Payload(blob=m.Blob(sha256=sha)) for sha in files}
    against_start(gate, start(shared=blob[b"t"], model=blob[b"m"]), "", files.get)
    assert (gate.sent["n"], gate.sent["model"], gate.sent["config"]) == (2, MODEL, {})
    against_start(gate, start(shared=blob[b"x"], model=blob[b"x"]), "", files.get)
    assert gate.sent == {"model": None, "config": {}}


@pytest.mark.parametrize("sent", [start(own=m.Payload(inline=b"?")), start(shared=tree(config=3))])
def test_what_cannot_be_read_is_not_let_in(sent):
    assert against_start(Gate(), sent, "", lambda sha: None).startswith("what is sent with it cannot be read: ")


def test_a_gate_that_does_not_judge_tasks_is_not_asked():
    gate = Gate()
    gate.judges_tasks = False
    assert against_start(gate, start(own=m.Payload(inline=b"?")), "", lambda sha: None) == ""
