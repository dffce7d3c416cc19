"""Asks and tasks as messages: what a run says to nodes, built once for all of them where it is the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..core import encoding
from ..core.arrays import Arrays
from ..core.ask import SENT, Ask, for_client
from ..core.task import Task
from ..core.update import LONGEST_NAME, Free
from ..errors import ClientId, StrategyError
from ..files import linked
from ..wire import messages as m
from ..wire.limits import SPEC_BYTES
from ..wire.names import client_text
from ..work.contents import in_message
from ..work.executor import Keys

ELEMENT_BYTES, ARRAY_BYTES, ANSWER_BYTES = 32, 4 << 10, 64 << 10
"""So much of an answer may fall to each element that is expected (whatever transforms make of it: an index beside it,
shares, words of 64 bits), to each array, and to the whole."""
Stored = Callable[[Any], m.Payload]
"""What turns a tree, or `Arrays`, into a payload."""


@dataclass
class RemoteAsk:
    """An ask as a run has sent it: the round it belongs to, its place in it, its transforms' parameters, its digest."""

    id: int
    ask: Ask
    round: int
    number: int
    params: Any
    digest: bytes
    cohort: tuple[ClientId, ...]
    spec: m.AskSpec | None = None

    @cached_property
    def clients(self) -> frozenset[ClientId]:
        """Who is asked."""
        return frozenset(self.cohort)

    @cached_property
    def routed(self) -> tuple[str, ...]:
        """The fields that each client gets its own of."""
        return tuple(name for name in SENT if callable(getattr(self.ask, name)))

    @property
    def whole(self) -> bool:
        """Whether its window takes whatever comes, and sums of updates can be checked against a bound that it names."""
        return bool(self.ask.window.takes_all and not self.ask.transform.moving)


def ask_spec(run: str, sent: RemoteAsk, store: Stored) -> m.AskSpec:
    """The message that makes an ask known to nodes; made once."""
    if sent.spec is not None:
        return sent.spec
    ask = sent.ask
    shared = {name: getattr(ask, name) for name in SENT if name not in sent.routed and name != "model"}
    shared = {**shared, "params": sent.params}
    if sent.routed:
        shared["own"] = list(sent.routed)
    if "config" in shared:
        shared["config"] = dict(shared["config"])
    model = None
    if "model" not in sent.routed:
        if ask.model is None:
            shared["model"] = None
        else:
            assert isinstance(ask.model, Arrays)
            model = store(ask.model)
            if model.HasField("blob"):
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
        most_bytes=answer_bytes(ask),
    )
    _check_size(sent.spec)
    return sent.spec


def answer_bytes(ask: Ask) -> int:
    """What no client's answer to an ask is larger than, by the arrays that are expected; 0 where they are not known."""
    if callable(ask.expects) or callable(ask.model):
        return 0
    arrays = size = 0
    model = ask.model if isinstance(ask.model, Arrays) else None
    for expects in (ask.expects, ask.expects.aux):
        if isinstance(expects, Free) and expects.max_bytes is None:
            return 0
        if isinstance(expects, Free):
            size += 2 * (expects.max_bytes or 0)
        elif expects is not None and (schema := expects.schema(model)) is not None:
            arrays += len(schema)
            size += sum(math.prod(spec.shape) for spec in schema.values()) * ELEMENT_BYTES
    return size + arrays * ARRAY_BYTES + ANSWER_BYTES


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


def task_message(run: str, sent: RemoteAsk, task: Task, keys: Keys, base: str, store: Stored) -> m.Task:
    """The message that has a client do its share of an ask."""
    client = task.client
    own = {name: for_client(getattr(sent.ask, name), client) for name in sent.routed}
    if not own.keys().isdisjoint(("model", "expects")):
        sent.ask.agreed(*(own.get(name, getattr(sent.ask, name)) for name in ("model", "expects")))
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
    """A `Stored` that keeps what is large as a file below `folder`, and tells `adopt` of it; what has up to `inline`
    bytes goes in the message.
    """

    def store(value: Any) -> m.Payload:
        arrays = isinstance(value, Arrays)
        if not arrays or value.nbytes <= inline:
            data = in_message(value)
            if len(data) <= inline:
                return m.Payload(message=data)
        import secrets

        path = folder / f"outgoing-{secrets.token_hex(8)}"
        known = value.stored if arrays else None
        if known is not None and linked(known.path, path):
            sha, size = known.sha256, known.size
        else:
            sha, size = value.to_file(path) if arrays else encoding.save_file(path, value)
        digest = bytes.fromhex(sha)
        adopt(path, digest, size)
        return m.Payload(blob=m.Blob(sha256=digest, size=size))

    return store
