"""A server starts with whatever stands in its rows: what cannot be read is set aside and told, and the rest goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.server.routing import SPEC, ask_of, done_of, task_of

from umbel.server.desk import Submissions
from umbel.server.ledger import READERS
from umbel.server.registry import Registry
from umbel.server.relaying import Relaying
from umbel.server.router import Router
from umbel.server.service import Service
from umbel.server.settings import ServerSettings
from umbel.server.signals import Connected, Received
from umbel.store.records import TABLES
from umbel.store.sql import SqlStore
from umbel.wire import messages as m

ROWS = {
    "nodes": {
        "id": "a",
        "name": "node a",
        "key": b"k" * 32,
        "status": "approved",
        "clients": ["0"],
        "capabilities": {},
    },
    "tokens": {"id": "t", "kind": "run", "public": b"d" * 32, "role": "", "name": "", "run": "q"},
    "runs": {
        "id": "q",
        "status": "running",
        "owner": "ann",
        "name": "q",
        "created_at": 1.0,
        "spec": SPEC.SerializeToString(),
        "submission": {"settings": {}, "client": {"sha256": "00" * 32, "size": 1}},
        "members": {"0": ["READY", ""]},
    },
    "asks": {"run": "q", "ask": 0, "spec": ask_of().SerializeToString()},
    "tasks": {
        "run": "q",
        "task": "0.0",
        "ask": 0,
        "client": "0",
        "node": "a",
        "attempt": 1,
        "message": task_of("0").SerializeToString(),
    },
    "answers": {"run": "q", "id": "0.0", "ask": 0, "message": m.Message(result=done_of("0")).SerializeToString()},
    "events": {"run": "q", "number": 1, "at": 1.0, "body": '{"event": "run_started"}'},
    "audit": {"number": 1, "at": 1.0, "who": "ann", "did": "nodes.approve", "what": {}},
}
PLACES = [(table.name, column) for table in TABLES for column in table.columns]
VALUES = [
    None,
    "",
    "x",
    0,
    -1,
    7,
    2**62,
    1.5,
    9e999,
    b"",
    b"\xff" * 9,
    b"\x0a\xff",
    "[",
    "[[1]]",
    '{"a": 1}',
    "[1, null]",
    "7",
    '{"settings": 7}',
    '{"settings": {}, "client": 7}',
    '{"settings": {}, "app": {"sha256": "zz"}}',
    '{"0": [7]}',
    "null",
    '"x"',
    "[" * 3000,
    "1" * 5000,
    "finished",
    "stopped",
    "approved",
    "revoked",
    "\x00",
]


def broken(folder: Path, faults: list[tuple[tuple[str, str], object]]) -> None:
    """A store with an honest run r beside q, in whose rows some values were replaced."""
    store = SqlStore(folder / "server.db")
    for table, row in ROWS.items():
        store.put(table, row)
    store.put("nodes", {**ROWS["nodes"], "id": "b", "name": "node b", "clients": ["2"]})
    honest = m.RunSpec(run="r", clients=["2"])
    store.put("runs", {"id": "r", "status": "running", "owner": "ann", "name": "r", "spec": honest.SerializeToString()})
    store.put("asks", {"run": "r", "ask": 0, "spec": ask_of().SerializeToString()})
    message = task_of("2").SerializeToString()
    store.put(
        "tasks", {"run": "r", "task": "0.2", "ask": 0, "client": "2", "node": "b", "attempt": 1, "message": message}
    )
    store.commit()
    store.close()
    keys = {"nodes": "id = 'a'", "runs": "id = 'q'", "asks": "run = 'q'", "tasks": "run = 'q'"}
    connection = sqlite3.connect(folder / "server.db")
    for (table, column), value in faults:
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {keys.get(table, '1')}", (value,))
    connection.commit()
    connection.close()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example([(("answers", "message"), None)])
@example([(("nodes", "name"), None)])
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES)), min_size=1, max_size=4))
def test_no_row_keeps_a_server_from_starting_or_an_honest_run_from_going_on(faults):
    with tempfile.TemporaryDirectory() as folder:
        broken(Path(folder), faults)
        store = SqlStore(Path(folder) / "server.db", readers=READERS)
        try:
            router = Router(store, lambda sha, giver: False)
            assert "b" in {node.id for node in Registry(store, lambda: 9.0).nodes()}
            Relaying(store, router.nodes.clients())
            assert not list(router.ledger.held())
            list(router.ledger.stored())
            router.handle(Connected("r1", "run", "r", "ann"), 1.0)
            router.handle(Connected("b1", "node", "b", "node b", ("2",)), 1.0)
            for body in (
                {"run_spec": m.RunSpec(run="r", clients=["2"])},
                {"ask_spec": ask_of()},
                {"task": task_of("2")},
            ):
                router.handle(Received("r1", m.Message(**body)), 1.0)
            said = router.handle(Received("b1", m.Message(result=done_of("2"))), 1.0)
            kinds = [(each.peer, each.message.WhichOneof("body")) for each in said if hasattr(each, "message")]
            assert kinds == [("r1", "result"), ("b1", "ack")]
            store.commit()
        finally:
            store.close()


def test_a_server_starts_with_bad_rows_and_says_so(tmp_path, caplog):
    faults = [
        (("runs", "submission"), '{"settings": 7}'),
        (("asks", "spec"), b"\xff\xff"),
        (("tokens", "kind"), b"\xff"),
        (("nodes", "clients"), "{"),
        (("events", "body"), b"\xff"),
        (("audit", "what"), "["),
        (("answers", "message"), b"\x0a"),
    ]
    (tmp_path / "server").mkdir()
    broken(tmp_path / "server", faults)

    async def main():
        service = Service(ServerSettings(folder=tmp_path / "server", listen="127.0.0.1:0", http=""))
        try:
            await service.open()
            await service.begin()
            assert service.online("b") is False
            assert "cannot be read and are left out" in service.status()["problem"]
            assert list(Submissions(service, lambda: 9.0).held()) == []
            assert [node.id for node in service.registry.nodes()] == ["b"]
        finally:
            await service.close()

    asyncio.run(main())
    told = "".join(caplog.messages)
    for name in ("runs q", "tokens t", "nodes a"):
        assert name in told
