"""What operators ask about nodes, operators and the audit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.server.desks import Office, Person

from umbel.server.registry import Registry
from umbel.trust.authority import JoinText
from umbel.wire import messages as m


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_node_is_invited_and_the_token_stays_out_of_the_record(office: Office) -> None:
    found = office.ask("nodes.invite", name="ward-3", hours=2)
    assert found["line"].startswith("umbel node here:1 --join umbel1.-.")
    assert found["expires_at"] == 1000.0 + 7200
    assert office.audited == ["ann nodes.invite"]
    assert found["line"].rpartition(".")[2] not in json.dumps(office.registry.audit.last())
    numbers = (0, -1, 10**400, float("inf"), float("nan"), "x", True)
    for wrong in (*({"hours": hours} for hours in numbers), {"name": "a b"}, {"name": 3}):
        assert office.refused("nodes.invite", **wrong).code == m.CODE_MALFORMED


def test_nodes_are_listed_approved_and_revoked(office: Office) -> None:
    key = b"k" * 32
    office.store.put("nodes", {"id": "ab12cd", "name": "x", "key": key, "status": "pending", "clients": ["1"]})
    office.store.commit()
    office.registry = Registry(office.store, lambda: 1000.0)
    assert office.ask("nodes.list")["nodes"][0]["status"] == "pending"
    assert "not enough" in office.refused("nodes.approve", node="ab12").text
    assert office.ask("nodes.approve", node="ab12cd") == {"node": "ab12cd", "name": "x"}
    office.connected.add("ab12cd")
    (row,) = office.ask("nodes.list", Person(role="read"))["nodes"]
    assert (row["status"], row["connected"], row["clients"]) == ("approved", True, ["1"])
    assert row["refused"] == {"2": "bound to ward"}
    assert row["problem"] == "no room"
    assert "key" not in row
    office.ask("nodes.revoke", node="x")
    assert office.done == ["revoked ab12cd"]
    assert office.ask("nodes.list")["nodes"][0]["connected"] is False
    assert "umbel nodes ls" in office.refused("nodes.revoke", node="zzzz").text


def test_names_are_bound_and_released(office: Office) -> None:
    line = office.ask("nodes.invite", clients=["ward-*"], most=3)["line"]
    assert office.registry.tokens.row(str(line).split(".")[2])["bounds"] == {"names": ["ward-*"], "most": 3}
    office.store.put("nodes", {"id": "ab12cd", "name": "x", "key": b"k" * 32, "status": "approved"})
    office.store.commit()
    office.registry = Registry(office.store, lambda: 1000.0)
    office.ask("nodes.approve", node="ab12cd", clients=["icu-7", "icu-8"])
    assert office.done == ["bounded ab12cd"]
    assert office.ask("nodes.list")["nodes"][0]["bounds"] == {"names": ["icu-7", "icu-8"], "most": None}
    office.connected.add("ab12cd")
    assert "revoke that node first" in office.refused("nodes.release", clients=["icu-7"]).text
    office.connected.clear()
    assert office.ask("nodes.release", clients=["icu-7"]) == {"count": 1, "hosts": {}}
    assert office.ask("nodes.release", node="x") == {"count": 1, "hosts": {}}
    assert office.done[1:] == ["released icu-7", "released icu-8"]
    assert office.refused("nodes.release", clients=["icu-7"]).code == m.CODE_MALFORMED
    for wrong in ({"clients": "icu"}, {"clients": [3]}, {"clients": [""]}, {"most": 0}):
        assert office.refused("nodes.invite", **wrong).code == m.CODE_MALFORMED
    assert office.refused("nodes.release", Person(role="run"), clients=["x"]).code == m.CODE_NOT_ALLOWED


def test_operators_are_added_listed_and_removed_but_not_the_last_admin(office: Office) -> None:
    office.ask("operators.add", name="ann", role="admin")
    line = office.ask("operators.add", name="bob", role="run")["line"]
    assert JoinText.parse(line).token is not None
    found = office.ask("operators.list")["operators"]
    assert [(row["name"], row["role"]) for row in found] == [("ann", "admin"), ("bob", "run")]
    assert "digest" not in found[0]
    assert office.refused("operators.add", name="bob", role="run").code == m.CODE_MALFORMED
    assert office.refused("operators.add", name="eve", role="root").code == m.CODE_MALFORMED
    assert office.refused("operators.remove", name="ann").code == m.CODE_OUT_OF_ORDER
    office.ask("operators.remove", name="bob")
    assert len(office.done) == 1
    assert office.audited == ["ann operators.add", "ann operators.add", "ann operators.remove"]
    assert [row["did"] for row in office.ask("audit.list", count=1)["records"]] == ["operators.remove"]
    assert office.refused("audit.list", count=0).code == m.CODE_MALFORMED


def test_a_node_of_many_clients_is_listed_by_the_first_of_them(office: Office) -> None:
    clients = [f"{number}-{'x' * 200}" for number in range(30_000)]
    office.store.put("nodes", {"id": "n", "name": "n", "status": "approved", "clients": clients})
    office.store.commit()
    office.registry = Registry(office.store, lambda: office.time)
    (part,) = asyncio.run(office.responses(Person(), "nodes.list", "{}"))
    assert part.ByteSize() < 100_000
    (row,) = json.loads(part.body)["nodes"]
    assert (row["count"], len(row["clients"])) == (30_000, 100)
