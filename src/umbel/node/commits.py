"""Group commit: what a node's machine gave its spool goes to disk in batches, before what rests on it is said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..errors import StorageError
from ..store.pace import Pace
from ..transport.connection import Connection
from ..wire import messages as m
from ..work.processes import first_of
from .spool import Batch, Spool

log = logging.getLogger("umbel.node")

IDLE_COMMIT = 1.0
"""What nobody waits for is on disk after so many seconds."""
LONGEST_PAUSE = 30.0
"""Seconds until what could not be written is tried again, at most."""


class SpoolCommits:
    """Writes the spool from when it is made until it is closed, and says what was held until its batch is on disk, if
    the `connection` is still that of the time when the batch was taken.
    """

    def __init__(self, spool: Spool, connection: Callable[[], Connection | None]) -> None:
        self._spool = spool
        self._connection = connection
        self._held: list[m.Message] = []
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._pace = Pace()
        self._writing = asyncio.get_running_loop().create_task(self._write_always())

    def hold(self, message: m.Message) -> None:
        """Say this once what is in the spool by now is on disk."""
        self._held.append(message)

    def drop(self) -> None:
        """The session is over: what was held is not said."""
        self._held.clear()

    def changed(self) -> None:
        """Something may have been put into the spool: if nobody waits for it, it goes with the next, or in a while."""
        if self._held:
            self._changed.set()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(IDLE_COMMIT, self._changed.set)

    async def close(self) -> None:
        """Write what is not on disk yet. Raises `StorageError`."""
        self._closing.set()
        self._changed.set()
        try:
            await self._writing
        finally:
            self._spool.close()

    async def _write_always(self) -> None:
        while not self._closing.is_set() or self._changed.is_set():
            await self._changed.wait()
            self._changed.clear()
            if self._later is not None:
                self._later.cancel()
                self._later = None
            held, batch, connection = self._held, self._spool.take(), self._connection()
            self._held = []
            if batch:
                await self._write(batch)
            if connection is not None and connection is self._connection():
                for message in held:
                    connection.post(message)

    async def _write(self, batch: Batch) -> None:
        pause = 1.0
        while True:
            try:
                await self._pace.write(self._spool.write, batch)
                return
            except StorageError as error:
                if self._closing.is_set():
                    raise
                log.error("%s", error)
            await first_of(self._closing.wait(), asyncio.sleep(pause))
            pause = min(2 * pause, LONGEST_PAUSE)
