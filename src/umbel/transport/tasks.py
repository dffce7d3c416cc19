"""Work that goes on beside whoever began it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Tasks:
    """Tasks of one owner, each seen to its end.

    `failed` is told of an error that ended one; where there is none, the event loop's exception handler is.
    """

    def __init__(self, failed: Callable[[BaseException], object] | None = None) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something from now on, beside what the caller does."""
        task = asyncio.get_running_loop().create_task(work, name=getattr(work, "__qualname__", None))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def over(self) -> None:
        """Wait until all have ended, those that are begun meanwhile too."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel all, once, and wait until they have ended."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._failed is not None:
            self._failed(error)
        else:
            told = {"message": f"{task.get_name()} has failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(told)
