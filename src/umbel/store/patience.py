"""What is done where a disk is full: it is said, and what could not be written is tried again until there is room."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from ..errors import StorageError

T = TypeVar("T")
P = ParamSpec("P")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds until something is tried again: twice as many each time, up to the second."""
GIVEN_UP = "what waited for room on the disk is given up"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_SQLITE_FULL = 13


def is_full(error: BaseException) -> bool:
    """Whether an error came of a disk, or a quota, that is full."""
    causes = [error, error.__cause__, getattr(error.__cause__, "orig", None)]
    return any(
        (isinstance(cause, OSError) and cause.errno in _FULL)
        or (getattr(cause, "sqlite_errorcode", 0) & 0xFF) == _SQLITE_FULL
        for cause in causes
    )


class Patience:
    """Does what writes, again and again while the disk is full, for up to so many `seconds`: None for ever, 0 not at
    all. What is done has to be such that it can be done again.

    `tell` is told once that something waits, and once that it goes on, or is given up; `problem` is what waits, empty
    where nothing does. `clock` and `sleep` are for tests.
    """

    def __init__(
        self,
        seconds: float | None,
        tell: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds),
        rest: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        self.seconds = seconds
        self.problem = ""
        self._tell, self._clock, self._sleep, self._rest = tell, clock, sleep, rest

    def __call__(self, work: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> T:
        """Do something, and wait for room where there is none. Raises what it raises otherwise."""
        wait = _Wait(self)
        while True:
            try:
                found = work(*args, **named)
            except (StorageError, OSError) as error:
                self._sleep(wait.pause(error))
            else:
                wait.over()
                return found

    async def later(self, work: Callable[[], Awaitable[T]]) -> T:
        """The same for what is awaited."""
        wait = _Wait(self)
        while True:
            try:
                found = await work()
            except (StorageError, OSError) as error:
                pause = wait.pause(error)
            else:
                wait.over()
                return found
            try:
                await (self._rest or import_module("asyncio").sleep)(pause)  # a simulation does without it
            except BaseException:
                wait.over(GIVEN_UP)
                raise


class _Wait:
    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    def pause(self, error: Any) -> float:
        """For how long to wait now. Raises the error where that is not, or no more, what is to be done."""
        patience = self._patience
        now = patience._clock()
        self._since = now if self._since is None else self._since
        if not is_full(error) or (patience.seconds is not None and now - self._since >= patience.seconds):
            self.over(GIVEN_UP)
            raise error
        if not patience.problem:
            text = error.message if isinstance(error, StorageError) else str(error)
            patience.problem = f"{text}; it goes on where there is room again"
            patience._tell(patience.problem)
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause

    def over(self, text: str = "there is room on the disk again") -> None:
        """It is written, or given up."""
        if self._since is not None and self._patience.problem:
            self._patience.problem = ""
            self._patience._tell(text)
