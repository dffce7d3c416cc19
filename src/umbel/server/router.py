"""The router: the state machine of a server. It takes what runs and nodes say, keeps what must not be lost, and says
who is to be told what; it has no sockets, no clock and no files.

Whatever it keeps it puts into the store. An effect that is `durable` must not be seen before all that was put by then
is on disk: that is how a result is stored before it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import ProtocolError
from ..wire import messages as m
from ..wire import roles
from ..wire.blobs import Fetched, NotFetched
from ..wire.portions import portions
from . import fields, ledger, notices
from .fields import MOST
from .ledger import AnswerEntry, AskEntry, NodeEntry, PeerEntry, Records, RunEntry, TaskEntry
from .signals import Connected, Drop, Effect, Event, Fetch, Hold, Lost, Received, Release, RunBegun, RunEnded, Say, Tell

ENDED = ("finished", "failed", "stopped")
"""What becomes of runs that nobody goes on with."""
RESTING = 8
"""So many runs that were stopped or have failed are kept in memory; others are read again if they go on."""
MAILBOX = 10_000
"""How many tasks may wait for one node."""
MEMBERS = 500
"""How many clients one message tells of: with names and reasons as long as they may be it fits into a frame."""


class Router:
    """One server's runs, nodes and mailboxes.

    `store` keeps what must not be lost, `has` tells whether a blob is complete on this side, `mailbox` bounds the tasks
    that wait for one node, and `largest` a blob of a node or of a run.
    """

    def __init__(
        self,
        store: Records,
        has: Callable[[bytes], bool],
        *,
        mailbox: int = MAILBOX,
        largest: Callable[[str], int] = lambda role: MOST,
    ) -> None:
        self._store = store
        self._has = has
        self._mailbox = mailbox
        self._largest = largest
        self._peers: dict[str, PeerEntry] = {}
        self._nodes: dict[str, NodeEntry] = {}
        self._runs: dict[str, RunEntry] = {}
        self._homes: dict[str, str] = {}
        self._ended: dict[str, tuple[str, float]] = {}
        self._resting: dict[str, RunEntry] = {}
        self._effects: list[Effect] = []
        self._arriving: dict[tuple[str, bytes], list[tuple[int, str]]] = {}
        self._from_runs: dict[str, Callable[[RunEntry, Any, float], None]] = {
            "run_spec": self._run_run_spec,
            "ask_spec": self._run_ask_spec,
            "task": self._run_task,
            "cancel": self._run_cancel,
            "close_ask": self._run_close_ask,
            "close_run": self._run_close_run,
            "refold": self._run_refold,
            "log_event": self._run_log_event,
        }
        self._from_nodes: dict[str, Callable[[NodeEntry, RunEntry, Any], None]] = {
            "run_answer": self._node_run_answer,
            "result": self._node_result,
            "partial": self._node_partial,
            "alive": self._node_alive,
        }
        self.answers = 0
        self._load()

    # Events

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event and return what has to be done, in order. `now` is the wall time, in seconds."""
        self._effects = []
        if isinstance(event, Received):
            try:
                self._received(event.peer, event.message, now)
            except ProtocolError as error:
                self._effects.append(Drop(event.peer, error.code, error.message))
        elif isinstance(event, Connected):
            self._connected(event, now)
        elif isinstance(event, Lost):
            self._lost(event.peer, now)
        elif isinstance(event, Fetched):
            self._fetched(event)
        elif isinstance(event, NotFetched):
            self._not_fetched(event)
        else:
            self._revoked(event.node)
        return self._effects

    def may_read(self, peer: str, run: str, sha: bytes) -> bool:
        """Whether a peer may have a blob now: a run all of its own, a node what its own clients are asked with."""
        known, found = self._peers.get(peer), self._runs.get(run)
        if known is None or found is None:
            return False
        if known.role != "node":
            return known.role == "run" and known.id == run
        if all(self._homes[client] != known.id for client in self._clients_of(found)):
            return False
        wanted = [found.spec.archive] if found.spec is not None else []
        for ask in found.asks.values():
            mine = [task.message.own for task in ask.tasks.values() if task.node == known.id]
            wanted += [ask.spec.model, ask.spec.shared, *mine] if mine else []
        return any(payload.blob.sha256 == sha for payload in wanted if payload.HasField("blob"))

    def held(self) -> Iterator[Hold]:
        """The blobs that are needed, to be held again after a restart."""
        return (Hold(blob.sha256, owner) for run in self._kept() for blob, owner in ledger.blobs_of(run))

    def _kept(self) -> Iterator[RunEntry]:
        """All runs of which anything is kept."""
        yield from self._runs.values()
        yield from (ledger.restored(self._store, row) for row in self._store.rows("runs") if row["status"] in ENDED[1:])

    def stored(self) -> Iterator[tuple[str, m.Blob]]:
        """The blobs of answers, each with the node that it came from."""
        for run in self._kept():
            for answer in [answer for ask in run.asks.values() for answer in ask.answers.values()]:
                payload = ledger.payload_of(answer.message)
                if payload is not None and payload.HasField("blob"):
                    yield answer.node, payload.blob

    def standings(self, run: str) -> dict[str, tuple[int, str]]:
        """Each client's standing in a run, and why it is refused."""
        return dict(self._runs[run].standings) if run in self._runs else {}

    def online(self, node: str) -> bool:
        """Whether a node is connected."""
        return node in self._nodes and self._nodes[node].peer is not None

    def elsewhere(self, node: str) -> dict[str, str]:
        """The clients that a node names and another one hosts, each with the name of that one."""
        named = self._nodes[node].named if node in self._nodes else ()
        others = {client: self._nodes[self._homes[client]] for client in named if self._homes.get(client) != node}
        return {client: other.name for client, other in others.items()}

    def clients(self) -> frozenset[str]:
        """All clients that its nodes host, connected or not."""
        return frozenset(self._homes)

    def waiting_of(self, run: str) -> int:
        """How many tasks of a run wait for an answer."""
        asks = self._runs[run].asks.values() if run in self._runs else ()
        return sum(task.waiting for ask in asks for task in ask.tasks.values())

    def connected_run(self, run: str) -> bool:
        """Whether a run's process is connected."""
        return run in self._runs and self._runs[run].peer is not None

    # Restart

    def _load(self) -> None:
        for row in self._store.rows("nodes"):
            if row["status"] == "approved":
                self._nodes[row["id"]] = NodeEntry(row["id"], row["name"], seen=row["seen_at"] or 0.0)
                self._settle(self._nodes[row["id"]], tuple(row["clients"] or ()))
        for row in self._store.rows("runs"):
            if row["status"] in ENDED:
                self._ended[row["id"]] = (row["status"], row["ended_at"] or 0.0)
                continue
            run = self._runs[row["id"]] = ledger.restored(self._store, row)
            for client in self._clients_of(run):
                run.standings[client] = (m.STANDING_OFFLINE, "")
            self._wait_again(run)

    def _wait_again(self, run: RunEntry) -> None:
        for task in (task for ask in run.asks.values() for task in ask.tasks.values()):
            if task.answer is None:
                self._wait(task)

    # Who is there

    def _connected(self, event: Connected, now: float) -> None:
        self._peers[event.peer] = PeerEntry(event.role, event.id)
        if event.role == "node":
            node = self._nodes.setdefault(event.id, NodeEntry(event.id, event.name))
            self._supersede(node.peer, event.peer)
            node.peer, node.name, node.asks = event.peer, event.name, set()
            before, node.seen = node.seen, now
            for over, (status, at) in self._ended.items():
                if at >= before:
                    self._say(event.peer, close_run=m.CloseRun(run=over, status=status))
            gone = self._settle(node, event.clients)
            self._store.put("nodes", {"id": node.id, "seen_at": now, "clients": list(node.clients)})
            self._tell_elsewhere(node)
            self._pass_on(gone)
            for known in self._runs.values():
                self._leave(known)
                self._invite(known, node)
        elif event.role == "run":
            run = self._runs.get(event.id)
            if run is None:
                run = self._begin(event, now)
            self._supersede(run.peer, event.peer)
            run.peer = event.peer
            self._say(event.peer, durable=True, log_ack=m.LogAck(run=run.id, number=run.log))

    def _begin(self, event: Connected, now: float) -> RunEntry:
        """A run that is new, or was over: with the answers that it had then. By a connection alone it does not go on:
        see `_goes_on`.
        """
        rows = self._store.rows("runs", id=event.id)
        run = self._resting.pop(event.id, None) or (
            ledger.restored(self._store, rows[0]) if rows else RunEntry(event.id)
        )
        run.spec = None  # until the run says it: nodes have to hear of it anew
        run.over = self._ended.pop(event.id, None)
        if run.over is None and rows and rows[0]["status"] in ENDED:
            run.over = (rows[0]["status"], rows[0]["ended_at"] or 0.0)
        self._runs[event.id] = run
        self._wait_again(run)
        if run.over is None:
            begun = {} if rows else {"owner": event.name, "created_at": now}
            self._store.put("runs", {"id": event.id, "status": "running", "ended_at": None, **begun})
        return run

    def resumed(self, id: str) -> None:
        """The server itself goes on with a run that was over, as its store says by now."""
        self._ended.pop(id, None)

    def _goes_on(self, run: RunEntry) -> None:
        """A run has done something that it had not done before: if it was over, it is not any more."""
        if run.over is not None:
            run.over = None
            self._store.put("runs", {"id": run.id, "status": "running", "ended_at": None})
            self._effects.append(RunBegun(run.id))

    def _supersede(self, old: str | None, new: str) -> None:
        if old is not None and old != new:
            self._peers.pop(old, None)
            self._effects.append(Drop(old, m.CODE_SUPERSEDED, "the same key has connected again"))

    def _lost(self, peer: str, now: float) -> None:
        known = self._peers.pop(peer, None)
        if known is None:
            return
        if known.role == "run" and known.id in self._runs and self._runs[known.id].peer == peer:
            run = self._runs[known.id]
            run.peer = None
            if run.over is not None:
                self.end(run.id, *run.over)
        node = self._nodes.get(known.id) if known.role == "node" else None
        if node is None or node.peer != peer:
            return
        node.peer, node.seen = None, now
        self._store.put("nodes", {"id": node.id, "seen_at": now})
        for run in self._runs.values():
            mine = [c for c in self._clients_of(run) if self._homes.get(c) == node.id]
            self._stand(run, mine, m.STANDING_OFFLINE)

    def _settle(self, node: NodeEntry, clients: Iterable[str]) -> set[str]:
        """A node hosts these clients; one that another node hosts stays there, also over a restart of the server.

        Gives those that it hosts no more.
        """
        node.named, before = tuple(dict.fromkeys(clients)), node.clients
        for client in before:
            if self._homes.get(client) == node.id:
                del self._homes[client]
        node.clients = tuple(client for client in node.named if self._homes.setdefault(client, node.id) == node.id)
        return set(before).difference(node.clients)

    def _tell_elsewhere(self, node: NodeEntry) -> None:
        if node.peer is not None and (listed := list(self.elsewhere(node.id))):
            self._say(node.peer, notice=m.Notice(text=notices.elsewhere(listed)))

    def _pass_on(self, gone: set[str]) -> None:
        """Clients that their node hosts no more go to whoever named them, too."""
        for heir in [other for other in self._nodes.values() if not gone.isdisjoint(other.named)]:
            before = heir.clients
            self._settle(heir, heir.named)
            if not (new := [client for client in heir.clients if client not in before]):
                continue
            self._store.put("nodes", {"id": heir.id, "clients": list(heir.clients)})
            if heir.peer is not None:
                self._say(heir.peer, notice=m.Notice(text=notices.here(new)))
            for run in self._runs.values():
                self._invite(run, heir)

    def _clients_of(self, run: RunEntry) -> list[str]:
        if run.spec is None:
            return []
        wanted = set(run.spec.clients)
        return [client for client in self._homes if not wanted or client in wanted]

    def _invite(self, run: RunEntry, node: NodeEntry) -> None:
        mine = [client for client in self._clients_of(run) if self._homes[client] == node.id]
        if not mine or node.peer is None or run.spec is None:
            return
        self._say(node.peer, durable=True, run_spec=run.spec)
        self._stand(run, mine, m.STANDING_PREPARING)

    def _leave(self, run: RunEntry) -> None:
        """Clients that no node hosts any more are gone from a run."""
        gone = [c for c, (standing, _) in run.standings.items() if c not in self._homes]
        self._stand(run, [c for c in gone if run.standings[c][0] != m.STANDING_REFUSED], m.STANDING_OFFLINE)

    def _stand(self, run: RunEntry, clients: Iterable[str], standing: int, reason: str = "") -> None:
        changed = [c for c in clients if run.standings.get(c) != (standing, reason)]
        for client in changed:
            run.standings[client] = (standing, reason)
        self._tell_members(run, changed)

    def _tell_members(self, run: RunEntry, clients: Iterable[str]) -> None:
        members = []
        for client in clients:
            node, (standing, reason) = self._nodes.get(self._homes.get(client, "")), run.standings[client]
            name = node.name if node is not None else ""
            members.append(m.Member(client=client, node=name, standing=standing, reason=reason))  # type: ignore[arg-type]
        for part in portions(members if run.peer is not None else (), m.Member.ByteSize, most=MEMBERS):
            self._say(run.peer or "", members=m.Members(run=run.id, members=part))

    def _revoked(self, id: str) -> None:
        node = self._nodes.pop(id, None)
        if node is None:
            return
        if node.peer is not None:
            self._peers.pop(node.peer, None)
            self._effects.append(Drop(node.peer, m.CODE_REVOKED, "this node was revoked"))
        gone = {client: home for client, home in self._homes.items() if home == id}
        for run in self._runs.values():
            self._stand(run, [c for c in gone if c in run.standings], m.STANDING_REFUSED, "its node was revoked")
            for ask in run.asks.values():
                for task in ask.tasks.values():
                    if task.node == id and task.answer is None:
                        self._fail(run, ask, task, "its node was revoked")
        self._homes = {client: home for client, home in self._homes.items() if home != id}
        self._pass_on(set(gone))

    # Messages

    def _received(self, peer: str, message: m.Message, now: float) -> None:
        known = self._peers.get(peer)
        if known is None:
            return  # superseded, or dropped already
        kind = message.WhichOneof("body")
        if kind is None:
            raise ProtocolError("a message without a body", m.CODE_MALFORMED)
        if kind not in roles.SAYS.get(known.role, ()):
            raise ProtocolError(f"a {known.role} may not send {kind}", m.CODE_NOT_ALLOWED)
        body = getattr(message, kind)
        fields.check(kind, body)
        if known.role == "run":
            if body.run != known.id:
                raise ProtocolError(f"run {known.id} may not speak of run {body.run[:80]!r}", m.CODE_NOT_ALLOWED)
            if known.id in self._runs:  # else it is over
                self._from_runs[kind](self._runs[known.id], body, now)
        elif known.role == "node":
            node = self._nodes[known.id]
            if kind == "hosted":
                self._node_hosted(node, body)
                return
            run = self._runs.get(body.run)
            if body.run in self._ended:
                # Durable, as all that may be on its way to the node about this run: it must come last.
                self._say(peer, durable=True, close_run=m.CloseRun(run=body.run, status=self._ended[body.run][0]))
            if run is None or all(self._homes.get(c) != node.id for c in self._clients_of(run)):
                return  # not known yet after a restart, over, or none of this node's business
            self._from_nodes[kind](node, run, body)

    # What runs say

    def _run_run_spec(self, run: RunEntry, spec: m.RunSpec, now: float) -> None:
        changed = run.spec is None or run.spec != spec
        run.spec = spec
        if changed:
            named = {"name": spec.name} if spec.name and spec.name != run.id else {}
            self._store.put("runs", {"id": run.id, "spec": spec.SerializeToString(), **named})
            self._need(run, spec.archive, f"{run.id}/")
            for client in self._clients_of(run):
                run.standings.setdefault(client, (m.STANDING_OFFLINE, ""))
            for node in self._nodes.values():
                self._invite(run, node)
        else:
            self._need(run, spec.archive, f"{run.id}/")
        self._tell_members(run, [c for c in self._clients_of(run) if c in run.standings])

    def _run_ask_spec(self, run: RunEntry, spec: m.AskSpec, now: float) -> None:
        known = run.asks.get(spec.ask)
        if known is not None and known.spec.digest != spec.digest:
            self._close_ask(run, spec.ask)
            known = None
        if known is None:
            self._goes_on(run)
            run.asks[spec.ask] = AskEntry(spec)
            self._store.put("asks", {"run": run.id, "ask": spec.ask, "spec": spec.SerializeToString()})
        for payload in (spec.model, spec.shared):
            self._need(run, payload, f"{run.id}/{spec.ask}")

    def _run_task(self, run: RunEntry, message: m.Task, now: float) -> None:
        self._goes_on(run)
        ask = run.asks.get(message.ask)
        if ask is None:
            raise ProtocolError(f"task {message.task[:80]!r} of ask {message.ask}, which is not open", m.CODE_UNKNOWN)
        known = ask.tasks.get(message.task)
        ask.cancelled.discard(message.task)
        if known is not None and (known.message.attempt >= message.attempt or self._stands(ask, known)):
            self._need(run, known.message.own, f"{run.id}/{message.ask}")
            answer = ask.answers.get(known.answer or "")
            if answer is not None and answer.complete:
                self._answer(run, answer)
            return
        if known is not None:
            self._forget_answer(run, ask, known)
        task = ask.tasks[message.task] = TaskEntry(message, self._homes.get(message.client, ""))
        node = self._nodes.get(task.node)
        standing, reason = run.standings.get(message.client, (m.STANDING_UNSPECIFIED, ""))
        if node is None or standing in (m.STANDING_UNSPECIFIED, m.STANDING_REFUSED):
            why = reason or "no node of this federation hosts it"
            self._fail(run, ask, task, f"client {message.client} cannot take part: {why}")
            return
        if node.waiting >= self._mailbox:
            self._fail(run, ask, task, f"the mailbox of node {node.name} is full: {node.waiting} tasks wait in it")
            return
        self._wait(task)
        self._store.put("tasks", ledger.task_row(run, task))
        self._need(run, message.own, f"{run.id}/{message.ask}")
        self._dispatch(run, ask, task)

    def _stands(self, ask: AskEntry, task: TaskEntry) -> bool:
        """Whether a task has an update for an answer, which counts for all of its attempts: it is never done again."""
        answer = ask.answers.get(task.answer or "")
        payload = ledger.payload_of(answer.message) if answer is not None and answer.complete else None
        return payload is not None and (not payload.HasField("blob") or self._has(payload.blob.sha256))

    def _dispatch(self, run: RunEntry, ask: AskEntry, task: TaskEntry) -> None:
        node = self._nodes.get(task.node)
        if node is None or node.peer is None or task.answer is not None:
            return
        if run.standings.get(task.message.client, (0, ""))[0] != m.STANDING_READY:
            return
        if (run.id, ask.spec.ask) not in node.asks:
            node.asks.add((run.id, ask.spec.ask))
            self._say(node.peer, durable=True, ask_spec=ask.spec)
        self._say(node.peer, durable=True, task=task.message)

    def _run_cancel(self, run: RunEntry, body: m.Cancel, now: float) -> None:
        # Durable, as the tasks are: none may overtake the word that it is not wanted, and come after its ask is closed.
        gone: dict[str, list[str]] = {}
        for id in body.tasks:
            ask = run.asks.get(ledger.ask_of(id))
            if ask is None:
                continue
            ask.cancelled.add(id)
            task = ask.tasks.pop(id, None)
            if task is None:
                continue
            if task.answer is None:
                self._settled(task)
            else:
                self._drop_answer(run, ask, task.answer, keep=body.tasks)
            self._store.delete("tasks", run=run.id, task=id)
            gone.setdefault(task.node, []).append(id)
        for name, tasks in gone.items():
            node = self._nodes.get(name)
            if node is not None and node.peer is not None:
                self._say(node.peer, durable=True, cancel=m.Cancel(run=run.id, tasks=tasks))

    def _run_close_ask(self, run: RunEntry, body: m.CloseAsk, now: float) -> None:
        self._close_ask(run, body.ask)

    def _close_ask(self, run: RunEntry, id: int) -> None:
        ask = run.asks.pop(id, None)
        if ask is None:
            return
        run.closed = max(run.closed, id)
        self._store.put("runs", {"id": run.id, "closed": run.closed})
        for task in ask.tasks.values():
            if task.answer is None:
                self._settled(task)
        for answer in ask.answers.values():
            if not answer.complete:
                self._forget_arriving(run, ask, answer)
        for table in ("asks", "tasks", "answers"):
            self._store.delete(table, run=run.id, ask=id)
        self._effects.append(Release(f"{run.id}/{id}"))
        theirs = {task.node for task in ask.tasks.values()}
        for node in self._nodes.values():
            if (run.id, id) in node.asks or node.id in theirs:  # it may have answered in an earlier session
                node.asks.discard((run.id, id))
                if node.peer is not None:
                    self._say(node.peer, durable=True, close_ask=m.CloseAsk(run=run.id, ask=id))

    def _run_close_run(self, run: RunEntry, body: m.CloseRun, now: float) -> None:
        self.end(run.id, body.status if body.status in ENDED else "stopped", now)

    def end(self, id: str, status: str, now: float) -> None:
        """A run is over. Of one that has finished all is forgotten but its log; one that was stopped or has failed may
        go on, and then gets the answers that there are: nodes answer a question once. Effects join those of the event
        at hand.
        """
        run = self._runs.get(id)
        if run is None:
            return
        status, now = run.over or (status, now)  # a run that had nothing left to do ended when it did
        self._peers.pop(run.peer or "", None)
        if status == "finished":
            for ask in list(run.asks):
                self._close_ask(run, ask)
            self._effects.append(Release(f"{run.id}/"))
        mine = {self._homes[client] for client in self._clients_of(run)}
        for node in self._nodes.values():
            node.asks = {(of, ask) for of, ask in node.asks if of != run.id}
            if node.peer is not None and node.id in mine:
                self._say(node.peer, durable=True, close_run=m.CloseRun(run=run.id, status=status))
        members = {client: [m.Standing.Name(s), why] for client, (s, why) in run.standings.items()}  # type: ignore[arg-type]
        self._store.put("runs", {"id": id, "status": status, "ended_at": now, "members": members})
        del self._runs[id]
        self._ended[id] = (status, now)
        if status != "finished":
            self._rest(run)
        self._effects.append(RunEnded(id, status))

    def _rest(self, run: RunEntry) -> None:
        """Keep what is on disk of a run, or will be in a moment."""
        for task in (task for ask in run.asks.values() for task in ask.tasks.values()):
            self._settled(task)
        ledger.shed(self._store, run)
        run.peer, run.standings = None, {}
        self._resting[run.id] = run
        while len(self._resting) > RESTING:
            del self._resting[next(iter(self._resting))]

    def end_now(self, id: str, status: str, now: float) -> list[Effect]:
        """`end`, from outside of an event; whoever drives the run is told."""
        self._effects = []
        if id in self._runs and (peer := self._runs[id].peer) is not None:
            self._effects.append(Drop(peer, m.CODE_UNKNOWN, f"the run is over: {status}"))
        self.end(id, status, now)
        return self._effects

    def _run_refold(self, run: RunEntry, body: m.Refold, now: float) -> None:
        ask = run.asks.get(body.ask)
        without = set(body.without)
        for answer in list(ask.answers.values()) if ask is not None else []:
            if not isinstance(getattr(answer.message, answer.message.WhichOneof("body") or ""), m.Partial):
                continue
            if ask is None or not without.intersection(answer.tasks):
                continue
            node = self._nodes.get(answer.node)
            if node is not None and node.peer is not None:
                refold = m.Refold(run=run.id, ask=body.ask, without=sorted(without))
                self._say(node.peer, durable=True, refold=refold)
            for id in without.intersection(answer.tasks):
                if ask.tasks.pop(id, None) is not None:  # if the run asks for it yet, the relay still has its answer
                    self._store.delete("tasks", run=run.id, task=id)
            self._drop_answer(run, ask, answer.id)

    def _run_log_event(self, run: RunEntry, body: m.LogEvent, now: float) -> None:
        if body.number == 0:
            self._effects.append(Tell(run.id, 0, body.event))
            return
        if body.number == run.log + 1:
            self._goes_on(run)
            run.log = body.number
            self._store.put("events", {"run": run.id, "number": body.number, "at": now, "body": body.event})
            self._effects.append(Tell(run.id, body.number, body.event))
        if run.peer is not None:
            self._say(run.peer, durable=True, log_ack=m.LogAck(run=run.id, number=run.log))

    # What nodes say

    def _node_hosted(self, node: NodeEntry, body: m.Hosted) -> None:
        gone = self._settle(node, body.clients)
        self._store.put("nodes", {"id": node.id, "clients": list(node.clients)})
        self._tell_elsewhere(node)
        self._pass_on(gone)
        for run in self._runs.values():
            self._leave(run)
            if any(run.standings.get(c, (0, ""))[0] != m.STANDING_READY for c in node.clients):
                self._invite(run, node)

    def _node_run_answer(self, node: NodeEntry, run: RunEntry, body: m.RunAnswer) -> None:
        about = set(body.clients)
        mine = [c for c in self._clients_of(run) if self._homes[c] == node.id and (not about or c in about)]
        if body.retry:
            self._stand(run, mine, m.STANDING_PREPARING, body.reason[:1000])
            return
        if not body.ready:
            self._stand(run, mine, m.STANDING_REFUSED, body.reason[:1000] or "it said no")
            for ask in run.asks.values():
                for task in ask.tasks.values():
                    if task.message.client in mine and task.answer is None:
                        self._fail(run, ask, task, f"client {task.message.client} cannot take part: {body.reason}")
            return
        self._stand(run, mine, m.STANDING_READY)
        for ask in run.asks.values():
            for task in ask.tasks.values():
                if task.message.client in mine:
                    self._dispatch(run, ask, task)

    def _node_result(self, node: NodeEntry, run: RunEntry, body: m.Result) -> None:
        ask = run.asks.get(body.ask)
        task = ask.tasks.get(body.task) if ask is not None else None
        if ask is None or task is None or task.node != node.id:
            if self._is_over(run, body.ask, body.task):
                self._ack(node, run, [body.task])
            return
        if task.answer is not None:
            self._ack(node, run, [body.task])
            return
        if body.attempt < task.message.attempt and body.HasField("failure"):
            self._ack(node, run, [body.task])
            return
        self._take(run, ask, AnswerEntry(body.task, m.Message(result=body), (body.task,), node.id))

    def _is_over(self, run: RunEntry, ask: int, task: str) -> bool:
        """Whether nobody will want the answer to a task that is not known: it is over, and not new to a server that
        was killed before it had written the task down.
        """
        known = run.asks.get(ask)
        return ask <= run.closed if known is None else task in known.cancelled

    def _node_partial(self, node: NodeEntry, run: RunEntry, body: m.Partial) -> None:
        ask = run.asks.get(body.ask)
        ids = [receipt.task for receipt in body.receipts]
        if ask is None:
            if self._is_over(run, body.ask, ids[0]):
                self._ack(node, run, ids)
            return
        wrong = [id for id in ids if id not in ask.tasks or ask.tasks[id].node != node.id or ask.tasks[id].answer]
        here = {ask.tasks[id].answer for id in ids if id in ask.tasks}
        if len(here) == 1 and (same := ask.answers.get(next(iter(here)) or "")) and set(same.tasks) == set(ids):
            self._ack(node, run, ids)
        elif wrong and node.peer is not None:
            self._say(node.peer, refold=m.Refold(run=run.id, ask=body.ask, without=wrong))
        else:
            self._take(run, ask, AnswerEntry(f"partial {ids[0]}", m.Message(partial=body), tuple(ids), node.id))

    def _node_alive(self, node: NodeEntry, run: RunEntry, body: m.Alive) -> None:
        over = [id for id in body.tasks if self._is_over(run, ledger.ask_of(id), id)]
        if over and node.peer is not None:
            self._say(node.peer, cancel=m.Cancel(run=run.id, tasks=over))
        mine = [id for id in body.tasks if (ask := run.asks.get(ledger.ask_of(id))) and id in ask.tasks]
        if mine and run.peer is not None:
            self._say(run.peer, alive=m.Alive(run=run.id, tasks=mine))

    # Answers

    def _take(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        """An answer is here, or will be once its blob is."""
        payload = ledger.payload_of(answer.message)
        if reason := fields.too_large(answer, ask.spec, self._largest("node")):
            for id in answer.tasks:
                self._fail(run, ask, ask.tasks[id], f"client {ask.tasks[id].message.client}: {reason}")
            self._ack(self._nodes[answer.node], run, answer.tasks)
            return
        if payload is not None and payload.HasField("blob") and not self._has(payload.blob.sha256):
            node, before = self._nodes[answer.node], ask.answers.get(answer.id)
            answer.complete, answer.peer = False, node.peer
            if before is not None and not before.complete and ledger.sha_of(before) != payload.blob.sha256:
                if before.peer == node.peer and ledger.attempt_of(before) >= ledger.attempt_of(answer):
                    raise ProtocolError(f"another answer to {answer.id} is on its way", m.CODE_OUT_OF_ORDER)
                self._forget_arriving(run, ask, before)
            waiting = self._arriving.setdefault((run.id, payload.blob.sha256), [])
            if (ask.spec.ask, answer.id) not in waiting:
                waiting.append((ask.spec.ask, answer.id))
            ask.answers[answer.id] = answer
            if node.peer is not None:
                self._effects.append(Fetch(node.peer, run.id, payload.blob))
            return
        self._store_answer(run, ask, answer)

    def _store_answer(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        answer.complete = True
        ask.answers[answer.id] = answer
        self.answers += 1
        if sha := ledger.sha_of(answer):
            self._effects.append(Hold(sha, f"{run.id}/{ask.spec.ask}"))
        row = {"run": run.id, "id": answer.id, "ask": ask.spec.ask, "message": answer.message.SerializeToString()}
        self._store.put("answers", row)
        for id in answer.tasks:
            task = ask.tasks[id]
            task.answer = answer.id
            self._settled(task)
            self._store.put("tasks", {"run": run.id, "task": id, "answer": answer.id})
        self._answer(run, answer)
        node = self._nodes.get(answer.node)
        if node is not None:
            self._ack(node, run, answer.tasks)

    def _forget_arriving(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        key = (run.id, ledger.sha_of(answer))
        left = [each for each in self._arriving.pop(key, []) if each != (ask.spec.ask, answer.id)]
        if left:
            self._arriving[key] = left

    def _fetched(self, event: Fetched) -> None:
        run = self._runs.get(event.run)
        for id, name in self._arriving.pop((event.run, event.sha), []):
            ask = run.asks.get(id) if run is not None else None
            answer = ask.answers.get(name) if ask is not None else None
            if run is None or ask is None or answer is None or answer.complete or ledger.sha_of(answer) != event.sha:
                continue
            if all(t in ask.tasks and ask.tasks[t].answer is None for t in answer.tasks):
                self._store_answer(run, ask, answer)
            else:
                del ask.answers[name]

    def _not_fetched(self, event: NotFetched) -> None:
        # The node will say it again once it has it; for now it is as if nothing had come.
        run = self._runs.get(event.run)
        for id, name in self._arriving.pop((event.run, event.sha), []):
            ask = run.asks.get(id) if run is not None else None
            answer = ask.answers.get(name) if ask is not None else None
            if ask is not None and answer is not None and not answer.complete and ledger.sha_of(answer) == event.sha:
                del ask.answers[name]

    def _answer(self, run: RunEntry, answer: AnswerEntry) -> None:
        if run.peer is not None:
            self._effects.append(Say(run.peer, answer.message))

    def _ack(self, node: NodeEntry, run: RunEntry, tasks: Iterable[str]) -> None:
        if node.peer is not None:
            self._say(node.peer, durable=True, ack=m.Ack(run=run.id, tasks=list(tasks)))

    def _fail(self, run: RunEntry, ask: AskEntry, task: TaskEntry, reason: str) -> None:
        """Answer a task in place of a node."""
        t = task.message
        failure = m.Failure(reason=reason[:2000])
        result = m.Result(run=run.id, task=t.task, ask=t.ask, client=t.client, attempt=t.attempt, failure=failure)
        answer = AnswerEntry(t.task, m.Message(result=result), (t.task,), "")
        self._settled(task)
        task.answer = answer.id
        ask.answers[answer.id] = answer
        self._store.put("tasks", ledger.task_row(run, task))
        row = {"run": run.id, "id": answer.id, "ask": t.ask, "message": answer.message.SerializeToString()}
        self._store.put("answers", row)
        self._answer(run, answer)

    def _settled(self, task: TaskEntry) -> None:
        """A task does not wait for its node any more."""
        if task.waiting and task.node in self._nodes:
            self._nodes[task.node].waiting -= 1
        task.waiting = False

    def _wait(self, task: TaskEntry) -> None:
        """A task waits for its node."""
        if not task.waiting and task.node in self._nodes:
            self._nodes[task.node].waiting += 1
            task.waiting = True

    def _forget_answer(self, run: RunEntry, ask: AskEntry, task: TaskEntry) -> None:
        if task.answer is not None:
            self._drop_answer(run, ask, task.answer, keep=[task.message.task])
        else:
            self._settled(task)

    def _drop_answer(self, run: RunEntry, ask: AskEntry, id: str, keep: Iterable[str] = ()) -> None:
        """An answer is not wanted as it is: its other tasks wait again."""
        answer = ask.answers.pop(id, None)
        if answer is None:
            return
        self._store.delete("answers", run=run.id, id=id)
        kept = set(keep)
        for name in answer.tasks:
            task = ask.tasks.get(name)
            if task is None or name in kept:
                continue
            task.answer = None
            self._wait(task)
            self._store.put("tasks", {"run": run.id, "task": name, "answer": None})
            self._dispatch(run, ask, task)

    # Blobs

    def _need(self, run: RunEntry, payload: m.Payload, owner: str) -> None:
        """A run named a blob: have it, unless it is here."""
        if not payload.HasField("blob"):
            return
        if payload.blob.size > (most := self._largest("run")):
            text = f"{payload.blob.size:,} bytes, where all that this server stores may take {most:,}: see its --quota"
            raise ProtocolError(text, m.CODE_TOO_LARGE)
        self._effects.append(Hold(payload.blob.sha256, owner))
        if not self._has(payload.blob.sha256) and run.peer is not None:
            self._effects.append(Fetch(run.peer, run.id, payload.blob))

    def _say(self, peer: str, durable: bool = False, **body: Any) -> None:
        self._effects.append(Say(peer, m.Message(**body), durable))
