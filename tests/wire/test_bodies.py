"""What messages about work have to be, at each limit and one beyond."""

from __future__ import annotations

import pytest

from umbel.errors import ProtocolError
from umbel.wire import messages as m
from umbel.wire.bodies import MOST, check_body, tasks_of

KEY = b"k" * 32
TASK = m.Task(run="r", task="0.a", ask=0, client="a", attempt=1, key=KEY, data_key=KEY)
ASK = m.AskSpec(run="r", ask=0, kind="train", digest=b"d", transforms="[]")
EMPTY, SHORT = m.Payload(), m.Payload(blob=m.Blob(sha256=b"s" * 31, size=1))
LARGE, WHOLE = m.Payload(blob=m.Blob(sha256=KEY, size=MOST)), m.Payload(blob=m.Blob(sha256=KEY, size=MOST - 1))
DONE = m.Done(receipt=m.Receipt(task="0.a"), update=m.Payload(inline=b"u"))


def changed(message, **fields):
    found = type(message)()
    found.CopyFrom(message)
    found.MergeFrom(type(message)(**fields))
    return found


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("run_spec", m.RunSpec(run="r", archive=WHOLE, config='{"lr": 1}')),
        ("ask_spec", changed(ASK, ask=MOST - 1, model=WHOLE, shared=m.Payload(inline=b""), fold='["mean"]')),
        ("task", changed(TASK, base="7.a", own=WHOLE)),
        ("result", m.Result(failure=m.Failure(reason="no"))),
        ("result", m.Result(done=DONE)),
        ("partial", m.Partial(partial=WHOLE, receipts=[m.Receipt(task="0.a"), m.Receipt(task="0.b")])),
        ("alive", m.Alive()),
    ],
)
def test_what_is_whole_passes(kind, body):
    check_body(kind, body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("run_spec", m.RunSpec()),
        ("run_spec", m.RunSpec(run="../r")),
        ("run_spec", m.RunSpec(run="r", config="[]")),
        ("run_spec", m.RunSpec(run="r", contract='{"a":' * 40 + "1" + "}" * 40)),
        *(("run_spec", m.RunSpec(run="r", archive=payload)) for payload in (EMPTY, SHORT, LARGE)),
        ("ask_spec", m.AskSpec(run="r", kind="train", digest=b"d")),
        ("ask_spec", changed(ASK, ask=MOST)),
        ("ask_spec", changed(ASK, fold="{}")),
        ("ask_spec", m.AskSpec(run="r", kind="k", digest=b"d", transforms='[{"name": "x", "version": Infinity}]')),
        *(("ask_spec", changed(ASK, **{name: each})) for name in ("model", "shared") for each in (EMPTY, SHORT, LARGE)),
        ("task", m.Task()),
        ("task", changed(TASK, task="1.a")),
        ("task", changed(TASK, base="7.b")),
        ("task", changed(TASK, key=KEY + b"k")),
        *(("task", changed(TASK, own=payload)) for payload in (EMPTY, SHORT, LARGE)),
        ("result", m.Result()),
        ("result", m.Result(done=m.Done(receipt=m.Receipt()))),
        *(("result", m.Result(done=m.Done(receipt=m.Receipt(), update=each))) for each in (EMPTY, SHORT, LARGE)),
        ("partial", m.Partial(receipts=[m.Receipt(task="0.a")])),
        ("partial", m.Partial(partial=WHOLE)),
        ("partial", m.Partial(partial=WHOLE, receipts=[m.Receipt(task="0.a"), m.Receipt(task="0.a")])),
        *(("partial", m.Partial(partial=each, receipts=[m.Receipt(task="0.a")])) for each in (EMPTY, SHORT, LARGE)),
    ],
)
def test_what_lacks_a_field_or_is_out_of_range_is_refused(kind, body):
    with pytest.raises(ProtocolError):
        check_body(kind, body)


def test_only_what_answers_tasks_has_some():
    assert tasks_of(m.Message(result=m.Result(task="0.a"))) == ["0.a"]
    assert tasks_of(m.Message(partial=m.Partial(receipts=[m.Receipt(task="0.a"), m.Receipt(task="0.b")]))) == [
        "0.a",
        "0.b",
    ]
    assert tasks_of(m.Message(alive=m.Alive(tasks=["0.a"]))) == []
