"""The nodes of a server: which hosts which client, and what waits for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..store.records import Store
from ..wire import messages as m
from . import notices
from .ledger import AskEntry, NodeEntry, RunEntry, TaskEntry
from .signals import Outbox


class Nodes:
    """The approved nodes, by id, and by client the id of the node that hosts it; for each as many tasks as are to wait.

    A client that several nodes name stays with the first, also over a restart of the server; once that hosts it no more
    it goes to another that named it, with which `moved` is called.
    """

    def __init__(self, store: Store, out: Outbox, moved: Callable[[NodeEntry], None]) -> None:
        self._store, self._out, self._moved = store, out, moved
        self.by_id: dict[str, NodeEntry] = {}
        self.by_client: dict[str, str] = {}
        self._claimed: dict[str, dict[str, None]] = {}
        for row in store.rows("nodes"):
            if row["status"] == "approved":
                node = self.by_id[row["id"]] = NodeEntry(row["id"], row["name"], seen=row["seen_at"] or 0.0)
                self._settle(node, row["clients"] or ())

    # Clients

    def online(self, node: str) -> bool:
        """Whether a node is connected."""
        return node in self.by_id and self.by_id[node].peer is not None

    def clients(self) -> frozenset[str]:
        """All clients that nodes host, connected or not."""
        return frozenset(self.by_client)

    def elsewhere(self, node: str) -> dict[str, str]:
        """The clients that a node names and another one hosts, each with the name of that one."""
        claimed = self.by_id[node].elsewhere if node in self.by_id else ()
        return {client: self.by_id[self.by_client[client]].name for client in claimed}

    def host(self, node: NodeEntry, clients: Iterable[str], **columns: Any) -> list[str]:
        """From now on a node names these clients; `columns` of its row change, too. Gives those that no node hosts any
        more.
        """
        named = tuple(dict.fromkeys(clients))
        if named == node.named:  # as after a connection that was lost: nothing to be done for each of them
            if columns:
                self._store.put("nodes", {"id": node.id, **columns})
            self._notice_elsewhere(node)
            return []
        gone = self._settle(node, named)
        self._store.put("nodes", {"id": node.id, **columns, "clients": list(node.clients)})
        self._notice_elsewhere(node)
        self.pass_on(gone)
        return [client for client in gone if client not in self.by_client]

    def _notice_elsewhere(self, node: NodeEntry) -> None:
        if listed := list(self.elsewhere(node.id)):
            self._out.say(node.peer, notice=m.Notice(text=notices.elsewhere(listed)))

    def remove(self, id: str) -> NodeEntry | None:
        """Know a node no more, and give it, if it was known; its clients are yet to be passed on."""
        node = self.by_id.pop(id, None)
        for client in node.clients if node is not None else ():
            del self.by_client[client]
        for client in node.elsewhere if node is not None else ():
            self._claimed[client].pop(id, None)
        return node

    def pass_on(self, gone: Collection[str]) -> None:
        """Clients that their node hosts no more go to whoever named them, too."""
        heirs = dict.fromkeys(id for client in gone for id in self._claimed.get(client, ()))
        for heir in [self.by_id[id] for id in heirs]:
            before = set(heir.clients)
            self._settle(heir, heir.named)
            if new := [client for client in heir.clients if client not in before]:
                self._store.put("nodes", {"id": heir.id, "clients": list(heir.clients)})
                self._out.say(heir.peer, notice=m.Notice(text=notices.here(new)))
                self._moved(heir)

    def _settle(self, node: NodeEntry, clients: Iterable[str]) -> set[str]:
        """A node has those of these clients that no other hosts. Gives those that it hosts no more."""
        node.named, before = tuple(dict.fromkeys(clients)), node.clients
        for client in before:
            del self.by_client[client]
        for client in node.elsewhere:
            self._claimed[client].pop(node.id, None)
            if not self._claimed[client]:
                del self._claimed[client]
        node.clients = tuple(client for client in node.named if self.by_client.setdefault(client, node.id) == node.id)
        mine = set(node.clients)
        node.elsewhere = [client for client in node.named if client not in mine]
        for client in node.elsewhere:
            self._claimed.setdefault(client, {})[node.id] = None
        return set(before) - mine

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
