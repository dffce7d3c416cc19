"""Who may ask a desk for what, and how it answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.server.desks import Office, Person

from umbel.server import desk
from umbel.server.registry import Registry
from umbel.server.requests import Body, OperatorPeer
from umbel.wire import messages as m

METHODS = (
    "server.status", "nodes.list", "nodes.invite", "nodes.approve", "nodes.release", "nodes.revoke", "operators.list",
    "operators.add", "operators.remove", "audit.list", "runs.list", "runs.show", "runs.logs", "runs.pull",
    "runs.submit", "runs.stop", "runs.resume", "authority.rotate", "authority.retire",
)  # fmt: skip


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.mark.parametrize("role", ["read", "run", "admin", "", "root"])
def test_everybody_may_what_their_role_may(office: Office, role: str) -> None:
    order = ["read", "run", "admin"]
    needed_of = {method: known.role for method, known in office.desk.methods.items()}
    for method, needed in needed_of.items():
        (found,) = asyncio.run(office.responses(Person(role=role), method, "nonsense"))
        may = role in order and order.index(role) >= order.index(needed)
        assert found.code == (m.CODE_MALFORMED if may else m.CODE_NOT_ALLOWED), method
    office.store.commit()
    denied = [row for row in office.registry.audit.last(1000) if row["did"] == "denied"]
    assert len(denied) == sum(role not in order[order.index(needed) :] for needed in needed_of.values())


def test_these_are_all_methods(office: Office) -> None:
    assert set(METHODS) == office.desk.methods.keys()


def test_what_begins_and_ends_runs_is_seen_to_its_end(office: Office) -> None:
    lasting = {method for method in office.desk.methods if office.desk.lasts(m.Request(method=method))}
    assert lasting == {"runs.submit", "runs.stop", "runs.resume"}
    assert not office.desk.lasts(m.Request(method="runs.explode"))


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '"x"', "[" * 100_000, "{}" + " " * 300_000])
def test_bodies_that_are_none_are_refused(office: Office, text: str) -> None:
    if text == "":
        assert asyncio.run(office.responses(Person(), "nodes.list", text))[0].code == 0
    else:
        assert office.refused("nodes.list", text=text).code in (m.CODE_MALFORMED, m.CODE_TOO_LARGE)
    assert office.refused("nodes.explode").code == m.CODE_UNKNOWN


def test_the_server_says_who_asks(office: Office) -> None:
    assert office.ask("server.status") == {"version": "1", "you": {"name": "ann", "role": "admin"}}


def test_a_list_that_is_long_comes_in_parts(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PAGE", 2)
    for number in range(5):
        office.run(f"r{number}", created=float(number))
    parts = asyncio.run(office.responses(Person(), "runs.list", "{}"))
    assert [(len(json.loads(part.body)["runs"]), part.more) for part in parts] == [(2, True), (2, True), (1, False)]
    assert [row["run"] for row in office.ask("runs.list")["runs"]] == [f"r{number}" for number in range(5)]


def test_nodes_are_listed_no_further_than_they_are_taken(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PAGE", 2)
    for number in range(20):
        office.store.put("nodes", {"id": f"n{number}", "name": f"lab-{number:02}", "key": b"k", "status": "approved"})
    office.store.commit()
    office.registry = Registry(office.store, lambda: office.time)
    read, rows = [], office.store.rows
    monkeypatch.setattr(office.store, "rows", lambda *given, **where: read.append(where) or rows(*given, **where))

    async def some() -> None:
        responses = office.desk.answer(Person(), m.Request(id=7, method="nodes.list", body="{}"))
        first = await anext(responses)
        assert [node["name"] for node in json.loads(first.body)["nodes"]] == ["lab-00", "lab-01"]
        await responses.aclose()

    asyncio.run(some())
    assert 2 <= len(read) <= 5, "a part, and the row that says that there is another"
    assert len(office.ask("nodes.list")["nodes"]) == 20


def test_the_servers_own_faults_say_little(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    office.status = lambda: {}["secret"]  # type: ignore[method-assign]
    found = office.refused("server.status")
    assert found.code == m.CODE_INTERNAL
    assert "secret" not in found.text
    assert "KeyError" in caplog.text


FRAME = 4 << 20


def test_a_list_whose_rows_are_long_comes_in_parts_that_fit_into_frames(office: Office) -> None:
    for number in range(40):
        office.run(f"r{number}", created=float(number))
        metrics = {f"{name}{'x' * 200}": 1.0 for name in range(600)}
        office.log(f"r{number}", {"event": "round_committed", "round": 1, "train": metrics})
    parts = asyncio.run(office.responses(Person(), "runs.list", "{}"))
    assert max(part.ByteSize() for part in parts) < FRAME
    assert len(parts) > 2
    assert len(office.ask("runs.list")["runs"]) == 40


HUGE = {"text": "\u00e4" * 3_000_000, "rows": [{"x": "y" * 3_000_000}, {"x": 1}], "more": list(range(2000))}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"runs.logs"}))
def test_whatever_a_method_answers_fits_into_frames(office: Office, name: str) -> None:
    async def huge(peer: OperatorPeer, body: Body) -> dict[str, Any]:
        return dict(HUGE)

    office.desk.methods[name] = replace(office.desk.methods[name], answer=huge)
    parts = asyncio.run(office.responses(Person(), name, "{}"))
    assert max(part.ByteSize() for part in parts) < FRAME
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    found: dict[str, Any] = {}
    text = ""
    for part in parts:
        text += part.body
        if not part.rest:
            for key, value in json.loads(text).items():
                found[key] = found[key] + value if isinstance(value, list) and key in found else value
            text = ""
    assert found == HUGE
