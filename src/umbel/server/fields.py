"""What the fields of messages have to be before they are kept and passed on."""

from __future__ import annotations

from typing import Any

from ..errors import ProtocolError
from ..wire import messages as m
from ..wire.blobs import most_of_answer
from ..wire.bodies import MOST, check_body
from ..wire.texts import read_json
from .ledger import AnswerEntry, payload_of

EVENT_BYTES = 1 << 20
"""So many bytes an event of a log has at most, so that it fits into any answer to an operator."""


ANSWER_BYTES = 128 << 10
"""An answer without its blob takes at most this for each client: a receipt with its metrics, and what is inline."""

_NUMBERS = ("ask", "attempt", "number", "round")


def check(kind: str, body: Any) -> None:
    """Raise `ProtocolError` for a message of this kind that lacks a field, or has one that is too large."""
    numbers = [getattr(body, name, 0) for name in _NUMBERS]
    if max(numbers) >= MOST:
        raise ProtocolError(f"a {kind} with the number {max(numbers)}; they are below 2^63", m.CODE_MALFORMED)
    if kind == "log_event" and len(body.event.encode()) > EVENT_BYTES:
        raise ProtocolError(f"an event of more than {EVENT_BYTES} bytes", m.CODE_TOO_LARGE)
    if kind == "log_event" and body.event:
        read_json(body.event, "the event of a log_event", dict)
    check_body(kind, body)


def too_large(answer: AnswerEntry, ask: m.AskSpec, largest: int) -> str:
    """Why an answer of a node is too large to be kept; empty where it is not."""
    size, most = answer.message.ByteSize(), ANSWER_BYTES * len(answer.tasks)
    if size > most:
        return (
            f"its answer has {size:,} bytes beside its arrays, such as metrics or a reason; at most {most:,} are kept"
        )
    payload = payload_of(answer.message)
    size = payload.blob.size if payload is not None else 0
    expected = most_of_answer(ask.most_bytes, partial=answer.message.WhichOneof("body") == "partial")
    if expected and size > expected:
        return f"its answer has {size:,} bytes, and what ask {ask.ask} expects has at most {expected:,}"
    if size > largest:
        return (
            f"its answer has {size:,} bytes, and the server takes at most {largest:,} of one node "
            "(see --quota, --node-quota and --largest-answer of `umbel server`)"
        )
    return ""
