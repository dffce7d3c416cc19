"""What a server may not say to a node."""

from __future__ import annotations

import pytest
from tests.node.bench import PLAIN, said, started

from umbel.errors import ProtocolError
from umbel.wire import messages as m

GOOD_TASK = {
    "run": "r", "task": "1.a", "ask": 1, "client": "a", "attempt": 1, "key": bytes(32), "data_key": bytes(32),
}  # fmt: skip
GOOD_ASK = {"run": "r", "ask": 2, "kind": "train", "digest": b"d", "transforms": PLAIN}
BAD = {
    "no body": {},
    "not for nodes": {"refold": m.Refold(run="r")},
    "not from servers": {"result": m.Result(run="r", task="1.a")},
    "run name": {"run_spec": m.RunSpec(run="../r")},
    "run name of dots": {"run_spec": m.RunSpec(run="..")},
    "no run name": {"run_spec": m.RunSpec()},
    "archive": {"run_spec": m.RunSpec(run="x", archive=m.Payload())},
    "ask of no run": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "run": "x"})},
    "no kind": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "kind": ""})},
    "no digest": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "digest": b""})},
    "huge ask": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "ask": 2**63})},
    "no transforms": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": ""})},
    "transforms of a strange form": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": '[{"name": "top_k"}]'})},
    "deep transforms": {"ask_spec": m.AskSpec(**{**GOOD_ASK, "transforms": "[" * 99999})},
    "short hash": {"ask_spec": m.AskSpec(**GOOD_ASK, model=m.Payload(blob=m.Blob(sha256=b"x")))},
    "task of no run": {"task": m.Task(**{**GOOD_TASK, "run": "x"})},
    "task of no ask": {"task": m.Task(**{**GOOD_TASK, "ask": 7, "task": "7.a"})},
    "other task id": {"task": m.Task(**{**GOOD_TASK, "task": "1.b"})},
    "no client": {"task": m.Task(**{**GOOD_TASK, "client": "", "task": "1."})},
    "no attempt": {"task": m.Task(**{**GOOD_TASK, "attempt": 0})},
    "no key": {"task": m.Task(**{**GOOD_TASK, "key": b""})},
    "no data key": {"task": m.Task(**{**GOOD_TASK, "data_key": b"short"})},
    "another client's state": {"task": m.Task(**GOOD_TASK, base="0.b")},
    "empty own": {"task": m.Task(**GOOD_TASK, own=m.Payload())},
    "huge close": {"close_ask": m.CloseAsk(run="r", ask=2**63)},
    "status": {"close_run": m.CloseRun(run="r", status="lost")},
    "run to close": {"close_run": m.CloseRun(run="", status="finished")},
}


@pytest.mark.parametrize("name", BAD)
def test_a_message_that_makes_no_sense_changes_nothing(hosted, name):
    hosted.spool.commit()
    with pytest.raises(ProtocolError) as caught:
        hosted.get(**BAD[name])
    assert caught.value.code in (m.CODE_MALFORMED, m.CODE_NOT_ALLOWED, m.CODE_UNKNOWN)
    assert not hosted.spool.take()
    assert started(hosted.task("a")) == [("r", "1.a")]
    assert said(hosted.ask(2), "result") == []
