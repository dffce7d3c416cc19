"""The schedule of drills is drawn beforehand, from its seed alone."""

from __future__ import annotations

from itertools import islice

import pytest

from umbel.testing.strikes import DRILLS, KINDS, Layout, strikes

LAYOUT = Layout.of(4, 1, 6)


def drawn(seed, layout=LAYOUT, drills=tuple(DRILLS), count=400):
    return list(islice(strikes(seed, layout, drills), count))


def test_the_same_seed_has_the_same_schedule():
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_all_drills_befall_all_that_they_can():
    found = drawn(1)
    assert {strike.drill for strike in found} == set(DRILLS)
    for drill, kinds in {
        "kill": set(KINDS),
        "stop": set(KINDS),
        "cut": {"node", "relay"},
        "rollback": {"node"},
    }.items():
        assert {victim.kind for strike in found if strike.drill == drill for victim in strike.victims} == kinds
    assert {len(strike.victims) for strike in found if strike.drill == "kill"} == {1, 2}
    assert all(len(strike.victims) == 1 for strike in found if strike.drill != "kill")


def test_without_relays_nothing_befalls_one():
    flat = Layout.of(3, 0, 3)
    assert "relay" not in {victim.kind for strike in drawn(1, flat) for victim in strike.victims}


def test_only_what_was_asked_for():
    assert {strike.drill for strike in drawn(3, drills=("kill", "cut"))} == {"kill", "cut"}


def test_a_layout_deals_all_clients():
    assert [(home.name, home.relay, home.clients) for home in LAYOUT.homes] == [
        ("0", "", (0,)),
        ("1", "", (1,)),
        ("2", "relay-0", (2, 3)),
        ("3", "relay-0", (4, 5)),
    ]
    assert Layout.of(1, 1, 1).homes[0].relay == "relay-0"
    for nodes, relays, clients in ((5, 2, 7), (7, 0, 7), (6, 3, 20)):
        found = Layout.of(nodes, relays, clients)
        assert [c for home in found.homes for c in home.clients] == list(range(clients))
        assert {home.relay for home in found.homes} - {""} == set(found.relays)


@pytest.mark.parametrize("sizes", [(3, 0, 2), (2, 2, 4), (0, 1, 0)])
def test_nobody_is_left_without_clients(sizes):
    with pytest.raises(ValueError, match="clients"):
        Layout.of(*sizes)
