"""Asks and tasks as messages: what a run says to nodes, built once for all of them where it is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import encoding
from ..arrays import Arrays
from ..ask import SENT, Ask, Task, for_client
from ..errors import ClientId, StrategyError
from ..node.executor import Keys
from ..update import LONGEST_NAME
from ..wire import messages as m
from ..wire.names import client_text
from ..wire.portions import SPEC_BYTES

Stored = Callable[[Any], m.Payload]
"""What turns a tree, or `Arrays`, into a payload."""


@dataclass(slots=True)
class SentAsk:
    """An ask as a run has sent it: the round it belongs to, its place in it, its transforms' parameters, its digest."""

    id: int
    ask: Ask
    round: int
    number: int
    params: Any
    digest: bytes
    cohort: tuple[ClientId, ...]
    spec: m.AskSpec | None = None

    @property
    def routed(self) -> tuple[str, ...]:
        """The fields that each client gets its own of."""
        return tuple(name for name in SENT if callable(getattr(self.ask, name)))

    @property
    def whole(self) -> bool:
        """Whether its window takes whatever comes."""
        return bool(self.ask.window.takes_all)


def ask_spec(run: str, sent: SentAsk, store: Stored) -> m.AskSpec:
    """The message that makes an ask known to nodes; made once."""
    if sent.spec is not None:
        return sent.spec
    ask = sent.ask
    shared = {name: getattr(ask, name) for name in SENT if name not in sent.routed and name != "model"}
    shared = {**shared, "params": sent.params}
    if "config" in shared:
        shared["config"] = dict(shared["config"])
    if shared.get("inbox") is not None:
        shared["inbox"] = Arrays(shared["inbox"])
    model = None
    if "model" not in sent.routed:
        if ask.model is None:
            shared["model"] = None
        else:
            assert isinstance(ask.model, Arrays)
            model = store(ask.model)
            shared["order"] = list(ask.model)  # a file of arrays has an order of its own
    sent.spec = m.AskSpec(
        run=run,
        ask=sent.id,
        round=sent.round,
        number=sent.number,
        kind=ask.kind,
        lane=str(ask.lane),
        digest=sent.digest,
        cohort=len(sent.cohort),
        whole=sent.whole,
        fold=_json(ask.fold.spec(), "its fold"),
        transforms=_json(ask.transform.spec(), "its transforms"),
        model=model,
        shared=store(shared),
    )
    _check_size(sent.spec)
    return sent.spec


def _check_size(spec: m.AskSpec) -> None:
    """Raise `StrategyError` for what no peer would take."""
    if max(len(spec.fold), len(spec.transforms)) > SPEC_BYTES:
        raise StrategyError(
            f"an ask cannot be sent to nodes: the settings of its fold or transforms take more than {SPEC_BYTES} bytes",
            hint="Large settings go into the ask's inbox, as arrays.",
        )
    for what, name in (("kind", spec.kind), ("lane", spec.lane)):
        if len(name.encode()) > LONGEST_NAME:
            raise StrategyError(f"an ask's {what} is {name!r:.60}, longer than {LONGEST_NAME} bytes")


def task_message(run: str, sent: SentAsk, task: Task, keys: Keys, base: str, store: Stored) -> m.Task:
    """The message that has a client do its share of an ask."""
    client = task.client
    own = {name: for_client(getattr(sent.ask, name), client) for name in sent.routed}
    if own.get("inbox") is not None:
        own["inbox"] = Arrays(own["inbox"])
    if "config" in own:
        own["config"] = dict(own["config"])
    return m.Task(
        run=run,
        task=task.id,
        ask=task.ask,
        client=client_text(client),
        attempt=task.attempt,
        key=keys.of_task(sent.ask.kind, sent.round, sent.number, client).raw,
        data_key=keys.of_data(client).raw,
        base=base,
        own=store(own) if own else None,
    )


def _json(spec: Any, what: str) -> str:
    try:
        return json.dumps(spec)
    except (TypeError, ValueError) as error:
        raise StrategyError(
            f"an ask cannot be sent to nodes: {what} has settings that are not plain: {error}",
            hint="Settings of folds and transforms are numbers, text, lists and dictionaries.",
        ) from error


def stored_in(folder: Any, adopt: Callable[[Any, bytes, int], None], inline: int) -> Stored:
    """A `Stored` that keeps what is large as a file below `folder`, and tells `adopt` of it."""

    def store(value: Any) -> m.Payload:
        arrays = isinstance(value, Arrays)
        if not arrays or value.nbytes <= inline:
            data = value.to_bytes() if arrays else encoding.encode(value)
            if len(data) <= inline:
                return m.Payload(inline=data)
        import secrets

        path = folder / f"outgoing-{secrets.token_hex(8)}"
        sha, size = value.to_file(path) if arrays else encoding.save_file(path, value)
        digest = bytes.fromhex(sha)
        adopt(path, digest, size)
        return m.Payload(blob=m.Blob(sha256=digest, size=size))

    return store
