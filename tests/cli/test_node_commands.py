from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from umbel.cli import node_commands
from umbel.cli.node_commands import (
    NodeOrder,
    clients_of,
    node_settings,
    policy_of,
    relay_settings,
    server_line,
    source_of,
)
from umbel.errors import SettingError
from umbel.trust import credentials
from umbel.trust.authority import Authority, JoinText
from umbel.trust.policy import Approvals
from umbel.trust.tokens import Token

PLAIN = JoinText(b"", Token.new()).text


def order(tmp_path: Path, server: str = "localhost:1", **more: object) -> NodeOrder:
    (tmp_path / "node").mkdir(exist_ok=True)
    return NodeOrder(server, folder=tmp_path / "node", **more)  # type: ignore[arg-type]


def test_sources_are_json_where_they_can_be() -> None:
    found = source_of(["path=/data/x=y", "index=3", 'parts=["a", 1]', "on=true", "name=ward 3", "empty="])
    assert found == {"path": "/data/x=y", "index": 3, "parts": ["a", 1], "on": True, "name": "ward 3", "empty": ""}
    for wrong in ("path", "=3"):
        with pytest.raises(SettingError, match="KEY=VALUE"):
            source_of([wrong])


def test_a_node_hosts_the_client_of_its_name_or_those_in_a_file(tmp_path: Path) -> None:
    assert clients_of(order(tmp_path, name="ward", sources=("a=1",))) == {"ward": {"a": 1}}
    toml, json_file = tmp_path / "c.toml", tmp_path / "c.json"
    toml.write_text('[a]\npath = "/x"\n[b]\nindex = 2\n')
    json_file.write_text(json.dumps({"a": {"path": "/x"}, "b": {"index": 2}}))
    for file in (toml, json_file):
        assert clients_of(order(tmp_path, clients=file)) == {"a": {"path": "/x"}, "b": {"index": 2}}
    with pytest.raises(SettingError, match="keep one of them"):
        clients_of(order(tmp_path, clients=toml, sources=("a=1",)))
    json_file.write_text("[]")
    for file in (json_file, tmp_path / "none.toml", tmp_path):
        with pytest.raises(SettingError):
            clients_of(order(tmp_path, clients=file))


def test_a_node_remembers_by_what_its_server_is_known(tmp_path: Path) -> None:
    text = JoinText(Authority(tmp_path / "server").public, Token.new()).text
    with pytest.raises(SettingError, match="nothing says by what"):
        server_line(order(tmp_path, "ward.example.org:1"))
    found = server_line(order(tmp_path, "ward.example.org:1", join=text))
    assert found == JoinText.parse(text)
    again = server_line(order(tmp_path, "WARD.example.org:1"))
    assert (again.authority, again.token) == (found.authority, None)  # the token is good once, and not kept
    assert found.token is not None
    assert found.token.secret not in (tmp_path / "node" / "server.json").read_text()
    with pytest.raises(SettingError, match="nothing says"):
        server_line(order(tmp_path, "other.example.org:1"))


def test_a_node_beside_its_servers_folder_invites_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invited, used = (JoinText(Authority(tmp_path / "server").public, Token.new()).text for _ in range(2))
    asked = []

    class Office:
        def __enter__(self) -> Office:
            return self

        def __exit__(self, *error: object) -> None: ...

        def call(self, method: str) -> dict[str, str]:
            asked.append(method)
            return {"line": f"umbel node localhost:1 --join {invited}"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node_commands.Operator, "connect", lambda found: Office())
    credentials.write_own(tmp_path / "umbel-server", credentials.Credentials("127.0.0.1:1", used))
    assert server_line(order(tmp_path)) == JoinText.parse(invited)
    assert server_line(order(tmp_path)).token is None  # it is known by now
    assert asked == ["nodes.invite"]
    with pytest.raises(SettingError, match="nothing says by what"):
        server_line(order(tmp_path, "ward.example.org:1"))


def test_an_invitation_comes_from_a_file_standard_input_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "join").write_text(PLAIN)
    assert server_line(order(tmp_path, join=f"@{tmp_path / 'join'}")) == JoinText.parse(PLAIN)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PLAIN}\ny\n"))
    assert server_line(order(tmp_path, join="-")) == JoinText.parse(PLAIN)
    assert sys.stdin.readline() == "y\n", "what an owner types is still there"
    monkeypatch.setenv("UMBEL_JOIN", f"@{tmp_path / 'join'}")
    assert server_line(order(tmp_path)) == JoinText.parse(PLAIN)


def test_plaintext_is_for_this_machine_unless_somebody_insists(tmp_path: Path) -> None:
    assert server_line(order(tmp_path, join=PLAIN)).root() is None
    assert server_line(order(tmp_path, insecure=True)).token is None
    with pytest.raises(SettingError, match="without TLS"):
        server_line(order(tmp_path, "10.0.0.1:1", join=PLAIN))
    assert server_line(order(tmp_path, "10.0.0.1:1", join=PLAIN, insecure=True)).root() is None


def test_what_a_node_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    key = "ab" * 32
    found = policy_of(order(tmp_path, allow=("any", key, f"author:{key}")), Approvals())
    assert found.allow == ("any", f"author:{key}", f"archive:{key}", f"author:{key}")
    assert not found.ask
    assert not policy_of(order(tmp_path), Approvals()).ask
    assert policy_of(order(tmp_path, ask=True), Approvals()).ask
    file = tmp_path / "policy.toml"
    file.write_text('allow = ["any"]\nsmallest_cohort = 5\n')
    assert policy_of(order(tmp_path, policy=file), Approvals()).smallest_cohort == 5
    with pytest.raises(SettingError, match="cannot allow"):
        policy_of(order(tmp_path, allow=("everybody",)), Approvals())


def test_a_node_as_a_whole(tmp_path: Path) -> None:
    found = node_settings(order(tmp_path, join=PLAIN, name="ward", slots=3, allow=("any",), sources=("a=1",)))
    assert (found.name, found.slots, found.clients, found.token) == (
        "ward",
        3,
        {"ward": {"a": 1}},
        JoinText.parse(PLAIN).token,
    )
    again = node_settings(order(tmp_path, name="ward", allow=("any",)))
    assert again.key.public == found.key.public
    assert again.ask_owner is None
    assert NodeOrder("h:1").called
    assert NodeOrder("h:1", name="x").place == Path("umbel-nodes/x")


def test_a_relay_as_a_whole(tmp_path: Path) -> None:
    found = relay_settings(order(tmp_path, join=PLAIN, name="east", relay=True, listen="127.0.0.1:7421"))
    assert (found.name, found.below.listen, found.below.http) == ("east", "127.0.0.1:7421", "")
    assert found.below.folder == tmp_path / "node" / "below"
    assert found.token == JoinText.parse(PLAIN).token
    again = relay_settings(order(tmp_path, name="east", relay=True))
    assert (again.key.public, again.token, again.below.listen) == (found.key.public, None, "127.0.0.1:7420")
    wide = relay_settings(order(tmp_path, name="east", relay=True, window="4MiB", blobs_port=7440)).below
    assert (wide.window, wide.blobs_port) == (4 << 20, 7440)
    with pytest.raises(SettingError, match="--allow is for a node that hosts clients"):
        relay_settings(order(tmp_path, relay=True, allow=("any",)))
