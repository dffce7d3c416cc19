"""Everyone is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.randomness import Key
from ..errors import ClientId


@dataclass(frozen=True)
class Everyone:
    """All clients, in the federation's order."""

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """All clients; the key is not used."""
        return tuple(clients)

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict."""
        return {"name": "everyone"}
