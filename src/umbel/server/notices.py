"""What the owners of nodes are told, in words."""

from __future__ import annotations

from collections.abc import Sequence

LISTED = 5
"""How many clients a notice names."""


def elsewhere(clients: Sequence[str]) -> str:
    """These clients of a node are hosted by another one."""
    return (
        f"{_named(clients)} hosted by another node, and no tasks for that come here. If this node is to take its "
        "place, have an operator type `umbel nodes ls` and `umbel nodes revoke` for that one; else give clients here "
        "other names"
    )


def here(clients: Sequence[str]) -> str:
    """These clients of a node were hosted by another one."""
    return f"{_named(clients)} hosted here now"


def _named(clients: Sequence[str]) -> str:
    listed = ", ".join(clients[:LISTED]) + (f" and {len(clients) - LISTED} others" if len(clients) > LISTED else "")
    return f"client {listed} is" if len(clients) == 1 else f"clients {listed} are"
