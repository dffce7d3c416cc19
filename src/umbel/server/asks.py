"""What runs ask."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ProtocolError
from ..store.records import Store
from ..wire import messages as m
from ..wire.blobs import node_giver, run_giver
from . import ledger
from .answers import NodeAnswers
from .ledger import AskEntry, RunEntry, TaskEntry
from .nodes import Nodes
from .signals import Fetch, Hold, Outbox, Release


class RoutedAsks:
    """The asks of runs and their tasks, from when they are asked until they are closed.

    `has`, `mailbox` and `largest` are as a `Router` has them; `goes_on` is called with a run that asks something new.
    """

    def __init__(
        self,
        store: Store,
        nodes: Nodes,
        answers: NodeAnswers,
        out: Outbox,
        has: Callable[[bytes, str], bool],
        largest: Callable[[str], int],
        mailbox: int,
        goes_on: Callable[[RunEntry], None],
    ) -> None:
        self._store, self._nodes, self._answers, self._out = store, nodes, answers, out
        self._has, self._largest, self._mailbox, self._goes_on = has, largest, mailbox, goes_on

    def open(self, run: RunEntry, spec: m.AskSpec) -> None:
        """A run asks; an ask of the same number with another digest is over."""
        known = run.asks.get(spec.ask)
        if known is not None and known.spec.digest != spec.digest:
            self.close(run, spec.ask)
        if spec.ask not in run.asks:
            self._goes_on(run)
            run.asks[spec.ask] = AskEntry(spec)
            self._store.put("asks", {"run": run.id, "ask": spec.ask, "spec": spec.SerializeToString()})
        for payload in (spec.model, spec.shared):
            self.need(run, payload, f"{run.id}/{spec.ask}")

    def task(self, run: RunEntry, message: m.Task) -> None:
        """A run asks a client, for the first time or once more."""
        self._goes_on(run)
        ask = run.asks.get(message.ask)
        if ask is None:
            raise ProtocolError(f"task {message.task[:80]!r} of ask {message.ask}, which is not open", m.CODE_UNKNOWN)
        known = ask.tasks.get(message.task)
        ask.cancelled.discard(message.task)
        if known is not None and (known.message.attempt >= message.attempt or self._stands(ask, known)):
            self.need(run, known.message.own, f"{run.id}/{message.ask}")
            answer = ask.answers.get(known.answer or "")
            if answer is not None and answer.complete:
                self._answers.pass_on(run, answer)
            return
        if known is not None:
            self._answers.forget(run, ask, known, frozenset((message.task,)))
        task = ask.add(TaskEntry(message, self._nodes.by_client.get(message.client, "")))
        if why_not := self._unable(run, task):
            self._answers.fail(run, ask, task, why_not)
            return
        self._nodes.wait(task)
        self._store.put("tasks", ledger.task_row(run, task))
        self.need(run, message.own, f"{run.id}/{message.ask}")
        self._nodes.dispatch(run, ask, task)

    def cancel(self, run: RunEntry, body: m.Cancel) -> None:
        """A run wants no answer to some tasks."""
        # Durable, as the tasks are: none may overtake the word that it is not wanted, and come after its ask is closed.
        gone: dict[str, list[str]] = {}
        besides = frozenset(body.tasks)
        for id in body.tasks:
            ask = run.asks.get(ledger.ask_of(id))
            if ask is None:
                continue
            ask.cancelled.add(id)
            task = ask.remove(id)
            if task is None:
                continue
            self._answers.forget(run, ask, task, besides)
            self._store.delete("tasks", run=run.id, task=id)
            gone.setdefault(task.node, []).append(id)
        for name, tasks in gone.items():
            if (node := self._nodes.by_id.get(name)) is not None:
                self._out.say(node.peer, durable=True, cancel=m.Cancel(run=run.id, tasks=tasks))

    def close(self, run: RunEntry, id: int) -> None:
        """An ask is over: all is forgotten of it."""
        ask = run.asks.pop(id, None)
        if ask is None:
            return
        run.closed = max(run.closed, id)
        self._store.put("runs", {"id": run.id, "closed": run.closed})
        self._answers.close_ask(run, ask)
        for table in ("asks", "tasks", "answers"):
            self._store.delete(table, run=run.id, ask=id)
        self._out.effects.append(Release(f"{run.id}/{id}"))
        self._nodes.close_ask(run, ask)

    def need(self, run: RunEntry, payload: m.Payload, owner: str) -> None:
        """A run named a blob: have it from there, unless it has brought it before. That others have does not count."""
        if not payload.HasField("blob"):
            return
        if payload.blob.size > (most := self._largest("run")):
            text = f"{payload.blob.size:,} bytes, where all that this server stores may take {most:,}: see its --quota"
            raise ProtocolError(text, m.CODE_TOO_LARGE)
        self._out.effects.append(Hold(payload.blob.sha256, owner))
        giver = run_giver(run.id)
        if not self._has(payload.blob.sha256, giver) and run.peer is not None:
            self._out.effects.append(Fetch(run.peer, run.id, payload.blob, giver))

    def _stands(self, ask: AskEntry, task: TaskEntry) -> bool:
        """Whether a task has an update for an answer, which counts for all of its attempts: it is never done again."""
        answer = ask.answers.get(task.answer or "")
        if answer is None or not answer.complete or (payload := ledger.payload_of(answer.message)) is None:
            return False
        return not payload.HasField("blob") or self._has(payload.blob.sha256, node_giver(answer.node))

    def _unable(self, run: RunEntry, task: TaskEntry) -> str:
        """Why a task cannot be done; empty where it can."""
        node, client = self._nodes.by_id.get(task.node), task.message.client
        standing, reason = run.standings.get(client, (m.STANDING_UNSPECIFIED, ""))
        if node is None or standing in (m.STANDING_UNSPECIFIED, m.STANDING_REFUSED):
            return f"client {client} cannot take part: {reason or 'no node of this federation hosts it'}"
        if node.waiting >= self._mailbox:
            return f"the mailbox of node {node.name} is full: {node.waiting} tasks wait in it"
        return ""
