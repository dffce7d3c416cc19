"""What a node knows of its server."""

from __future__ import annotations

from umbel.trust.authority import Authority
from umbel.trust.servers import KnownServer
from umbel.wire import messages as m


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
