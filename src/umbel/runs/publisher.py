"""What happens in a run, told to all who hear of it: its log, whoever watches it, and the server whose nodes do it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from ..errors import ClientId
from .events import AskClosed, RunEvent, Warned
from .federation import Reporting
from .journal import Journal
from .observers import Observers
from .reasons import kind
from .receipts import MOST_CLIENTS
from .software import unseeded

MOST_ROWS = 200_000
"""So many rows of clients are kept in memory by a run that has no folder: those of its last rounds."""
MOST_WARNINGS = 20
"""So many clients are warned of for one reason in a round; the others are counted."""


class Held:
    """In place of who is told of a run besides its observers, until that is known: keeps what there is to tell."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def observe(self, event: RunEvent) -> None:
        """Keep an event."""
        self.events.append(event)

    def warnings(self) -> Iterable[tuple[ClientId | None, str]]:
        """Nothing."""
        return ()


class Publisher:
    """Tells a run's events. `closed` are those of asks in the last rounds of a run that is kept nowhere else."""

    def __init__(self, journal: Journal, observers: Observers, reporting: Reporting | None) -> None:
        self.closed: list[AskClosed] = []
        self._journal = journal
        self._observers = observers
        self._reporting = reporting
        self._warnings: Counter[str] = Counter()
        self._said: set[str] = set()
        self._rows = 0
        self._round = 0

    @property
    def watched(self) -> bool:
        """Whether anybody wants to know of single tasks."""
        return len(self._observers) > 0

    def tell(self, event: RunEvent, durable: bool = False) -> None:
        """Tell an event, once it is in the log; `durable` waits until it is on the disk. Raises `StorageError`."""
        self.write(event, durable)
        self.announce(event)

    def report_to(self, reporting: Reporting | None) -> None:
        """Tell somebody else from now on, and first what was held."""
        held, self._reporting = self._reporting, reporting
        if isinstance(held, Held) and reporting is not None:
            for event in held.events:
                reporting.observe(event)

    def write(self, event: RunEvent, durable: bool = False) -> None:
        """Put an event into the log alone. Raises `StorageError`."""
        at = round(time.time(), 3)
        object.__setattr__(event, "at", at)  # whoever watches is told the time that the log has
        self._journal.append(event, at=at, durable=durable)

    def announce(self, event: RunEvent) -> None:
        """Tell an event that is in the log."""
        if self._reporting is not None:
            self._reporting.observe(event)
        self._round = getattr(event, "round", self._round)
        for text in self._observers.tell(event):
            self.tell(Warned(round=self._round, text=text))
        if isinstance(event, AskClosed) and self._journal.folder is None:
            self._remember(event)

    def warn(self, r: int, text: str, client: ClientId | None = None) -> None:
        """Warn of a client in round `r`; of many that are alike the first are told, and `count_warnings` the rest."""
        alike = kind(text)
        self._warnings[alike] += 1
        if self._warnings[alike] <= MOST_WARNINGS:
            self.tell(Warned(round=r, client=client, text=text))

    def warn_once(self, r: int, text: str, *, about: str) -> None:
        """Warn of what matters once in a run, whatever is said `about` it later."""
        if about not in self._said:
            self._said.add(about)
            self.tell(Warned(round=r, text=text))

    def warn_of_session(self, r: int) -> None:
        """Warn of what the session has to say."""
        for client, text in self._reporting.warnings() if self._reporting is not None else ():
            self.warn(r, text, client)

    def warn_of_unseeded(self, r: int) -> None:
        """Warn of libraries whose random numbers no seed holds."""
        for name in unseeded():
            text = f"{name} draws from generators that are not seeded for each task: a seed may give other bits"
            self.warn_once(r, text, about=name)

    def count_warnings(self, r: int) -> None:
        """Say how many warnings of round `r` were not told."""
        for alike, count in self._warnings.items():
            if count > MOST_WARNINGS:
                self.tell(Warned(round=r, text=f"{count - MOST_WARNINGS} further warnings like this: {alike}"))
        self._warnings.clear()

    def _remember(self, event: AskClosed) -> None:
        self.closed.append(event)
        self._rows += _rows(event)
        while self._rows > MOST_ROWS:
            self._rows -= _rows(self.closed.pop(0))


def _rows(event: AskClosed) -> int:
    """As how many rows an ask counts; quantiles take as much memory as a good many."""
    return MOST_CLIENTS if event.spread else max(1, len(event.clients.get("client", ())))
