"""What operators and owners type, against real servers and nodes: waiting for clients, checks, questions, answers."""

from __future__ import annotations

import json

import pytest
from tests.deployment.conftest import APP

pytestmark = pytest.mark.slow

QUESTION = """
import umbel
from umbel import analytics


def load(source):
    return {"code": ["a"] * (source["index"] + 1) + ["b"]}


client = analytics.client(load)
app = umbel.App(client, strategy=analytics.HeavyHitters("code"))
"""


@pytest.fixture(scope="module")
def two(machines):
    machines.start_server()
    machines.start_nodes(2)
    return machines


def begun(machines, *arguments):
    """A run that an operator has typed."""
    return machines.command("run", *arguments, "--on", machines.address, UMBEL_TOKEN=machines.token)


def test_the_answer_of_an_analysis_on_nodes_is_printed(two):
    (two.folder / "question").mkdir()
    (two.folder / "question" / "app.py").write_text(QUESTION)
    chosen = ("question/app.py", "--only=0", "--only=1")
    done = begun(two, *chosen)
    assert done.wait() == 0, done.output
    rows = [line.split() for line in done.lines]
    assert ["a", "3"] in rows
    assert ["b", "2"] in rows
    done = begun(two, *chosen, "--json")
    assert done.wait() == 0, done.output
    assert json.loads(done.lines[-1])["answer"] == {"a": {"count": 3}, "b": {"count": 2}}


def test_a_run_waits_for_so_many_clients_and_not_for_ever(two):
    waiting = begun(two, f"{APP}:whole", "--set", "rounds=1", "--wait-for", "3")
    waiting.wait_for(r"waiting for clients: 2 of 3 ready \(0, 1\)")
    assert "run apps" not in waiting.output, "it has not begun"
    two.start_node("2", "--source", "index=2", join=two.invitation())
    assert waiting.wait() == 0, waiting.output
    assert "3 clients, 1 round" in waiting.output
    late = begun(two, f"{APP}:whole", "--set", "rounds=1", "--wait-for", "9", "--wait", "1")
    assert late.wait() == 4, late.output
    assert "of 9 clients are ready after 1 s" in " ".join(late.output.replace("│", "").split())
    followed = two.command("logs", "last", "-f", "--on", two.address, UMBEL_TOKEN=two.token)
    assert followed.wait() == 4, followed.output
    assert "of 9 clients are ready after 1 s" in " ".join(followed.output.replace("│", "").split())


def test_a_node_checks_before_it_joins_and_asks_nobody_where_nobody_is(two):
    line = two.invitation()
    node = ("node", two.address, "--name", "late", "--dir", "node-late", "--join", line, "--source", "index=9", "--ask")
    check = two.command(*node, "--check")
    assert check.wait() == 0, check.output
    assert "it would join as late" in check.output
    with two.office() as office:
        assert "late" not in [each["name"] for each in office.call("nodes.list")["nodes"]]
    late = two.nodes["late"] = two.command(*node)
    late.wait_for("connected to")
    run = two.submit(f"{APP}:whole", 1, "--only=late", "--only=0", "--set", "rounds=1")
    late.wait_for(r"submitted by local, says the server")
    late.wait_for(r"nobody is there to answer")
    late.wait_for(r"the owner of this node does not allow it")
    with two.office() as office:
        office.call("runs.stop", run=run)
    again = two.command("node", two.address, "--name", "late", "--dir", "node-late", "--check", "--json")
    assert again.wait() == 0, again.output
    found = {row["check"]: row["note"] for row in json.loads(again.lines[-1])}
    assert found["token"] == "known here as late"
