"""What the fields of messages have to be before they are kept and passed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ProtocolError
from ..runs.events import RunEvent
from ..runs.schema import event_of
from ..wire import messages as m
from ..wire.blobs import most_of_answer
from ..wire.bodies import MOST, check_body
from ..wire.limits import ALIVE_TASKS, ANSWER_BYTES, CANCEL_TASKS, EVENT_BYTES, NODE_CLIENTS, SPEC_BYTES
from ..wire.portions import text_bytes
from ..wire.texts import read_json
from .ledger import AnswerEntry, payload_of

_NUMBERS = {
    body.name: [name for name in ("ask", "attempt", "number", "round") if name in body.message_type.fields_by_name]
    for body in m.Message.DESCRIPTOR.fields
    if body.message_type is not None
}


_LISTS: dict[str, tuple[tuple[str, int], ...]] = {
    "hosted": (("clients", NODE_CLIENTS),),
    "alive": (("tasks", ALIVE_TASKS),),
    "run_answer": (("clients", ALIVE_TASKS),),
    "cancel": (("tasks", CANCEL_TASKS),),
    "refold": (("without", CANCEL_TASKS),),
    "partial": (("receipts", CANCEL_TASKS),),
}
"""Lists whose length is bounded: a message is taken in at once, and others wait meanwhile."""
_PARTS = {"run_spec": ("contract", "config", "clients"), "ask_spec": ("fold", "transforms")}


def _bytes(part: Any) -> int:
    return len(part.encode()) if isinstance(part, str) else sum(map(text_bytes, part))


def check(kind: str, body: Any) -> None:
    """Raise `ProtocolError` for a message of this kind that lacks a field, or has one that is too large."""
    for name in _NUMBERS.get(kind, ()):
        if (number := getattr(body, name)) >= MOST:
            raise ProtocolError(f"a {kind} with the number {number}; they are below 2^63", m.CODE_MALFORMED)
    if kind == "log_event" and len(body.event.encode()) > EVENT_BYTES:
        raise ProtocolError(f"an event of more than {EVENT_BYTES} bytes", m.CODE_TOO_LARGE)
    for name, most in _LISTS.get(kind, ()):
        if len(getattr(body, name)) > most:
            text = f"a {kind} with {len(getattr(body, name)):,} {name}; {most:,} are the most"
            raise ProtocolError(text, m.CODE_TOO_LARGE)
    for name in _PARTS.get(kind, ()):
        if _bytes(getattr(body, name)) > SPEC_BYTES:
            raise ProtocolError(f"a {kind} whose {name} takes more than {SPEC_BYTES:,} bytes", m.CODE_TOO_LARGE)
    check_body(kind, body)


def event_in(text: str, *, plain: bool = False) -> RunEvent | None:
    """The event of a run that is written as JSON; None for one that this release does not know. Raises `ProtocolError`
    for anything else; `plain` is as `read_json` has it.
    """
    try:
        return event_of(read_json(text, "the event of a log_event", dict, plain=plain))
    except TypeError as error:
        raise ProtocolError(f"the event of a log_event is none: {error}", m.CODE_MALFORMED) from None


def too_large(answer: AnswerEntry, ask: m.AskSpec, largest: Callable[[str], int]) -> str:
    """Why an answer of a node is too large to be kept; empty where it is not. `largest` is as a `Router` has it."""
    size, most = answer.message.ByteSize(), ANSWER_BYTES * len(answer.tasks)
    if size > most:
        return (
            f"its answer has {size:,} bytes beside its arrays, such as metrics or a reason; at most {most:,} are kept"
        )
    payload = payload_of(answer.message)
    if payload is None or not payload.HasField("blob"):
        return ""
    size, most = payload.blob.size, largest("node")
    expected = most_of_answer(ask.most_bytes, partial=answer.message.WhichOneof("body") == "partial")
    if expected and size > expected:
        return f"its answer has {size:,} bytes, and what ask {ask.ask} expects has at most {expected:,}"
    if size > most:
        return (
            f"its answer has {size:,} bytes, and the server takes at most {most:,} of one node "
            "(see --quota, --node-quota and --largest-answer of `umbel server`)"
        )
    return ""
