"""Who is shut out, and who is not concerned, sees nothing and can do nothing; and no secret is ever printed."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

import pytest
from tests.deployment.conftest import APP
from tests.deployment.peers import Listened, connected, node_hello, token_of

from umbel.errors import Refused
from umbel.trust.authority import Authority, JoinText
from umbel.trust.identity import SigningKey
from umbel.trust.proofs import NodeProof
from umbel.wire import messages as m

TOKENS = re.compile(r"\b[0-9a-f]{12}\.[0-9a-f]{32}\b")


@pytest.fixture(scope="module")
def three(machines):
    for place in ("server", "node-0"):  # made by hand beforehand, say
        (machines.folder / place).mkdir(mode=0o755)
    machines.start_server()
    machines.start_nodes(3)
    yield machines
    assert secrets_in(machines) == []
    assert open_to_others(machines) == []


def open_to_others(machines):
    """The files of the server and of nodes that others on this machine could read or write."""
    places = [machines.folder / "server", *machines.folder.glob("node-*")]
    modes = {}
    found = (Path(inner) / name for place in places for inner, _, names in os.walk(place) for name in names)
    for path in found:
        with suppress(FileNotFoundError):  # the machines live on, and clear away what is over
            modes[path] = path.stat().st_mode
    files = {path: mode for path, mode in modes.items() if S_ISREG(mode)}
    assert len(files) > 20
    return [path for path, mode in files.items() if mode & 0o077]


def secrets_in(machines):
    """The lines with tokens that were printed and logged, but for the one that the server prints for its first node."""
    outputs = {"printed": "".join(process.output for process in machines.ended)}
    logs = [*machines.folder.glob("server/runs/*/*.log"), *machines.folder.glob("node-*/logs/*")]
    outputs |= {str(path): path.read_text() for path in [*logs, *machines.folder.glob("server/runs/**/*.json*")]}
    lines = [(name, line) for name, text in outputs.items() for line in text.splitlines()]
    return [(name, line) for name, line in lines if TOKENS.search(line) and "--join umbel1." not in line]


def nodes(machines):
    with machines.office() as office:
        return {row["name"]: row for row in office.call("nodes.list")["nodes"]}


def test_a_node_without_a_token_waits_until_it_is_approved_and_then_takes_part(three):
    line = JoinText(JoinText.parse(three.token).authority).text
    node = three.start_node("late", "--source", "index=7", join=line)
    node.wait_for("waits for approval")
    run = three.submit(f"{APP}:whole", 1, "--only=late", "--only=0", "--set", "rounds=2")
    with three.office() as office:
        assert nodes(three)["late"]["status"] == "pending"
        office.call("nodes.approve", node=nodes(three)["late"]["id"])
        node.wait_for("connected to")
        three.finished(run, office)
        assert {row["client"] for row in office.call("runs.show", run=run)["members"]} == {"late", "0"}
        did = [row["did"] for row in office.call("audit.list")["records"]]
    assert {"nodes.wait", "nodes.approve", "runs.submit"} <= set(did)


@pytest.mark.slow
def test_a_token_lets_one_node_in(three):
    join = three.invitation()
    three.start_node("first", "--source", "index=8", join=join).wait_for("connected to")
    second = three.start_node("second", "--source", "index=9", join=join)
    assert "used already" in second.wait_for(".*used.*")[0]
    assert "second" not in nodes(three)
    for name in ("first", "second"):
        assert three.nodes.pop(name).stop() == 0


def test_a_node_that_is_invited_by_another_name_or_names_a_client_of_another_is_told(three):
    with three.office() as office:
        join = str(office.call("nodes.invite", name="guest")["line"]).split()[-1]
    clients = three.folder / "claims.toml"
    clients.write_text("[0]\nindex = 0\n[guest-7]\nindex = 7\n")
    node = three.start_node("visitor", "--clients", str(clients), join=join)
    node.wait_for("calls this node guest, not visitor")
    node.wait_for("client 0 is refused: the name is another node's")
    assert nodes(three)["guest"]["clients"] == ["guest-7"]
    assert nodes(three)["guest"]["refused"] == {"0": "bound to 0"}
    three.nodes.pop("visitor").stop()
    with three.office() as office:
        office.call("nodes.revoke", node="guest")


def test_a_server_with_another_key_is_not_spoken_to(three, tmp_path):
    other = JoinText(Authority(tmp_path / "other").public, token_of(three.invitation()))
    node = three.start_node("deceived", "--source", "index=9", join=other.text)
    node.wait_for("another certificate")
    three.nodes.pop("deceived").stop()
    assert "deceived" not in nodes(three)


@pytest.mark.slow
def test_plaintext_goes_no_further_than_this_machine(three):
    server = three.command("server", "--dir", "plain", "--insecure", "--listen", "0.0.0.0:0")
    assert server.wait() == 3
    assert "without TLS" in server.output
    node = three.command("node", "192.0.2.1:7420", "--name", "plain", "--join", JoinText(b"").text, "--allow", "any")
    assert node.wait() == 3
    assert "without TLS" in node.output


@pytest.mark.slow
def test_a_revoked_node_is_disconnected_and_its_tasks_fail_with_a_reason(three):
    gate = three.folder / "revoked"
    run = three.submit(f"{APP}:gated", 2, *(f"--only={name}" for name in "012"), "--set", f"gate={gate}")
    asked = []
    with three.office() as office:
        for _, record in office.logs(run):
            if record["event"] == "round_committed" and record["round"] == 1:
                assert office.call("nodes.revoke", node="2")["name"] == "2"
                gate.touch()  # until then nobody goes on
            if record["event"] == "ask_closed":
                asked.append(record["failed"])
            last = record
    assert (last["event"], last["error"]) == ("run_finished", None)
    assert asked[0] == []
    assert "revoked" in asked[-1][0][0]
    three.nodes["2"].wait_for("revoked")
    assert nodes(three)["2"]["connected"] is False
    again = three.start_node_again("2") if three.nodes["2"].stop() == 0 else None
    assert again is not None
    again.wait_for("is revoked")
    assert "connected to" not in again.output
    with three.office() as office:
        office.call("nodes.approve", node="2")


@pytest.mark.slow
def test_a_node_outside_of_a_run_sees_nothing_of_it(three):
    token = token_of(three.invitation())

    async def scenario():
        prover = NodeProof(SigningKey.new(), token)
        spy = Listened(await connected(three, prover, node_hello(prover, "spy")))
        run = await asyncio.to_thread(three.submit, f"{APP}:whole", 3, "--only=0", "--only=1")
        spy.post(run_answer=m.RunAnswer(run=run, ready=True))
        with three.office() as office:
            await asyncio.to_thread(three.finished, run, office)
        held = [path for path in (three.folder / "server" / "blobs").rglob("*") if path.is_file()]
        hashes = [path.name for path in held if re.fullmatch("[0-9a-f]{64}", path.name)]
        assert hashes
        for sha in hashes:
            blob = m.Blob(sha256=bytes.fromhex(sha), size=next(p.stat().st_size for p in held if p.name == sha))
            spy.post(want=m.Want(blob=blob, run=run, credit=1 << 20))
        spy.post(alive=m.Alive(run=run, tasks=["0.0"]))
        spy.post(result=m.Result(run=run, task="0.0", ask=0, client="0", attempt=1, failure=m.Failure(reason="no")))
        denied = await spy.hear("unwanted", len(hashes))
        assert all(found.reason for found in denied)
        said = set(spy.names()) - {"unwanted"}
        await spy.close()
        return said, run

    said, run = asyncio.run(scenario())
    assert said <= {"close_run"}
    with three.office() as office:
        assert "spy" not in {row["client"] for row in office.call("runs.show", run=run)["members"]}


def test_the_newest_session_of_a_key_wins(three):
    token = token_of(three.invitation())

    async def scenario():
        key = SigningKey.new()
        joins, knows = NodeProof(key, token), NodeProof(key)
        first = Listened(await connected(three, joins, node_hello(joins, "twice")))
        second = Listened(await connected(three, knows, node_hello(knows, "twice")))
        end = await first.over()
        assert second.end is None
        await second.close()
        return end

    end = asyncio.run(scenario())
    assert isinstance(end, Refused)
    assert (end.code, end.retry) == (m.CODE_SUPERSEDED, False)


@pytest.mark.slow
def test_no_secret_is_printed_or_left_in_a_log(three):
    """Nor is one in the end: see `three`."""
    run = three.submit(f"{APP}:whole", 4, "--only=0", "--only=1")
    with three.office() as office:
        three.finished(run, office)
        audit = str(office.call("audit.list", count=1000))
    assert (three.folder / "server" / "runs" / run / "run.log").exists()
    assert secrets_in(three) == []
    assert token_of(three.token).secret not in audit
    assert not TOKENS.search(audit)
