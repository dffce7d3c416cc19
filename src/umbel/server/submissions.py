"""Runs that operators submit, stop and go on with: one thing at a time is done with each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from math import inf
from types import UnionType
from typing import Any
from weakref import WeakValueDictionary

from ..errors import AppError, Refused, SettingError
from ..store.records import Row
from ..trust import archive
from ..trust.statement import Statement
from ..wire import messages as m
from ..wire.limits import OPERATOR_RUNS
from ..wire.names import RUN_ID
from .requests import Body, Offices, OperatorPeer, count_of, is_whole, run_of, text_of

SETTINGS: dict[str, type | UnionType] = {
    "rounds": int, "seed": int, "config": dict, "set": list, "clients": list, "wait_for": int, "wait": int | float
}  # fmt: skip
"""What a submission may say of a run."""

_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,100}")  # what no store takes has halves of characters


class Submissions:
    """Begins runs and ends them, as operators say; `now` is the wall time. Raises `Refused` or `CallerError` for what
    cannot be done.
    """

    def __init__(self, offices: Offices, now: Callable[[], float]) -> None:
        self._offices = offices
        self._now = now
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, run: str) -> asyncio.Lock:
        """One thing at a time is done with a run; what comes meanwhile waits, and then sees what became of it."""
        return self._turns.setdefault(run, asyncio.Lock())

    def held(self) -> Iterator[tuple[bytes, str]]:
        """The archives of runs, with who holds them: to be held again after a restart."""
        for row in self._offices.store.rows("runs"):
            for part in ("client", "app"):
                if (found := (row["submission"] or {}).get(part)) is not None:
                    yield bytes.fromhex(found["sha256"]), _holder(row["id"])

    async def submit(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Begin a run by the archives that the operator brings; said again, it is the same run."""
        run, name = text_of(body, "run"), text_of(body, "name")
        if not _NAME.fullmatch(name):
            raise Refused("a name has up to 100 characters, all on one line", m.CODE_MALFORMED)
        if not RUN_ID.fullmatch(run):
            raise Refused(f"{run!r:.60} cannot be a run's id", m.CODE_MALFORMED)
        submission: dict[str, Any] = {
            key: body.get(key) for key in ("client", "app", "author", "statement", "signature")
        }
        blobs = {kind: _blob(body, kind) for kind in ("client", "app")}
        submission["settings"] = _settings(body.get("settings", {}))
        self._check_statement(body, blobs["client"])
        async with self.turn(run):
            for known in self._offices.store.rows("runs", id=run):
                if known["owner"] == peer.name and known["submission"] == submission:
                    return {"run": run}  # said twice: the answer was lost
                raise Refused(f"there is a run {run} already", m.CODE_OUT_OF_ORDER)
            try:
                for blob in blobs.values():
                    self._offices.blobs.hold(blob.sha256, _holder(run))
                    await peer.fetch(blob)
                for kind, blob in blobs.items():
                    await asyncio.to_thread(self._check, blob, kind)
            except BaseException:
                self._offices.blobs.release(_holder(run))
                raise
            row = {"id": run, "owner": peer.name, "name": name, "created_at": self._now(), "submission": submission}
            try:
                return await self._begin(row, peer.name, "runs.submit", client=body["client"]["sha256"])
            except Refused:  # and not kept
                self._offices.blobs.release(_holder(run))
                raise

    async def stop(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """End a run, whoever drives it."""
        run = run_of(body, self._offices.store)["id"]
        async with self.turn(run):
            (row,) = self._offices.store.rows("runs", id=run)
            if row["ended_at"] is not None:
                raise Refused(f"run {run} is over: it has {row['status']}", m.CODE_OUT_OF_ORDER)
            self._offices.registry.audit.record(peer.name, "runs.stop", run=run)
            await self._offices.stop(run)
        return {"run": run, **({} if row["submission"] is not None else {"driven": True})}

    async def resume(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """Go on with a run that is over, to so many `rounds` if they are given."""
        run, rounds = run_of(body, self._offices.store)["id"], count_of(body, "rounds", None)
        async with self.turn(run):
            (row,) = self._offices.store.rows("runs", id=run)
            if row["ended_at"] is None:
                raise Refused(f"run {run} is going on", m.CODE_OUT_OF_ORDER)
            if row["submission"] is None:
                text = f"run {run} was started by a program of its owner's: that has to go on with it"
                raise Refused(text, m.CODE_OUT_OF_ORDER)
            submission = dict(row["submission"])
            if rounds is not None:
                submission["settings"] = {**submission["settings"], "rounds": rounds}
            again = {"id": run, "owner": row["owner"], "ended_at": None, "exit": None, "submission": submission}
            return await self._begin(again, peer.name, "runs.resume", rounds=rounds)

    async def _begin(self, row: Row, who: str, did: str, **noted: Any) -> dict[str, Any]:
        """Keep that a run is going on, unless as many of its owner's are as may, and start its process. Those that the
        owner's own programs drive do not count: one whose program was killed goes on for ever.
        """
        run, owner = row["id"], row["owner"]
        async with self.turn(f"of {owner}"):  # which is no run's id
            going = self._offices.store.rows("runs", owner=owner, status="running")
            if sum(each["submission"] is not None for each in going) >= OPERATOR_RUNS:
                text = f"{OPERATOR_RUNS} runs of {owner}'s are going on, and no more may at once"
                raise Refused(text, m.CODE_BUSY, retry=True)
            self._offices.store.put("runs", {**row, "status": "running"})
            self._offices.registry.audit.record(who, did, run=run, **noted)
            await self._offices.commit()
        self._offices.feeds.begun(run)
        await self._offices.start(run)
        return {"run": run}

    def _check_statement(self, body: Body, client: m.Blob) -> None:
        """See to it that an author has signed this client's archive, and that this still holds. Raises `AppError`."""
        said = Statement.read(_bytes(body, "author"), text_of(body, "statement").encode(), _bytes(body, "signature"))
        if said.archive != client.sha256.hex():
            raise AppError("the run's author has signed another archive")
        if expired := said.expired(self._now()):
            raise AppError(expired[0])

    def _check(self, blob: m.Blob, kind: str) -> None:
        path = self._offices.blobs.path(blob.sha256)
        if path is None:
            raise Refused(f"the {kind}'s archive did not come", m.CODE_UNKNOWN)
        found = archive.verify(path.read_bytes(), blob.sha256)
        if found.manifest["kind"] != kind:
            raise AppError(f"the archive that is said to be the {kind}'s is not")


def _holder(run: str) -> str:
    return f"submitted/{run}"


def _bytes(body: Body, key: str) -> bytes:
    try:
        return bytes.fromhex(text_of(body, key))
    except ValueError:
        raise Refused(f"{key} is to be written in hexadecimal", m.CODE_MALFORMED) from None


def _blob(body: Body, key: str) -> m.Blob:
    found = body.get(key)
    if not isinstance(found, dict) or set(found) != {"sha256", "size"} or not is_whole(found["size"]):
        raise Refused(f"{key} is to name a blob by its sha256 and size", m.CODE_MALFORMED)
    if not 0 < found["size"] <= archive.MOST_BYTES + (archive.MOST_FILES << 10):
        raise Refused(f"the {key}'s archive is too large", m.CODE_TOO_LARGE)
    sha256 = _bytes(found, "sha256")
    if len(sha256) != 32:
        raise Refused("a SHA-256 has 32 bytes", m.CODE_MALFORMED)
    return m.Blob(sha256=sha256, size=found["size"])


def _settings(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Refused("a run's settings are a JSON object", m.CODE_MALFORMED)
    for name, value in found.items():
        kind = SETTINGS.get(name)
        if kind is None or isinstance(value, bool) or not isinstance(value, kind):
            raise SettingError(f"a run has no setting {name!r:.40} such as {value!r:.40}")
    if found.get("rounds", 1) < 1 or not all(isinstance(one, str) for one in found.get("clients", [])):
        raise SettingError("rounds is at least 1, and clients are names")
    if found.get("wait_for", 1) < 1 or not 0 < found.get("wait", 1) < inf:
        raise SettingError("a run waits for at least 1 client, and for some seconds")
    return found
