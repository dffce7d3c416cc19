"""The registry: who is let in, and by what."""

from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.admission import ID, KEY, OTHER, Office

from umbel.errors import Refused, SettingError
from umbel.server.claims import Bounds
from umbel.server.registry import PATIENCE
from umbel.transport.handshake import Identity
from umbel.trust.audit import PEER
from umbel.trust.identity import SigningKey, node_id, transcript
from umbel.trust.tokens import Token
from umbel.wire import messages as m


@pytest.fixture
def office():
    return Office()


def test_a_node_joins_by_a_token_and_is_known_from_then_on(office):
    token = office.registry.invite("ann", "site-a", 60)
    identity = office.node(KEY, token, name="whatever")
    assert (identity.role, identity.id, identity.name) == (m.ROLE_NODE, ID, "site-a")
    office.restart()
    assert office.node(KEY).name == "site-a"
    (node,) = office.registry.nodes()
    assert (node.id, node.status, node.key, node.joined_at) == (ID, "approved", KEY.public, 1000.0)
    assert office.audit() == [("ann", "nodes.invite"), (f"node:{ID}", "nodes.join")]


RELAY = m.Capabilities(partials=True)


def test_a_node_is_a_relay_by_an_admins_word_alone(office):
    plain = office.registry.invite("ann")
    assert "--relay" in office.refused(m.CODE_NOT_ALLOWED, office.node, KEY, plain, capabilities=RELAY)
    assert not office.node(KEY, plain).relay  # which the attempt has not used up
    told = office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True, capabilities=RELAY)
    assert told.endswith(f"`umbel nodes approve node-{ID[:8]} --relay` makes it one")
    office.registry.approve("ann", ID)
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True, capabilities=RELAY)
    office.registry.approve("ann", ID, relay=True)
    office.restart()
    assert office.node(KEY, capabilities=RELAY).relay
    assert not office.node(KEY).relay  # it says itself what it is this time
    assert ("ann", "nodes.relay") in office.audit()
    office.registry.revoke("ann", ID)
    office.registry.approve("ann", ID)
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True, capabilities=RELAY)


def test_a_relay_joins_by_an_invitation_for_one(office):
    token = office.registry.invite("ann", "east", relay=True)
    assert office.node(KEY, token, capabilities=RELAY).relay
    office.restart()
    assert office.node(KEY, capabilities=RELAY).relay
    (node,) = office.registry.nodes()
    assert node.relay


def test_a_node_has_the_client_names_that_its_invitation_or_its_approval_says(office):
    bounds = Bounds(("ward-*", "icu-7"), 100)
    token = office.registry.invite("ann", bounds=bounds)
    office.restart()
    office.node(KEY, token)
    office.restart()
    (node,) = office.registry.nodes()
    assert node.bounds == bounds
    taken, refused = office.registry.claims.take(ID, ["ward-1", "ward", "icu-7"])
    assert (taken, list(refused)) == (("ward-1", "icu-7"), ["ward"])
    office.registry.approve("ann", ID, bounds=Bounds(("ward",)))
    assert office.registry.claims.take(ID, ["ward-1", "ward"])[0] == ("ward",)
    assert ("ann", "nodes.bound") in office.audit()


def test_an_invitation_for_names_of_another_node_lets_nobody_in(office):
    office.node(KEY, office.registry.invite("ann", bounds=Bounds(("icu-7",))))
    token = office.registry.invite("ann", bounds=Bounds(("icu-7",)))
    assert "that of another node" in office.refused(m.CODE_NOT_ALLOWED, office.node, OTHER, token)
    office.registry.revoke("ann", ID)
    office.refused(m.CODE_NOT_ALLOWED, office.node, OTHER, token)
    office.registry.release("ann", ["icu-7"])
    assert office.node(OTHER, token).role == m.ROLE_NODE
    assert ("ann", "clients.release") in office.audit()


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
    assert f"`umbel nodes approve {ID}`" in text
    office.restart()
    office.now += 5
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name="site-a", retry=True)
    (node,) = office.registry.nodes()
    assert (node.status, node.name, node.seen_at, node.joined_at, node.clients) == ("pending", "site-a", 1005, None, ())
    for part in ("site-a", ID[:8]):  # which whoever likes may have too
        with pytest.raises(SettingError, match="not enough to approve a node by"):
            office.registry.approve("ann", part)
    assert office.registry.approve("ann", ID).status == "approved"
    office.restart()
    assert office.node(KEY, clients=["c"]).name == "site-a"
    assert office.audit() == [(f"node:{ID}", "nodes.wait"), ("ann", "nodes.approve")]


def test_no_node_is_called_like_another_ones_id(office):
    other = node_id(OTHER.public)
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name=other, retry=True)
    assert office.registry.node(ID).name == f"node-{ID[:8]}"
    with pytest.raises(SettingError, match="cannot be the name of a node"):
        office.registry.rename("ann", ID, other)
    with pytest.raises(SettingError, match="there is no node"):
        office.registry.approve("ann", other)


def test_a_name_that_is_the_beginning_of_another_ones_id_names_neither(office):
    office.node(KEY, office.registry.invite("ann", node_id(OTHER.public)[:6]))
    office.node(OTHER, office.registry.invite("ann", "other"))
    with pytest.raises(SettingError, match="there are several nodes"):
        office.registry.revoke("ann", node_id(OTHER.public)[:6])


def test_a_node_that_waits_may_still_use_a_token(office):
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, name="site-a", retry=True)
    assert office.node(KEY, office.registry.invite("ann", "named"), name="site-a").name == "named"


def test_not_more_than_so_many_nodes_wait():
    office = Office(pending=2)
    for _ in range(2):
        office.refused(m.CODE_NOT_APPROVED, office.node, SigningKey.new(), retry=True)
    office.refused(m.CODE_BUSY, office.node, KEY, retry=True)
    assert office.node(OTHER, office.registry.invite("ann")).role == m.ROLE_NODE
    office.now += PATIENCE + 1
    office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True)
    office.restart()
    assert {node.id for node in office.registry.nodes()} == {ID, node_id(OTHER.public)}


def test_who_knocks_from_one_address_keeps_nobody_else_from_waiting():
    office, attackers = Office(pending=4), [SigningKey.new() for _ in range(4)]

    def knocks(address, key, code=m.CODE_NOT_APPROVED):
        office.now += 1
        before = PEER.set(f"ipv4:{address}:{office.now:.0f}")
        office.refused(code, office.node, key, retry=True)
        PEER.reset(before)

    def waiting():
        return {node.id for node in office.registry.nodes()}

    for key in attackers:
        knocks("10.0.0.1", key)
    knocks("10.0.0.1", SigningKey.new(), m.CODE_BUSY)
    knocks("10.0.0.2", KEY)
    assert waiting() == {ID, *(node_id(key.public) for key in attackers[1:])}
    knocks("10.0.0.3", OTHER)
    knocks("10.0.0.1", attackers[0], m.CODE_BUSY)
    knocks("10.0.0.2", SigningKey.new(), m.CODE_BUSY)  # it would then have as many as anybody
    assert waiting() == {ID, node_id(OTHER.public), *(node_id(key.public) for key in attackers[2:])}


def test_a_revoked_node_is_refused_even_with_a_token(office):
    office.node(KEY, office.registry.invite("ann"))
    office.registry.revoke("ann", ID[:8])
    office.restart()
    office.refused(m.CODE_REVOKED, office.node, KEY)
    office.refused(m.CODE_REVOKED, office.node, KEY, office.registry.invite("ann"))
    office.registry.approve("ann", ID)
    assert office.node(KEY).id == ID


def test_who_asks_whether_it_would_be_let_in_changes_nothing(office):
    def checks(key, token=None, **more):
        before = {node.id for node in office.registry.nodes()}
        try:
            found = office.node(key, token, role=m.ROLE_CHECK, **more)
        finally:
            assert {node.id for node in office.registry.nodes()} == before
        assert office.registry.admits(found)
        return found.name

    invited = office.registry.invite("ann", "ward")
    assert checks(KEY, invited, name="x") == "the token is good, and it would join as ward"
    assert checks(OTHER, invited, name="x") == checks(KEY, invited), "it is not used up"
    office.refused(m.CODE_NOT_APPROVED, checks, KEY, retry=True)
    office.refused(m.CODE_UNAUTHENTICATED, checks, KEY, Token(invited.id, "0" * 32))
    office.refused(m.CODE_UNAUTHENTICATED, checks, KEY, invited, signed=OTHER)
    assert office.node(KEY, invited).name == "ward"
    assert checks(KEY) == "known here as ward"
    assert "used already" in office.refused(m.CODE_REVOKED, checks, OTHER, invited)
    office.registry.revoke("ann", "ward")
    office.refused(m.CODE_REVOKED, checks, KEY)
    late = office.registry.invite("ann", ttl=5.0)
    office.now += 10.0
    assert "expired" in office.refused(m.CODE_REVOKED, checks, OTHER, late)
    again = office.registry.invite("ann", "clinic")
    office.node(OTHER, office.registry.invite("ann"), name="clinic")
    assert "there is a node clinic" in office.refused(m.CODE_NOT_ALLOWED, checks, SigningKey.new(), again)


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


@pytest.mark.parametrize("run", ["", ".", "..", ".hidden", "a/b", "-x", "a b", "a\n", "a" * 201])
def test_a_run_of_an_operators_program_has_an_id_that_can_be_a_folders_name(run):
    office = Office()
    ann = office.registry.tokens.grant("x", "ann", "run")
    assert "cannot be a run's id" in office.refused(m.CODE_MALFORMED, office.holder, m.ROLE_RUN, ann, run)
    assert office.holder(m.ROLE_RUN, ann, "_a.b-2").id == "_a.b-2"


def test_an_operator_may_drive_a_run_of_their_own():
    office = Office()
    ann, bob = (office.registry.tokens.grant("x", name, "run") for name in ("ann", "bob"))
    watcher = office.registry.tokens.grant("x", "eve", "read")
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
    assert [row["who"] for row in office.registry.audit.last() if row["did"] == "runs.drive"] == ["ann", "ann"]


# A folder that was restored or copied, and a key that was stolen


def joined(office):
    office.node(KEY, office.registry.invite("ann", "ward"), epoch=1, boot="a")
    return office


def held(office, **said):
    return office.refused(m.CODE_NOT_APPROVED, office.node, KEY, retry=True, **said)


@pytest.mark.parametrize("said", [{"epoch": 7}, {"epoch": 3}, {"epoch": 0}, {}, {"epoch": 2**63}])
def test_a_node_that_says_no_greater_number_is_held(said):
    office, noticed = joined(Office()), []
    office.node(KEY, epoch=7, boot="b")
    office.registry.held = noticed.append
    text = held(office, boot="c", **said)
    assert "node ward is held: its folder says" in text
    assert "7 was seen of it" in text
    assert noticed == [ID]
    assert (f"node:{ID}", "nodes.restored") in office.audit()
    assert not office.registry.admits(Identity(m.ROLE_NODE, ID, "ward", m.Hello()))
    office.restart()
    # Who is right is not known: nobody comes in by this key, whatever the number.
    for boot in ("b", "c"):
        held(office, epoch=99, boot=boot)
    assert office.registry.node("ward").status == "restored"


def test_an_admin_says_that_a_folder_was_restored():
    office = joined(Office())
    office.node(KEY, epoch=7, boot="b")
    held(office, epoch=4, boot="c")
    with pytest.raises(SettingError, match="node ward is held"):
        office.registry.approve("ann", "ward")
    office.registry.approve("ann", "ward", restored=True)
    assert ("ann", "nodes.believe") in office.audit()
    assert office.node(KEY, epoch=5, boot="c").id == ID
    held(office, epoch=5, boot="b")  # the other copy
    office.registry.revoke("ann", "ward")
    office.refused(m.CODE_REVOKED, office.node, KEY, epoch=9, boot="c")


def test_a_node_that_keeps_no_number_is_let_in_as_long_as_it_never_did():
    office = joined(Office())
    office.node(OTHER, office.registry.invite("ann", "old"))
    assert [office.node(OTHER).name for _ in range(2)] == ["old", "old"]
    held(office)


@given(st.lists(st.sampled_from(["connect", "restart", "try", "late", "crash", "commit"]), max_size=30))
def test_who_has_one_folder_is_never_held(steps):
    """The number goes up before each attempt, of which some never arrive, arrive late, or are forgotten by a server."""
    office = joined(Office())
    office.store.commit()
    number, boot, late = 1, "a", []
    for step in steps:
        if step == "restart":
            boot, late = f"{boot}+", []
        elif step == "crash":
            office.store.crash()
            office.registry = office.opened()
        elif step == "commit":
            office.store.commit()
        elif step == "late" and late:
            office.node(KEY, epoch=late.pop(), boot=boot)
        else:
            number += 1
            if step == "try":
                late.append(number)
            else:
                office.node(KEY, epoch=number, boot=boot)


@given(st.integers(1, 9), st.lists(st.booleans(), min_size=2, max_size=30), st.integers(0, 5))
def test_two_copies_of_a_folder_do_not_take_turns(copied_at, order, ahead):
    """Whoever comes back while the other one was there is held at the latest when both have tried as often."""
    office, seen = joined(Office()), []
    office.node(KEY, epoch=copied_at + 1, boot="0")
    numbers = {True: copied_at + 1, False: copied_at + 1 + ahead}
    for which in order:
        numbers[which] += 1
        try:
            office.node(KEY, epoch=numbers[which], boot=f"{which}")
            seen.append(which)
        except Refused:
            break
    turns = sum(one != other for one, other in itertools.pairwise(seen))
    assert turns <= 1 + ahead  # none without a head start
    if ahead == 0:
        assert turns <= 1
