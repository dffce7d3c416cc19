"""Tokens: what each is good for, and for how long."""

from __future__ import annotations

import json

import pytest
from tests.server.admission import KEY, OTHER, Office

from umbel.errors import SettingError
from umbel.server import tokens
from umbel.server.audit import ServerAudit
from umbel.server.tokens import Tokens
from umbel.store.records import MemoryStore
from umbel.trust.tokens import Token
from umbel.wire import messages as m
from umbel.wire.roles import OPERATORS, at_least


@pytest.fixture
def office():
    return Office()


def test_a_token_expires(office):
    token = office.registry.invite("ann", ttl=60)
    office.now += 61
    assert "expired" in office.refused(m.CODE_REVOKED, office.node, KEY, token)
    office.now += tokens.KEPT
    office.registry.invite("ann")
    assert "not known" in office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, token)


def test_a_wrong_secret_says_nothing_about_the_token(office):
    token = office.registry.invite("ann", ttl=60)
    wrong = Token(token.id, "0" * 32)
    unknown = Token("0" * 12, token.secret)
    said = {office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, t) for t in (wrong, unknown)}
    office.now += 61
    said.add(office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, wrong))
    assert len(said) == 1


def test_a_token_of_one_kind_is_not_good_for_another(office):
    join = office.registry.invite("ann")
    admin = office.registry.tokens.grant("server", "ann", "admin")
    run = office.registry.tokens.issue_run("ann", "r1")
    for token in (admin, run):
        office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, token)
    for token in (join, run):
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_OPERATOR, token)
    for token in (join, Token(run.id, admin.secret)):
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, token)


def test_operators_may_do_what_their_role_says(office):
    roles = OPERATORS
    for place, role in enumerate(roles):
        identity = office.holder(m.ROLE_OPERATOR, office.registry.tokens.grant("server", f"one-{role}", role))
        assert identity.name == f"one-{role}"
        assert office.registry.tokens.role(identity) == role
        assert [at_least(office.registry.tokens.role(identity), other) for other in roles] == [
            i <= place for i in range(3)
        ]
    node = office.node(KEY, office.registry.invite("ann"))
    run = office.holder(m.ROLE_RUN, office.registry.tokens.issue_run("ann", "r"))
    for other in (node, run):
        assert office.registry.tokens.role(other) == ""
    with pytest.raises(SettingError, match="no role"):
        office.registry.tokens.grant("server", "bob", "root")
    with pytest.raises(SettingError, match="already"):
        office.registry.tokens.grant("server", "one-read", "run")


def test_an_operator_who_is_removed_may_nothing(office):
    token = office.registry.tokens.grant("server", "ann", "admin")
    identity = office.holder(m.ROLE_OPERATOR, token)
    office.restart()
    assert office.registry.tokens.operators() == [
        {"token": token.id, "name": "ann", "role": "admin", "used_at": 1000.0}
    ]
    assert office.registry.tokens.remove_operator("server", "ann") == token.id
    assert office.registry.tokens.role(identity) == ""
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_OPERATOR, token)
    with pytest.raises(SettingError, match="no operator"):
        office.registry.tokens.remove_operator("server", "ann")


def test_a_run_has_one_token_until_it_ends(office):
    first = office.registry.tokens.issue_run("ann", "r1")
    other = office.registry.tokens.issue_run("ann", "r2")
    assert office.holder(m.ROLE_RUN, first).id == "r1"
    second = office.registry.tokens.issue_run("server", "r1")
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, first)
    assert office.holder(m.ROLE_RUN, second).id == "r1"
    office.registry.tokens.end_run("r1")
    office.registry.tokens.end_run("r1")
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, second)
    assert office.holder(m.ROLE_RUN, other).id == "r2"
    assert [did for _, did in office.audit()].count("runs.end") == 1


def test_no_secret_is_kept(office):
    tokens = [office.registry.invite("ann"), office.registry.tokens.grant("server", "bob", "run")]
    tokens.append(office.registry.tokens.issue_run("bob", "r"))
    office.node(KEY, tokens[0])
    office.refused(m.CODE_REVOKED, office.node, OTHER, tokens[0])
    office.store.commit()
    kept = json.dumps({t: office.store.rows(t) for t in ("nodes", "tokens", "audit")}, default=repr)
    for token in tokens:
        assert token.secret not in kept
        assert token.secret not in repr(office.registry.audit.last())


def test_an_operators_token_is_known_again_by_its_role():
    office = Office()
    token = office.registry.tokens.grant("x", "ann", "admin")
    assert office.registry.tokens.holds(token, "admin")
    assert not office.registry.tokens.holds(token, "run")
    assert not office.registry.tokens.holds(Token(token.id, Token.new().secret), "admin")
    assert not office.registry.tokens.holds(Token.new(), "admin")


def test_what_is_kept_of_a_token_is_its_public_key_and_when_it_was_used():
    store = MemoryStore()
    known = Tokens(store, lambda: 5.0, ServerAudit(store, lambda: 5.0))
    token = known.invite("ann", "ward", 60.0)
    row = known.row(token.id)
    assert (row["public"], row["name"], row["expires_at"], row["used_at"]) == (token.key.public, "ward", 65.0, None)
    known.used(row, 6.0)
    store.commit()
    assert Tokens(store, lambda: 7.0, ServerAudit(store, lambda: 7.0)).row(token.id)["used_at"] == 6.0
    assert known.row("other") is None
    for ttl in (0.0, 400 * 86400.0):
        with pytest.raises(SettingError, match="up to a year"):
            known.invite("ann", None, ttl)
