"""What messages lack is found; test_router.py shows what follows from that."""

from __future__ import annotations

import pytest

from umbel.errors import ProtocolError
from umbel.server.fields import MOST, check
from umbel.wire import messages as m
from umbel.wire.limits import EVENT_BYTES


def test_whole_messages_pass():
    key = b"k" * 32
    check("task", m.Task(task="3.x", ask=3, client="x", attempt=1, key=key, data_key=key))
    check("ask_spec", m.AskSpec(run="r", ask=MOST - 1, kind="train", digest=b"d", transforms="[]"))
    check("result", m.Result(failure=m.Failure()))
    check("result", m.Result(done=m.Done(receipt=m.Receipt(), update=m.Payload(inline=b"u"))))
    check("partial", m.Partial(receipts=[m.Receipt(task="0.0")], partial=m.Payload(inline=b"p")))
    check("cancel", m.Cancel())
    check("log_event", m.LogEvent(event="{}"))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("close_ask", m.CloseAsk(ask=MOST)),
        ("log_event", m.LogEvent(number=MOST, event="{}")),
        ("task", m.Task()),
    ],
)
def test_what_is_wrong_is_named(kind, body):
    with pytest.raises(ProtocolError, match=f"(?i)(a|the) {kind} ") as caught:
        check(kind, body)
    assert caught.value.code == m.CODE_MALFORMED


def test_an_event_is_not_longer_than_any_answer_may_be():
    check("log_event", m.LogEvent(number=1, event='{"a":"' + "x" * (EVENT_BYTES - 8) + '"}'))
    with pytest.raises(ProtocolError, match="an event of more than") as caught:
        check("log_event", m.LogEvent(number=1, event='{"a":"' + "ä" * (EVENT_BYTES // 2) + '"}'))
    assert caught.value.code == m.CODE_TOO_LARGE
