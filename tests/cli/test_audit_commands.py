"""`umbel audit verify` and `umbel audit export`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.cli import audit_commands
from umbel.server.audit import ServerAudit
from umbel.store.sql import SqlStore


@pytest.fixture
def server(folder: Path) -> Path:
    """A server's folder with three records."""
    place = folder / "umbel-server"
    (place / "authority").mkdir(parents=True)
    store = SqlStore(place / "server.db")
    notes = ServerAudit(store, lambda: 1.0, place / "authority")
    for number in range(3):
        notes.record("ann", "runs.stop", run=f"r{number}")
    store.commit()
    notes.settle()
    store.close()
    return place


def changed(server: Path, statement: str) -> None:
    with sqlite3.connect(server / "server.db") as database:
        database.execute(statement)
    database.close()


def test_an_audit_is_exported_and_verified(umbel: Callable[..., Any], server: Path) -> None:
    exported = umbel("audit", "export")
    rows = [json.loads(line) for line in exported.out.splitlines()]
    assert [(row["number"], row["did"], row["what"]) for row in rows] == [
        (number + 1, "runs.stop", {"run": f"r{number}"}) for number in range(3)
    ]
    head = exported.err.split()[-1]
    done = umbel("audit", "verify", "--against", head)
    assert done.code == 0, done.said
    assert "3 records, none changed" in done.out
    assert head in done.out
    assert json.loads(umbel("audit", "verify", "--json", "--dir", str(server)).out) == {"records": 3, "head": head}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit SET who = 'bob' WHERE number = 2", "record 2 does not follow from record 1"),
        ("DELETE FROM audit WHERE number = 2", "record 3 does not follow from record 1"),
        ("DELETE FROM audit WHERE number = 3", "record 3, which it had, is not in it; its last is 2"),
        ("DELETE FROM audit", "record 3, which it had, is not in it; its last is 0"),
    ],
)
def test_what_was_changed_is_said(umbel: Callable[..., Any], server: Path, statement: str, said: str) -> None:
    changed(server, statement)
    done = umbel("audit", "verify")
    assert done.code not in (0, 1, 2)
    assert said in " ".join(done.err.replace("│", " ").split())


def test_a_head_that_was_kept_elsewhere_finds_a_history_that_was_written_anew(
    umbel: Callable[..., Any], server: Path
) -> None:
    head = umbel("audit", "export").err.split()[-1]
    changed(server, "DELETE FROM audit")
    store = SqlStore(server / "server.db")
    notes = ServerAudit(store, lambda: 1.0, server / "authority")  # by somebody who has the key
    for _ in range(4):
        notes.record("bob", "runs.stop", run="r")
    store.commit()
    notes.settle()
    store.close()
    assert umbel("audit", "verify").code == 0
    done = umbel("audit", "verify", "--against", head)
    assert done.code not in (0, 1, 2)
    assert "record 3, which it had, is not in it" in " ".join(done.err.replace("│", " ").split())


def test_a_servers_audit_is_exported_page_by_page(
    umbel: Callable[..., Any], server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in umbel("audit", "export").out.splitlines()]
    asked: list[int] = []

    class Server:
        def __enter__(self) -> Server:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def call(self, method: str, after: int, count: int) -> dict[str, Any]:
            assert method == "audit.list"
            asked.append(after)
            return {"records": [row for row in rows if row["number"] > after][:count]}

    monkeypatch.setattr(audit_commands, "PAGE", 2)
    monkeypatch.setattr(audit_commands, "office", lambda *how: Server())
    assert [json.loads(line) for line in umbel("audit", "export", "--on", "localhost:1").out.splitlines()] == rows
    assert asked == [0, 2, 3]


def test_another_folder_is_said_to_be_one(umbel: Callable[..., Any], folder: Path) -> None:
    done = umbel("audit", "verify", "--dir", str(folder))
    assert done.code not in (0, 1, 2)
    assert "is not the folder of a server or a node" in " ".join(done.err.replace("│", " ").split())
