"""What operators ask about who takes part: nodes, operators, and what is noted of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from ..errors import Refused
from ..wire import messages as m
from .claims import Bounds
from .requests import Body, Offices, OperatorPeer, count_of, flag_of, is_whole, list_of, text_of
from .signals import Bounded, Released, Revoked

MOST_HOURS = 100_000
"""So long an invitation is good at most: about eleven years."""
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
            "nodes": (
                {
                    **{column: getattr(node, column) for column in columns},
                    "clients": list(node.clients[:MOST_NAMED]),
                    "count": len(node.clients),
                    "refused": dict(islice(self._offices.denied(node.id).items(), MOST_NAMED)),
                    "problem": self._offices.ails(node.id),
                    "bounds": node.bounds.row(),
                    "connected": node.status == "approved" and self._offices.online(node.id),
                }
                for node in self._offices.registry.nodes()
            )
        }

    async def invite(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """The line by which a node joins, good for some `hours`; under a `name` if that is given, or as a `relay`."""
        hours = body.get("hours", 24)
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours <= MOST_HOURS:
            raise Refused(f"hours is a number of up to {MOST_HOURS}", m.CODE_MALFORMED)
        name = None if body.get("name") is None else text_of(body, "name")
        relay = flag_of(body, "relay")
        bounds = _bounds_of(body)
        token = self._offices.registry.invite(peer.name, name, 3600.0 * hours, relay=relay, bounds=bounds)
        return {"line": self._offices.invitation(token), "expires_at": self._now() + 3600.0 * hours}

    async def approve(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Let a node take part; as a `relay`, though it was `restored`, or with some `clients`, `most` of them, where
        that is said.
        """
        said = {key: flag_of(body, key) for key in ("relay", "restored")}
        bounds = _bounds_of(body)
        node = self._offices.registry.approve(peer.name, text_of(body, "node"), bounds=bounds, **said)
        if bounds:
            self._offices.tell(Bounded(node.id))
        return {"node": node.id, "name": node.name}

    async def release(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Free client names, these `clients` or all of a `node`, which go to whoever names them, too."""
        registry = self._offices.registry
        names = list_of(body, "clients")
        if "node" in body:
            names += registry.claims.names(registry.node(text_of(body, "node")).id)
        for client in names:
            owner = registry.claims.owner(client)
            if owner is not None and self._offices.host(client) == owner and self._offices.online(owner):
                text = f"client {client!r:.80} is hosted by {owner[:8]}, which is connected: revoke that node first"
                raise Refused(text, m.CODE_OUT_OF_ORDER)
        registry.release(peer.name, names)
        self._offices.tell(Released(tuple(names)))
        homes = {client: self._offices.host(client) for client in names[:MOST_NAMED]}
        return {"count": len(names), "hosts": {client: home for client, home in homes.items() if home}}

    async def revoke(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Let a node take part no more, and end its connections."""
        node = self._offices.registry.revoke(peer.name, text_of(body, "node"))
        self._offices.tell(Revoked(node.id))
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
        """The last records of the audit, `count` of them; or the first so many after the number `after`."""
        audit, count = self._offices.registry.audit, count_of(body, "count", 100)
        after = body.get("after")
        if after is None:
            return {"records": audit.last(count)}
        if not is_whole(after, 0):
            raise Refused("after is the number of a record", m.CODE_MALFORMED)
        return {"records": audit.after(after, count)}


def _bounds_of(body: Body) -> Bounds:
    return Bounds(tuple(list_of(body, "clients")), count_of(body, "most", None))
