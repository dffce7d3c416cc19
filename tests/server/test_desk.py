from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from umbel.errors import Refused
from umbel.server import desk
from umbel.server.desk import RIGHTS, Desk
from umbel.server.feeds import Feeds
from umbel.server.registry import Registry
from umbel.store.blobs import Blobs, digest
from umbel.store.records import MemoryStore
from umbel.trust import archive
from umbel.trust.authority import JoinText
from umbel.trust.identity import SigningKey, sign_archive
from umbel.trust.tokens import Token
from umbel.wire import messages as m

CLIENT = archive.build(
    {
        "kind": "client",
        "module": "client",
        "attribute": "client",
        "handlers": ["train"],
        "imports": [],
        "python": "",
        "requirements": [],
    },
    {"client.py": b"x = 1\n"},
)
APP = archive.build(
    {"kind": "app", "file": "app.py", "attribute": "", "imports": [], "python": "", "requirements": []},
    {"app.py": b"y = 1\n"},
)
RESPONSES = list[m.Response]


@dataclass
class Person:
    """An operator's connection: what the server may fetch from it, and what it was offered."""

    name: str = "ann"
    role: str = "admin"
    brings: dict[bytes, bytes] = field(default_factory=dict)
    offered: list[m.Blob] = field(default_factory=list)
    blobs: Blobs | None = None

    async def fetch(self, blob: m.Blob) -> None:
        if blob.sha256 not in self.brings:
            raise Refused("it is not here", m.CODE_UNKNOWN)
        assert self.blobs is not None
        self.blobs.put(self.brings[blob.sha256])

    def offer(self, blob: m.Blob) -> None:
        self.offered.append(blob)


class Office:
    """The offices, all in memory but for files."""

    def __init__(self, folder: Path) -> None:
        self.time = 1000.0
        self.store = MemoryStore()
        self.registry = Registry(self.store, lambda: self.time)
        self.blobs = Blobs(folder / "blobs")
        self.feeds = Feeds(self._stored, lambda run: self.store.rows("runs", id=run)[0]["ended_at"] is not None)
        self.place = folder
        self.done: list[str] = []
        self.connected: set[str] = set()
        self.desk = Desk(self, lambda: self.time)

    def _stored(self, run: str, after: int) -> list[tuple[int, str]]:
        return [(row["number"], row["body"]) for row in self.store.rows("events", above=after, run=run)]

    async def commit(self) -> None:
        self.store.commit()

    def online(self, node: str) -> bool:
        return node in self.connected

    def elsewhere(self, node: str) -> dict[str, str]:
        return {"2": "ward"} if node in self.connected else {}

    def standings(self, run: str) -> dict[str, tuple[int, str]]:
        return {"a": (m.STANDING_READY, ""), "b": (m.STANDING_REFUSED, "no data")}

    def revoked(self, node: str) -> None:
        self.done.append(f"revoked {node}")

    def dismissed(self, token: str) -> None:
        self.done.append(f"dismissed {token}")

    async def start(self, run: str) -> None:
        self.done.append(f"start {run}")

    async def stop(self, run: str) -> None:
        self.done.append(f"stop {run}")

    def folder(self, run: str) -> Path:
        return self.place / run

    def invitation(self, token: Token) -> str:
        return f"umbel node here:1 --join {self.line(token)}"

    def line(self, token: Token) -> str:
        return JoinText(b"", token).text

    def status(self) -> dict[str, Any]:
        return {"version": "1"}

    async def responses(self, person: Person, method: str, text: str) -> RESPONSES:
        return [found async for found in self.desk.answer(person, m.Request(id=7, method=method, body=text))]

    def ask(self, method: str, person: Person | None = None, **body: Any) -> dict[str, Any]:
        """The whole answer; fails where it is a refusal."""
        found: dict[str, Any] = {}
        for response in asyncio.run(self.responses(person or Person(), method, json.dumps(body))):
            assert (response.code, response.text, response.id) == (0, "", 7)
            for key, value in json.loads(response.body).items():
                found[key] = found[key] + value if isinstance(value, list) and key in found else value
        return found

    def refused(self, method: str, person: Person | None = None, text: str | None = None, **body: Any) -> m.Response:
        """The refusal of a request."""
        (found,) = asyncio.run(self.responses(person or Person(), method, json.dumps(body) if text is None else text))
        assert found.code
        assert not found.body
        return found

    def run(self, id: str, created: float = 1.0, **columns: Any) -> None:
        self.store.put("runs", {"id": id, "status": "running", "owner": "ann", "created_at": created, **columns})
        self.store.commit()

    def log(self, run: str, *events: dict[str, Any]) -> None:
        for event in events:
            row = {"run": run, "number": self.store.greatest("events", run=run) + 1, "at": 1.0}
            self.store.put("events", {**row, "body": json.dumps(event)})
            self.store.commit()

    @property
    def audited(self) -> list[str]:
        return [f"{row['who']} {row['did']}" for row in self.registry.audit.last()]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def submission(key: SigningKey, client: bytes = CLIENT, app: Any = APP, **more: Any) -> dict[str, Any]:
    client_blob = archive_blob(client)
    return {
        "run": "demo-1",
        "name": "demo",
        "client": client_blob,
        "app": archive_blob(app) if isinstance(app, bytes) else app,
        "author": key.public.hex(),
        "signature": sign_archive(key, bytes.fromhex(client_blob["sha256"])).hex(),
        "settings": {"rounds": 3, "seed": 1, "config": {"lr": 0.1}},
        **more,
    }


def archive_blob(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def bringing(office: Office, *archives: bytes, **more: Any) -> Person:
    return Person(brings={bytes.fromhex(archive_blob(a)["sha256"]): a for a in archives}, blobs=office.blobs, **more)


@pytest.mark.parametrize("role", ["read", "run", "admin", "", "root"])
def test_everybody_may_what_their_role_may(office: Office, role: str) -> None:
    order = ["read", "run", "admin"]
    for method, (needed, _) in RIGHTS.items():
        (found,) = asyncio.run(office.responses(Person(role=role), method, "nonsense"))
        may = role in order and order.index(role) >= order.index(needed)
        assert found.code == (m.CODE_MALFORMED if may else m.CODE_NOT_ALLOWED), method
    office.store.commit()
    denied = [row for row in office.registry.audit.last(1000) if row["did"] == "denied"]
    assert len(denied) == sum(role not in order[order.index(needed) :] for needed, _ in RIGHTS.values())


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '"x"', "[" * 100_000, "{}" + " " * 300_000])
def test_bodies_that_are_none_are_refused(office: Office, text: str) -> None:
    if text == "":
        assert asyncio.run(office.responses(Person(), "nodes.list", text))[0].code == 0
    else:
        assert office.refused("nodes.list", text=text).code in (m.CODE_MALFORMED, m.CODE_TOO_LARGE)
    assert office.refused("nodes.explode").code == m.CODE_UNKNOWN


def test_a_node_is_invited_and_the_token_stays_out_of_the_record(office: Office) -> None:
    found = office.ask("nodes.invite", name="ward-3", hours=2)
    assert found["line"].startswith("umbel node here:1 --join umbel1.-.")
    assert found["expires_at"] == 1000.0 + 7200
    assert office.audited == ["ann nodes.invite"]
    assert found["line"].rpartition(".")[2] not in json.dumps(office.registry.audit.last())
    for wrong in ({"hours": 0}, {"hours": "x"}, {"hours": True}, {"name": "a b"}, {"name": 3}):
        assert office.refused("nodes.invite", **wrong).code == m.CODE_MALFORMED


def test_nodes_are_listed_approved_and_revoked(office: Office) -> None:
    key = b"k" * 32
    office.store.put("nodes", {"id": "ab12cd", "name": "x", "key": key, "status": "pending", "clients": ["1"]})
    office.store.commit()
    office.registry = Registry(office.store, lambda: 1000.0)
    assert office.ask("nodes.list")["nodes"][0]["status"] == "pending"
    assert office.ask("nodes.approve", node="ab12") == {"node": "ab12cd", "name": "x"}
    office.connected.add("ab12cd")
    (row,) = office.ask("nodes.list", Person(role="read"))["nodes"]
    assert (row["status"], row["connected"], row["clients"]) == ("approved", True, ["1"])
    assert row["elsewhere"] == {"2": "ward"}
    assert "key" not in row
    office.ask("nodes.revoke", node="x")
    assert office.done == ["revoked ab12cd"]
    assert office.ask("nodes.list")["nodes"][0]["connected"] is False
    assert "umbel nodes ls" in office.refused("nodes.revoke", node="zzzz").text


def test_operators_are_added_listed_and_removed_but_not_the_last_admin(office: Office) -> None:
    office.ask("operators.add", name="ann", role="admin")
    line = office.ask("operators.add", name="bob", role="run")["line"]
    assert JoinText.parse(line).token is not None
    found = office.ask("operators.list")["operators"]
    assert [(row["name"], row["role"]) for row in found] == [("ann", "admin"), ("bob", "run")]
    assert "digest" not in found[0]
    assert office.refused("operators.add", name="bob", role="run").code == m.CODE_MALFORMED
    assert office.refused("operators.add", name="eve", role="root").code == m.CODE_MALFORMED
    assert office.refused("operators.remove", name="ann").code == m.CODE_OUT_OF_ORDER
    office.ask("operators.remove", name="bob")
    assert len(office.done) == 1
    assert office.audited == ["ann operators.add", "ann operators.add", "ann operators.remove"]
    assert [row["did"] for row in office.ask("audit.list", count=1)["records"]] == ["operators.remove"]
    assert office.refused("audit.list", count=0).code == m.CODE_MALFORMED


def test_the_server_says_who_asks(office: Office) -> None:
    assert office.ask("server.status") == {"version": "1", "you": {"name": "ann", "role": "admin"}}


def test_a_run_is_submitted_once(office: Office) -> None:
    key, person = SigningKey.new(), bringing(office, CLIENT, APP, role="run")
    order = submission(key)
    assert office.ask("runs.submit", person, **order) == {"run": "demo-1"}
    assert office.ask("runs.submit", person, **order) == {"run": "demo-1"}  # said again after a lost connection
    assert office.done == ["start demo-1"]
    assert office.audited == ["ann runs.submit"]
    (row,) = office.store.rows("runs")
    assert (row["status"], row["owner"], row["name"], row["ended_at"]) == ("running", "ann", "demo", None)
    assert row["submission"]["settings"] == order["settings"]
    assert office.blobs.collect() == 0  # both archives are held
    held = set(office.desk.held())
    assert {sha for sha, _ in held} == {bytes.fromhex(order[part]["sha256"]) for part in ("client", "app")}
    other = office.refused("runs.submit", bringing(office, CLIENT, APP, name="bob"), **order)
    assert other.code == m.CODE_OUT_OF_ORDER


WRONG: dict[str, tuple[Callable[[SigningKey], dict[str, Any]], int]] = {
    "another's signature": (lambda key: submission(key, author=SigningKey.new().public.hex()), m.CODE_MALFORMED),
    "no signature": (lambda key: submission(key, signature="00"), m.CODE_MALFORMED),
    "kinds exchanged": (lambda key: submission(key, client=APP, app=CLIENT), m.CODE_MALFORMED),
    "no archive": (lambda key: submission(key, app=b"nonsense"), m.CODE_MALFORMED),
    "an id with a path": (lambda key: submission(key, run="../x"), m.CODE_MALFORMED),
    "a blob that is none": (lambda key: submission(key, app={"sha256": "00", "size": 1}), m.CODE_MALFORMED),
    "a blob too large": (lambda key: submission(key, app={"sha256": "00" * 32, "size": 1 << 40}), m.CODE_TOO_LARGE),
    "a blob nobody has": (lambda key: submission(key, app={"sha256": "00" * 32, "size": 9}), m.CODE_UNKNOWN),
    "no hexadecimal": (lambda key: submission(key, author="xyz"), m.CODE_MALFORMED),
    "an unknown setting": (lambda key: submission(key, settings={"speed": 3}), m.CODE_MALFORMED),
    "no rounds": (lambda key: submission(key, settings={"rounds": 0}), m.CODE_MALFORMED),
    "a name on two lines": (lambda key: submission(key, name="a\nb"), m.CODE_MALFORMED),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_submission_leaves_nothing(office: Office, what: str) -> None:
    make, code = WRONG[what]
    person = bringing(office, CLIENT, APP, b"nonsense")
    assert office.refused("runs.submit", person, **make(SigningKey.new())).code == code
    assert office.store.rows("runs") == []
    assert office.done == []
    office.blobs.collect()
    assert office.blobs.used == 0


def test_runs_are_found_by_id_part_and_last(office: Office) -> None:
    for number, id in enumerate(("mnist-1-ab", "mnist-2-cd", "other-ef"), 1):
        office.run(id, created=float(number), submission={"settings": {"rounds": 2}}, name="n")
    for reference, run in {"last": "other-ef", "mnist-1": "mnist-1-ab", "cd": "mnist-2-cd"}.items():
        assert office.ask("runs.show", run=reference)["run"] == run
    assert "mnist-1-ab, mnist-2-cd" in office.refused("runs.show", run="mnist").text
    for reference in ("nothing", ""):
        assert office.refused("runs.show", run=reference).code in (m.CODE_UNKNOWN, m.CODE_MALFORMED)
    members = office.ask("runs.show", run="last")["members"]
    assert members == [
        {"client": "a", "standing": "ready", "reason": ""},
        {"client": "b", "standing": "refused", "reason": "no data"},
    ]
    assert [row["run"] for row in office.ask("runs.list")["runs"]] == ["mnist-1-ab", "mnist-2-cd", "other-ef"]


def test_a_list_that_is_long_comes_in_parts(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "PAGE", 2)
    for number in range(5):
        office.run(f"r{number}", created=float(number))
    parts = asyncio.run(office.responses(Person(), "runs.list", "{}"))
    assert [(len(json.loads(part.body)["runs"]), part.more) for part in parts] == [(2, True), (2, True), (1, False)]
    assert [row["run"] for row in office.ask("runs.list")["runs"]] == [f"r{number}" for number in range(5)]


def test_a_run_says_how_far_it_is(office: Office) -> None:
    office.run("r")
    office.log("r", {"event": "run_started", "rounds": 5})
    office.log(
        "r", {"event": "round_committed", "round": 1, "test": {"accuracy": 0.5}, "train": {"loss": float("nan")}}
    )
    (row,) = office.ask("runs.list")["runs"]
    assert (row["rounds"], row["asked"], row["metrics"]) == (1, 5, {"test.accuracy": 0.5, "train.loss": None})


def test_logs_are_read_from_a_number_on_and_followed_to_the_end(office: Office) -> None:
    office.run("r")
    office.log("r", {"event": "a"}, {"event": "b"}, {"event": "c"})
    found = office.ask("runs.logs", Person(role="read"), run="r", **{"from": 1})
    assert found == {"events": [[2, {"event": "b"}], [3, {"event": "c"}]], "run": "r", "status": "running"}

    async def follow() -> RESPONSES:
        body = json.dumps({"run": "r", "from": 2, "follow": True})
        task = asyncio.ensure_future(office.responses(Person(), "runs.logs", body))
        while office.feeds.count == 0:
            await asyncio.sleep(0)
        office.feeds.tell("r", 0, '{"event": "watched"}')
        office.log("r", {"event": "d"})
        office.feeds.tell("r", 4, '{"event": "d"}')
        office.run("r", status="finished", ended_at=5.0)
        office.feeds.ended("r")
        return await task

    parts = asyncio.run(follow())
    events = [event for part in parts for event in json.loads(part.body).get("events", [])]
    assert events == [[3, {"event": "c"}], [0, {"event": "watched"}], [4, {"event": "d"}]]
    assert json.loads(parts[-1].body) == {"run": "r", "status": "finished"}
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert office.refused("runs.logs", run="r", **{"from": -1}).code == m.CODE_MALFORMED


def test_a_runs_files_are_offered_and_no_others(office: Office) -> None:
    office.run("r")
    assert office.refused("runs.pull", run="r").code == m.CODE_UNKNOWN
    place = office.folder("r")
    (place / "checkpoints").mkdir(parents=True)
    files = ("events.jsonl", "summary.json", "checkpoints/round-0001.safetensors", "run.log", "token", "answers.bin")
    for name in files:
        (place / name).write_text(name)
    person = Person(role="read")
    found = office.ask("runs.pull", person, run="r")
    assert [file["name"] for file in found["files"]] == ["checkpoints/round-0001.safetensors", *files[:2]]
    assert {blob.sha256.hex() for blob in person.offered} == {file["sha256"] for file in found["files"]}
    for file in found["files"]:
        path = office.blobs.path(bytes.fromhex(file["sha256"]))
        assert path is not None
        assert digest(path) == digest(place / file["name"])
    (place / "events.jsonl").write_text("more")  # the log goes on; what was offered does not change
    assert all(digest(p).sha256 == b.sha256 for b in person.offered if (p := office.blobs.path(b.sha256)) is not None)


def test_a_run_is_stopped_and_goes_on(office: Office) -> None:
    office.run("r", submission={"settings": {"rounds": 2}})
    assert office.refused("runs.resume", run="r").code == m.CODE_OUT_OF_ORDER
    assert office.ask("runs.stop", run="r") == {"run": "r"}
    office.run("r", status="stopped", ended_at=9.0)
    assert "stopped" in office.refused("runs.stop", run="r").text
    assert office.refused("runs.resume", run="r", rounds=0).code == m.CODE_MALFORMED
    assert office.ask("runs.resume", run="r", rounds=6) == {"run": "r"}
    (row,) = office.store.rows("runs")
    assert (row["status"], row["ended_at"], row["submission"]["settings"]["rounds"]) == ("running", None, 6)
    assert office.done == ["stop r", "start r"]
    assert office.audited == ["ann runs.stop", "ann runs.resume"]
    office.run("own")
    assert office.ask("runs.stop", run="own") == {"run": "own", "driven": True}
    office.run("own", ended_at=9.0)
    assert "program" in office.refused("runs.resume", run="own").text


def test_the_servers_own_faults_say_little(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    office.status = lambda: {}["secret"]  # type: ignore[method-assign]
    found = office.refused("server.status")
    assert found.code == m.CODE_INTERNAL
    assert "secret" not in found.text
    assert "KeyError" in caplog.text


def test_a_run_that_has_not_begun_says_what_it_waits_for(office: Office) -> None:
    office.run("r")
    (row,) = office.ask("runs.list")["runs"]
    assert row["waits"] == office.ask("runs.show", run="r")["waits"] == "clients: 1 ready, 1 refused; client b: no data"
    office.log("r", {"event": "run_started", "rounds": 5})
    assert office.ask("runs.list")["runs"][0]["waits"] == ""


FRAME = 4 << 20


def test_a_list_whose_rows_are_long_comes_in_parts_that_fit_into_frames(office: Office) -> None:
    for number in range(40):
        office.run(f"r{number}", created=float(number))
        metrics = {f"{name}{'x' * 200}": 1.0 for name in range(600)}
        office.log(f"r{number}", {"event": "round_committed", "round": 1, "train": metrics})
    parts = asyncio.run(office.responses(Person(), "runs.list", "{}"))
    assert max(part.ByteSize() for part in parts) < FRAME
    assert len(parts) > 2
    assert len(office.ask("runs.list")["runs"]) == 40


def test_a_node_of_many_clients_is_listed_by_the_first_of_them(office: Office) -> None:
    clients = [f"{number}-{'x' * 200}" for number in range(30_000)]
    office.store.put("nodes", {"id": "n", "name": "n", "status": "approved", "clients": clients})
    office.store.commit()
    office.registry = Registry(office.store, lambda: office.time)
    (part,) = asyncio.run(office.responses(Person(), "nodes.list", "{}"))
    assert part.ByteSize() < 100_000
    (row,) = json.loads(part.body)["nodes"]
    assert (row["count"], len(row["clients"])) == (30_000, 100)


def test_logs_of_long_events_fit_into_frames(office: Office) -> None:
    office.run("r", ended_at=5.0)
    wide = {"event": "x", "text": "\U0001f4c8" * 80_000}
    for _ in range(12):
        office.log("r", wide)
    number = office.store.greatest("events", run="r") + 1
    body = '{"event":"raw","text":"' + "ä" * 500_000 + '"}'  # as other programs may write it
    office.store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    office.store.commit()
    parts = asyncio.run(office.responses(Person(), "runs.logs", json.dumps({"run": "r"})))
    assert max(part.ByteSize() for part in parts) < FRAME
    found = [event for part in parts for event in json.loads(part.body).get("events", ())]
    assert [number for number, _ in found] == list(range(1, 14))
    assert found[0][1] == wide
    assert found[-1][1] == json.loads(body)
    assert json.loads(parts[-1].body)["status"]
