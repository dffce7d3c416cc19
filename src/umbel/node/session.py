"""A node's session with its server: what is said in it, and which tasks show signs of life."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..wire import messages as m
from ..wire.limits import ALIVE_TASKS
from ..wire.portions import portions, text_bytes
from .signals import Effect, SayToServer

ALIVE_SECONDS = 5.0


class ServerSession:
    """What is said to the server while there is a session, which has the `number`; all else is not said.

    `do` takes effects. What has shown progress is told of every `ALIVE_SECONDS`.
    """

    def __init__(self, do: Callable[[Effect], None]) -> None:
        self.number = 0
        self._do = do
        self._open = False
        self._alive_at = -ALIVE_SECONDS
        self._progress: dict[str, set[str]] = {}
        self._stepped = False

    def begin(self, now: float) -> None:
        """A session has begun."""
        self.number += 1
        self._open = True
        self._told(now)

    def end(self) -> None:
        """The session is over."""
        self._open = False

    def say(self, *, durable: bool = False, lazy: float = 0.0, **body: Any) -> None:
        """Say something, if somebody hears it; what is `durable` once all that the spool has by now is on disk, which
        may take `lazy` seconds.
        """
        if self._open:
            self._do(SayToServer(m.Message(**body), durable, lazy))

    def moved(self, run: str, *tasks: str) -> None:
        """These tasks, or what they need or came to, have made progress."""
        if tasks:
            self._progress.setdefault(run, set()).update(tasks)

    def stepped(self, run: str, task: str) -> None:
        """A task that has a slot has made progress: those that wait for slots are as alive as it is."""
        self.moved(run, task)
        self._stepped = True

    def forget(self, run: str) -> None:
        """A run is over."""
        self._progress.pop(run, None)

    def _say_alive(self, run: str, tasks: Collection[str]) -> None:
        for part in portions(sorted(tasks), text_bytes, most=ALIVE_TASKS):
            self.say(alive=m.Alive(run=run, tasks=part))

    def tell_alive(self, now: float, waiting: Callable[[], Mapping[str, Collection[str]]]) -> float | None:
        """Say which tasks make progress, or when that is due; `waiting` gives those that wait for slots by run."""
        if not self._open or not self._progress:
            return None
        if now < self._alive_at + ALIVE_SECONDS:
            return self._alive_at + ALIVE_SECONDS
        for run, tasks in waiting().items():
            alive = self._progress.pop(run, set()).union(tasks if self._stepped else ())
            self._say_alive(run, alive)
        for run, alive in self._progress.items():
            self._say_alive(run, alive)
        self._told(now)
        return None

    def _told(self, now: float) -> None:
        self._alive_at = now
        self._progress.clear()
        self._stepped = False
