"""What operators ask about runs: how far they are, what they wait for, their logs and their files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..errors import Refused
from ..files import opened_below
from ..runs.events import UNREADABLE
from ..store.records import Row
from ..wire import messages as m
from .requests import Body, Offices, OperatorPeer, is_whole, run_of, runs_by_age

_LOG = logging.getLogger("umbel.server")
REFUSALS = 3
"""So many refusals are told of a run that waits."""
PULLED = ("events.jsonl", "summary.json", "initial.safetensors", "checkpoints/*.safetensors", "arrays/*.safetensors")
"""The files of a run's folder that operators may have."""


class RunReports:
    """Tells operators of runs, and changes nothing of them. Raises `Refused` for what is not to be had."""

    def __init__(self, offices: Offices) -> None:
        self._offices = offices
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._copying = ThreadPoolExecutor(1)  # large files take long: others that write need the other threads

    async def runs(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """All runs."""
        return {"runs": [self._described(row) for row in runs_by_age(self._offices.store)]}

    async def show(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """One run, with how each client stands in it, or stood at its end."""
        row = run_of(body, self._offices.store)
        found = self._offices.standings(row["id"]) or row["members"] or {}
        members = [
            {"client": client, "standing": _standing(standing), "reason": reason}
            for client, (standing, reason) in found.items()
        ]
        submission = row["submission"] or {}
        about = {"settings": submission.get("settings", {}), "author": submission.get("author", "")}
        return {**self._described(row), "exit": row["exit"], **about, "members": members}

    async def logs(self, peer: OperatorPeer, body: Body) -> AsyncGenerator[str | dict[str, Any]]:
        """A run's events after the number `from`, those that come too where one is to `follow`; its status at last."""
        run = run_of(body, self._offices.store)["id"]
        after, follow = body.get("from", 0), body.get("follow", False)
        if not is_whole(after, 0) or not isinstance(follow, bool):
            text = "from is the number of the last event that is known, follow is true or false"
            raise Refused(text, m.CODE_MALFORMED)
        self._offices.registry.audit.limited(peer.name, "runs.logs", run=run, after=after or None)
        async with aclosing(self._offices.feeds.follow(run, after, live=follow)) as batches:
            async for batch in batches:
                events = ",".join(f"[{number},{_sound(run, number, event)}]" for number, event in batch)
                yield f'{{"events":[{events}]}}'  # as they came: written anew they might be longer
                await asyncio.sleep(0)  # a long log must not keep others waiting
        yield {"run": run, "status": self._offices.store.rows("runs", id=run)[0]["status"]}

    async def pull(self, peer: OperatorPeer, body: Body) -> dict[str, Any]:
        """A run's files, as blobs that the operator may fetch."""
        run = run_of(body, self._offices.store)["id"]
        folder = self._offices.folder(run)
        found = []
        for path in sorted({path for pattern in PULLED for path in folder.glob(pattern)}):
            name = path.relative_to(folder).as_posix()
            async with self._turns.setdefault(peer.name, asyncio.Lock()):  # no operator waits for all of another's
                blob = await self._kept(folder, name, peer.id)
            if blob is not None:
                peer.offer(blob)
                found.append({"name": name, "size": blob.size, "sha256": blob.sha256.hex()})
        if not found:
            raise Refused(f"run {run} has left no files yet", m.CODE_UNKNOWN)
        self._offices.registry.audit.record(peer.name, "runs.pull", run=run, files=len(found), sha256=_hash(found))
        return {"run": run, "files": found}

    def _described(self, row: Row) -> dict[str, Any]:
        columns = ("name", "owner", "status", "created_at", "ended_at")
        about = self._offices.summaries.of(row["id"])
        waits = "" if about["asked"] or row["ended_at"] is not None else self._waits(row["id"])
        return {"run": row["id"], **{name: row[name] for name in columns}, **about, "waits": waits}

    def _waits(self, run: str) -> str:
        """What a run that has not begun waits for, and why."""
        found: dict[str, list[str]] = {}
        for client, (standing, reason) in self._offices.standings(run).items():
            found.setdefault(_standing(standing), []).append(f"client {client}: {reason}" if reason else client)
        order = ("ready", "preparing", "offline", "refused")
        counts = [f"{len(found[name])} {name}" for name in order if name in found]
        why = "".join(f"; {each}" for each in found.get("refused", ())[:REFUSALS])
        return f"clients: {', '.join(counts)}{why}" if counts else "clients: no node hosts any that it wants"

    async def _kept(self, folder: Path, name: str, owner: str) -> m.Blob | None:
        """A run's file as a blob, held by its `owner`; None where it is gone by now, or no file but a link. The run may
        write to it at any time, so it is copied, if there is room for as much as it says that it has: it may be sparse.
        """

        def copied() -> m.Blob | None:
            with suppress(OSError), opened_below(folder, name) as file:
                if not self._offices.blobs.room(size := os.fstat(file.fileno()).st_size):
                    text = f"there is no room for {name} of {size:,} bytes (see --quota of `umbel server`)"
                    raise Refused(text, m.CODE_BUSY, retry=True)
                return self._offices.blobs.put_opened(file, owner)
            return None

        return await asyncio.get_running_loop().run_in_executor(self._copying, copied)


def _hash(files: list[dict[str, Any]]) -> str:
    """What stands for files: the hash of their own, one a line."""
    return hashlib.sha256("\n".join(str(file["sha256"]) for file in files).encode()).hexdigest()


def _sound(run: str, number: int, event: str) -> str:
    """An event as it is stored, or one that says that it makes no sense."""
    try:
        found = json.loads(event)
        if type(found) is dict and type(found.get("event")) is str:
            return event
    except (ValueError, RecursionError):
        pass
    _LOG.warning("event %d of run %s makes no sense, and is left out", number, run)
    return json.dumps({"event": UNREADABLE})


def _standing(value: Any) -> str:
    name = value if isinstance(value, str) else m.Standing.Name(value)
    return name.removeprefix("STANDING_").lower()
