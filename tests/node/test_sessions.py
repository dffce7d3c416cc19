"""Each phase of a session is answered once, ever, whatever a server asks and whatever is killed when."""

from __future__ import annotations

import json

import pytest

from umbel.core.transform import chain
from umbel.node.audit import NodeAudit
from umbel.node.sessions import ANSWERED, KEPT_ASKS, SecureSessions
from umbel.node.signals import Start, TaskDone, TaskFailed
from umbel.node.spool import Spool
from umbel.privacy import secure_sum
from umbel.transforms import rotate
from umbel.trust import audit
from umbel.wire import messages as m


def start(client="a", number=1, kind="train", session="1.0.1", run="r", attempt=1, transforms=None):
    step = secure_sum(session, 2, 3, 1.0)
    steps = json.dumps(chain(rotate(), step).spec()) if transforms is None else transforms
    asked = m.AskSpec(run=run, ask=number, kind=kind, digest=b"d", transforms=steps)
    task = m.Task(run=run, task=f"{number}.{client}", ask=number, client=client, attempt=attempt)
    return Start(run, task, asked, None)


class Desk:
    """The sessions of a node in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.open()

    def open(self):
        self.spool = Spool(self.folder / "node.db")
        self.notes = NodeAudit(self.spool, self.folder, lambda: 1_790_000_000.0)
        self.sessions = SecureSessions(self.notes.records)

    def answer(self, *given, **more):
        begun = start(*given, **more)
        reason = self.sessions.begin(begun) or self.done(begun)
        self.sessions.over(TaskFailed(begun.run, begun.task.task, begun.task.attempt, "", False))
        return reason

    def done(self, begun):
        if reason := self.sessions.done(TaskDone(begun.run, begun.task.task, begun.task.attempt, m.Done(), None)):
            return reason
        self.sessions.commit(begun.task, begun.ask)
        return ""

    def again(self, kept=True):
        if kept:
            self.spool.commit()
            self.notes.settle()
        self.spool.close()
        self.open()


@pytest.fixture
def desk(tmp_path):
    found = Desk(tmp_path)
    yield found
    found.spool.close()


def test_a_phase_is_answered_once_whatever_the_number_of_its_ask(desk):
    assert desk.answer() == ""
    for again in (False, True):
        if again:
            desk.again()
        says = "client a has answered update of the session 1.0.1 already, and does so once"
        assert desk.answer(number=9) == says
        assert desk.answer(attempt=2) == says


@pytest.mark.parametrize(
    "other", [{"client": "b"}, {"kind": "phase:unmask"}, {"session": "1.0.2"}, {"run": "s"}, {"transforms": "[]"}]
)
def test_other_clients_phases_sessions_and_runs_are_other_matters(desk, other):
    assert desk.answer() == ""
    assert desk.answer(**other) == ""


@pytest.mark.parametrize("kind", ["evaluate", "query:attack"])
def test_updates_of_two_kinds_are_masked_by_the_same_keys_and_one_is_answered(desk, kind):
    assert desk.answer(kind="train") == ""
    assert "does so once" in desk.answer(number=2, kind=kind)


def test_what_is_no_secure_sum_is_not_counted(desk):
    for steps in ("[]", json.dumps(chain(rotate()).spec()), "{", '[{"name": "none", "version": 1, "settings": {}}]'):
        for _ in range(2):
            assert desk.answer(transforms=steps) == ""
    assert not desk.notes.records.of(ANSWERED)


def test_of_two_that_are_done_side_by_side_one_is_given(desk):
    one, other = start(), start(number=2)
    assert [desk.sessions.begin(each) for each in (one, other)] == ["", ""]
    assert desk.done(other) == ""
    assert "does so once" in desk.done(one)


def test_a_task_that_has_failed_has_told_nothing(desk):
    assert desk.sessions.begin(start()) == ""
    desk.sessions.over(TaskFailed("r", "1.a", 1, "gone", False))
    assert not desk.sessions._begun
    assert desk.answer(attempt=2) == ""


def test_what_was_begun_in_a_run_that_is_over_is_forgotten(desk):
    assert desk.sessions.begin(start()) == ""
    desk.sessions.ended("r")
    assert not desk.sessions._begun


def test_what_was_not_put_on_disk_was_not_said(desk):
    assert desk.answer() == ""
    desk.again(kept=False)
    assert desk.answer() == ""


def test_the_entry_is_one_of_the_audit(desk):
    desk.answer(kind="phase:keys")
    desk.spool.commit()
    desk.notes.settle()
    key, head, rows = audit.read(desk.folder)
    audit.verified(key, rows, [head])
    (row,) = [row for row in rows if row["did"] == ANSWERED]
    assert row["what"] == {"run": "r", "client": "a", "session": "1.0.1", "kind": "phase:keys"}


def test_of_few_asks_it_is_kept_what_they_are(desk):
    for number in range(KEPT_ASKS + 5):
        assert desk.answer(session=f"{number}.0.1") == ""
    assert len(desk.sessions._known) == KEPT_ASKS
    assert "does so once" in desk.answer(session="0.0.1")
