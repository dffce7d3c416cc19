"""What operators ask about who takes part: nodes, operators, and what is noted of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from ..errors import Refused
from ..wire import messages as m
from .requests import Body, Offices, OperatorPeer, count_of, flag_of, text_of

MOST_NAMED = 100
"""So many clients of a node are named in a list of nodes."""


class Access:
    """Lists who takes part, lets in and puts out; `now` is the wall time. Raises `Refused` for what cannot be done."""

    def __init__(self, offices: Offices, now: Callable[[], float]) -> None:
        self._offices = offices
        self._now = now

    async def nodes(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """All nodes."""
        columns = ("id", "name", "status", "relay", "joined_at", "seen_at")
        return {
            "nodes": [
                {
                    **{column: getattr(node, column) for column in columns},
                    "clients": list(node.clients[:MOST_NAMED]),
                    "count": len(node.clients),
                    "elsewhere": dict(islice(self._offices.elsewhere(node.id).items(), MOST_NAMED)),
                    "connected": node.status == "approved" and self._offices.online(node.id),
                }
                for node in self._offices.registry.nodes()
            ]
        }

    async def invite(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """The line by which a node joins, good for some `hours`; under a `name` if that is given, or as a `relay`."""
        hours = body.get("hours", 24)
        if isinstance(hours, bool) or not isinstance(hours, int | float):
            raise Refused("hours is a number", m.CODE_MALFORMED)
        name = None if body.get("name") is None else text_of(body, "name")
        relay = flag_of(body, "relay")
        token = self._offices.registry.invite(peer.name, name, 3600.0 * hours, relay=relay)
        return {"line": self._offices.invitation(token), "expires_at": self._now() + 3600.0 * hours}

    async def approve(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Let a node take part; as a `relay`, and though it was `restored`, where that is said."""
        said = {key: flag_of(body, key) for key in ("relay", "restored")}
        node = self._offices.registry.approve(peer.name, text_of(body, "node"), **said)
        return {"node": node.id, "name": node.name}

    async def revoke(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Let a node take part no more, and end its connections."""
        node = self._offices.registry.revoke(peer.name, text_of(body, "node"))
        self._offices.revoked(node.id)
        return {"node": node.id, "name": node.name}

    async def operators(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """All operators."""
        return {"operators": self._offices.registry.tokens.operators()}

    async def add_operator(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """A new operator, with the line that lets it in."""
        name, role = text_of(body, "name"), text_of(body, "role")
        token = self._offices.registry.tokens.grant(peer.name, name, role)
        return {"name": name, "role": role, "line": self._offices.line(token)}

    async def remove_operator(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Put out an operator, unless it is the only admin."""
        name = text_of(body, "name")
        tokens = self._offices.registry.tokens
        if [row["name"] for row in tokens.operators() if row["role"] == "admin"] == [name]:
            raise Refused(f"{name} is the only admin: nobody could let others in any more", m.CODE_OUT_OF_ORDER)
        self._offices.dismissed(tokens.remove_operator(peer.name, name))
        return {"name": name}

    async def rotate(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Make an authority that will take the place of the server's."""
        self._offices.registry.audit.record(peer.name, "authority.rotate")
        return {"authority": self._offices.rotate()}

    async def retire(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Let it take its place; with `force`, though there are nodes away that may not have heard of it."""
        nodes = [node for node in self._offices.registry.nodes() if node.status == "approved"]
        away = [node.name for node in nodes if not self._offices.online(node.id)]
        if away and not flag_of(body, "force"):
            text = f"{len(away)} nodes are not connected, and may not have heard of the successor: "
            raise Refused(text + f"{', '.join(away[:20])}; --force leaves them out", m.CODE_OUT_OF_ORDER)
        self._offices.registry.audit.record(peer.name, "authority.retire", away=len(away))
        return {"authority": self._offices.retire(), "away": away[:MOST_NAMED]}

    async def audit(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """The last records of the audit, `count` of them."""
        return {"records": self._offices.registry.audit.last(count_of(body, "count", 100))}
