"""Who takes part in runs, and how far: preparing, ready, refused, offline."""

from __future__ import annotations

from collections.abc import Iterable

from ..wire import messages as m
from ..wire.portions import portions
from .ledger import NodeEntry, RunEntry
from .nodes import Nodes
from .signals import Outbox

MEMBERS = 500
"""How many clients one message tells of: with names and reasons as long as they may be it fits into a frame."""


class Standings:
    """How the clients of runs stand; whoever drives a run is told of every change.

    Clients are those that some node hosts: of them a run is about the ones that it names, or all.
    """

    def __init__(self, nodes: Nodes, out: Outbox) -> None:
        self._nodes, self._out = nodes, out

    def clients(self, run: RunEntry, node: str | None = None) -> list[str]:
        """The clients that a run is about; with a node's id, those that it hosts."""
        if run.spec is None or not (node is None or node in self._nodes.by_id):
            return []
        if node is not None:
            return self.hosted(run, self._nodes.by_id[node])
        wanted = self._wanted(run)
        return [client for client in self._nodes.by_client if not wanted or client in wanted]

    def hosted(self, run: RunEntry, node: NodeEntry) -> list[str]:
        """The clients of a node that a run is about; to be read only. They are found anew when either has changed."""
        if run.spec is None:
            return []
        known = run.mine.get(node.id)
        if known is None or known[0] is not node.clients or known[1] is not run.spec:
            wanted = self._wanted(run)
            found = [client for client in node.clients if not wanted or client in wanted]
            run.mine[node.id] = known = (node.clients, run.spec, found)
        return known[2]

    def involves(self, run: RunEntry, node: NodeEntry) -> bool:
        """Whether a run is about clients of a node."""
        return bool(self.hosted(run, node))

    @staticmethod
    def _wanted(run: RunEntry) -> frozenset[str]:
        if run.wanted[0] is not run.spec:
            run.wanted = (run.spec, frozenset(run.spec.clients if run.spec is not None else ()))
        return run.wanted[1]

    def invite(self, run: RunEntry, node: NodeEntry) -> None:
        """Have a node prepare for a run that is about clients of it."""
        if node.peer is not None and run.spec is not None and (mine := self.clients(run, node.id)):
            self._out.say(node.peer, durable=True, run_spec=run.spec)
            self.stand(run, mine, m.STANDING_PREPARING)

    def leave(self, run: RunEntry, gone: Iterable[str]) -> None:
        """These clients, which no node hosts any more, are gone from a run."""
        theirs = [client for client in gone if client in run.standings]
        self.stand(run, [c for c in theirs if run.standings[c][0] != m.STANDING_REFUSED], m.STANDING_OFFLINE)

    def stand(self, run: RunEntry, clients: Iterable[str], standing: int, reason: str = "") -> None:
        """From now on these clients stand like this."""
        stood = (standing, reason)  # one for all of them
        changed = [client for client in clients if run.standings.get(client) != stood]
        run.standings.update(dict.fromkeys(changed, stood))
        self.tell(run, changed)

    def tell(self, run: RunEntry, clients: Iterable[str]) -> None:
        """Say to whoever drives a run how these clients stand."""
        members = []
        for client in clients if run.peer is not None else ():
            node, (standing, reason) = (
                self._nodes.by_id.get(self._nodes.by_client.get(client, "")),
                run.standings[client],
            )
            name = node.name if node is not None else ""
            members.append(m.Member(client=client, node=name, standing=standing, reason=reason))  # type: ignore[arg-type]
        for part in portions(members, m.Member.ByteSize, most=MEMBERS):
            self._out.say(run.peer, members=m.Members(run=run.id, members=part))
