"""What a node knows of its server."""

from __future__ import annotations

import pytest

from umbel.errors import Refused
from umbel.trust.authority import Authority
from umbel.trust.servers import KnownServer
from umbel.wire import messages as m

KEY = b"key"


def test_a_node_below_a_relay_is_in_the_federation_above(tmp_path):
    top, middle, relay, other = (Authority(tmp_path / name) for name in ("top", "middle", "relay", "other"))
    chain = [top.endorse("relay", middle.public), middle.endorse("relay", relay.public)]
    server = KnownServer(relay.public)
    assert server.federations == {relay.public.hex()}
    judging = server.federations  # as the gate holds them
    server.welcomed(m.Welcome(endorsements=chain))
    assert judging == {one.public.hex() for one in (relay, middle, top)}

    forged = other.endorse("relay", relay.public)
    forged.by = top.public
    successor = top.endorse("successor", relay.public)
    passed_on = [top.endorse("relay", other.public), *chain[:1]]  # of other relays
    for said in ([forged], [successor], passed_on, [m.Endorsement(role="relay", of=relay.public, by=b"?")]):
        server = KnownServer(relay.public)
        server.welcomed(m.Welcome(endorsements=said))
        assert server.federations == {relay.public.hex()}


def test_who_pins_no_server_is_in_no_federation(tmp_path):
    server = KnownServer()
    server.welcomed(m.Welcome(endorsements=[Authority(tmp_path).endorse("relay", b"")]))
    assert server.federations == set()


def known(folder, authority=KEY):
    """What a node's process knows when it starts."""
    return KnownServer(authority, folder / "server.seen")


def said(epoch, boot):
    return m.Welcome(epoch=epoch, boot=boot)


def test_a_server_that_starts_again_and_counts_up_is_the_same(tmp_path):
    node = known(tmp_path)
    for epoch, boot in ((1, "a"), (1, "a"), (2, "b"), (5, "b"), (6, "c")):
        node.welcomed(said(epoch, boot))
    node = known(tmp_path)
    node.welcomed(said(6, "c"))
    node.acknowledged(0)
    node.acknowledged(8)
    node.acknowledged(7)
    node.welcomed(said(8, "c"))


@pytest.mark.parametrize("met", [(8, "d"), (5, "c"), (7, "c"), (0, "")])
def test_an_older_copy_of_the_server_is_not_served_until_the_owner_says_so(tmp_path, met):
    known(tmp_path).welcomed(said(7, "c"))
    node = known(tmp_path)
    node.welcomed(said(7, "c"))
    node.acknowledged(8)  # the copy was made before
    for again in (node, known(tmp_path)):
        with pytest.raises(Refused, match="8 was seen of it") as caught:
            again.welcomed(said(*met))
        assert caught.value.retry
        assert f"remove {tmp_path / 'server.seen'}" in caught.value.hint
    (tmp_path / "server.seen").unlink()
    node.welcomed(said(*met))  # while it runs
    known(tmp_path).welcomed(said(*met))


def test_two_servers_with_one_key_do_not_take_turns(tmp_path):
    node = known(tmp_path)
    node.welcomed(said(3, "a"))
    node.welcomed(said(4, "b"))
    with pytest.raises(Refused):
        node.welcomed(said(3, "a"))


def test_another_server_is_another(tmp_path):
    known(tmp_path).welcomed(said(7, "c"))
    known(tmp_path, b"other").welcomed(said(1, "a"))
    with pytest.raises(Refused):
        known(tmp_path).welcomed(said(1, "a"))


def test_a_damaged_file_holds_the_node_too(tmp_path):
    (tmp_path / "server.seen").write_text("[]")
    with pytest.raises(Refused, match="is damaged"):
        known(tmp_path).welcomed(said(1, "a"))


def rotated(folder):
    """An authority, and what it has said of its successor, which has taken its place."""
    authority = Authority(folder)
    old = authority.public
    authority.rotate()
    said = authority.endorse("successor", authority.successor)
    authority.retire()
    return old, said, authority


def test_a_node_trusts_who_takes_the_place_of_its_servers_authority(tmp_path):
    old, first, _ = rotated(tmp_path / "authority")
    _, second, _ = rotated(tmp_path / "authority")
    path = tmp_path / "successors.json"
    server = KnownServer(old, successors=path)
    server.welcomed(m.Welcome(endorsements=[first]))
    server.welcomed(m.Welcome(endorsements=[first, second]))
    for known in (server, KnownServer(old, successors=path)):
        assert known.federations == {key.hex() for key in (old, first.of, second.of)}
        assert known.roots().count(b"BEGIN CERTIFICATE") == 3
    other = Authority(tmp_path / "other")
    forged = other.endorse("successor", other.public)
    forged.by = old
    strange = other.endorse("successor", old)
    odd = m.Endorsement(by=old, of=b"?", role="successor")
    server = KnownServer(old, successors=tmp_path / "none.json")
    server.welcomed(m.Welcome(endorsements=[forged, strange, odd, second]))
    assert not (tmp_path / "none.json").exists()
    assert server.federations == {old.hex()}
    assert server.roots().count(b"BEGIN CERTIFICATE") == 1
    assert KnownServer().roots() is None


def test_what_was_learned_and_cannot_be_read_is_learned_again(tmp_path):
    (tmp_path / "s.json").write_text("nonsense")
    old, said, _ = rotated(tmp_path / "authority")
    KnownServer(old, successors=tmp_path / "s.json").welcomed(m.Welcome(endorsements=[said]))
    assert len(KnownServer(old, successors=tmp_path / "s.json").federations) == 2
