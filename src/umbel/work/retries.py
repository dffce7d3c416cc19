"""How often what hosts a client is begun anew when it dies, and after how long."""

from __future__ import annotations

HOST_TRIES = 8
"""A host that dies so many times in a row before it is ready is refused."""
AGAIN_AFTER, AGAIN_AT_MOST = 0.25, 30.0
"""Seconds until a host that died is tried again, at first, and however often that has doubled."""


def wait(tries: int) -> float:
    """Seconds to wait before the next try, after so many in a row."""
    return min(AGAIN_AFTER * 2.0 ** (tries - 1), AGAIN_AT_MOST)
