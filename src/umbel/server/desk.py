"""The desk: where operators ask for things, and who may ask for what.

A request has a method and a body of JSON; the answer is one response or several, the last without `more`. Lists come in
parts of up to `PAGE` rows. What cannot be done is answered with a code and a text. All that changes anything, and all
that was denied, goes into the audit record.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from ..errors import AppError, CallerError, Refused, SettingError, StorageError, UmbelError
from ..store.blobs import Blobs
from ..store.records import Row, Store
from ..trust import archive
from ..trust.tokens import Token
from ..wire import messages as m
from ..wire import roles
from ..wire.portions import portions
from .feeds import Feeds
from .registry import Registry
from .summaries import Summaries

RIGHTS: dict[str, tuple[str, bool]] = {
    "server.status": ("read", False),
    "nodes.list": ("read", False),
    "nodes.invite": ("admin", True),
    "nodes.approve": ("admin", True),
    "nodes.revoke": ("admin", True),
    "operators.list": ("admin", False),
    "operators.add": ("admin", True),
    "operators.remove": ("admin", True),
    "audit.list": ("admin", False),
    "runs.list": ("read", False),
    "runs.show": ("read", False),
    "runs.logs": ("read", False),
    "runs.pull": ("read", True),
    "runs.submit": ("run", True),
    "runs.stop": ("run", True),
    "runs.resume": ("run", True),
}
"""The role that a method needs, and whether it changes anything, which goes into the audit record."""

PAGE = 500
REFUSALS = 3
"""So many refusals are told of a run that waits."""
MOST_NAMED = 100
"""So many clients of a node are named in a list of nodes."""
LONGEST_BODY = 256 << 10
PULLED = ("events.jsonl", "summary.json", "initial.safetensors", "checkpoints/*.safetensors")
"""The files of a run's folder that operators may have."""
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "rounds": int,
    "seed": int,
    "config": dict,
    "set": list,
    "clients": list,
}
"""What a submission may say of a run."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_LOG = logging.getLogger("umbel.server")

Body = Mapping[str, Any]


class OperatorPeer(Protocol):
    """An operator's connection. `fetch` gets a blob from there into the server's blobs and raises `Refused` where it is
    not to be had; `offer` lets it have a blob, which stays as long as it is connected.
    """

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    async def fetch(self, blob: m.Blob) -> None: ...
    def offer(self, blob: m.Blob) -> None: ...


class Offices(Protocol):
    """What a desk works through.

    `commit` returns when all that was put into the store is on disk. `online` tells whether a node is connected,
    `elsewhere` which clients it names that another node hosts, by the name of that one,
    `standings` each client's standing in a run with its reason. `revoked` ends the connections of a node, by its id,
    `dismissed` those of an operator, by its token's id. `start` and `stop` do so with a run's process, by what the
    store says of the run; `stop` returns when it has ended. `folder` is where a run keeps its files.
    `invitation` is the line that a node types to join, `line` what an operator is given for a token. `status` says
    how the server is, as plain values.
    """

    @property
    def registry(self) -> Registry: ...
    @property
    def store(self) -> Store: ...
    @property
    def blobs(self) -> Blobs: ...
    @property
    def feeds(self) -> Feeds: ...
    async def commit(self) -> None: ...
    def online(self, node: str) -> bool: ...
    def elsewhere(self, node: str) -> dict[str, str]: ...
    def standings(self, run: str) -> dict[str, tuple[int, str]]: ...
    def revoked(self, node: str) -> None: ...
    def dismissed(self, token: str) -> None: ...
    async def start(self, run: str) -> None: ...
    async def stop(self, run: str) -> None: ...
    def folder(self, run: str) -> Path: ...
    def invitation(self, token: Token) -> str: ...
    def line(self, token: Token) -> str: ...
    def status(self) -> dict[str, Any]: ...


class Desk:
    """Answers operators; `now` is the wall time."""

    def __init__(self, offices: Offices, now: Callable[[], float] = time.time) -> None:
        self._offices = offices
        self._now = now
        self._summaries = Summaries(offices.store)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._methods: dict[str, Callable[[OperatorPeer, Body], Awaitable[dict[str, Any]]]] = {
            "server.status": self._status,
            "nodes.list": self._nodes,
            "nodes.invite": self._invite,
            "nodes.approve": self._approve,
            "nodes.revoke": self._revoke,
            "operators.list": self._operators,
            "operators.add": self._add_operator,
            "operators.remove": self._remove_operator,
            "audit.list": self._audit,
            "runs.list": self._runs,
            "runs.show": self._show,
            "runs.pull": self._pull,
            "runs.submit": self._submit,
            "runs.stop": self._stop,
            "runs.resume": self._resume,
        }

    async def answer(self, peer: OperatorPeer, request: m.Request) -> AsyncIterator[m.Response]:
        """The responses to a request of an operator, as they come."""
        try:
            body = self._admitted(peer, request)
            if request.method == "runs.logs":
                async for part in self._logs(body):
                    yield _response(request, part, more=isinstance(part, str))
                return
            found = await self._methods[request.method](peer, body)
            if RIGHTS[request.method][1]:
                await self._offices.commit()
            parts = list(_pages(found))
            for number, part in enumerate(parts, 1):
                yield _response(request, part, more=number < len(parts))
        except Refused as error:
            yield _refusal(request, error.code, str(error.message))
        except CallerError as error:
            yield _refusal(request, m.CODE_MALFORMED, error.message + (f"\n{error.hint}" if error.hint else ""))
        except UmbelError as error:
            _LOG.error("%s failed: %s", request.method, error)
            yield _refusal(request, m.CODE_INTERNAL, error.message)
        except Exception as error:
            _LOG.exception("%s failed", request.method)
            yield _refusal(request, m.CODE_INTERNAL, f"the server failed ({type(error).__name__}); its log says more")

    def held(self) -> Iterator[tuple[bytes, str]]:
        """The archives of runs, with who holds them: to be held again after a restart."""
        for row in self._offices.store.rows("runs"):
            for part in ("client", "app"):
                if (found := (row["submission"] or {}).get(part)) is not None:
                    yield bytes.fromhex(found["sha256"]), _holder(row["id"])

    # Who may what

    def _admitted(self, peer: OperatorPeer, request: m.Request) -> Body:
        if request.method not in RIGHTS:
            raise Refused(f"there is no method {request.method!r:.60}", m.CODE_UNKNOWN)
        needed, _ = RIGHTS[request.method]
        if not roles.at_least(peer.role, needed):
            self._offices.registry.audit.record(peer.name, "denied", method=request.method, role=peer.role)
            raise Refused(
                f"{request.method} needs the role {needed}, and {peer.name} has the role {peer.role}",
                m.CODE_NOT_ALLOWED,
            )
        if len(request.body) > LONGEST_BODY:
            raise Refused(f"a request of {len(request.body)} bytes", m.CODE_TOO_LARGE)
        try:
            body = json.loads(request.body or "{}")
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refused("a request's body is a JSON object", m.CODE_MALFORMED)
        return body

    # The server, its nodes and operators

    async def _status(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        return {**self._offices.status(), "you": {"name": peer.name, "role": peer.role}}

    async def _nodes(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        columns = ("id", "name", "status", "joined_at", "seen_at")
        return {
            "nodes": [
                {
                    **{column: getattr(node, column) for column in columns},
                    "clients": list(node.clients[:MOST_NAMED]),
                    "count": len(node.clients),
                    "elsewhere": dict(islice(self._offices.elsewhere(node.id).items(), MOST_NAMED)),
                    "connected": node.status == "approved" and self._offices.online(node.id),
                }
                for node in self._offices.registry.nodes()
            ]
        }

    async def _invite(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        hours = body.get("hours", 24)
        if isinstance(hours, bool) or not isinstance(hours, int | float):
            raise Refused("hours is a number", m.CODE_MALFORMED)
        name = None if body.get("name") is None else _text(body, "name")
        token = self._offices.registry.invite(peer.name, name, 3600.0 * hours)
        return {"line": self._offices.invitation(token), "expires_at": self._now() + 3600.0 * hours}

    async def _approve(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        node = self._offices.registry.approve(peer.name, _text(body, "node"))
        return {"node": node.id, "name": node.name}

    async def _revoke(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        node = self._offices.registry.revoke(peer.name, _text(body, "node"))
        self._offices.revoked(node.id)
        return {"node": node.id, "name": node.name}

    async def _operators(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        return {"operators": self._offices.registry.tokens.operators()}

    async def _add_operator(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        name, role = _text(body, "name"), _text(body, "role")
        token = self._offices.registry.tokens.grant(peer.name, name, role)
        return {"name": name, "role": role, "line": self._offices.line(token)}

    async def _remove_operator(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        name = _text(body, "name")
        admins = [row["name"] for row in self._offices.registry.tokens.operators() if row["role"] == "admin"]
        if admins == [name]:
            raise Refused(f"{name} is the only admin: nobody could let others in any more", m.CODE_OUT_OF_ORDER)
        self._offices.dismissed(self._offices.registry.tokens.remove_operator(peer.name, name))
        return {"name": name}

    async def _audit(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        count = body.get("count", 100)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Refused("count is a whole number of at least 1", m.CODE_MALFORMED)
        return {"records": self._offices.registry.audit.last(count)}

    # Runs

    async def _runs(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        rows = sorted(self._offices.store.rows("runs"), key=lambda row: (row["created_at"] or 0.0, row["id"]))
        return {"runs": [self._described(row) for row in rows]}

    def _described(self, row: Row) -> dict[str, Any]:
        columns = ("name", "owner", "status", "created_at", "ended_at")
        about = self._summaries.of(row["id"])
        waits = "" if about["asked"] or row["ended_at"] is not None else self._waits(row["id"])
        return {"run": row["id"], **{name: row[name] for name in columns}, **about, "waits": waits}

    def _waits(self, run: str) -> str:
        """What a run that has not begun waits for, and why."""
        found: dict[str, list[str]] = {}
        for client, (standing, reason) in self._offices.standings(run).items():
            found.setdefault(_standing(standing), []).append(f"client {client}: {reason}" if reason else client)
        counts = [
            f"{len(found[name])} {name}" for name in ("ready", "preparing", "offline", "refused") if name in found
        ]
        why = "".join(f"; {each}" for each in found.get("refused", ())[:REFUSALS])
        return f"clients: {', '.join(counts)}{why}" if counts else "clients: no node hosts any that it wants"

    async def _show(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        row = self._run(body)
        now = self._offices.standings(row["id"]).items()
        kept = [(client, *standing) for client, standing in (row["members"] or {}).items()]
        members = [
            {"client": client, "standing": _standing(standing), "reason": reason}
            for client, standing, reason in ([(client, *found) for client, found in now] or kept)
        ]
        submission = row["submission"] or {}
        about = {"settings": submission.get("settings", {}), "author": submission.get("author", "")}
        return {**self._described(row), "exit": row["exit"], **about, "members": members}

    async def _logs(self, body: Body) -> AsyncIterator[str | dict[str, Any]]:
        run, after, follow = self._run(body)["id"], body.get("from", 0), body.get("follow", False)
        if isinstance(after, bool) or not isinstance(after, int) or after < 0 or not isinstance(follow, bool):
            raise Refused(
                "from is the number of the last event that is known, follow is true or false", m.CODE_MALFORMED
            )
        async for batch in self._offices.feeds.follow(run, after, live=follow):
            events = ",".join(f"[{number},{event}]" for number, event in batch)
            yield f'{{"events":[{events}]}}'  # as they came: written anew they might be longer
            await asyncio.sleep(0)  # a long log must not keep others waiting
        yield {"run": run, "status": self._offices.store.rows("runs", id=run)[0]["status"]}

    async def _pull(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        run = self._run(body)["id"]
        folder = self._offices.folder(run)
        found = []
        for path in sorted({path for pattern in PULLED for path in folder.glob(pattern)}):
            blob = await self._kept(path)
            if blob is not None:
                peer.offer(blob)
                name = path.relative_to(folder).as_posix()
                found.append({"name": name, "size": blob.size, "sha256": blob.sha256.hex()})
        if not found:
            raise Refused(f"run {run} has left no files yet", m.CODE_UNKNOWN)
        self._offices.registry.audit.record(peer.name, "runs.pull", run=run)
        return {"run": run, "files": found}

    async def _kept(self, path: Path) -> m.Blob | None:
        """A file as a blob; None where it is gone by now. Logs grow, so they are copied; models do not."""
        grows = path.suffix != ".safetensors"
        try:
            return await asyncio.to_thread(self._offices.blobs.put_file, path, "", link=not grows)
        except StorageError:
            if path.exists():
                raise
            return None

    async def _submit(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        run, name = _text(body, "run"), _name(body)
        if not _RUN.fullmatch(run):
            raise Refused(f"{run!r:.60} cannot be a run's id", m.CODE_MALFORMED)
        async with self.turn(run):
            return await self._submitted(peer, body, run, name)

    def turn(self, run: str) -> asyncio.Lock:
        """One thing at a time is done with a run; what comes meanwhile waits, and then sees what became of it."""
        return self._turns.setdefault(run, asyncio.Lock())

    async def _submitted(self, peer: OperatorPeer, body: Body, run: str, name: str) -> dict[str, Any]:
        client, app = _blob(body, "client"), _blob(body, "app")
        author, signature = _bytes(body, "author"), _bytes(body, "signature")
        submission = {key: body[key] for key in ("client", "app", "author", "signature")}
        submission["settings"] = _settings(body.get("settings", {}))
        if known := self._offices.store.rows("runs", id=run):
            if known[0]["owner"] == peer.name and known[0]["submission"] == submission:
                return {"run": run}  # said twice: the answer was lost
            raise Refused(f"there is a run {run} already", m.CODE_OUT_OF_ORDER)
        blobs = self._offices.blobs
        try:
            for blob in (client, app):
                blobs.hold(blob.sha256, _holder(run))
                if blobs.path(blob.sha256) is None:
                    await peer.fetch(blob)
            await asyncio.to_thread(self._check, client, "client", author, signature)
            await asyncio.to_thread(self._check, app, "app", b"", b"")
        except BaseException:
            blobs.release(_holder(run))
            raise
        row = {"id": run, "status": "running", "owner": peer.name, "name": name, "created_at": self._now()}
        self._offices.store.put("runs", {**row, "submission": submission})
        self._offices.registry.audit.record(peer.name, "runs.submit", run=run, client=body["client"]["sha256"])
        await self._offices.commit()
        self._offices.feeds.begun(run)
        await self._offices.start(run)
        return {"run": run}

    def _check(self, blob: m.Blob, kind: str, author: bytes, signature: bytes) -> None:
        path = self._offices.blobs.path(blob.sha256)
        if path is None:
            raise Refused(f"the {kind}'s archive did not come", m.CODE_UNKNOWN)
        if kind == "client" and not author:
            raise AppError("the client's archive is not signed")
        found = archive.verify(path.read_bytes(), blob.sha256, author, signature)
        if found.manifest["kind"] != kind:
            raise AppError(f"the archive that is said to be the {kind}'s is not")

    async def _stop(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        run = self._run(body)["id"]
        async with self.turn(run):
            (row,) = self._offices.store.rows("runs", id=run)
            if row["ended_at"] is not None:
                raise Refused(f"run {run} is over: it has {row['status']}", m.CODE_OUT_OF_ORDER)
            self._offices.registry.audit.record(peer.name, "runs.stop", run=run)
            await self._offices.stop(run)
        return {"run": run, **({} if row["submission"] is not None else {"driven": True})}

    async def _resume(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        run, rounds = self._run(body)["id"], body.get("rounds")
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
            raise Refused("rounds is a whole number of at least 1", m.CODE_MALFORMED)
        async with self.turn(run):
            return await self._resumed(peer, run, rounds)

    async def _resumed(self, peer: OperatorPeer, run: str, rounds: int | None) -> dict[str, Any]:
        (row,) = self._offices.store.rows("runs", id=run)
        if row["ended_at"] is None:
            raise Refused(f"run {row['id']} is going on", m.CODE_OUT_OF_ORDER)
        if row["submission"] is None:
            raise Refused(
                f"run {row['id']} was started by a program of its owner's: that has to go on with it",
                m.CODE_OUT_OF_ORDER,
            )
        submission = dict(row["submission"])
        if rounds is not None:
            submission["settings"] = {**submission["settings"], "rounds": rounds}
        again = {"id": row["id"], "status": "running", "ended_at": None, "exit": None, "submission": submission}
        self._offices.store.put("runs", again)
        self._offices.registry.audit.record(peer.name, "runs.resume", run=row["id"], rounds=rounds)
        await self._offices.commit()
        self._offices.feeds.begun(row["id"])
        await self._offices.start(row["id"])
        return {"run": row["id"]}

    def _run(self, body: Body) -> Row:
        reference = _text(body, "run")
        rows = sorted(self._offices.store.rows("runs"), key=lambda row: (row["created_at"] or 0.0, row["id"]))
        if reference == "last" and rows:
            return rows[-1]
        fitting = (
            [row for row in rows if row["id"] == reference]
            or [row for row in rows if row["id"].startswith(reference)]
            or [row for row in rows if reference in row["id"]]
        )
        return _only(fitting, "run", reference, [row["id"] for row in fitting])


def _holder(run: str) -> str:
    return f"submitted/{run}"


def _only(fitting: list[Row], what: str, reference: str, ids: list[str]) -> Row:
    if not fitting:
        raise Refused(f"there is no {what} {reference!r:.60}", m.CODE_UNKNOWN)
    if len(fitting) > 1:
        listed = ", ".join(ids[-5:])
        raise Refused(f"{reference} may mean {len(fitting)} {what}s: {listed}", m.CODE_UNKNOWN)
    return fitting[0]


def _text(body: Body, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value or len(value) > 1000:
        raise Refused(f"the request lacks its {key}", m.CODE_MALFORMED)
    return value


def _name(body: Body) -> str:
    name = _text(body, "name")
    if not _NAME.fullmatch(name):
        raise Refused("a name has up to 100 characters, all on one line", m.CODE_MALFORMED)
    return name


def _bytes(body: Body, key: str) -> bytes:
    try:
        return bytes.fromhex(_text(body, key))
    except ValueError:
        raise Refused(f"{key} is to be written in hexadecimal", m.CODE_MALFORMED) from None


def _blob(body: Body, key: str) -> m.Blob:
    found = body.get(key)
    size = found.get("size") if isinstance(found, dict) else None
    if (
        not isinstance(found, dict)
        or isinstance(size, bool)
        or not isinstance(size, int)
        or set(found) != {"sha256", "size"}
    ):
        raise Refused(f"{key} is to name a blob by its sha256 and size", m.CODE_MALFORMED)
    if not 0 < size <= archive.MOST_BYTES + (archive.MOST_FILES << 10):
        raise Refused(f"the {key}'s archive is too large", m.CODE_TOO_LARGE)
    sha256 = _bytes(found, "sha256")
    if len(sha256) != 32:
        raise Refused("a SHA-256 has 32 bytes", m.CODE_MALFORMED)
    return m.Blob(sha256=sha256, size=size)


def _settings(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Refused("a run's settings are a JSON object", m.CODE_MALFORMED)
    for name, value in found.items():
        kind = SETTINGS.get(name)
        if kind is None or isinstance(value, bool) or not isinstance(value, kind):
            raise SettingError(f"a run has no setting {name!r:.40} such as {value!r:.40}")
    if found.get("rounds", 1) < 1 or not all(isinstance(one, str) for one in found.get("clients", [])):
        raise SettingError("rounds is at least 1, and clients are names")
    return found


def _standing(value: Any) -> str:
    name = value if isinstance(value, str) else m.Standing.Name(value)
    return name.removeprefix("STANDING_").lower()


def _pages(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An answer in parts, where a list in it is long: each fits into a frame."""
    lists = {
        key: list(portions(rows, lambda row: len(json.dumps(row)) + 2, most=PAGE))
        for key, rows in found.items()
        if isinstance(rows, list) and rows
    }
    yield {**found, **{key: parts[0] for key, parts in lists.items()}}
    for key, parts in lists.items():
        for part in parts[1:]:
            yield {key: part}


def _response(request: m.Request, body: str | Mapping[str, Any], more: bool) -> m.Response:
    return m.Response(id=request.id, body=body if isinstance(body, str) else json.dumps(body), more=more)


def _refusal(request: m.Request, code: int, text: str) -> m.Response:
    return m.Response(id=request.id, code=code, text=text)  # type: ignore[arg-type]
