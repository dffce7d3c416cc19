"""The processes of runs: laid out, started, stopped; and what becomes of a run whose process, or program, is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ProtocolError, StorageError, UmbelError
from ..files import opened_below
from ..store.blobs import Blobs
from ..store.commits import GroupCommit
from ..store.records import Row, Store
from ..transport.exchange import Depot
from ..transport.side import SideStreams
from ..transport.tasks import Tasks
from ..trust import archive
from ..trust.epochs import Epoch
from ..wire.texts import read_json
from .feeds import Feeds
from .ledger import ENDED
from .registry import Registry
from .router import Router
from .signals import Effect, Event, Say
from .storage import Storage
from .summaries import Summaries
from .supervision import Exit, Supervisor

_LOG = logging.getLogger("umbel.server")
FAULT = "home/error.json"
"""Where a run's process leaves why it failed, below its folder; no more than `FAULT_BYTES` of it are read."""
FAULT_BYTES = 64 << 10


@dataclass(frozen=True)
class Surroundings:
    """What programs, connections and the dispatch have to do with: a server's parts, and `server`, its public name.

    `begin` does something beside, `tell` tells the router what happened, `carry` does what that says, `new_token` makes
    the line of a new token for a run and puts out who came by an earlier one, `address` is where a process on this
    machine reaches the server, `epoch` counts its folder's life.
    """

    root: Path
    server: str
    store: Store
    blobs: Blobs
    depot: Depot
    side: SideStreams
    storage: Storage
    registry: Registry
    router: Router
    feeds: Feeds
    commits: GroupCommit[Any, Say]
    summaries: Summaries
    begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    tell: Callable[[Event], None]
    carry: Callable[[Iterable[Effect]], None]
    new_token: Callable[[str], str]
    address: Callable[[], str]
    epoch: Epoch

    def let_go(self) -> None:
        """Blobs were released: remove what nobody holds, and have those look again who wait."""
        self.storage.collect()
        self.depot.freed()


class Programs:
    """The processes that drive runs, and the ends of runs that nobody told."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        hidden = [str(around.root)]
        self.supervisor = Supervisor(committed=self._committed, on_exit=self._exited, hidden=hidden)
        self._stopping: set[str] = set()
        self._ends = Tasks()
        self._closing = False

    @property
    def running(self) -> dict[str, int | None]:
        """The runs that have a process, each with its pid."""
        return self.supervisor.running

    async def resume(self, turn: Callable[[str], AbstractAsyncContextManager[object]]) -> None:
        """Go on with the runs that were going on, each in its `turn`: operators may have done something with it."""
        for run in [row["id"] for row in self._around.store.rows("runs")]:
            async with turn(run):
                (row,) = self._around.store.rows("runs", id=run)
                if row["status"] == "running" and row["submission"] is not None and run not in self.running:
                    with suppress(UmbelError):  # that run has failed, and the others go on
                        await self.start(run)

    async def close(self) -> None:
        """End all processes; their runs go on when the server does."""
        self._closing = True
        await self.supervisor.close(grace=5.0)
        await self._ends.close()

    async def start(self, run: str) -> None:
        """Start a run's process, by what the store says of the run. Raises `UmbelError` where it cannot be started, and
        has failed by that.
        """
        around = self._around
        (row,) = around.store.rows("runs", id=run)
        try:
            await asyncio.to_thread(self._lay_out, row)
        except (UmbelError, OSError) as error:
            told = error.message if isinstance(error, UmbelError) else f"its folder cannot be written: {error.strerror}"
            _LOG.error("run %s cannot be started: %s", run, told)
            await self._over(run, "failed", {"error": told})
            raise StorageError(f"run {run} cannot be started: {told}") from error
        line = around.new_token(run)
        await around.commits.done()
        around.router.ledger.resumed(run)
        self._stopping.discard(run)
        try:
            self.supervisor.start(run, around.root / "runs" / run, token=line, address=around.address())
        except StorageError as error:
            await self._over(run, "failed", {"error": error.message})
            raise

    async def stop(self, run: str) -> None:
        """End a run's process, if it has one, and the run; it can be gone on with."""
        self._stopping.add(run)
        await self.supervisor.stop(run)
        await self._over(run, "stopped")

    async def parted(self, run: str) -> None:
        """Whoever drove a run is gone: if it had said in its log how it went, or had not begun, nobody may come to say
        so again. It goes on all the same if somebody does.
        """
        around = self._around
        await around.commits.done()
        if self._closing or run in self.running or self.is_over(run) or around.router.ledger.connected(run):
            return
        status = self._said(run) if around.store.greatest("events", run=run) else "stopped"
        if status is not None:
            await self._over(run, status)

    def is_over(self, run: str) -> bool:
        """Whether a run has ended."""
        return any(row["ended_at"] is not None for row in self._around.store.rows("runs", id=run))

    def _lay_out(self, row: Row) -> None:
        """Lay out the folder of a run's process: its app, its client's archive, and what it was submitted with."""
        folder = self._around.root / "runs" / row["id"]
        submission = row["submission"]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("app", "client"):
            path = self._around.blobs.path(bytes.fromhex(submission[part]["sha256"]))
            if path is None:
                raise StorageError(f"the {part}'s archive of run {row['id']} is gone")
            if part == "app":
                shutil.rmtree(folder / "app", ignore_errors=True)
                archive.unpack(archive.read(path.read_bytes()), folder / "app")
            else:
                shutil.copyfile(path, folder / "client.archive")
        (folder / "submission.json").write_text(json.dumps({**submission, "run": row["id"], "name": row["name"]}))

    def _exited(self, end: Exit) -> None:
        _LOG.info("the process of run %s ended with %s", end.run, end.code)
        if end.again or self._closing:
            return
        self._ends.begin(self._ended(end))

    async def _ended(self, end: Exit) -> None:
        """A run's process has ended for good. One that did not say how its run went has failed."""
        around = self._around
        if end.run in self._stopping:
            return
        await around.commits.done()
        (row,) = around.store.rows("runs", id=end.run)
        if row["status"] in ENDED:
            return
        if end.code == 0 and (status := self._said(end.run)):
            await self._over(end.run, status)
            return
        told = {"error": f"its process ended with {end.code}"}
        fault = opened_below(around.root / "runs" / end.run, FAULT)
        with suppress(OSError, ProtocolError), fault as file:  # on a full disk it may be there and empty
            found = read_json(file.read(FAULT_BYTES), "why it failed", dict)
            told |= {name: found[name] for name in ("error", "kind") if isinstance(found.get(name), str)}
        await self._over(end.run, "failed", {"code": end.code, **told})

    def _said(self, run: str) -> str | None:
        """How a run ended by its own log, where it could not say so to the router any more."""
        return self._around.summaries.known(run).ending

    async def _over(self, run: str, status: str, why: dict[str, Any] | None = None) -> None:
        """A run is over, also one that the router never heard of."""
        around = self._around
        around.carry(around.router.end_now(run, status, time.time()))
        if why is not None:
            around.store.put("runs", {"id": run, "exit": why})
        around.registry.tokens.end_run(run)
        await around.commits.done()
        if not self.is_over(run):
            around.store.put("runs", {"id": run, "status": status, "ended_at": time.time()})
            await around.commits.done()
        around.feeds.ended(run)

    def _committed(self, run: str) -> int:
        return int(self._around.summaries.of(run)["rounds"])
