"""`umbel node --check` against a registry behind a real stream: what it finds, and that it changes nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.admission import Office

from umbel.cli import node_check
from umbel.cli.node_check import examine_node
from umbel.cli.node_commands import NodeOrder
from umbel.testing.machines import free_ports
from umbel.transport import grpc
from umbel.transport.connection import Connection
from umbel.transport.handshake import accept
from umbel.transport.stream import Stream
from umbel.trust import keyfile
from umbel.trust.authority import Authority, JoinText
from umbel.trust.identity import SigningKey
from umbel.trust.tokens import Token
from umbel.wire import messages as m


class Server:
    """A registry that lets in over TLS, and says what time it is."""

    def __init__(self, folder: Path) -> None:
        self.office, self.authority, self.ahead = Office(), Authority(folder), 0.0
        self.address = ""
        self._ready, self._over = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def line(self, token: Token | None) -> str:
        return JoinText(self.authority.public, token).text

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        serving = self.authority.serving()
        listener = await grpc.serve("127.0.0.1:0", serving.certificate, serving.key, self._on_stream)
        self.address = listener.address
        self._ready.set()
        await self._over.wait()
        await listener.close()

    async def _on_stream(self, stream: Stream) -> None:
        connection = Connection(stream)
        greeting = m.Welcome(time=time.time() + self.ahead)
        await accept(connection, self.office.registry, greeting=lambda who: greeting)
        await connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("authority"))
    yield made
    made.close()


@pytest.fixture
def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], server: Server) -> Any:
    """What is found of a node that would be started so, by what is checked."""

    server.ahead = 0.0

    def check(**more: Any) -> dict[str, dict[str, Any]]:
        order = NodeOrder(**{"server": server.address, "folder": tmp_path / "node", "name": "ward", **more})
        check.good = examine_node(order, json=True)
        return {row["check"]: row for row in json.loads(capsys.readouterr().out)}

    return check


def test_a_node_that_could_join_is_told_so_and_has_not_joined(checked, server, tmp_path):
    token = server.office.registry.invite("ann", "ward-7")
    (tmp_path / "data").mkdir()
    source = (f"path={tmp_path / 'data'}", "index=3", "name=ward/3")
    found = checked(join=server.line(token), sources=source, allow=("any",))
    assert checked.good
    assert found["token"]["note"] == "the token is good, and it would join as ward-7"
    assert all(found[name]["good"] for name in ("address", "certificate", "clock", "policy", "source of ward", "disk"))
    assert found["source of ward"]["note"] == "1 path in it, which can be read"
    assert not (tmp_path / "node").exists(), "nothing was written"
    assert "ward-7" not in [node.name for node in server.office.registry.nodes()]
    assert checked(join=server.line(token), allow=("any",))["token"]["good"], "the token was not used up"


def test_a_token_that_lets_nobody_in_is_critical_and_one_that_lacks_is_not(checked, server):
    found = checked(join=server.line(Token.new()))
    assert not checked.good
    assert "not known here" in found["token"]["note"]
    found = checked(join=server.line(None))
    assert checked.good
    assert not found["token"]["good"]
    assert "wait for approval" in found["token"]["note"]


def test_another_server_than_the_line_names_is_critical(checked, tmp_path):
    other = JoinText(Authority(tmp_path / "other").public, Token.new()).text
    found = checked(join=other)
    assert not checked.good
    assert "another certificate" in found["certificate"]["note"] + found["certificate"]["advice"]
    assert "token" not in found


def test_an_address_where_nobody_listens_and_a_node_without_a_line(checked, tmp_path, monkeypatch):
    found = checked(server=f"127.0.0.1:{free_ports(1)[0]}", join=JoinText(b"", None).text)
    assert not checked.good
    assert "refused" in found["address"]["note"]
    assert "certificate" not in found
    monkeypatch.chdir(tmp_path)
    found = checked()
    assert not checked.good
    assert "umbel nodes invite" in found["token"]["advice"]


def test_clocks_that_differ_are_told_of(checked, server):
    server.ahead = 1000.0
    found = checked(join=server.line(server.office.registry.invite("ann")))
    assert checked.good
    assert not found["clock"]["good"]
    assert "s behind the server's: set one of them" in found["clock"]["note"]


def test_sources_that_cannot_be_read_and_settings_that_are_none(checked, server, tmp_path):
    line = server.line(server.office.registry.invite("ann"))
    found = checked(join=line, sources=("path=/nowhere/at/all", "url=postgresql://host/base"))
    assert not checked.good
    assert found["source of ward"]["note"] == "/nowhere/at/all is not there"
    found = checked(join=line, policy=tmp_path / "none.toml")
    assert not checked.good
    assert "cannot be read" in found["settings"]["note"]


def test_what_a_run_needs_that_is_hosted_here(checked, server, tmp_path):
    for run, requirement in (("good", "numpy>=1"), ("bad", "no-such-package>=1")):
        place = tmp_path / "node" / "runs" / run / "archive"
        place.mkdir(parents=True)
        manifest = {"python": "", "requirements": [requirement], "imports": []}
        (place / "manifest.json").write_text(json.dumps(manifest))
    found = checked(join=server.line(server.office.registry.invite("ann")))
    assert (found["run good"]["good"], found["run bad"]["good"]) == (True, False)
    assert "no-such-package" in found["run bad"]["note"]


def test_a_full_disk_is_critical_and_a_small_one_is_told_of(monkeypatch, tmp_path):
    for free, good, critical in ((1 << 40, True, False), (1 << 30, False, False), (1 << 20, False, True)):
        monkeypatch.setattr(node_check.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        (found,) = (each for each in node_check._machine(tmp_path / "node") if each.check == "disk")
        assert (found.good, found.critical) == (good, critical)


def test_a_node_that_is_known_is_told_by_what_name(checked, server, tmp_path):
    key = SigningKey.kept(tmp_path / "node" / "node.key")
    assert server.office.node(key, server.office.registry.invite("ann", "ward-8")).name == "ward-8"
    found = checked(join=server.line(None))
    assert found["token"]["note"] == "known here as ward-8"
    keyfile.replace(tmp_path / "node" / "server.json", json.dumps({server.address: server.line(None)}).encode())
    assert checked()["token"]["good"], "the folder knows the server"
