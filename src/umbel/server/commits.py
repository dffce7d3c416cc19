"""Group commit: one task writes in batches, and what is to be said once something is on disk waits for its batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ..errors import StorageError
from ..store.sql import SqlStore
from .pages import Histogram
from .signals import Say

_LOG = logging.getLogger("umbel.server")
LAZY_COMMIT = 0.02
"""So long what nobody waits for may wait to be written with something else."""
RETRY_SECONDS = 1.0
"""After so long what could not be written is tried again."""


class Commits:
    """What is put into a store goes to disk in batches: what came while one was written goes into the next.

    `post` is told what is to be said once the batch is on disk that it came with. `problem` is why the store cannot be
    written, and `seconds` how long the batches took.
    """

    def __init__(self, store: SqlStore, post: Callable[[Say], None]) -> None:
        self._store = store
        self._post = post
        self._durable: list[Say] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._unwritten: Any = None
        self._dirty = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self.problem = ""
        self.seconds = Histogram()

    def hold(self, say: Say) -> None:
        """Say this once what is in the store by now is on disk."""
        self._durable.append(say)

    def soon(self) -> None:
        """Somebody waits for what was put into the store."""
        self._dirty.set()

    def later(self) -> None:
        """Something was put into the store for which nobody waits."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LAZY_COMMIT, self._dirty.set)

    async def done(self) -> None:
        """Return when all that was put into the store is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._dirty.set()
        await future

    async def write_always(self) -> None:
        """Write whatever comes, until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._later is not None:
                self._later.cancel()
                self._later = None
            batch, durable, waiting = self._store.take(), self._durable, self._waiting
            self._durable, self._waiting = [], []
            if batch:
                self._unwritten = batch
                await self._write(batch)
                self._unwritten = None
            for say in durable:
                self._post(say)
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def write_rest(self) -> None:
        """Write what is left, once nobody writes any more. Raises `StorageError`."""
        if self._unwritten is not None:
            self._store.write(self._unwritten)
        self._store.commit()

    async def _write(self, batch: Any) -> None:
        while True:
            began = time.perf_counter()
            try:
                await asyncio.to_thread(self._store.write, batch)
            except StorageError as error:
                # Nobody is told that anything is stored, so nothing is lost while this goes on.
                self.problem = f"the store cannot be written: {error.message}"
                _LOG.error("%s; trying again", self.problem)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.problem = ""
            self.seconds.observe(time.perf_counter() - began)
            return
