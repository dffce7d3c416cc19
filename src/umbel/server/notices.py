"""What the owners of nodes are told, in words."""

from __future__ import annotations

from collections.abc import Sequence

from .claims import ANOTHERS

LISTED = 5
"""How many clients a notice names."""


def refused(clients: Sequence[str], why: str) -> str:
    """A node may not host these clients, and what to do."""
    mend = "an operator lets it have more by `umbel nodes approve ID --clients NAMES --at-most N`"
    if why == ANOTHERS:
        mend = (
            "if this node is to take its place, have an operator type `umbel nodes revoke` for that one and `umbel "
            "nodes release` for the names; else give clients here other names"
        )
    return f"{_named(clients)} refused: {why}, and no tasks for them come here; {mend}"


def here(clients: Sequence[str]) -> str:
    """These clients of a node were another's, or outside of its bounds."""
    return f"{_named(clients)} hosted here now"


def _named(clients: Sequence[str]) -> str:
    listed = ", ".join(clients[:LISTED]) + (f" and {len(clients) - LISTED} others" if len(clients) > LISTED else "")
    return f"client {listed} is" if len(clients) == 1 else f"clients {listed} are"
