"""What nodes answer."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ProtocolError
from ..store.records import Store
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched, node_giver
from . import fields, ledger
from .ledger import AnswerEntry, AskEntry, NodeEntry, RunEntry, TaskEntry, payload_of
from .nodes import Nodes
from .signals import Fetch, Hold, Outbox, Say

TOGETHER = 0.004
"""So many seconds an update waits for others to go with, where its ask cannot close before others have come."""


class NodeAnswers:
    """The answers to tasks: an answer is stored, passed on to its run and acknowledged, all once its blob is here.

    `has` and `largest` are as a `Router` has them; `count` is how many answers of nodes were stored.
    """

    def __init__(
        self, store: Store, nodes: Nodes, out: Outbox, has: Callable[[bytes, str], bool], largest: Callable[[str], int]
    ) -> None:
        self._store, self._nodes, self._out, self._has, self._largest = store, nodes, out, has, largest
        self._arriving: dict[tuple[str, bytes, str], list[tuple[int, str]]] = {}
        self.count = 0

    # What nodes say

    def result(self, node: NodeEntry, run: RunEntry, body: m.Result) -> None:
        """A node answers a task."""
        ask = run.asks.get(body.ask)
        task = ask.tasks.get(body.task) if ask is not None else None
        if ask is None or task is None or task.node != node.id:
            if _is_over(run, body.ask, body.task):
                self._acknowledge(node, body)
        elif task.answer is not None or (body.attempt < task.message.attempt and body.HasField("failure")):
            self._acknowledge(node, body)
        else:
            self._take(node, run, ask, AnswerEntry(body.task, m.Message(result=body), (body.task,), node.id))

    def partial(self, node: NodeEntry, run: RunEntry, body: m.Partial) -> None:
        """A node answers several tasks at once."""
        ask = run.asks.get(body.ask)
        ids = [receipt.task for receipt in body.receipts]
        if ask is None:
            if _is_over(run, body.ask, ids[0]):
                self._acknowledge(node, body)
            return
        wrong = [id for id in ids if id not in ask.tasks or ask.tasks[id].node != node.id or ask.tasks[id].answer]
        here = {ask.tasks[id].answer for id in ids if id in ask.tasks}
        if len(here) == 1 and (same := ask.answers.get(next(iter(here)) or "")) and set(same.tasks) == set(ids):
            self._acknowledge(node, body)
        elif wrong:
            self._out.say(node.peer, refold=m.Refold(run=run.id, ask=body.ask, without=wrong))
        else:
            entry = AnswerEntry(f"partial {ids[0]}", m.Message(partial=body), tuple(ids), node.id)
            self._take(node, run, ask, entry)

    def alive(self, node: NodeEntry, run: RunEntry, body: m.Alive) -> None:
        """A node is at these tasks still."""
        over, mine = [], []
        for id in body.tasks:
            number = ledger.ask_of(id)
            known = run.asks.get(number)
            if known is not None and id in known.tasks:
                mine.append(id)
            elif _is_over(run, number, id):
                over.append(id)
        if over:
            self._out.say(node.peer, cancel=m.Cancel(run=run.id, tasks=over))
        if mine:
            self._out.say(run.peer, alive=m.Alive(run=run.id, tasks=mine))

    # Blobs that are on their way

    def fetched(self, run: RunEntry, event: Fetched | NotFetched) -> None:
        """A blob is here; or it is not to be had: then it is as if nothing had come, and the node says it again."""
        for id, name in self._arriving.pop((run.id, event.sha, event.giver), []):
            ask = run.asks.get(id)
            answer = ask.answers.get(name) if ask is not None else None
            if ask is None or answer is None or answer.complete or ledger.sha_of(answer) != event.sha:
                continue
            wanted = all(t in ask.tasks and ask.tasks[t].answer is None for t in answer.tasks)
            if wanted and isinstance(event, Fetched) and self._has(event.sha, event.giver):
                self._keep(run, ask, answer)
            else:
                del ask.answers[name]

    def close_ask(self, run: RunEntry, ask: AskEntry) -> None:
        """Nobody waits any more for blobs of answers to this ask."""
        for answer in ask.answers.values():
            if not answer.complete:
                self._forget_arriving(run, ask, answer)

    def _forget_arriving(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        key = (run.id, ledger.sha_of(answer), node_giver(answer.node))
        left = [each for each in self._arriving.pop(key, []) if each != (ask.spec.ask, answer.id)]
        if left:
            self._arriving[key] = left

    # What is kept

    def _take(self, node: NodeEntry, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        """An answer is here, or will be once its blob is."""
        payload = payload_of(answer.message)
        if reason := fields.too_large(answer, ask.spec, self._largest):
            for id in answer.tasks:
                self.fail(run, ask, ask.tasks[id], f"client {ask.tasks[id].message.client}: {reason}")
            self._acknowledge(node, answer.body)
        elif payload is None or not payload.HasField("blob") or self._has(payload.blob.sha256, node_giver(node.id)):
            self._keep(run, ask, answer)
        else:
            before = ask.answers.get(answer.id)
            answer.complete, answer.peer = False, node.peer
            if before is not None and not before.complete and ledger.sha_of(before) != payload.blob.sha256:
                if before.peer == node.peer and ledger.attempt_of(before) >= ledger.attempt_of(answer):
                    raise ProtocolError(f"another answer to {answer.id} is on its way", m.CODE_OUT_OF_ORDER)
                self._forget_arriving(run, ask, before)
            waiting = self._arriving.setdefault((run.id, payload.blob.sha256, node_giver(node.id)), [])
            if (ask.spec.ask, answer.id) not in waiting:
                waiting.append((ask.spec.ask, answer.id))
            ask.answers[answer.id] = answer
            self._out.effects.append(Hold(payload.blob.sha256, f"{run.id}/{ask.spec.ask}"))
            if node.peer is not None:
                self._out.effects.append(Fetch(node.peer, run.id, payload.blob, node_giver(node.id)))

    def _keep(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        answer.complete = True
        self.count += 1
        if sha := ledger.sha_of(answer):
            ask.named.add(sha)
            self._out.effects.append(Hold(sha, f"{run.id}/{ask.spec.ask}"))
        self._put(run, ask, answer)
        for id in answer.tasks:
            self._nodes.settle(ask.answer(id, answer.id))
        waits = ask.spec.whole and ask.unanswered and payload_of(answer.message) is not None
        self.pass_on(run, answer, TOGETHER if waits else 0.0)
        self._acknowledge(self._nodes.by_id.get(answer.node), answer.body)

    def _put(self, run: RunEntry, ask: AskEntry, answer: AnswerEntry) -> None:
        ask.answers[answer.id] = answer
        row = {"run": run.id, "id": answer.id, "ask": ask.spec.ask, "message": answer.message.SerializeToString()}
        self._store.put("answers", row)

    def fail(self, run: RunEntry, ask: AskEntry, task: TaskEntry, reason: str) -> None:
        """Answer a task in place of a node."""
        t = task.message
        failure = m.Failure(reason=reason[:2000])
        result = m.Result(run=run.id, task=t.task, ask=t.ask, client=t.client, attempt=t.attempt, failure=failure)
        answer = AnswerEntry(t.task, m.Message(result=result), (t.task,), "")
        self._nodes.settle(task)
        ask.answer(t.task, answer.id)
        self._store.put("tasks", ledger.task_row(run, task))
        self._put(run, ask, answer)
        self.pass_on(run, answer)

    def pass_on(self, run: RunEntry, answer: AnswerEntry, lazy: float = 0.0) -> None:
        """Say an answer to whoever drives the run."""
        if run.peer is not None:
            self._out.effects.append(Say(run.peer, answer.message, lazy=lazy))

    def _acknowledge(self, node: NodeEntry | None, body: m.Result | m.Partial) -> None:
        if node is None:
            return
        if isinstance(body, m.Result):
            ack = m.Ack(run=body.run, tasks=[body.task], attempt=body.attempt, failed=body.HasField("failure"))
        else:
            ack = m.Ack(run=body.run, tasks=[receipt.task for receipt in body.receipts])
        self._out.say(node.peer, durable=True, ack=ack)

    # What is not wanted

    def forget(self, run: RunEntry, ask: AskEntry, task: TaskEntry, besides: frozenset[str]) -> None:
        """A task is not wanted as it was; the others of its answer wait again, but for those `besides`."""
        if task.answer is None:
            self._nodes.settle(task)
        else:
            self._drop(run, ask, task.answer, besides)

    def refold(self, run: RunEntry, body: m.Refold) -> None:
        """A run wants partials again, without some tasks."""
        ask = run.asks.get(body.ask)
        if ask is None:
            return
        without = set(body.without)
        named = {task.answer: None for id in body.without if (task := ask.tasks.get(id)) is not None and task.answer}
        for answer in [ask.answers[id] for id in named if id in ask.answers]:
            unwanted = without.intersection(answer.tasks)
            if not answer.message.HasField("partial"):
                continue
            if (node := self._nodes.by_id.get(answer.node)) is not None:
                refold = m.Refold(run=run.id, ask=body.ask, without=sorted(without))
                self._out.say(node.peer, durable=True, refold=refold)
            for id in unwanted:
                if ask.remove(id) is not None:  # if the run asks for it yet, the relay still has its answer
                    self._store.delete("tasks", run=run.id, task=id)
            self._drop(run, ask, answer.id)

    def _drop(self, run: RunEntry, ask: AskEntry, id: str, besides: frozenset[str] = frozenset()) -> None:
        """An answer is not wanted as it is: its other tasks wait again."""
        answer = ask.answers.pop(id, None)
        if answer is None:
            return
        self._store.delete("answers", run=run.id, id=id)
        for name in answer.tasks:
            task = ask.tasks.get(name)
            if task is None or name in besides:
                continue
            self._nodes.wait(ask.answer(name, None))
            self._nodes.dispatch(run, ask, task)


def _is_over(run: RunEntry, ask: int, task: str) -> bool:
    """Whether nobody will want the answer to a task that is not known: it is over, and not new to a server that was
    killed before it had written the task down.
    """
    known = run.asks.get(ask)
    return ask <= run.closed if known is None else task in known.cancelled
