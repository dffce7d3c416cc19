from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from umbel.cli.application import load
from umbel.errors import JournalMissing
from umbel.office.operator import Operator
from umbel.remote.federation import contract_of
from umbel.runs.events import RoundCommitted, RunEvent, RunFinished, RunStarted
from umbel.trust import archive
from umbel.trust.authority import JoinText
from umbel.trust.credentials import Credentials
from umbel.trust.statement import Statement, digest
from umbel.trust.tokens import Token
from umbel.wire import messages as m

Command = Callable[..., Any]
WHOLE = '{"lr": 0.25, "steps": 2, "name": "x"}'
LINE = JoinText(b"", Token.new()).text
EVENTS: list[RunEvent] = [
    RunStarted(run="demo-1", format=1, seed=5, rounds=1, clients=2, strategy="FedAvg"),
    RoundCommitted(round=1, asks=1, clients=2, train={"loss": 0.5}, seconds=0.5),
    RunFinished(run="demo-1", rounds=1, reason="rounds", seconds=1.0, model_sha256="ab" * 32),
]
ROW = {
    "run": "demo-1", "name": "demo", "owner": "ann", "status": "finished", "created_at": 100.0, "ended_at": 200.0,
    "rounds": 1, "asked": 1, "metrics": {"train.loss": 0.5}, "best_round": None, "waits": "",
}  # fmt: skip


class Server:
    """A server with one run."""

    federation = "f0"

    def __init__(self) -> None:
        self.uploaded: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.events = EVENTS
        self.more: dict[str, Any] = {}
        self.files = {"events.jsonl": b"log", "checkpoints/round-0001.safetensors": b"model"}

    def connect(self, credentials: Credentials, **options: Any) -> Self:
        assert credentials == Credentials("localhost:1", LINE)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def upload(self, source: bytes) -> m.Blob:
        sha256 = hashlib.sha256(source).digest()
        self.uploaded[sha256.hex()] = source
        return m.Blob(sha256=sha256, size=len(source))

    def call(self, method: str, **body: Any) -> dict[str, Any]:
        self.calls.append((method, body))
        if body.get("run") == "none":
            raise JournalMissing("there is no run none")
        if method == "runs.list":
            return {"runs": [ROW]}
        if method == "runs.show":
            return {**ROW, "exit": None, "members": [{"client": "a", "standing": "ready", "reason": ""}]}
        if method == "runs.pull":
            found = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
            files = [{"name": n, "size": len(self.files[n]), "sha256": sha} for n, sha in found.items()]
            return {"run": "demo-1", "files": files}
        return {"run": "demo-1", **self.more}

    def logs(self, run: str, *args: Any, **options: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, event in enumerate(self.events, 1):
            yield number, {**event.record(), "at": 50.0}

    def download(self, blob: m.Blob, path: Path) -> None:
        (data,) = [data for data in self.files.values() if hashlib.sha256(data).digest() == blob.sha256]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(Operator, "connect", found.connect)
    monkeypatch.setenv("UMBEL_HOME", str(folder / "home"))
    monkeypatch.setenv("UMBEL_TOKEN", LINE)
    return found


def test_an_app_is_packed_signed_submitted_and_followed(umbel: Command, server: Server) -> None:
    options = ("--rounds", 1, "--seed", 7, "--set", "lr=0.25", "--only", "a", "--only", "b")
    done = umbel("run", "app.py", "--on", "localhost:1", *options)
    assert done.code == 0, done.err
    ((method, body),) = server.calls
    assert method == "runs.submit"
    client = server.uploaded[body["client"]["sha256"]]
    app = server.uploaded[body["app"]["sha256"]]
    assert (archive.read(client).manifest["kind"], archive.read(app).manifest["kind"]) == ("client", "app")
    signature, author = bytes.fromhex(body["signature"]), bytes.fromhex(body["author"])
    said = Statement.read(author, body["statement"].encode(), signature)
    signed = {"config": digest(WHOLE), "contract": digest(contract_of(load("app.py").app)), "federation": "f0"}
    assert said == Statement("demo", hashlib.sha256(client).hexdigest(), **signed)
    assert body["settings"] == {
        "rounds": 1, "seed": 7, "config": {"lr": 0.25}, "set": ["lr=0.25"], "clients": ["a", "b"],
    }  # fmt: skip
    assert body["run"].startswith("demo-")
    assert "✓ demo-1 finished: 1 round in 1.0 s" in done.out
    assert "umbel pull demo-1 --on localhost:1" in done.out
    assert "round 1/1  2 clients" in done.err


def test_a_run_on_a_server_is_tracked_where_the_command_runs(umbel: Command, server: Server) -> None:
    assert umbel("run", "app.py", "--on", "localhost:1", "--track", "csv:live").code == 0
    assert umbel("resume", "demo-1", "--on", "localhost:1", "--track", "csv:again").code == 0
    assert umbel("track", "demo-1", "csv:after", "--on", "localhost:1").code == 0
    found = {place: (Path(place) / "demo-1.csv").read_text() for place in ("live", "again", "after")}
    assert found["live"].splitlines()[:2] == ["round,name,client,value,at", "1,train.loss,,0.5,50.0"]
    assert set(found.values()) == {found["live"]}
    assert "runs.pull" not in [method for method, _ in server.calls]  # a CSV file has no use for the model


def test_what_is_signed_has_an_end_where_one_is_said(umbel: Command, server: Server, monkeypatch: Any) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert umbel("run", "app.py", "--on", "localhost:1", "--detach", "--expires", 2).code == 0
    ((_, body),) = server.calls
    author, signature = bytes.fromhex(body["author"]), bytes.fromhex(body["signature"])
    said = Statement.read(author, body["statement"].encode(), signature)
    assert said.expires == 1000.0 + 2 * 86400
    # What nobody has set is signed as it stands in the app: that is what nodes are sent.
    assert "config" not in body["settings"]
    assert said.config == digest('{"lr": 0.5, "steps": 2, "name": "x"}')
    assert umbel("run", "app.py", "--clients", 2, "--expires", 2).code == 3


def test_a_run_need_not_be_followed(umbel: Command, server: Server) -> None:
    done = umbel("run", "app.py", "--on", "localhost:1", "--detach")
    assert "umbel logs demo-1 -f --on localhost:1" in done.out
    assert umbel("run", "app.py", "--on", "localhost:1", "--detach", "--json").summary == {
        "run": "demo-1",
        "server": "localhost:1",
    }
    assert umbel("resume", "demo", "--on", "localhost:1", "--rounds", 4, "--detach").code == 0
    assert server.calls[-1] == ("runs.resume", {"run": "demo", "rounds": 4})
    found = umbel("resume", "demo", "--on", "localhost:1", "--json").summary
    assert (found["run"], found["server"], found["metrics"]) == ("demo-1", "localhost:1", {"train.loss": 0.5})


def test_runs_on_a_server_are_listed_as_those_here(umbel: Command, server: Server) -> None:
    done = umbel("runs", "--on", "localhost:1")
    (line,) = [line.split() for line in done.out.splitlines() if line.startswith(" demo-1") or "demo-1" in line]
    assert "1/1" in line
    assert "finished" in line
    (row,) = json.loads(umbel("runs", "--on", "localhost:1", "--json").out)
    assert (row["run"], row["state"], row["metrics"]) == ("demo-1", "finished", {"train.loss": 0.5})


def test_a_run_on_a_server_is_shown(umbel: Command, server: Server) -> None:
    out = umbel("show", "last", "--on", "localhost:1").out
    for text in ("demo-1", "finished", "1 of 1 round", "localhost:1", "ann", "a ready", "sha256 abababababab"):
        assert text in out
    server.events = []
    assert "nothing has happened yet" in umbel("show", "last", "--on", "localhost:1").out
    assert umbel("show", "none", "--on", "localhost:1").code == 3


def test_the_log_of_a_run_on_a_server_is_printed(umbel: Command, server: Server) -> None:
    lines = umbel("logs", "last", "-f", "--on", "localhost:1").out.splitlines()
    assert lines[0].endswith("run demo-1: FedAvg, 2 clients, 1 round, seed 5")
    assert len(lines) == 3
    found = [json.loads(line) for line in umbel("logs", "last", "--json", "--on", "localhost:1").out.splitlines()]
    assert [event["event"] for event in found] == ["run_started", "round_committed", "run_finished"]


def test_a_run_is_stopped(umbel: Command, server: Server) -> None:
    assert "umbel resume demo-1 --on localhost:1" in umbel("stop", "last", "--on", "localhost:1").out
    assert server.calls == [("runs.stop", {"run": "last"})]
    server.more = {"driven": True}
    out = umbel("stop", "last", "--on", "localhost:1").out
    assert "umbel resume" not in out
    assert "umbel.resume(app, FOLDER, on=umbel.Remote('localhost:1'))" in out


def test_a_runs_folder_is_pulled(umbel: Command, server: Server) -> None:
    done = umbel("pull", "last", "--on", "localhost:1", "--folder", "pulled")
    assert "2 files fetched to pulled/demo-1" in done.out
    assert "umbel show demo-1 --folder pulled" in done.out
    assert Path("pulled/demo-1/checkpoints/round-0001.safetensors").read_bytes() == b"model"


def test_a_run_that_has_not_begun_says_what_it_waits_for(
    umbel: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "clients: 1 refused; client a: nobody allows it"
    waiting = {**ROW, "status": "running", "ended_at": None, "rounds": 0, "asked": 0, "metrics": {}, "waits": why}
    monkeypatch.setitem(globals(), "ROW", waiting)
    server.events = []
    listed = umbel("runs", "--on", "localhost:1").out
    assert "0/0" not in listed
    assert "waiting" in listed
    assert f"demo-1 waits for {why}" in listed
    assert json.loads(umbel("runs", "--on", "localhost:1", "--json").out)[0]["waits"] == why
    assert f"waits for {why}" in umbel("show", "demo-1", "--on", "localhost:1").out
