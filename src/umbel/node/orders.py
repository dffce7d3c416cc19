"""What a server may say to a node, and what is in it."""

from __future__ import annotations

from typing import Any

from ..errors import ProtocolError
from ..wire import messages as m
from ..wire.bodies import body_text, check_body
from ..wire.names import RUN_ID
from ..wire.texts import read_steps

_LARGEST_ASK = 2**63 - 1
_OVER = ("finished", "failed", "stopped")


def check(message: m.Message) -> None:
    """Raise `ProtocolError` for an order that lacks a field, or has one that is out of range."""
    match message.WhichOneof("body"):
        case "run_spec" | "ask_spec" | "task" as kind:
            check_body(kind, getattr(message, kind))
        case "close_ask":
            _require(message.close_ask.ask <= _LARGEST_ASK, f"the CloseAsk of {message.close_ask.run}")
        case "close_run":
            over = message.close_run
            _require(over.status in _OVER, f"the CloseRun of {over.run} with the status {over.status!r:.50}")
            _require(RUN_ID.fullmatch(over.run) is not None, f"a CloseRun with the run {over.run!r:.250}")


def ask_text(ask: m.AskSpec) -> str:
    """An ask, as errors name it."""
    return body_text("ask_spec", ask)


def task_text(task: m.Task) -> str:
    """A task, as errors name it."""
    return body_text("task", task)


def steps_of(ask: m.AskSpec) -> list[tuple[str, int]]:
    """The names and versions of an ask's transforms. Raises `ProtocolError` for other JSON."""
    return read_steps(ask.transforms, f"what describes the transforms of {ask_text(ask)}")


def blob_of(message: Any, name: str) -> m.Blob | None:
    """The blob that a field of a message refers to, if it does."""
    payload: m.Payload = getattr(message, name)
    return payload.blob if payload.WhichOneof("at") == "blob" else None


def too_large(task: m.Task, ask: m.AskSpec, largest: int | None) -> str:
    """Why a task is not done, by what would have to be fetched for it; empty if nothing is too large."""
    for message, name in ((ask, "model"), (ask, "shared"), (task, "own")):
        blob = blob_of(message, name)
        if blob is not None and largest is not None and blob.size > largest:
            return f"what it needs has {blob.size:,} bytes ({name}), and this node keeps at most {largest:,} at once"
    return ""


def ask_of(task: str) -> int:
    """The ask that a task belongs to."""
    return int(task.partition(".")[0])


def client_of(task: str) -> str:
    """The client that a task is for."""
    return task.partition(".")[2]


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ProtocolError(f"{what}: a field is missing or out of range", m.CODE_MALFORMED)
