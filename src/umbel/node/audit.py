"""What a node notes for its owner: which servers and runs came, what was let in and what not, and what was done."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..store.records import Row
from ..trust import audit
from ..trust.policy import archive_sha256
from ..wire import messages as m
from .gate import Verdict
from .signals import Event, TaskDone, TaskFailed
from .spool import Noted, Spool, Unnoted

SERVER, POLICY, OWNER, NODE = "server", "policy", "owner", "node"
PASSING = ("server.connected", "run.came", "run.allowed", "run.refused", "run.ended", "ask.refused", "task.refused")
"""Records that servers can cause: of each kind the last so many are kept."""
_TEXT = 500


class SpooledRecords:
    """The table of an audit in a node's spool, as an audit needs it of a store."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def put(self, table: str, row: Row) -> None:
        """Queue a record."""
        self._spool.put(Noted({**row, "what": json.dumps(row["what"])}))

    def delete(self, table: str, **where: Any) -> None:
        """Queue the removal of a record."""
        self._spool.put(Unnoted(where["number"]))

    def rows(self, table: str, *, above: int | None = None, limit: int | None = None, **where: Any) -> list[Row]:
        """The records on disk."""
        found = self._spool.noted(above or 0, where.get("did"))
        return [{**row, "what": json.loads(row["what"])} for row in found[:limit]]

    def greatest(self, table: str, **where: Any) -> int:
        """The number of the last record on disk."""
        return self._spool.last_noted()

    def commit(self) -> None:
        """Write what is queued."""
        self._spool.commit()


class NodeAudit:
    """A node's audit, in its spool; `folder` has the key and the head. What it notes is written with what the spool is
    told at the same time.
    """

    def __init__(self, spool: Spool, folder: Path, clock: Callable[[], float] = time.time) -> None:
        key = audit.key_of(folder)
        records: Any = SpooledRecords(spool)
        self.records = audit.Audit(records, clock, key=key, passing=PASSING, head=folder / audit.HEAD)
        self._tasks: dict[str, Counter[str]] = {}
        self.settle = self.records.settle

    def connected(self, peer: str, welcome: m.Welcome) -> None:
        """A server has let this node in; what it says from now on came from there."""
        audit.PEER.set(peer)
        self._note(SERVER, "server.connected", address=peer, as_name=welcome.name)

    def came(self, spec: m.RunSpec) -> None:
        """A run wants to be hosted."""
        told = {"name": spec.name, "archive": archive_sha256(spec).hex(), "author": spec.author.hex()}
        self._note(SERVER, "run.came", run=spec.run, **told)

    def judged(self, spec: m.RunSpec, verdict: Verdict, who: str = POLICY) -> None:
        """The policy, or the owner, has let a run's code in or not."""
        did = "run.allowed" if verdict.word == "allow" else "run.refused"
        if who == OWNER:
            did = did.replace("run", "owner")
        code = archive_sha256(spec).hex()
        self._note(who, did, run=spec.run, archive=code, reason=verdict.reason or None)

    def against_ask(self, judge: Callable[[m.RunSpec, m.AskSpec], str]) -> Callable[[m.RunSpec, m.AskSpec], str]:
        """The same judge of asks, whose refusals are noted."""

        def judged(spec: m.RunSpec, ask: m.AskSpec) -> str:
            if reason := judge(spec, ask):
                self._note(POLICY, "ask.refused", run=spec.run, ask=ask.ask, kind=ask.kind, reason=reason)
            return reason

        return judged

    def against_task(self, task: m.Task, reason: str) -> None:
        """The policy speaks against what a task's client would get."""
        self._note(POLICY, "task.refused", run=task.run, task=task.task, reason=reason)

    def told(self, event: Event) -> None:
        """Count what became of tasks."""
        if isinstance(event, TaskDone | TaskFailed):
            counts = self._tasks.setdefault(event.run, Counter())
            counts["done" if isinstance(event, TaskDone) else "failed"] += 1

    def ended(self, run: str) -> None:
        """A run is not hosted any more."""
        if counts := self._tasks.pop(run, None):
            self._note(NODE, "run.ended", run=run, done=counts["done"], failed=counts["failed"])

    def close(self) -> None:
        """The node stops."""
        for run in list(self._tasks):
            self.ended(run)

    def _note(self, who: str, did: str, **what: Any) -> None:
        cut = {key: value[:_TEXT] if isinstance(value, str) else value for key, value in what.items()}
        self.records.limited(who, did, **cut)
