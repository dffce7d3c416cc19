"""Connections that are made again whenever they end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import PeerError, Refused
from ..wire import messages as m
from .connection import Connection
from .stream import Stream

APPROVAL_WAIT = 5.0
"""Seconds until somebody who waits for approval asks again."""
GOOD_SECONDS = 1.0
"""A connection that lasts so long was a good one: the pause after it is the first one again."""


class Dialer:
    """Connects, and connects again whenever the connection ends, after a pause that doubles from `first` to `longest`
    seconds.

    `connect` opens a stream, and raises `ConnectionLost` where nobody can be reached. What goes wrong is told to `log`
    of `who` this is, once until another thing goes wrong; `gives_up` says which errors end it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Stream]],
        *,
        first: float,
        longest: float,
        who: str = "",
        log: logging.Logger | None = None,
        gives_up: Callable[[PeerError], bool] = lambda error: False,
    ) -> None:
        self._connect = connect
        self._first, self._longest = first, longest
        self._who = who
        self._log = log
        self._gives_up = gives_up
        self._connection: Connection | None = None
        self._complaint = ""
        self._welcomed_at: float | None = None

    def welcomed(self, connection: Connection, welcome: m.Welcome, name: str = "") -> None:
        """The other side has let this one in, which calls itself `name`."""
        self._complaint, self._welcomed_at = "", asyncio.get_running_loop().time()
        if self._log is not None:
            self._log.info("connected to %s as %s", connection.peer, welcome.id)
            if welcome.name not in ("", name):
                self._log.warning("%s calls this %s %s, not %s", connection.peer, self._who, welcome.name, name)

    async def keep(
        self, converse: Callable[[Connection], Awaitable[None]], stopping: asyncio.Event, parting: m.Problem
    ) -> None:
        """Have `converse` use one connection after the other until `stopping` is set; then the last one is closed with
        `parting`. Raises the error at which it gives up.
        """
        stopped = asyncio.ensure_future(stopping.wait())
        loop, wait = asyncio.get_running_loop(), self._first
        try:
            while not stopped.done():
                pause, self._welcomed_at = None, None
                try:
                    await self._session(converse, stopped, parting)
                except PeerError as error:
                    if self._gives_up(error):
                        raise
                    if not stopped.done():
                        pause = self._complain(error)
                if self._welcomed_at is not None and loop.time() - self._welcomed_at >= GOOD_SECONDS:
                    wait = self._first
                pause = min(wait if pause is None else pause, self._longest)
                wait = min(2 * wait, self._longest)
                await asyncio.wait({stopped}, timeout=pause * random.uniform(0.5, 1.0))
        finally:
            stopped.cancel()

    async def _session(
        self, converse: Callable[[Connection], Awaitable[None]], stopped: asyncio.Future[Any], parting: m.Problem
    ) -> None:
        session = asyncio.ensure_future(self._converse(converse))
        try:
            await asyncio.wait({session, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and self._connection is not None:
                await self._connection.close(parting)
        finally:
            session.cancel()
            await asyncio.wait({session})
        if not session.cancelled():
            session.result()

    async def _converse(self, converse: Callable[[Connection], Awaitable[None]]) -> None:
        connection = Connection(await self._connect())
        self._connection = connection
        try:
            await converse(connection)
        finally:
            self._connection = None
            await connection.close()

    def _complain(self, error: PeerError) -> float | None:
        """Tell what is wrong, once; for how long to wait at least."""
        waits = error.code == m.CODE_NOT_APPROVED
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        text = f"this {self._who} waits for approval: {text}" if waits else text
        if self._log is not None:
            self._log.log(logging.DEBUG if text == self._complaint else logging.WARNING, "%s", text)
        self._complaint = text
        if not isinstance(error, Refused) or error.retry:
            return None
        return APPROVAL_WAIT if waits else self._longest
