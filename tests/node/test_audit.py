"""What a node notes for its owner."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest
from tests.node.test_service import Gate, Server, ask, node, on_loop, spec, task

from umbel.errors import CorruptFile
from umbel.node.audit import OWNER, NodeAudit
from umbel.node.gate import Verdict
from umbel.node.signals import TaskDone, TaskFailed
from umbel.node.spool import Spool
from umbel.trust import audit
from umbel.wire import messages as m


def noted(folder):
    key, head, rows = audit.read(folder)
    assert audit.verified(key, rows, [head]).number == len(rows)
    return [(row["who"], row["did"], row["what"]) for row in rows]


@on_loop
async def test_a_node_notes_who_came_what_was_let_in_and_what_was_done(tmp_path):
    server = Server(tmp_path)
    refused: asyncio.Queue[m.RunSpec] = asyncio.Queue()

    async def owner(asked, archive):
        await refused.put(asked)
        return False

    gate = Gate()
    async with node(server, tmp_path, gate=gate, ask_owner=owner):
        await server.session()
        server.post(run_spec=spec())
        assert (await server.hear("run_answer")).ready
        server.post(ask_spec=ask())
        server.post(task=task())
        assert (await server.hear("result")).HasField("done")
        server.post(ask_spec=ask(2, "query:secret"))
        server.post(task=task(2))
        assert "not here" in (await server.hear("result")).failure.reason
        server.post(close_run=m.CloseRun(run="r", status="finished"))
        gate.verdict = Verdict("ask")
        server.post(run_spec=m.RunSpec(run="other", name="x" * 250, archive=m.Payload(inline=b"code")))
        await refused.get()
    found = noted(tmp_path / "node")
    assert [(who, did) for who, did, _ in found] == [
        ("server", "server.connected"),
        ("server", "run.came"),
        ("policy", "run.allowed"),
        ("node", "privacy.spent"),
        ("policy", "ask.refused"),
        ("node", "run.ended"),
        ("server", "run.came"),
        ("owner", "owner.refused"),
    ]
    assert found[1][2]["archive"] == found[2][2]["archive"] != found[7][2]["archive"]
    assert (found[2][2]["run"], found[4][2]["reason"]) == ("r", "not here")
    assert (found[3][2]["task"], found[3][2]["releases"]) == ("1.0", [])
    assert found[5][2] == {"run": "r", "done": 1, "failed": 0}
    assert found[6][2]["name"] == "x" * 250


def test_records_are_on_disk_with_what_they_are_about_and_tasks_are_counted_by_run(tmp_path):
    spool = Spool(tmp_path / "node.db")
    with closing(spool):
        notes = NodeAudit(spool, tmp_path, lambda: 7.0)
        notes.judged(m.RunSpec(run="r"), Verdict("allow"), OWNER)
        for event in (TaskDone("r", "1.0", 1, m.Done(), None), TaskFailed("r", "1.1", 1, "no", False)):
            notes.told(event)
        notes.told(TaskFailed("s", "1.1", 1, "no", False))
        spool.crash()
        again = NodeAudit(spool, tmp_path, lambda: 7.0)
        again._tasks = notes._tasks
        again.close()
        spool.commit()
        again.settle()
    assert noted(tmp_path) == [
        ("node", "run.ended", {"run": "r", "done": 1, "failed": 1}),
        ("node", "run.ended", {"run": "s", "done": 0, "failed": 1}),
    ]


def test_a_node_that_was_killed_before_it_named_its_first_record_starts_again(tmp_path):
    for killed in (True, False):
        with closing(Spool(tmp_path / "node.db")) as spool:
            notes = NodeAudit(spool, tmp_path, lambda: 7.0)
            notes.judged(m.RunSpec(run="r"), Verdict("allow"))
            spool.commit()
            if not killed:
                notes.settle()
    assert [did for _, did, _ in noted(tmp_path)] == ["run.allowed"] * 2


def test_a_server_that_asks_on_and_on_does_not_fill_a_nodes_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "KEPT", 5)
    monkeypatch.setattr(audit, "PRUNED", 5)
    spool, now = Spool(tmp_path / "node.db"), [0.0]
    with closing(spool):
        notes = NodeAudit(spool, tmp_path, lambda: now[0])
        for number in range(100):
            now[0] += 1.0
            notes.came(m.RunSpec(run=f"r{number}"))
            notes.judged(m.RunSpec(run=f"r{number}"), Verdict("deny", "no"))
        spool.commit()
        notes.settle()
        before = len(noted_rows(tmp_path))
        notes = NodeAudit(spool, tmp_path, lambda: now[0])
        notes.came(m.RunSpec(run="last"))
        spool.commit()
        notes.settle()
    assert before < 2 * 10 + 2 * 100 // 5
    rows = noted_rows(tmp_path)
    assert rows[-1]["what"]["run"] == "last"
    with pytest.raises(CorruptFile):
        audit.verified(audit.key_of(tmp_path), rows[:-1], [audit.kept_head(tmp_path)])


def noted_rows(folder):
    key, head, rows = audit.read(folder)
    audit.verified(key, rows, [head])
    return rows
