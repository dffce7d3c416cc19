"""The roles of peers: what each is called, what it says, and what it is told; and those of operators."""

from __future__ import annotations

from . import messages as m

NAMES: dict[int, str] = {m.ROLE_NODE: "node", m.ROLE_RUN: "run", m.ROLE_OPERATOR: "operator", m.ROLE_CHECK: "check"}

BLOBS = frozenset({"want", "chunk", "credit", "linked", "unwanted"})
"""What concerns blobs."""
EITHER = BLOBS | {"ping", "pong"}
"""What either side of any connection may say after its Welcome."""

_WORK = frozenset({"run_spec", "ask_spec", "task", "cancel", "close_ask", "close_run", "refold"})
_OUTCOME = frozenset({"run_answer", "result", "alive"})

SAYS: dict[str, frozenset[str]] = {
    "node": _OUTCOME | {"hosted", "notice"},
    "relay": _OUTCOME | {"hosted", "notice", "partial"},
    "run": _WORK | {"log_event"},
    "operator": frozenset({"request"}),
    "check": frozenset(),
}
"""What each may send to the server besides; a relay is a node that an admin has made one."""
HEARS: dict[str, frozenset[str]] = {
    "node": _WORK | {"ack", "notice"},
    "run": _OUTCOME | {"partial", "members", "log_ack", "close_run", "notice"},
    "operator": frozenset({"response"}),
    "check": frozenset(),
}
"""What the server may send to each besides."""

OPERATORS = ("read", "run", "admin")
"""What operators may be; each may do all that those before it may."""


def at_least(role: str, needed: str) -> bool:
    """Whether an operator's role, which may be unknown, is enough where this one is needed."""
    return role in OPERATORS and OPERATORS.index(role) >= OPERATORS.index(needed)
