"""Group commit: what is put into a store goes to disk in batches, and what rests on it is said once it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import StorageError
from .pace import QUICK_SECONDS, Pace

Batch = TypeVar("Batch")
Said = TypeVar("Said")

RETRY_SECONDS, LONGEST_RETRY = 1.0, 10.0
"""Seconds until what could not be written is tried again: twice as many each time, up to the second."""


class Queued(Protocol[Batch]):
    """What is written in batches."""

    def take(self) -> Batch:
        """All that is queued and was not taken yet."""

    def write(self, batch: Batch) -> None:
        """Have a batch on the disk. Raises `StorageError`; it can then be written again."""


class GroupCommit(Generic[Batch, Said]):
    """Writes what is put into a store, from `begin` to `close`: what came while a batch was written goes into the next.

    `post` is told what is to be said once the batch is on disk that it came with; `lazy` is for how many seconds what
    nobody waits for may wait for something else; what takes more than `quick` seconds is written in a thread; `timed`
    is told how long each batch took. `problem` is why the store cannot be written; `troubled` is called when there is
    one, and when there is none any more.
    """

    def __init__(
        self,
        store: Queued[Batch],
        post: Callable[[Said], None],
        *,
        lazy: float,
        quick: float = QUICK_SECONDS,
        log: logging.Logger,
        timed: Callable[[float], None] = lambda seconds: None,
        troubled: Callable[[], None] = lambda: None,
    ) -> None:
        self.problem = ""
        self._store = store
        self._post = post
        self._lazy = lazy
        self._log = log
        self._timed, self._troubled = timed, troubled
        self._pace = Pace(quick=quick)
        self._held: list[Said] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._dirty = asyncio.Event()
        self._closing = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        """Write whatever comes, in the task that this gives."""
        self._writing = asyncio.get_running_loop().create_task(self._write_always())
        return self._writing

    @property
    def held(self) -> list[Said]:
        """What is said once the next batch is on disk."""
        return self._held

    def hold(self, said: Said) -> None:
        """Say this once what is in the store by now is on disk."""
        self._held.append(said)

    def soon(self) -> None:
        """Somebody waits for what was put into the store."""
        self._dirty.set()

    def later(self, seconds: float | None = None) -> None:
        """Something was put into the store that may wait for something else, so many seconds, or as `lazy` says."""
        if seconds is None and self._later is not None:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + (self._lazy if seconds is None else seconds)
        if self._later is None or self._later.when() > at:
            if self._later is not None:
                self._later.cancel()
            self._later = loop.call_at(at, self._dirty.set)

    async def done(self) -> None:
        """Return when all that was put into the store is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._dirty.set()
        await future

    async def close(self) -> None:
        """Write what is not on disk yet. Raises `StorageError`."""
        self._closing.set()
        self._dirty.set()
        await (self._writing or self.begin())

    async def _write_always(self) -> None:
        while not self._closing.is_set() or self._dirty.is_set():
            await self._dirty.wait()
            self._dirty.clear()
            if self._later is not None:
                self._later.cancel()
                self._later = None
            batch, held, waiting = self._store.take(), self._held, self._waiting
            self._held, self._waiting = [], []
            if batch:
                await self._write(batch)
            for said in held:
                self._say(said)
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _say(self, said: Said) -> None:
        try:
            self._post(said)
        except Exception as error:  # what goes wrong with one must not keep others from being told
            told = {"message": "what is on disk could not be told", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)

    async def _write(self, batch: Any) -> None:
        pause = RETRY_SECONDS
        while True:
            try:
                self._timed(await self._pace.write(self._store.write, batch))
            except Exception as error:
                # Nobody is told that anything is stored, so nothing is lost while this goes on.
                known = isinstance(error, StorageError)
                told = error.message if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
                before, self.problem = self.problem, f"the store cannot be written: {told}"
                if not before:
                    self._troubled()
                if self._closing.is_set():
                    raise
                self._log.error("%s; trying again", self.problem, exc_info=not known)
            else:
                if self.problem:
                    self.problem = ""
                    self._troubled()
                return
            try:
                await asyncio.wait_for(self._closing.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, LONGEST_RETRY)
