"""What a run's server is told of the run, and what it has to say of it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ClientId
from ..runs.events import RunEvent, RunFinished, RunResumed
from ..runs.federation import Reporting
from ..wire import messages as m


def plain_text(record: Mapping[str, Any]) -> str:
    """A record as JSON that any language reads: null stands for a number that is not finite."""
    try:
        return json.dumps(record, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(record))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ServerReporting(Reporting):
    """A run's events on their way to its server, kept until it has stored them, and warnings for whoever runs it.

    `say` sends a message, unless the server is away. `status` is how the run ended by its events, None before.
    """

    def __init__(self, run: str, say: Callable[..., None]) -> None:
        self.status: str | None = None
        self._run = run
        self._say = say
        self._unstored: deque[str] = deque()
        self._first = 1
        self._closed: deque[tuple[int, int]] = deque()
        self._warnings: list[tuple[ClientId | None, str]] = []

    @property
    def all_stored(self) -> bool:
        """Whether the server has all events."""
        return not self._unstored

    @property
    def has_warnings(self) -> bool:
        """Whether there is something to be told at once."""
        return bool(self._warnings)

    def observe(self, event: RunEvent) -> None:
        """Tell the server of an event of the run."""
        text = plain_text(event.record())
        if not event.logged:
            self._say(log_event=m.LogEvent(run=self._run, number=0, event=text))
            return
        self._say(log_event=m.LogEvent(run=self._run, number=self._next, event=text))
        self._unstored.append(text)
        if isinstance(event, RunFinished):
            self.status = "failed" if event.error is not None else "finished"
        elif isinstance(event, RunResumed):
            self.status = None

    def close_ask(self, id: int) -> None:
        """Tell the server that an ask is over. It has heard of that once it has the next event of the log."""
        self._closed.append((self._next, id))
        self._say(close_ask=m.CloseAsk(run=self._run, ask=id))

    def stored(self, number: int) -> None:
        """The server has all events up to this one."""
        while self._unstored and self._first <= number:
            self._unstored.popleft()
            self._first += 1
        while self._closed and self._closed[0][0] <= number:
            self._closed.popleft()

    def close_asks_again(self) -> None:
        """Tell the server of the asks that are over, of which it may not have heard."""
        for _, id in self._closed:
            self._say(close_ask=m.CloseAsk(run=self._run, ask=id))

    def tell_again(self) -> None:
        """Tell the server of the events that it may not have stored."""
        for number, text in enumerate(self._unstored, self._first):
            self._say(log_event=m.LogEvent(run=self._run, number=number, event=text))

    def warn(self, client: ClientId | None, text: str) -> None:
        """Have whoever runs this know of a client, or of the server."""
        self._warnings.append((client, text))

    def warnings(self) -> list[tuple[ClientId | None, str]]:
        """What whoever runs this should know, since it was last asked."""
        found, self._warnings = self._warnings, []
        return found

    @property
    def _next(self) -> int:
        return self._first + len(self._unstored)
