"""Folders of a node and of a server that are copied and restored, as processes on this machine: nobody works on
unnoticed.
"""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.slow


def state(machines, name):
    with machines.office() as office:
        return {row["name"]: row for row in office.call("nodes.list")["nodes"]}[name]


def test_a_copied_node_is_held_and_a_restored_server_is_not_served(machines):
    machines.start_server()
    machines.start_nodes(2)
    folder = machines.folder

    # Somebody copies a node's folder, key and all, and starts it elsewhere.
    shutil.copytree(folder / "node-0", folder / "stolen")
    arguments = ["node", machines.address, "--name", "0", "--dir", "stolen", "--allow", "any"]
    copy = machines.command(*arguments)
    machines.nodes["0"].wait_for("node 0 is held: its folder says 2, and 2 was seen of it")
    copy.wait_for("this node's folder is used twice, or its key is stolen")
    assert state(machines, "0")["status"] == "restored"
    assert not state(machines, "0")["connected"]
    with machines.office() as office:
        records = [row for row in office.call("audit.list")["records"] if row["did"] == "nodes.restored"]
    assert [row["what"]["name"] for row in records] == ["0"]
    assert copy.stop() == 0
    listed = machines.command("nodes", "ls", "--dir", "server")
    assert listed.wait() == 0
    assert "restored" in listed.output
    seen = len(machines.nodes["0"].output)
    approve = machines.command("nodes", "approve", "0", "--restored", "--dir", "server")
    assert approve.wait() == 0, approve.output
    machines.nodes["0"].wait_for("connected to", seen=seen)

    # The server is restored from a copy that was made before its last two starts.
    assert machines.server.stop() == 0
    shutil.copytree(folder / "server", folder / "backup")
    for _ in range(2):
        seen = {name: len(node.output) for name, node in machines.nodes.items()}
        machines.start_server()
        for name, node in machines.nodes.items():
            node.wait_for("connected to", seen=seen[name])
        assert machines.server.stop() == 0
    shutil.rmtree(folder / "server")
    shutil.move(folder / "backup", folder / "server")
    machines.start_server()
    for name, node in machines.nodes.items():
        node.wait_for("the server's folder says")
        assert not state(machines, name)["connected"]
    seen = len(machines.nodes["1"].output)
    (folder / "node-1" / "server.seen").unlink()
    machines.nodes["1"].wait_for("connected to", seen=seen)
    assert state(machines, "1")["connected"]
    assert not state(machines, "0")["connected"]
