"""What messages about work have to be, whoever hears them: a server passes on to nodes nothing that these would not
take, so that a run can harm no node's connection.
"""

from __future__ import annotations

from typing import Any

from ..errors import ProtocolError
from . import messages as m
from .names import RUN_ID
from .texts import read_json, read_steps

KEY_BYTES = 32
HASH_BYTES = 32
MOST = 2**63
"""Numbers are below this, so that any store can hold them."""

_PAYLOADS = {"run_spec": ("archive",), "ask_spec": ("model", "shared"), "task": ("own",), "partial": ("partial",)}
_JSON: dict[str, tuple[tuple[str, type[Any]], ...]] = {
    "run_spec": (("contract", dict), ("config", dict)),
    "ask_spec": (("fold", list),),
}
"""Fields that are JSON, and what it is."""


def check_body(kind: str, body: Any) -> None:
    """Raise `ProtocolError` for a message of this kind in which a field is missing, or out of range."""
    if not _fits(kind, body):
        raise ProtocolError(
            f"{body_text(kind, body)}: a field is missing or out of range, or fields disagree", m.CODE_MALFORMED
        )
    for name in _PAYLOADS.get(kind, ()):
        _check_payload(body, name, kind)
    if kind == "result" and body.HasField("done"):
        _check_payload(body.done, "update", kind)
    for name, of in _JSON.get(kind, ()):
        if text := getattr(body, name):
            read_json(text, f"the {name} of {body_text(kind, body)}", of)
    if kind == "ask_spec":
        read_steps(body.transforms, f"what describes the transforms of {body_text(kind, body)}")


def tasks_of(message: m.Message) -> list[str]:
    """The tasks that a message answers: one of a `Result`, several of a `Partial`, none of any other."""
    kind = message.WhichOneof("body")
    if kind == "partial":
        return [receipt.task for receipt in message.partial.receipts]
    return [message.result.task] if kind == "result" else []


def body_text(kind: str, body: Any) -> str:
    """A message, as errors name it."""
    run = f"{getattr(body, 'run', '')!r:.250}"
    if kind == "ask_spec":
        return f"the AskSpec {body.ask} of {run}"
    if kind == "task":
        return f"the Task {body.task!r:.250} of {run}"
    return f"the {kind} of {run}"


def _fits(kind: str, body: Any) -> bool:
    if kind == "run_spec":
        return RUN_ID.fullmatch(body.run) is not None
    if kind == "ask_spec":
        return bool(body.kind and body.digest and body.transforms) and body.ask < MOST
    if kind == "task":
        named = body.task == f"{body.ask}.{body.client}" and bool(body.client and body.attempt)
        based = not body.base or body.base.partition(".")[2] == body.client
        return bool(named and based and body.ask < MOST and len(body.key) == len(body.data_key) == KEY_BYTES)
    if kind == "result":
        done = body.HasField("done") and body.done.HasField("receipt") and body.done.HasField("update")
        return bool(body.HasField("failure") or done)
    if kind == "partial":
        return bool(body.HasField("partial")) and 0 < len(body.receipts) == len({each.task for each in body.receipts})
    return True


def _check_payload(holder: Any, name: str, kind: str) -> None:
    if not holder.HasField(name):
        return
    payload: m.Payload = getattr(holder, name)
    at = payload.WhichOneof("at")
    if at is None or (at == "blob" and (len(payload.blob.sha256) != HASH_BYTES or payload.blob.size >= MOST)):
        raise ProtocolError(f"the {name} of a {kind} is no payload", m.CODE_MALFORMED)
