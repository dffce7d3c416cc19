"""The router: the state machine of a server. It takes what runs and nodes say, keeps what must not be lost, and says
who is to be told what; it has no sockets, no clock and no files.

Whatever it keeps it puts into the store. An effect that is `durable` must not be seen before all that was put by then
is on disk: that is how a result is stored before it is acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ProtocolError
from ..store.records import Store
from ..wire import messages as m
from ..wire import roles
from ..wire.blobs import Fetched, NotFetched
from ..wire.bodies import MOST
from ..wire.limits import LOG_BYTES, MAILBOX
from ..wire.names import shown
from . import fields
from .answers import NodeAnswers
from .asks import RoutedAsks
from .claims import Claims
from .ledger import ENDED, OWNER, Ledger, NodeEntry, RunEntry
from .logs import Logs
from .nodes import Nodes
from .signals import Bounded, Connected, Drop, Effect, Event, Lost, Outbox, Received, Release, Released
from .standings import Standings
from .summaries import Summaries

_LOG = logging.getLogger("umbel.server")


class Router:
    """One server's connections: what each peer says reaches those whom it concerns.

    `nodes` are its nodes, `ledger` its runs, `answers` what nodes answer to these. `store` keeps what must not be lost,
    `has(sha, giver)` tells whether a blob is complete on this side, and this giver has brought it, `mailbox` bounds the
    tasks that wait for one node, `largest` a blob of a node or of a run, and `log_bytes` the log of a run; `claims` say
    whose clients are, `summaries` how far runs are.
    """

    def __init__(
        self,
        store: Store,
        has: Callable[[bytes, str], bool],
        *,
        mailbox: int = MAILBOX,
        largest: Callable[[str], int] = lambda role: MOST,
        claims: Claims | None = None,
        log_bytes: int = LOG_BYTES,
    ) -> None:
        self._store = store
        self._out = out = Outbox()
        self._peers: dict[str, Connected] = {}
        self.nodes = nodes = Nodes(store, out, self._invite, claims or Claims(store))
        self.ledger = Ledger(store, out)
        self.answers = NodeAnswers(store, nodes, out, has, largest)
        self._standings = Standings(nodes, out)
        self.summaries = Summaries(store)
        self._logs = Logs(store, out, self.summaries, self.ledger.goes_on, log_bytes)
        self._asks = asks = RoutedAsks(store, nodes, self.answers, out, has, largest, mailbox, self.ledger.goes_on)
        self._from_runs: dict[str, Callable[[RunEntry, Any, float], None]] = {
            "run_spec": lambda run, body, now: self._run_spec(run, body),
            "ask_spec": lambda run, body, now: asks.open(run, body),
            "task": lambda run, body, now: asks.task(run, body),
            "cancel": lambda run, body, now: asks.cancel(run, body),
            "close_ask": lambda run, body, now: asks.close(run, body.ask),
            "close_run": lambda run, body, now: self._end(run, body.status if body.status in ENDED else "stopped", now),
            "refold": lambda run, body, now: self.answers.refold(run, body),
            "log_event": self._logs.take,
        }
        self._from_nodes: dict[str, Callable[[NodeEntry, RunEntry, Any], None]] = {
            "run_answer": self._run_answer,
            "result": self.answers.result,
            "partial": self.answers.partial,
            "alive": self.answers.alive,
        }
        for run in self.ledger.runs.values():
            run.standings.update((client, (m.STANDING_OFFLINE, "")) for client in self._standings.clients(run))
            for _, task in run.tasks():
                self.nodes.wait(task)

    # Events

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event and return what has to be done, in order. `now` is the wall time, in seconds."""
        self._out.effects = []
        if isinstance(event, Received):
            try:
                self._received(event.peer, event.message, now)
            except ProtocolError as error:
                self._out.effects.append(Drop(event.peer, error.code, error.message))
            except Exception as error:  # whatever it is, this peer alone pays for it
                kind = event.message.WhichOneof("body")
                _LOG.exception("a %s of %s cannot be handled", kind, event.peer)
                text = f"the server cannot handle this {kind}: {error!r:.200}"
                self._out.effects.append(Drop(event.peer, m.CODE_INTERNAL, text))
        elif isinstance(event, Connected):
            self._connected(event, now)
        elif isinstance(event, Lost):
            self._lost(event.peer, now)
        elif isinstance(event, Fetched | NotFetched):
            self.answers.fetched(self.ledger.runs.get(event.run, RunEntry(event.run)), event)
        elif isinstance(event, Bounded):
            if (node := self.nodes.by_id.get(event.node)) is not None:
                self._host(node, node.named, anew=True)
        elif isinstance(event, Released):
            gone = self.nodes.let_go(event.clients)
            for run in self.ledger.runs.values():
                self._standings.leave(run, gone)
        else:
            self._revoked(event.node)
        return self._out.effects

    def may_read(self, peer: str, run: str, sha: bytes) -> bool:
        """Whether a peer may have a blob now: a run what it was answered with, a node what its own clients are asked
        with. What a run names it must have brought as well before a node gets it: see `Exchange`.
        """
        known, found = self._peers.get(peer), self.ledger.runs.get(run)
        if known is None or found is None:
            return False
        if known.role != "node":
            return known.role == "run" and known.id == run and any(sha in ask.named for ask in found.asks.values())
        node = self.nodes.by_id.get(known.id)
        if node is None or not self._standings.involves(found, node):
            return False
        wanted = [found.spec.archive] if found.spec is not None else []
        for ask in found.asks.values():
            if known.id in ask.theirs:
                wanted += [ask.spec.model, ask.spec.shared]
                if (known.id, sha) in ask.own:
                    return bool(sha)
        return any(payload.blob.sha256 == sha for payload in wanted if payload.HasField("blob"))

    # Who is there

    def _connected(self, event: Connected, now: float) -> None:
        self._peers[event.peer] = event
        if event.role == "node":
            node = self.nodes.by_id.setdefault(event.id, NodeEntry(event.id, event.name))
            self._supersede(node.peer, event.peer)
            node.peer, node.name, node.asks, node.problem = event.peer, event.name, set(), ""
            before, node.seen = node.seen, now
            for over, (status, at) in self.ledger.ended.items():
                if at >= before:
                    self._out.say(event.peer, close_run=m.CloseRun(run=over, status=status))
            gone = self.nodes.host(node, event.clients, seen_at=now)
            for known in self.ledger.runs.values():
                self._standings.leave(known, gone)
                self._standings.invite(known, node)
        elif event.role == "run":
            run = self.ledger.runs.get(event.id)
            if run is None:
                run = self.ledger.begin(event.id, event.name, now)
                for _, task in run.tasks():
                    self.nodes.wait(task)
            self._supersede(run.peer, event.peer)
            run.peer = event.peer
            self._out.say(event.peer, durable=True, log_ack=m.LogAck(run=run.id, number=run.log))

    def _supersede(self, old: str | None, new: str) -> None:
        if old is not None and old != new:
            self._peers.pop(old, None)
            self._out.effects.append(Drop(old, m.CODE_SUPERSEDED, "the same key has connected again"))

    def _lost(self, peer: str, now: float) -> None:
        known = self._peers.pop(peer, None)
        if known is None:
            return
        run = self.ledger.runs.get(known.id) if known.role == "run" else None
        if run is not None and run.peer == peer:
            run.peer = None
            if run.over is not None:
                self._end(run, *run.over)
        node = self.nodes.by_id.get(known.id) if known.role == "node" else None
        if node is None or node.peer != peer:
            return
        node.peer, node.seen = None, now
        self._store.put("nodes", {"id": node.id, "seen_at": now})
        for run in self.ledger.runs.values():
            self._standings.stand(run, self._standings.clients(run, node.id), m.STANDING_OFFLINE)

    def _revoked(self, id: str) -> None:
        node = self.nodes.remove(id)
        if node is None:
            return
        if node.peer is not None:
            self._peers.pop(node.peer, None)
            self._out.effects.append(Drop(node.peer, m.CODE_REVOKED, "this node was revoked"))
        why = "its node was revoked"
        for run in self.ledger.runs.values():
            self._standings.stand(run, [c for c in node.clients if c in run.standings], m.STANDING_REFUSED, why)
            for ask, task in run.tasks():
                if task.node == id and task.answer is None:
                    self.answers.fail(run, ask, task, why)

    def _invite(self, node: NodeEntry) -> None:
        for run in self.ledger.runs.values():
            self._standings.invite(run, node)

    # Messages

    def _received(self, peer: str, message: m.Message, now: float) -> None:
        known = self._peers.get(peer)
        if known is None:
            return  # superseded, or dropped already
        kind = message.WhichOneof("body")
        if kind is None:
            raise ProtocolError("a message without a body", m.CODE_MALFORMED)
        if kind not in roles.SAYS.get("relay" if known.relay else known.role, ()):
            raise ProtocolError(f"a {known.role} may not send {kind}", m.CODE_NOT_ALLOWED)
        body = getattr(message, kind)
        fields.check(kind, body)
        if known.role == "run":
            if body.run != known.id:
                raise ProtocolError(f"run {known.id} may not speak of run {body.run[:80]!r}", m.CODE_NOT_ALLOWED)
            if known.id in self.ledger.runs:  # else it is over
                self._from_runs[kind](self.ledger.runs[known.id], body, now)
        elif known.role == "node":
            node = self.nodes.by_id[known.id]
            if kind == "hosted":
                self._host(node, body.clients)
                return
            if kind == "notice":
                node.problem = body.text[:1000]
                _LOG.warning("node %s says: %s", node.name, shown(node.problem) or "it is well again")
                return
            run = self.ledger.runs.get(body.run)
            if body.run in self.ledger.ended:
                # Durable, as all that may be on its way to the node about this run: it must come last.
                status, _ = self.ledger.ended[body.run]
                self._out.say(peer, durable=True, close_run=m.CloseRun(run=body.run, status=status))
            if run is not None and self._standings.involves(run, node):
                self._from_nodes[kind](node, run, body)
            # else not known yet after a restart, over, or none of this node's business

    def _host(self, node: NodeEntry, clients: Iterable[str], *, anew: bool = False) -> None:
        gone = self.nodes.host(node, clients, anew=anew)
        for run in self.ledger.runs.values():
            self._standings.leave(run, gone)
            if any(run.standings.get(c, (0, ""))[0] != m.STANDING_READY for c in node.clients):
                self._standings.invite(run, node)

    def _run_answer(self, node: NodeEntry, run: RunEntry, body: m.RunAnswer) -> None:
        about, hosted = set(body.clients), self._standings.hosted(run, node)
        mine = [c for c in hosted if c in about] if about else hosted
        if body.retry:
            self._standings.stand(run, mine, m.STANDING_PREPARING, body.reason[:1000])
            return
        if body.ready:
            self._standings.stand(run, mine, m.STANDING_READY)
        else:
            self._standings.stand(run, mine, m.STANDING_REFUSED, body.reason[:1000] or "it said no")
        among = set(mine)
        theirs = [(ask, task) for ask in run.asks.values() for task in ask.theirs.get(node.id, {}).values()]
        for ask, task in theirs:
            client = task.message.client
            if client not in among:
                continue
            if body.ready:
                self.nodes.dispatch(run, ask, task)
            elif task.answer is None:
                self.answers.fail(run, ask, task, f"client {client} cannot take part: {body.reason}")

    def _run_spec(self, run: RunEntry, spec: m.RunSpec) -> None:
        if run.owner != OWNER:  # of a relay's run the server above has said it
            spec.owner = run.owner
        changed = run.spec is None or run.spec != spec
        run.spec = spec
        if changed:
            named = {"name": spec.name} if spec.name and spec.name != run.id else {}
            self._store.put("runs", {"id": run.id, "spec": spec.SerializeToString(), **named})
        self._asks.need(run, spec.archive, f"{run.id}/")
        clients = self._standings.clients(run)
        if changed:
            for client in clients:
                run.standings.setdefault(client, (m.STANDING_OFFLINE, ""))
            for node in self.nodes.by_id.values():
                self._standings.invite(run, node)
        self._standings.tell(run, [client for client in clients if client in run.standings])

    # The end of runs

    def _end(self, run: RunEntry, status: str, now: float) -> None:
        """A run is over. Of one that has finished all is forgotten but its log; one that was stopped or has failed may
        go on, and then gets the answers that there are: nodes answer a question once.
        """
        status, now = run.over or (status, now)  # a run that had nothing left to do ended when it did
        self._peers.pop(run.peer or "", None)
        if status == "finished":
            for ask in list(run.asks):
                self._asks.close(run, ask)
            self._out.effects.append(Release(f"{run.id}/"))
        self.nodes.close_run(run, status, self._standings.clients(run))
        self.ledger.end(run, status, now)

    def end_now(self, id: str, status: str, now: float) -> list[Effect]:
        """End a run, and return what has to be done; whoever drives the run is told."""
        self._out.effects = []
        if (run := self.ledger.runs.get(id)) is not None:
            if run.peer is not None:
                self._out.effects.append(Drop(run.peer, m.CODE_UNKNOWN, f"the run is over: {status}"))
            self._end(run, status, now)
        return self._out.effects
