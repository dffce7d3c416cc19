"""Whose client names are, and what an admin lets a node use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import SettingError
from umbel.server import claims as module
from umbel.server.audit import ServerAudit
from umbel.server.claims import ANOTHERS, Bounds, Claims
from umbel.store.records import MemoryStore
from umbel.trust.audit import LIMIT


@pytest.fixture
def store():
    return MemoryStore()


def claims_of(store):
    store.commit()
    return Claims(store, ServerAudit(store, lambda: 0.0))


def told(store):
    store.commit()
    return [(row["who"], row["did"], row["what"]) for row in store.rows("audit")]


def test_a_name_is_bound_to_the_node_that_used_it_first_and_the_rest_are_taken(store):
    claims = claims_of(store)
    assert claims.take("a", ["0", "1", "0"]) == (("0", "1"), {})
    assert claims.take("b", ["1", "2"]) == (("2",), {"1": ANOTHERS})
    assert claims.take("a", []) == ((), {})
    again = claims_of(store)
    assert again.take("b", ["0", "1", "2"]) == (("2",), {"0": ANOTHERS, "1": ANOTHERS})
    assert [again.names(node) for node in "ab"] == [("0", "1"), ("2",)]
    refused = {"clients": ["1"], "count": 1, "why": ANOTHERS}
    assert told(store)[0] == ("node:b", "clients.refused", refused)


def test_a_node_stays_within_its_bounds(store):
    claims = claims_of(store)
    claims.bound("a", Bounds(("ward-*", "icu-[0-9]"), 2))
    mine, refused = claims.take("a", ["ward-1", "ward", "icu-7", "icu-x", "xward-1", "ward-2", "ward-1\nx"])
    assert mine == ("ward-1", "icu-7")
    assert {client: "at" if "2 client names" in why else "out" for client, why in refused.items()} == {
        "ward": "out",
        "icu-x": "out",
        "xward-1": "out",
        "ward-2": "at",
        "ward-1\nx": "at",
    }
    assert claims.take("a", ["ward-2", "icu-7"])[0] == ("icu-7",), "names that it had count on"
    claims.release("ward-1")
    assert claims.take("a", ["ward-2", "icu-7"])[0] == ("ward-2", "icu-7")


def test_a_node_that_nobody_bounded_does_not_bind_names_without_end(store, monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    claims = claims_of(store)
    for number in range(5):
        claims.take("a", [f"{number}-{index}" for index in range(2)])
    assert len(claims.names("a")) == 3
    claims.bound("b", Bounds((), 4))
    assert len(claims.take("b", map(str, range(9)))[0]) == 4, "an admin may let one have more"


def test_names_in_bounds_are_a_nodes_own_before_it_comes(store):
    claims = claims_of(store)
    claims.bound("a", Bounds(("ward-3", "icu-*")))
    assert claims.take("b", ["ward-3", "icu-1"]) == (("icu-1",), {"ward-3": ANOTHERS})
    with pytest.raises(SettingError, match="that of another node") as caught:
        claims.bound("c", Bounds(("ward-3",)))
    assert "umbel nodes release ward-3" in (caught.value.hint or "")
    assert claims.take("c", ["x"])[0] == ("x",), "what was refused has bound nothing"


def test_a_name_is_released_once(store):
    claims = claims_of(store)
    claims.take("a", ["0"])
    assert claims.release("0") == "a"
    with pytest.raises(SettingError, match="is no node's"):
        claims.release("0")
    assert claims_of(store).take("b", ["0"])[0] == ("0",)


def test_a_node_that_claims_on_and_on_does_not_fill_the_audit(store):
    claims = claims_of(store)
    claims.take("a", ["0"])
    for _ in range(10):
        claims.take("b", ["0"])
    assert len(told(store)) == 1, "the same claim is noted once"
    for number in range(2 * LIMIT):
        claims.bound("b", Bounds((f"n{number}",)))
        claims.take("b", ["0", "x"])
    assert len(told(store)) == LIMIT
    long = [str(number) for number in range(1000)]
    fresh = claims_of(store)
    fresh.take("b", long)
    fresh.take("c", long)
    assert told(store)[-1][2]["count"] == 1000
    assert len(told(store)[-1][2]["clients"]) == 5


class Unscanned(dict):
    def __iter__(self):
        raise AssertionError("all names were looked through")

    keys = values = items = __iter__


def test_no_claim_looks_through_the_names_of_others(store):
    claims = claims_of(store)
    claims.take("a", map(str, range(10_000)))
    claims._owners = Unscanned(claims._owners)
    assert claims.take("b", ["7", "x"]) == (("x",), {"7": ANOTHERS})
    assert claims.release("8") == "a"
    assert claims.owner("7") == "a"


NAMES = st.lists(st.sampled_from(["a-1", "a-2", "b-1", "c", "*"]), max_size=6)


@given(st.lists(st.tuples(st.sampled_from("xyz"), NAMES), max_size=6))
def test_no_name_is_ever_two_nodes(steps):
    store = MemoryStore()
    store.put("nodes", {"id": "z", "bounds": Bounds(("a-*",), 1).row()})
    claims, owners = claims_of(store), {}
    for node, names in steps:
        mine, refused = claims.take(node, names)
        assert set(mine) | set(refused) == set(names)
        assert set(mine).isdisjoint(refused)
        for client in mine:
            assert owners.setdefault(client, node) == node
        claims = claims_of(store)
    held = [client for client, node in owners.items() if node == "z"]
    assert len(held) <= 1
    assert all(client.startswith("a-") for client in held)
