"""A desk whose offices are in memory, and the operators who ask it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umbel.errors import Refused
from umbel.server.desk import Desk
from umbel.server.feeds import Feeds
from umbel.server.fields import event_in
from umbel.server.registry import Registry
from umbel.server.signals import Event, Released
from umbel.server.summaries import Summaries
from umbel.store.blobs import Blobs
from umbel.store.records import MemoryStore
from umbel.trust import archive
from umbel.trust.authority import JoinText
from umbel.trust.identity import SigningKey
from umbel.trust.statement import Statement
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
    id: str = "operator 1 #1"
    fetched: list[bytes] = field(default_factory=list)

    async def fetch(self, blob: m.Blob) -> None:
        self.fetched.append(blob.sha256)
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
        self.summaries = Summaries(self.store)
        self.place = folder
        self.done: list[str] = []
        self.read = 0
        self.connected: set[str] = set()
        self.desk = Desk(self, lambda: self.time)

    def _stored(self, run: str, after: int, most: int) -> list[tuple[int, str]]:
        found = [(row["number"], row["body"]) for row in self.store.rows("events", above=after, limit=most, run=run)]
        self.read += sum(len(body) for _, body in found)
        return found

    async def commit(self) -> None:
        self.store.commit()

    def online(self, node: str) -> bool:
        return node in self.connected

    def denied(self, node: str) -> dict[str, str]:
        return {"2": "bound to ward"} if node in self.connected else {}

    def ails(self, node: str) -> str:
        return "no room" if node in self.connected else ""

    def host(self, client: str) -> str | None:
        return self.registry.claims.owner(client)

    def tell(self, event: Event) -> None:
        about = " ".join(event.clients) if isinstance(event, Released) else event.node  # type: ignore[union-attr]
        self.done.append(f"{type(event).__name__.lower()} {about}")

    def standings(self, run: str) -> dict[str, tuple[int, str]]:
        return {"a": (m.STANDING_READY, ""), "b": (m.STANDING_REFUSED, "no data")}

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
        text = ""
        for response in asyncio.run(self.responses(person or Person(), method, json.dumps(body))):
            assert (response.code, response.text, response.id) == (0, "", 7)
            text += response.body
            if response.rest:
                continue
            part, text = json.loads(text), ""
            for key, value in part.items():
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
        for event in map(whole, events):
            body = json.dumps(event)
            row = {"run": run, "number": self.store.greatest("events", run=run) + 1, "at": 1.0}
            self.store.put("events", {**row, "body": body, "round": event.get("round")})
            self.summaries.take(run, event_in(body), len(body))
            self.store.commit()

    @property
    def audited(self) -> list[str]:
        return [f"{row['who']} {row['did']}" for row in self.registry.audit.last()]


def whole(event: dict[str, Any]) -> dict[str, Any]:
    """An event with what it has to have."""
    more: dict[str, dict[str, Any]] = {
        "run_started": {"run": "r", "format": 1, "seed": 1, "clients": 1, "strategy": "FedAvg"},
        "run_resumed": {"run": "r", "round": 0},
        "round_committed": {"asks": 1},
        "run_finished": {"run": "r", "rounds": 1, "reason": "rounds"},
    }
    return {**more.get(event["event"], {}), **event}


def submission(
    key: SigningKey, client: bytes = CLIENT, app: Any = APP, stating: Any = None, **more: Any
) -> dict[str, Any]:
    client_blob = archive_blob(client)
    said = Statement("demo", client_blob["sha256"], **(stating or {}))
    return {
        "run": "demo-1",
        "name": "demo",
        "client": client_blob,
        "app": archive_blob(app) if isinstance(app, bytes) else app,
        "author": key.public.hex(),
        "statement": said.text().decode(),
        "signature": said.signed(key).hex(),
        "settings": {"rounds": 3, "seed": 1, "config": {"lr": 0.1}},
        **more,
    }


def archive_blob(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def bringing(office: Office, *archives: bytes, **more: Any) -> Person:
    return Person(brings={bytes.fromhex(archive_blob(a)["sha256"]): a for a in archives}, blobs=office.blobs, **more)
