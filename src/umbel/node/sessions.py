"""Which phases of secure sums a node's clients have answered: entries of the node's audit.

A client that masked two updates by the same keys would tell their difference, and one that told both secrets of a
neighbour its update. What it keeps from phase to phase says what comes next; but a server says from which state of a
client a task goes on, and may ask again. So each phase of a session is answered once, ever: the entry is on disk with
the answer, in one transaction, before that is said. A task that is done again after a crash was not said before.
"""

from __future__ import annotations

import json
from collections import OrderedDict

from ..core.ask import PHASE
from ..core.transform import chain_from_spec
from ..trust.audit import Audit
from ..wire import messages as m
from .signals import Event, Start, TaskDone, TaskFailed

ANSWERED = "secure.answered"
"""The kind of record."""
UPDATE = "update"
"""The phase in which updates are masked, whatever the kind of the ask: by the same keys, so one of them is answered."""
KEPT_ASKS = 64
"""Of so many asks it is kept which session they are of."""

Phase = tuple[str, str, str, str]
"""A run, a client, a session and a phase of it."""


class SecureSessions:
    """The phases of secure sums that a node's clients have answered, in its `audit`."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._begun: dict[tuple[str, str, int], Phase] = {}
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self._answered = {
            (w["run"], w["client"], w["session"], w["kind"]) for w in (r["what"] for r in audit.of(ANSWERED))
        }

    def begin(self, start: Start) -> str:
        """A task is about to begin: why it must not, empty where it may."""
        if (phase := self._phase(start.task, start.ask)) is None:
            return ""
        self._begun[start.task.run, start.task.task, start.task.attempt] = phase
        return self._against(phase)

    def done(self, event: TaskDone) -> str:
        """A task is done: why its answer must not be given, empty where it may."""
        phase = self._begun.get((event.run, event.task, event.attempt))
        return "" if phase is None else self._against(phase)

    def commit(self, task: m.Task, ask: m.AskSpec) -> None:
        """The answer of a task is put into the spool: so is its entry."""
        if (phase := self._phase(task, ask)) is not None:
            self._answered.add(phase)
            run, client, session, kind = phase
            self._audit.record("node", ANSWERED, run=run, client=client, session=session, kind=kind)

    def over(self, event: Event) -> None:
        """A task has ended, and its answer is in the spool, or is nobody's."""
        if isinstance(event, TaskDone | TaskFailed):
            self._begun.pop((event.run, event.task, event.attempt), None)

    def ended(self, run: str) -> None:
        """A run is not hosted any more."""
        self._begun = {task: phase for task, phase in self._begun.items() if task[0] != run}

    def _against(self, phase: Phase) -> str:
        _, client, session, kind = phase
        if phase not in self._answered:
            return ""
        return f"client {client} has answered {kind} of the session {session} already, and does so once"

    def _phase(self, task: m.Task, ask: m.AskSpec) -> Phase | None:
        """What a task answers of a secure sum; None where it is not of one."""
        session = self._session(ask.transforms)
        if session is None:
            return None
        return task.run, task.client, session, ask.kind if ask.kind.startswith(PHASE) else UPDATE

    def _session(self, transforms: str) -> str | None:
        if transforms not in self._known:
            try:
                sealing = chain_from_spec(json.loads(transforms)).sealing
            except Exception:  # the client finds that out as well, and says it
                sealing = None
            self._known[transforms] = None if sealing is None else sealing.session
            if len(self._known) > KEPT_ASKS:
                self._known.popitem(last=False)
        return self._known[transforms]
