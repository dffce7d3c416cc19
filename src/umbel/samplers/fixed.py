"""The same clients each time: all of them, or those that are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..core.sampler import client_name, clients_text, set_frozen
from ..errors import ClientId, SamplingError, SettingError


@dataclass(frozen=True)
class Everyone:
    """All clients, in the federation's order."""

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """All clients; the key is not used."""
        return tuple(clients)

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "everyone"}


@dataclass(frozen=True)
class Fixed:
    """Always these clients, in this order; one that is not in the federation is a `SamplingError`."""

    clients: tuple[ClientId, ...]

    def __post_init__(self) -> None:
        if isinstance(self.clients, str) or not isinstance(self.clients, Sequence):
            raise SettingError(f"Fixed takes a list or tuple of clients, not {self.clients!r}")
        named = tuple(client_name("Fixed", client) for client in self.clients)
        if not named:
            raise SettingError("Fixed names no client", hint="Name at least one.")
        if len(set(named)) < len(named):
            twice = next(client for client, times in Counter(named).items() if times > 1)
            raise SettingError(f"Fixed names client {twice!r} more than once", hint="Name each client once.")
        set_frozen(self, "clients", named)

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """The clients, once they are known to exist; the key is not used."""
        if isinstance(clients, range):  # a range looks at each of its numbers to find text
            absent = [client for client in self.clients if isinstance(client, str) or client not in clients]
        else:
            known = set(clients)
            absent = [client for client in self.clients if client not in known]
        if absent:
            shown = ", ".join(repr(client) for client in absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise SamplingError(
                f"Fixed asks for {clients_text(len(self.clients))}, but {len(absent)} of them are not among the "
                f"{len(clients)} in the federation: {shown}",
                hint="Name clients as the federation does: numbers in a simulation, names of nodes in a deployment.",
            )
        return self.clients

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "fixed", "clients": list(self.clients)}
