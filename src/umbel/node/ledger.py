"""What each client of a node has spent of its privacy, over all runs of all servers: entries of the node's audit.

An answer is said once it is on disk, and it is on disk together with its entry, in one transaction. Of each task there
is one answer at most, ever; one that is done again after a crash was not said before. So whatever a server may have
received is counted, once; what was stored, and never said after all, is counted too. A task that is at work counts
against the budget until it has ended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..core.ask import PHASE
from ..core.transform import accounts, chain_from_spec
from ..privacy.account import ALL, LedgerEntry, PrivacyAccount, Scope, held
from ..privacy.accounting import library
from ..store.records import Row
from ..trust.audit import Audit, Head
from ..trust.identity import SigningKey, check_entry, sign_entry
from ..trust.policy import PrivacyBudget
from ..trust.statement import canonical
from ..wire import messages as m
from ..work import contents
from .signals import Event as NodeEvent
from .signals import Start, TaskDone, TaskFailed

SPENT, BUDGET = "privacy.spent", "privacy.budget"
"""The kinds of record."""
KEPT_ASKS = 64
"""Of so many asks it is kept what they promise."""

Task = tuple[str, str, int]
"""A run, a task and an attempt."""


class PrivacyLedger:
    """The account of a node's clients, in its `audit`, signed with its `key`. With a `budget` it says which tasks are
    not begun, and which answers not given.

    `server` gives the server's public key, `clock` the wall time. Raises `CallerError` where there is a budget and
    dp-accounting is not installed.
    """

    def __init__(
        self,
        audit: Audit,
        key: SigningKey,
        budget: PrivacyBudget | None = None,
        *,
        server: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if budget is not None:
            library()  # which takes a second to load, too
        self._audit, self._key, self._budget = audit, key, budget
        self._server, self._clock = server, clock
        self._account = PrivacyAccount(budget.unit if budget is not None else "client")
        self._bare: set[tuple[str, str, str, str, int]] = set()
        self._last: dict[tuple[str, str], tuple[tuple[Mapping[str, Any], int], ...]] = {}
        self._promised: OrderedDict[bytes, tuple[tuple[str, ...], tuple[Any, ...]]] = OrderedDict()
        self._begun: dict[Task, LedgerEntry] = {}
        for row in audit.of(SPENT):
            self._count(*entry_of(row))
        told = {} if budget is None else {name: value for name, value in asdict(budget).items() if value is not None}
        if told != budget_of(audit.of(BUDGET)):
            audit.record("owner", BUDGET, **told)

    def begin(self, start: Start, app: str, path: Callable[[bytes], Path | None]) -> str:
        """A task is about to begin: why it must not, empty where it may. `path` gives the files of blobs."""
        task = start.task
        if start.ask.kind.startswith(PHASE):  # answered without data: there is nothing to count
            return ""
        by, releases = self._promises(start.ask, path)
        digest = start.ask.digest.hex()
        entry = LedgerEntry(task.client, self._server(), app, task.run, task.task, digest, by, releases)
        told = self._account.unit == "client" or bool(releases)
        if not told:  # what its handler will spend shows when it is done: until then it is what it was
            entry = replace(entry, examples=self._last.get((task.client, task.run), ()))
        reason = self._against(entry) if told or entry.examples else ""
        if not reason:
            self._begun[task.run, task.task, task.attempt] = entry
        return reason

    def done(self, event: TaskDone) -> str:
        """A task is done: why its answer must not be given, empty where it may."""
        at = (event.run, event.task, event.attempt)
        if at not in self._begun:  # a phase's; without an entry no other answer is committed
            return ""
        entry = replace(self._begun.pop(at), examples=event.accounted)
        reason = self._against(entry)
        self._begun[at] = entry
        return reason

    def commit(self, task: m.Task, ask: m.AskSpec) -> None:
        """The answer of a task is put into the spool: so is its entry."""
        if ask.kind.startswith(PHASE):
            return
        entry, now = self._begun.pop((task.run, task.task, task.attempt)), self._clock()
        year = _year(now)
        if _bare(entry, year) in self._bare:
            return  # nothing holds, and nothing did before
        text = _signed(self._audit.head, entry.plain())
        self._audit.record("node", SPENT, **entry.plain(), signed=sign_entry(self._key, text).hex())
        self._count(entry, year)

    def over(self, event: NodeEvent) -> None:
        """A task has ended, and its answer is in the spool, or is nobody's."""
        if isinstance(event, TaskDone | TaskFailed):
            self._begun.pop((event.run, event.task, event.attempt), None)

    def ended(self, run: str) -> None:
        """A run is not hosted any more."""
        self._begun = {task: entry for task, entry in self._begun.items() if task[0] != run}

    def _count(self, entry: LedgerEntry, year: int) -> None:
        self._account.add(entry, year)
        self._last[entry.client, entry.run] = entry.examples
        if (bare := _bare(entry, year)) is not None:
            self._bare.add(bare)

    def _promises(
        self, ask: m.AskSpec, path: Callable[[bytes], Path | None]
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """The transforms of an ask, and what they promise of each answer."""
        # By what it says: the number and the digest are those that the server gives it, and may give another.
        shared = ask.shared.SerializeToString(deterministic=True)
        key = hashlib.sha256(f"{len(ask.transforms)} {ask.transforms}".encode() + shared).digest()
        if key not in self._promised:
            self._promised[key] = promises(ask, path)
            if len(self._promised) > KEPT_ASKS:
                self._promised.popitem(last=False)
        return self._promised[key]

    def _against(self, entry: LedgerEntry) -> str:
        """Why a budget does not allow an entry; empty where it does."""
        if (budget := self._budget) is None:
            return ""
        year, client = str(_year(self._clock())), entry.client
        bounds: list[tuple[str, Scope, float | None]] = [
            ("in all", ALL, budget.epsilon),
            (f"with the app {entry.app}", ("app", entry.app), budget.per_app),
            (f"in {year}", ("year", year), budget.per_year),
        ]
        for words, scope, most in bounds:
            if most is None:
                continue
            # Of one that has told nothing so far it is seen when it is done.
            telling = [each for each in self._begun.values() if each.releases or each.examples]
            of = [each for each in telling if each.client == client]
            begun = [each for each in of if scope[0] != "app" or each.app == entry.app]
            more = [self._account.events(each) for each in (*begun, entry)]
            after = self._account.epsilon(client, budget.delta, scope, more, most)
            if not after <= most:
                before = self._account.epsilon(client, budget.delta, scope, more[:-1])
                return _refusal(entry, budget, words, (before, after, most))
        return ""


def _bare(entry: LedgerEntry, year: int) -> tuple[str, str, str, str, int] | None:
    """Of whom, to what and when nothing holds by an entry; None where something does."""
    if entry.releases or entry.examples:
        return None
    return entry.client, entry.server, entry.app, entry.run, year


def _refusal(entry: LedgerEntry, budget: PrivacyBudget, words: str, found: tuple[float, float, float]) -> str:
    before, after, most = found
    left = max(most - before, 0.0)
    may = f"client {entry.client} may spend epsilon {most:g} at delta {budget.delta:g} {words} (each {budget.unit})"
    would = "nothing that is promised of this answer would hold" if after > 1e300 else f"this would make it {after:.4g}"
    return f"{may}: {before:.4g} is spent, {left:.4g} is left, and {would}"


def promises(ask: m.AskSpec, path: Callable[[bytes], Path | None]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """The transforms of an ask by name, and what they promise of each answer; nothing where that cannot be read."""
    try:
        steps = chain_from_spec(json.loads(ask.transforms))
        by = tuple(part.name for part in steps.parts)
        if not accounts(steps):
            return by, ()
        file = path(ask.shared.blob.sha256) if ask.shared.HasField("blob") else None
        params = contents.given(ask.shared, file)["params"]
        return by, tuple(held(each) for each in steps.promises(params) or ())
    except Exception:  # the client finds that out as well, and says it
        return (), ()


def entry_of(row: Row) -> tuple[LedgerEntry, int]:
    """The entry of a record, and its year."""
    return LedgerEntry.of(row["what"]), _year(row["at"])


def budget_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What budget there is, by all records of budgets; empty for none."""
    return dict(rows[-1]["what"]) if rows else {}


def signed_by(public: bytes, row: Row) -> bool:
    """Whether a record is an entry that the node with this key has signed, behind just the record that it follows."""
    try:
        what: Mapping[str, Any] = {name: value for name, value in row["what"].items() if name != "signed"}
        text = _signed(Head(row["number"] - 1, row["before"]), what)
        return check_entry(public, text, bytes.fromhex(row["what"]["signed"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _signed(before: Head, entry: Mapping[str, Any]) -> bytes:
    """What is signed of an entry."""
    return canonical([str(before), entry])


def _year(at: float) -> int:
    return time.gmtime(at).tm_year
