"""Asks as they are kept across a restart for tasks that outlive them: what their clients were to get, with every
function evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..core.ask import SENT, Ask, for_client
from ..core.elementwise import mean
from ..core.transform import chain_from_spec
from ..errors import ClientId


class Remembered:
    """A function of the client that is called once for each: later, the strategy may have moved on."""

    def __init__(self, function: Callable[[ClientId], Any]) -> None:
        self._function = function
        self._values: dict[ClientId, Any] = {}

    def __call__(self, client: ClientId) -> Any:
        if client not in self._values:
            self._values[client] = self._function(client)
        return self._values[client]


def lasting(ask: Ask) -> Ask:
    """The ask with functions that keep to what they said first."""
    own: dict[str, Any] = {name: Remembered(getattr(ask, name)) for name in SENT if callable(getattr(ask, name))}
    return replace(ask, **own)


def save_ask(ask: Ask, clients: Sequence[ClientId]) -> dict[str, Any]:
    """A tree that holds what these clients need to answer the ask; values that all clients share are kept once."""
    shared = {name: getattr(ask, name) for name in SENT if not callable(getattr(ask, name))}
    each = [[c, {name: for_client(getattr(ask, name), c) for name in SENT if name not in shared}] for c in clients]
    return {"kind": ask.kind, "lane": ask.lane, "transforms": ask.transform.spec(), "shared": shared, "each": each}


def load_ask(tree: dict[str, Any]) -> Ask:
    """The ask again, for just the clients it was saved for."""
    each: dict[ClientId, dict[str, Any]] = dict(tree["each"])
    sent = dict(tree["shared"])
    for name in SENT:
        if name not in sent:
            sent[name] = _lookup(each, name)
    clients = tuple(each)
    transforms = chain_from_spec(tree["transforms"])
    # Results are folded into the asks that come after; this fold is never used.
    return Ask(clients=clients, kind=tree["kind"], lane=tree["lane"], transforms=transforms, fold=mean(), **sent)


def _lookup(each: dict[ClientId, dict[str, Any]], name: str) -> Any:
    return lambda client: each[client][name]
