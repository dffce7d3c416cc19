"""What a node's ledger costs: to check one of 10,000 entries, and to enter one more answer under a budget."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from umbel.cli.ledger import NodeLedger
from umbel.core import encoding
from umbel.core.transform import chain
from umbel.node.audit import NodeAudit
from umbel.node.ledger import PrivacyLedger
from umbel.node.signals import Start, TaskDone
from umbel.node.spool import Spool
from umbel.privacy import central_gaussian
from umbel.trust.identity import SigningKey
from umbel.trust.policy import PrivacyBudget
from umbel.wire import messages as m

from .figures import Row, turns

ENTRIES, MORE = 10_000, 100


def asked(number: int) -> m.AskSpec:
    """An ask under noise whose bound moves, so that no two releases are alike."""
    step = central_gaussian(norm=1.0, noise=100.0, expected=100, quantile=0.5, below_noise=100.0)
    shared = m.Payload(inline=encoding.encode({"params": ({"norm": 1.0 + number / 1e5},)}))
    steps = json.dumps(chain(step).spec())
    return m.AskSpec(run="r", ask=number, digest=b"d" * 32, kind="train", transforms=steps, shared=shared)


def enter(ledger: PrivacyLedger, numbers: range) -> None:
    """Answer so many asks by one client."""
    for number in numbers:
        ask = asked(number)
        task = m.Task(run="r", task=f"{number}.ward", ask=number, client="ward", attempt=1)
        reason = ledger.begin(Start("r", task, ask, None), "app", lambda sha: None)
        assert not reason, reason
        assert not ledger.done(TaskDone("r", task.task, 1, m.Done(), None))
        ledger.commit(task, ask)


def filled(folder: Path, entries: int) -> None:
    """A node's folder with so many entries of one client."""
    with closing(Spool(folder / "node.db")) as spool:
        notes = NodeAudit(spool, folder)
        enter(PrivacyLedger(notes.records, SigningKey.kept(folder / "node.key")), range(entries))
        spool.commit()
        notes.settle()


def timed(work: Callable[[], object]) -> float:
    """How many seconds it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_more(folder: Path, entries: int) -> float:
    """The milliseconds of one answer more under a budget, behind all these."""
    with closing(Spool(folder / "node.db")) as spool:
        key, budget = SigningKey.kept(folder / "node.key"), PrivacyBudget(epsilon=1000.0, delta=1e-6)
        ledger = PrivacyLedger(NodeAudit(spool, folder).records, key, budget)
        return timed(lambda: enter(ledger, range(entries, entries + MORE))) / MORE * 1000


def accounted(folder: Path) -> None:
    """Check the ledger, and say what its client has spent."""
    NodeLedger.read(folder).account().epsilon("ward", 1e-6)


def ledger(smoke: bool, times: int) -> Iterator[Row]:
    """The check, the epsilon, and one answer more."""
    entries = ENTRIES // 100 if smoke else ENTRIES
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        filled(folder, entries)
        accounted(folder)  # once, for what it has to load
        found = turns(
            {
                "check": partial(timed, lambda: NodeLedger.read(folder)),
                "account": partial(timed, lambda: accounted(folder)),
                "answer": partial(one_more, folder, entries),
            },
            times,
        )
    yield Row("ledger-check", f"a ledger of {entries:,} entries is checked", "s", 1.0, found["check"])
    yield Row("ledger-account", f"checked, and epsilon of {entries:,} releases", "s", None, found["account"])
    yield Row("ledger-answer", f"one answer more under a budget, behind {entries:,}", "ms", None, found["answer"])
