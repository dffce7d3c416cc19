"""What is remembered of who did what, and who was refused."""

from __future__ import annotations

import pytest
from tests.server.admission import KEY, Office

from umbel.server.audit import ServerAudit
from umbel.store.records import MemoryStore
from umbel.trust import audit
from umbel.trust.tokens import Token
from umbel.wire import messages as m


@pytest.fixture
def office():
    return Office()


def test_strangers_fill_no_disk_with_refused_attempts(office, monkeypatch):
    monkeypatch.setattr(audit, "KEPT", 5)
    monkeypatch.setattr(audit, "PRUNED", 2)
    office.registry.invite("ann")
    for number in range(9):
        office.now += 60
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, Token.new())
        if number == 4:
            office.restart()
    office.store.commit()
    rows = office.store.rows("audit")
    refused, pruned = ["refused"], ["audit.pruned"]
    assert [row["did"] for row in rows] == ["nodes.invite", *3 * refused, *pruned, *2 * refused, *pruned]
    assert audit.verified(b"", rows).number == rows[-1]["number"] == 12


def test_every_refused_attempt_is_recorded_up_to_so_many_a_minute(office):
    for _ in range(audit.LIMIT + 5):
        office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, Token.new(), name="x" * 1000)
    assert office.audit() == [("unknown", "refused")] * audit.LIMIT
    office.now += 60
    office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, Token.new())
    office.store.commit()
    more, last = office.registry.audit.last(2)
    assert more["what"] == {"more": 5}
    assert last["what"]["reason"] == "the token is not known here, or its secret is wrong"


def test_the_record_goes_on_after_a_restart(office):
    office.registry.audit.record("ann", "runs.submit", run="r", note=None)
    office.restart()
    office.registry.audit.record("bob", "runs.stop", run="r")
    office.store.commit()
    assert [(r["number"], r["who"], r["what"]) for r in office.registry.audit.last()] == [
        (1, "ann", {"run": "r"}),
        (2, "bob", {"run": "r"}),
    ]
    assert [r["number"] for r in office.registry.audit.last(1)] == [2]


def test_a_refusal_is_the_error_and_is_noted_without_what_is_too_long():
    store = MemoryStore()
    notes = ServerAudit(store, lambda: 7.0)
    error = notes.refusal(m.Hello(name="n" * 99), m.CODE_BUSY, "no room", retry=True, node="a")
    assert (error.code, error.message, error.retry) == (m.CODE_BUSY, "no room", True)
    notes.record("ann", "nodes.approve", node="a", name=None)
    store.commit()
    refused, approved = notes.last(2)
    assert (refused["who"], refused["at"], refused["what"]["name"], refused["what"]["node"]) == (
        "unknown",
        7.0,
        "n" * 64,
        "a",
    )
    assert (approved["number"], approved["did"], approved["what"]) == (2, "nodes.approve", {"node": "a"})
