"""The registry: who is let in, by what, and what is remembered of it."""

from __future__ import annotations

import json
import secrets

import pytest

from umbel.errors import Refused, SettingError
from umbel.server import registry as module
from umbel.server.registry import Registry
from umbel.store.records import MemoryStore
from umbel.trust.identity import SigningKey, node_id, seal, sign_node, transcript
from umbel.trust.tokens import Token
from umbel.wire import messages as m
from umbel.wire.roles import OPERATORS


class Office:
    """A registry with a store in memory and a clock, and those who connect to it."""

    def __init__(self, **settings):
        self.store, self.now, self.settings = MemoryStore(), 1000.0, settings
        self.registry = self.opened()

    def opened(self):
        return Registry(self.store, lambda: self.now, **self.settings)

    def restart(self):
        """All that was committed is there again."""
        self.store.commit()
        self.registry = self.opened()

    def node(self, key, token=None, *, name="", signed=None, **more):
        hello = m.Hello(
            role=m.ROLE_NODE,
            name=name,
            key=key.public,
            nonce=secrets.token_bytes(32),
            token=token.id if token else "",
            **more,
        )
        challenge = m.Challenge(version=1, nonce=secrets.token_bytes(32))
        text = transcript(hello.SerializeToString(), challenge.SerializeToString())
        sealed = seal(token.digest, text) if token else b""
        proof = m.Proof(signature=sign_node(signed or key, text), seal=sealed)
        self.last = hello, challenge, proof
        return self.registry.verify(hello, challenge, text, proof)

    def holder(self, role, token):
        hello = m.Hello(role=role, name="somebody", token=token.id, nonce=secrets.token_bytes(32))
        challenge = m.Challenge(version=1, nonce=secrets.token_bytes(32))
        text = transcript(hello.SerializeToString(), challenge.SerializeToString())
        return self.registry.verify(hello, challenge, text, m.Proof(seal=seal(token.digest, text)))

    def refused(self, code, call, *args, retry=False, **more):
        with pytest.raises(Refused) as caught:
            call(*args, **more)
        assert (caught.value.code, caught.value.retry) == (code, retry)
        return caught.value.message

    def audit(self):
        self.store.commit()
        return [(record["who"], record["did"]) for record in self.registry.audit()]


@pytest.fixture
def office():
    return Office()


KEY, OTHER = SigningKey.new(), SigningKey.new()
ID = node_id(KEY.public)


def test_a_node_joins_by_a_token_and_is_known_from_then_on(office):
    token = office.registry.invite("ann", "site-a", 60)
    identity = office.node(KEY, token, name="whatever")
    assert (identity.role, identity.id, identity.name) == (m.ROLE_NODE, ID, "site-a")
    office.restart()
    assert office.node(KEY).name == "site-a"
    (node,) = office.registry.nodes()
    assert (node.id, node.status, node.key, node.joined_at) == (ID, "approved", KEY.public, 1000.0)
    assert office.audit() == [("ann", "nodes.invite"), (f"node:{ID}", "nodes.join")]


def test_a_token_lets_one_node_join_once(office):
    token = office.registry.invite("ann")
    office.node(KEY, token)
    assert office.node(KEY, token).id == ID  # the same node, whose Welcome may have got lost
    assert "used already" in office.refused(m.CODE_REVOKED, office.node, OTHER, token)
    office.restart()
    office.refused(m.CODE_REVOKED, office.node, OTHER, token)


def test_a_token_is_used_up_before_it_is_committed(office):
    token = office.registry.invite("ann")
    office.store.commit()
    office.node(KEY, token)
    office.refused(m.CODE_REVOKED, office.node, OTHER, token)
    office.store.crash()  # nobody was welcomed, so it may be used again
    office.registry = office.opened()
    assert office.node(OTHER, token).role == m.ROLE_NODE


def test_a_token_expires(office):
    token = office.registry.invite("ann", ttl=60)
    office.now += 61
    assert "expired" in office.refused(m.CODE_REVOKED, office.node, KEY, token)
    office.now += module.KEPT
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
    admin = office.registry.grant("server", "ann", "admin")
    run = office.registry.issue_run("ann", "r1")
    for token in (admin, run):
        office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, token)
    for token in (join, run):
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_OPERATOR, token)
    for token in (join, Token(run.id, admin.secret)):
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, token)


def test_a_node_without_its_key_is_refused(office):
    token = office.registry.invite("ann")
    office.node(KEY, token)
    office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, signed=OTHER)
    office.refused(m.CODE_UNAUTHENTICATED, office.node, OTHER, office.registry.invite("ann"), signed=KEY)


def test_a_proof_cannot_be_used_again(office):
    office.node(KEY, office.registry.invite("ann"))
    hello, challenge, proof = office.last
    fresh = m.Challenge(version=1, nonce=secrets.token_bytes(32))
    for said, asked in ((hello, fresh), (m.Hello(role=m.ROLE_NODE, key=KEY.public, name="x"), challenge)):
        text = transcript(said.SerializeToString(), asked.SerializeToString())
        office.refused(m.CODE_UNAUTHENTICATED, office.registry.verify, said, asked, text, proof)


def test_a_hello_without_a_role_or_a_key_is_refused(office):
    office.refused(m.CODE_MALFORMED, office.registry.verify, m.Hello(), m.Challenge(), b"", m.Proof())
    hello = m.Hello(role=m.ROLE_NODE, key=b"short")
    office.refused(m.CODE_UNAUTHENTICATED, office.registry.verify, hello, m.Challenge(), b"", m.Proof())


def test_a_node_that_nobody_knows_waits_for_approval(office):
    text = office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name="site-a", clients=["c"] * 50, retry=True)
    assert ID[:8] in text
    office.restart()
    office.now += 5
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name="site-a", retry=True)
    (node,) = office.registry.nodes()
    assert (node.status, node.name, node.seen_at, node.joined_at, node.clients) == ("pending", "site-a", 1005, None, ())
    assert office.registry.approve("ann", "site-a").status == "approved"
    office.restart()
    assert office.node(KEY, clients=["c"]).name == "site-a"
    assert office.audit() == [(f"node:{ID}", "nodes.wait"), ("ann", "nodes.approve")]


def test_a_node_that_waits_may_still_use_a_token(office):
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name="site-a", retry=True)
    assert office.node(KEY, office.registry.invite("ann", "named"), name="site-a").name == "named"


def test_not_more_than_so_many_nodes_wait():
    office = Office(pending=2)
    for _ in range(2):
        office.refused(m.CODE_NOT_APPROVED, office.node, SigningKey.new(), retry=True)
    office.refused(m.CODE_BUSY, office.node, KEY, retry=True)
    assert office.node(OTHER, office.registry.invite("ann")).role == m.ROLE_NODE
    office.now += module.PATIENCE + 1
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True)
    office.restart()
    assert {node.id for node in office.registry.nodes()} == {ID, node_id(OTHER.public)}


def test_a_revoked_node_is_refused_even_with_a_token(office):
    office.node(KEY, office.registry.invite("ann"))
    office.registry.revoke("ann", ID[:8])
    office.restart()
    office.refused(m.CODE_REVOKED, office.node, KEY)
    office.refused(m.CODE_REVOKED, office.node, KEY, office.registry.invite("ann"))
    office.registry.approve("ann", ID)
    assert office.node(KEY).id == ID


def test_names_are_unique_and_names(office):
    first = office.node(KEY, office.registry.invite("ann"), name="site")
    second = office.node(OTHER, office.registry.invite("ann"), name="site")
    third = office.node(SigningKey.new(), office.registry.invite("ann"), name="../\x1b[2K")
    assert first.name == "site"
    assert second.name == f"site-{second.id[:8]}"
    assert third.name == f"node-{third.id[:8]}"
    for name in ("site", "", "a b", "x" * 65, "-x"):
        with pytest.raises(SettingError):
            office.registry.rename("ann", third.id, name)
        with pytest.raises(SettingError):
            office.registry.invite("ann", name)
    assert office.registry.rename("ann", "site", "other").name == "other"
    office.restart()
    assert office.node(KEY).name == "other"


def test_an_invitation_for_a_name_that_was_taken_meanwhile_is_refused_and_not_used_up(office):
    invited = office.registry.invite("ann", "ward")
    office.node(OTHER, office.registry.invite("ann"), name="ward")
    assert "there is a node ward already" in office.refused(m.CODE_NOT_ALLOWED, office.node, KEY, invited, name="x")
    office.registry.rename("ann", "ward", "former")
    assert office.node(KEY, invited, name="x").name == "ward"


def test_a_node_that_is_known_is_renamed_by_an_invitation_for_another_name(office):
    assert office.node(KEY, office.registry.invite("ann", "ward"), name="ward").name == "ward"
    invited = office.registry.invite("ann", "clinic")
    assert office.node(KEY, invited, name="ward").name == "clinic"
    assert (f"node:{ID}", "nodes.rename") in office.audit()
    office.registry.rename("ann", "clinic", "ward")
    assert office.node(KEY, invited, name="ward").name == "ward", "it was good once"
    office.restart()
    assert office.node(KEY).name == "ward"


def test_an_invitation_renames_nobody_without_its_secret_and_nobody_to_a_name_that_is_taken(office):
    office.node(KEY, office.registry.invite("ann", "ward"))
    invited = office.registry.invite("ann", "clinic")
    assert office.node(KEY, Token(invited.id, "0" * 32)).name == "ward"
    office.node(OTHER, office.registry.invite("ann"), name="clinic")
    assert office.node(KEY, invited).name == "ward"
    office.now += 2 * 86400
    office.registry.rename("ann", "clinic", "other")
    assert office.node(KEY, invited).name == "ward", "it has expired"


def test_strangers_fill_no_disk_with_refused_attempts(office, monkeypatch):
    monkeypatch.setattr(module, "KEPT_REFUSALS", 5)
    office.registry.invite("ann")
    for number in range(9):
        office.now += 60
        office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, Token.new())
        if number == 4:
            office.restart()
    office.store.commit()
    rows = office.store.rows("audit")
    assert [row["did"] for row in rows] == ["nodes.invite", *["refused"] * 5]
    assert rows[-1]["number"] == 10


def test_nodes_are_found_by_id_name_or_the_beginning_of_the_id(office):
    office.node(KEY, office.registry.invite("ann"), name="site")
    for reference in (ID, "site", ID[:4]):
        assert office.registry.node(reference).id == ID
    for reference in ("", ID[:3], "nobody"):
        with pytest.raises(SettingError, match="there is no node"):
            office.registry.node(reference)


def test_what_a_node_brings_is_kept_up_to_date(office):
    brings = m.Capabilities(kinds=["train"], transforms=[m.Step(name="top_k", version=1)], archives=True)
    office.node(KEY, office.registry.invite("ann"), capabilities=brings, software="umbel 1")
    office.restart()
    (node,) = office.registry.nodes()
    assert node.capabilities["transforms"] == [["top_k", 1]]
    office.node(KEY, capabilities=brings, software="umbel 2")
    office.restart()
    (node,) = office.registry.nodes()
    assert node.capabilities["software"] == "umbel 2"


def test_the_router_says_when_a_node_was_seen_and_what_it_hosts(office):
    office.node(KEY, office.registry.invite("ann"), clients=["a"])
    office.store.put("nodes", {"id": ID, "seen_at": 2000.0, "clients": ["a", "b"]})
    office.registry.rename("ann", ID, "other")
    office.store.commit()
    (node,) = office.registry.nodes()
    assert (node.name, node.seen_at, node.clients) == ("other", 2000.0, ("a", "b"))


def test_operators_may_do_what_their_role_says(office):
    roles = OPERATORS
    for place, role in enumerate(roles):
        identity = office.holder(m.ROLE_OPERATOR, office.registry.grant("server", f"one-{role}", role))
        assert identity.name == f"one-{role}"
        assert office.registry.role(identity) == role
        assert [office.registry.may(identity, other) for other in roles] == [i <= place for i in range(3)]
    node = office.node(KEY, office.registry.invite("ann"))
    run = office.holder(m.ROLE_RUN, office.registry.issue_run("ann", "r"))
    for other in (node, run):
        assert not office.registry.may(other, "read")
        assert office.registry.role(other) == ""
    with pytest.raises(SettingError, match="no role"):
        office.registry.grant("server", "bob", "root")
    with pytest.raises(SettingError, match="already"):
        office.registry.grant("server", "one-read", "run")


def test_an_operator_who_is_removed_may_nothing(office):
    token = office.registry.grant("server", "ann", "admin")
    identity = office.holder(m.ROLE_OPERATOR, token)
    office.restart()
    assert office.registry.operators() == [{"token": token.id, "name": "ann", "role": "admin", "used_at": 1000.0}]
    assert office.registry.remove_operator("server", "ann") == token.id
    assert not office.registry.may(identity, "read")
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_OPERATOR, token)
    with pytest.raises(SettingError, match="no operator"):
        office.registry.remove_operator("server", "ann")


def test_a_run_has_one_token_until_it_ends(office):
    first = office.registry.issue_run("ann", "r1")
    other = office.registry.issue_run("ann", "r2")
    assert office.holder(m.ROLE_RUN, first).id == "r1"
    second = office.registry.issue_run("server", "r1")
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, first)
    assert office.holder(m.ROLE_RUN, second).id == "r1"
    office.registry.end_run("r1")
    office.registry.end_run("r1")
    office.restart()
    office.refused(m.CODE_UNAUTHENTICATED, office.holder, m.ROLE_RUN, second)
    assert office.holder(m.ROLE_RUN, other).id == "r2"
    assert [did for _, did in office.audit()].count("runs.end") == 1


def test_every_refused_attempt_is_recorded_up_to_so_many_a_minute(office):
    for _ in range(module.REFUSALS + 5):
        office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, Token.new(), name="x" * 1000)
    assert office.audit() == [("unknown", "refused")] * module.REFUSALS
    office.now += 60
    office.refused(m.CODE_UNAUTHENTICATED, office.node, KEY, Token.new())
    office.store.commit()
    more, last = office.registry.audit(2)
    assert more["what"] == {"more": 5}
    assert last["what"]["reason"] == "the token is not known here, or its secret is wrong"


def test_the_record_goes_on_after_a_restart(office):
    office.registry.record("ann", "runs.submit", run="r", note=None)
    office.restart()
    office.registry.record("bob", "runs.stop", run="r")
    office.store.commit()
    assert [(r["number"], r["who"], r["what"]) for r in office.registry.audit()] == [
        (1, "ann", {"run": "r"}),
        (2, "bob", {"run": "r"}),
    ]
    assert [r["number"] for r in office.registry.audit(1)] == [2]


def test_no_secret_is_kept(office):
    tokens = [office.registry.invite("ann"), office.registry.grant("server", "bob", "run")]
    tokens.append(office.registry.issue_run("bob", "r"))
    office.node(KEY, tokens[0])
    office.refused(m.CODE_REVOKED, office.node, OTHER, tokens[0])
    office.store.commit()
    kept = json.dumps({t: office.store.rows(t) for t in ("nodes", "tokens", "audit")}, default=repr)
    for token in tokens:
        assert token.secret not in kept
        assert token.secret not in repr(office.registry.audit())


def test_an_operator_may_drive_a_run_of_their_own():
    office = Office()
    ann, bob = (office.registry.grant("x", name, "run") for name in ("ann", "bob"))
    watcher = office.registry.grant("x", "eve", "read")
    identity = office.holder(m.ROLE_RUN, ann)
    assert (identity.role, identity.id, identity.name) == (m.ROLE_RUN, "somebody", "ann")
    assert "not bob's" in office.refused(m.CODE_NOT_ALLOWED, office.holder, m.ROLE_RUN, bob)
    assert "starts no runs" in office.refused(m.CODE_NOT_ALLOWED, office.holder, m.ROLE_RUN, watcher)
    office.store.put("runs", {"id": "somebody", "owner": "ann"})
    office.restart()
    assert office.holder(m.ROLE_RUN, ann).id == "somebody"
    assert "not bob's" in office.refused(m.CODE_NOT_ALLOWED, office.holder, m.ROLE_RUN, bob)
    office.store.put("runs", {"id": "somebody", "submission": {"client": {}}})  # the server drives it
    office.restart()
    office.refused(m.CODE_NOT_ALLOWED, office.holder, m.ROLE_RUN, ann)
    assert [row["who"] for row in office.registry.audit() if row["did"] == "runs.drive"] == ["ann", "ann"]


def test_an_operators_token_is_known_again_by_its_role():
    office = Office()
    token = office.registry.grant("x", "ann", "admin")
    assert office.registry.holds(token, "admin")
    assert not office.registry.holds(token, "run")
    assert not office.registry.holds(Token(token.id, Token.new().secret), "admin")
    assert not office.registry.holds(Token.new(), "admin")
