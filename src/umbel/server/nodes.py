"""The nodes of a server: which hosts which client, and what waits for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..store.records import Store
from ..wire import messages as m
from . import notices
from .claims import ANOTHERS, Claims, by_reason
from .ledger import AskEntry, NodeEntry, RunEntry, TaskEntry
from .signals import Outbox


class Nodes:
    """The approved nodes, by id, and by client the id of the node that hosts it; for each as many tasks as are to wait.

    Whose a client is `claims` says. Once a name is released it goes to another node that named it, with which `moved`
    is called.
    """

    def __init__(self, store: Store, out: Outbox, moved: Callable[[NodeEntry], None], claims: Claims) -> None:
        self._store, self._out, self._moved, self.claims = store, out, moved, claims
        self.by_id: dict[str, NodeEntry] = {}
        self.by_client: dict[str, str] = {}
        self._refused: dict[str, dict[str, None]] = {}
        for row in store.rows("nodes"):
            if row["status"] in ("approved", "restored"):
                node = self.by_id[row["id"]] = NodeEntry(row["id"], row["name"], seen=row["seen_at"] or 0.0)
                self._settle(node, row["clients"] or ())

    # Clients

    def online(self, node: str) -> bool:
        """Whether a node is connected."""
        return node in self.by_id and self.by_id[node].peer is not None

    def clients(self) -> frozenset[str]:
        """All clients that nodes host, connected or not."""
        return frozenset(self.by_client)

    def refused(self, node: str) -> dict[str, str]:
        """The clients that a node names and may not host, each with the reason."""
        found = self.by_id[node].refused if node in self.by_id else {}
        return {client: self._whose(client) if why == ANOTHERS else why for client, why in found.items()}

    def problem(self, node: str) -> str:
        """What a node that is connected says is its problem, such as a full disk."""
        return self.by_id[node].problem if self.online(node) else ""

    def _whose(self, client: str) -> str:
        owner = self.claims.owner(client) or ""
        return f"bound to {self.by_id[owner].name if owner in self.by_id else owner[:8]}"

    def host(self, node: NodeEntry, clients: Iterable[str], *, anew: bool = False, **columns: Any) -> list[str]:
        """From now on a node names these clients; `columns` of its row change, too. Gives those that no node hosts any
        more. With `anew` its names are judged though they are the same.
        """
        named, gone = tuple(dict.fromkeys(clients)), list[str]()
        if named != node.named or anew:
            gone = self._settle(node, named)
            columns["clients"] = list(node.clients)
        if columns:  # as after a connection that was lost: nothing is to be done for each client
            self._store.put("nodes", {"id": node.id, **columns})
        for why, listed in by_reason(node.refused).items():
            self._out.say(node.peer, notice=m.Notice(text=notices.refused(listed, why)))
        return gone

    def remove(self, id: str) -> NodeEntry | None:
        """Know a node no more, and give it, if it was known; its clients' names stay its own."""
        node = self.by_id.pop(id, None)
        for client in node.clients if node is not None else ():
            del self.by_client[client]
        if node is not None:
            self._index(node, {})
        return node

    def let_go(self, released: Collection[str]) -> list[str]:
        """Clients whose names were released leave their nodes, and go to the first that named them, too. Gives those
        that no node hosts any more.
        """
        gone = dict.fromkeys(released)
        for home in dict.fromkeys(self.by_client.pop(client) for client in gone if client in self.by_client):
            node = self.by_id[home]
            node.clients = tuple(client for client in node.clients if client not in gone)
            node.named = tuple(client for client in node.named if client not in gone)
            self._store.put("nodes", {"id": node.id, "clients": list(node.clients)})
        heirs = dict.fromkeys(id for client in gone for id in self._refused.get(client, ()))
        for heir in [self.by_id[id] for id in heirs]:
            before = set(heir.clients)
            self._settle(heir, heir.named)
            if new := [client for client in heir.clients if client not in before]:
                self._store.put("nodes", {"id": heir.id, "clients": list(heir.clients)})
                self._out.say(heir.peer, notice=m.Notice(text=notices.here(new)))
                self._moved(heir)
        return [client for client in gone if client not in self.by_client]

    def _settle(self, node: NodeEntry, clients: Iterable[str]) -> list[str]:
        """A node has those of these clients whose names are its own. Gives those that it hosts no more."""
        before = node.clients
        for client in before:
            del self.by_client[client]
        node.named = tuple(dict.fromkeys(clients))
        node.clients, refused = self.claims.take(node.id, node.named)
        self.by_client.update(dict.fromkeys(node.clients, node.id))
        self._index(node, refused)
        mine = set(node.clients)
        return [client for client in before if client not in mine]

    def _index(self, node: NodeEntry, refused: dict[str, str]) -> None:
        """Know by its name which nodes were refused a client."""
        for client in node.refused:
            self._refused[client].pop(node.id, None)
            if not self._refused[client]:
                del self._refused[client]
        node.refused = refused
        for client in refused:
            self._refused.setdefault(client, {})[node.id] = None

    # Tasks

    def wait(self, task: TaskEntry) -> None:
        """A task without an answer waits for its node."""
        if task.answer is None and not task.waiting and task.node in self.by_id:
            self.by_id[task.node].waiting += 1
            task.waiting = True

    def settle(self, task: TaskEntry) -> None:
        """A task does not wait for its node any more."""
        if task.waiting and task.node in self.by_id:
            self.by_id[task.node].waiting -= 1
        task.waiting = False

    def dispatch(self, run: RunEntry, ask: AskEntry, task: TaskEntry) -> None:
        """Give a task without an answer to its node, if that is there and its client ready for the run."""
        node, (standing, _) = self.by_id.get(task.node), run.standings.get(task.message.client, (0, ""))
        if node is None or node.peer is None or task.answer is not None or standing != m.STANDING_READY:
            return
        if (run.id, ask.spec.ask) not in node.asks:
            node.asks.add((run.id, ask.spec.ask))
            self._out.say(node.peer, durable=True, ask_spec=ask.spec)
        self._out.say(node.peer, durable=True, task=task.message)

    def close_ask(self, run: RunEntry, ask: AskEntry) -> None:
        """No task of an ask waits any more; all nodes that had to do with it are told that it is over."""
        for task in ask.tasks.values():
            self.settle(task)
        id, theirs = ask.spec.ask, ask.theirs.keys()
        for node in self.by_id.values():
            if (run.id, id) in node.asks or node.id in theirs:  # it may have answered in an earlier session
                node.asks.discard((run.id, id))
                self._out.say(node.peer, durable=True, close_ask=m.CloseAsk(run=run.id, ask=id))

    def close_run(self, run: RunEntry, status: str, clients: Iterable[str]) -> None:
        """No task of a run waits any more; the nodes of these clients are told that it is over."""
        for _, task in run.tasks():
            self.settle(task)
        theirs = {self.by_client[client] for client in clients}
        for node in self.by_id.values():
            node.asks = {(of, ask) for of, ask in node.asks if of != run.id}
            if node.id in theirs:
                self._out.say(node.peer, durable=True, close_run=m.CloseRun(run=run.id, status=status))
