from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from umbel.errors import ConnectionLost, Refused
from umbel.office.operator import Operator
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials
from umbel.trust.tokens import Token
from umbel.wire import messages as m

Command = Callable[..., Any]
LINE = JoinText(b"", Token("0123456789ab", "0123456789abcdef" * 2)).text
NODE = {
    "id": "ab12cd34ef", "name": "ward", "status": "approved", "clients": list("abcdef"), "count": 6, "joined_at": 1.0,
    "refused": {}, "problem": "",
}  # fmt: skip
ANSWERS: dict[str, dict[str, Any]] = {
    "server.status": {"you": {"name": "ann", "role": "run"}},
    "nodes.invite": {"line": f"umbel node localhost:1 --join {LINE}", "expires_at": 1.0},
    "nodes.list": {
        "nodes": [{**NODE, "seen_at": 5.0, "connected": False}, {**NODE, "seen_at": 5.0, "connected": True}]
    },
    "nodes.approve": {"node": NODE["id"], "name": "ward"},
    "nodes.revoke": {"node": NODE["id"], "name": "ward"},
    "nodes.release": {"count": 2, "hosts": {"a": "ef56ab7890"}},
    "operators.add": {"name": "bob", "role": "run", "line": LINE},
    "operators.list": {"operators": [{"name": "ann", "role": "admin", "used_at": None}]},
    "operators.remove": {"name": "bob"},
    "audit.list": {
        "records": [
            {
                "number": 1,
                "at": 0.0,
                "who": "ann",
                "did": "nodes.revoke",
                "what": {"node": "ab"},
                "peer": "ipv4:10.0.0.7:9",
            }
        ]
    },
}


class Office:
    """A server's office with fixed answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.credentials: list[Credentials] = []
        self.error: Exception | None = None
        self.address = "localhost:1"

    def connect(self, credentials: Credentials, **options: Any) -> Self:
        self.credentials.append(credentials)
        if self.error is not None:
            raise self.error
        return self

    def call(self, method: str, **body: Any) -> dict[str, Any]:
        self.calls.append((method, body))
        return ANSWERS[method]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def office(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    """The office, and its token as this user's."""
    found = Office()
    monkeypatch.setattr(Operator, "connect", found.connect)
    monkeypatch.setenv("UMBEL_HOME", str(folder / "home"))
    monkeypatch.setenv("UMBEL_TOKEN", LINE)
    return found


@pytest.mark.parametrize(
    ("line", "call", "said"),
    [
        (
            "nodes invite --name ward --hours 2",
            ("nodes.invite", {"name": "ward", "hours": 2.0}),
            "for node ward, for 2 h",
        ),
        (
            "nodes invite",
            ("nodes.invite", {"name": None, "hours": 24.0}),
            f"\n  umbel node localhost:1 --join {LINE}\n",
        ),
        (
            "nodes invite --relay",
            ("nodes.invite", {"name": None, "hours": 24.0, "relay": True}),
            "good for one relay",
        ),
        (
            "nodes approve ward --relay",
            ("nodes.approve", {"node": "ward", "relay": True}),
            "node ward (ab12cd34) is approved, as a relay",
        ),
        (
            "nodes invite --clients ward-*,icu-7 --at-most 100",
            ("nodes.invite", {"name": None, "hours": 24.0, "clients": ["ward-*", "icu-7"], "most": 100}),
            "good for one node",
        ),
        (
            "nodes approve ward --clients ward-*",
            ("nodes.approve", {"node": "ward", "clients": ["ward-*"]}),
            "is approved",
        ),
        (
            "nodes release a b",
            ("nodes.release", {"clients": ["a", "b"]}),
            "2 client names released\n  a is hosted by ef56ab78 now",
        ),
        ("nodes release --all-of ward", ("nodes.release", {"node": "ward"}), "2 client names released"),
        ("nodes ls", ("nodes.list", {}), "a, b, c, d and 2 others"),
        ("nodes approve ward", ("nodes.approve", {"node": "ward"}), "node ward (ab12cd34) is approved"),
        ("nodes revoke ab12", ("nodes.revoke", {"node": "ab12"}), "is revoked: its key is not good any more"),
        (
            "operators add bob",
            ("operators.add", {"name": "bob", "role": "run"}),
            f"  {LINE}\nThey type `umbel login localhost:1`",
        ),
        ("operators ls", ("operators.list", {}), "never"),
        ("operators remove bob", ("operators.remove", {"name": "bob"}), "bob is let in no more"),
        ("audit -n 3", ("audit.list", {"count": 3}), "node ab, from ipv4:10.0.0.7:9"),
    ],
)
def test_commands_ask_the_office(
    umbel: Command, office: Office, line: str, call: tuple[str, dict[str, Any]], said: str
) -> None:
    done = umbel(*line.split(), "--on", "localhost:1")
    assert done.code == 0, done.err
    assert office.calls == [call]
    assert said in done.out
    assert office.credentials == [Credentials("localhost:1", LINE)]


@pytest.mark.parametrize("line", ["nodes invite", "nodes ls", "operators add bob", "operators ls", "audit"])
def test_tables_as_json(umbel: Command, office: Office, line: str) -> None:
    done = umbel(*line.split(), "--on", "localhost:1", "--json")
    (answer,) = [ANSWERS[method] for method, _ in office.calls]
    assert json.loads(done.out) in (answer, *answer.values())


def test_a_token_is_kept_once_it_is_seen_to_be_good(
    umbel: Command, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UMBEL_TOKEN")
    assert "there is no token for localhost:1" in umbel("nodes", "ls", "--on", "localhost:1").said
    office.error = Refused("the token is not known here", m.CODE_UNAUTHENTICATED)
    done = umbel("login", "LOCALHOST:1", LINE)
    assert done.code == 7
    assert "The server says no" in done.err
    assert umbel("nodes", "ls", "--on", "localhost:1").code == 3
    office.error = None
    done = umbel("login", "LOCALHOST:1", LINE)
    assert "localhost:1 knows you as ann, who may run" in done.out
    assert LINE not in done.out
    assert umbel("nodes", "ls", "--on", "localhost:1").code == 0
    office.error = ConnectionLost("no connection to localhost:1", hint="Is it running?")
    done = umbel("nodes", "ls", "--on", "localhost:1")
    assert done.code == 6
    assert "no connection to localhost:1" in done.said


def test_a_node_that_is_not_connected_says_when_it_was(
    umbel: Command, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    rows = [
        {**NODE, "name": "gone", "seen_at": 988.0, "connected": False, "clients": ["a"]},
        {**NODE, "name": "long", "seen_at": 100.0, "connected": False},
        {**NODE, "name": "new", "seen_at": None, "connected": False},
        {**NODE, "name": "here", "seen_at": 990.0, "connected": True, "clients": [], "refused": {"a": "bound to gone"}},
    ]
    rows[3]["problem"] = "no room\x1b[2K"
    monkeypatch.setitem(ANSWERS, "nodes.list", {"nodes": rows})
    lines = {
        line.split()[1]: line for line in umbel("nodes", "ls", "--on", "localhost:1").out.splitlines() if "ab12" in line
    }
    assert "offline" in lines["gone"]
    assert lines["gone"].rstrip().endswith("12 s ago")
    assert lines["long"].rstrip().endswith("15 min ago")
    assert lines["new"].rstrip().endswith("never")
    assert "connected   a (bound to gone)" in lines["here"]
    assert r" here says: no room\x1b[2K" in umbel("nodes", "ls", "--on", "localhost:1").out
    assert "approved" not in "".join(lines.values())


def test_a_role_that_is_none_is_not_asked_for(umbel: Command, office: Office) -> None:
    assert umbel("operators", "add", "bob", "--role", "king", "--on", "localhost:1").code == 3
    assert office.calls == []


def test_an_invitation_by_approval_has_no_secret(umbel: Command, office: Office) -> None:
    done = umbel("nodes", "invite", "--approval", "--on", "localhost:1")
    assert f"umbel node localhost:1 --join {JoinText(b'').text}\n" in done.out
    assert JoinText.parse(LINE).token is not None
    assert str(JoinText.parse(LINE).token.id) not in done.out
    assert office.calls == []
    assert "--approval" in umbel("nodes", "invite", "--approval", "--name", "ward", "--on", "localhost:1").err


def test_names_in_brackets_are_printed_as_they_are(
    umbel: Command, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "[red]ward[/]"
    node = {**NODE, "name": name, "clients": [name], "seen_at": 5.0, "connected": False}
    monkeypatch.setitem(ANSWERS, "nodes.list", {"nodes": [node]})
    monkeypatch.setitem(ANSWERS, "nodes.revoke", {"node": NODE["id"], "name": name})
    monkeypatch.setitem(ANSWERS, "operators.list", {"operators": [{"name": name, "role": "run", "used_at": None}]})
    record = {"number": 1, "at": 0.0, "who": name, "did": name, "what": {name: name}}
    monkeypatch.setitem(ANSWERS, "audit.list", {"records": [record]})
    assert umbel("nodes", "ls", "--on", "localhost:1", "--token", LINE).out.count(name) == 2
    assert name in umbel("nodes", "revoke", name, "--on", "localhost:1", "--token", LINE).out
    assert name in umbel("operators", "ls", "--on", "localhost:1", "--token", LINE).out
    assert umbel("audit", "--on", "localhost:1", "--token", LINE).out.count(name) == 4
