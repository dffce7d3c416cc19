"""In which order a simulation tells of what its tasks came to, so that the order is the same however they were done."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from .backlog import SimulatedAsk, Ticket


class Queues:
    """Without a device model: asks that are open at once come one after the other, each in the order in which its tasks
    were sent, and late tasks wait for the next ask of their lane.
    """

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[str, Ticket]] = {}

    def add(self, ticket: Ticket) -> None:
        """A task was sent; one that is tried again goes first."""
        queue = self._queues.setdefault(ticket.sent.lane, OrderedDict())
        queue[ticket.task.id] = ticket
        if ticket.task.attempt > 1:
            queue.move_to_end(ticket.task.id, last=False)

    def remove(self, ticket: Ticket) -> None:
        """A task was told of, or is not wanted any more."""
        self._queues[ticket.sent.lane].pop(ticket.task.id, None)

    def head(self, open: Iterable[SimulatedAsk]) -> Ticket | None:
        """Whose turn it is."""
        for sent in open:
            if queue := self._queues.get(sent.lane):
                return next(iter(queue.values()))
        return None

    def following(self, ticket: Ticket, count: int) -> list[Ticket]:
        """The ticket whose turn it is and those of the same ask right after it, so many at most."""
        found: list[Ticket] = []
        for other in self._queues[ticket.sent.lane].values():
            if other.sent is not ticket.sent or len(found) == count:
                break
            found.append(other)
        return found

    def first_done(self, lane: str) -> Ticket | None:
        """The first in a lane that has a result."""
        return next((ticket for ticket in self._queues[lane].values() if ticket.done), None)

    def late(self, open: Mapping[int, SimulatedAsk]) -> bool:
        """Whether tasks of other asks than these end in one of them."""
        lanes = {sent.lane for sent in open.values()}
        return any(ticket.sent.id not in open for lane in lanes for ticket in self._queues.get(lane, {}).values())

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()


Row = tuple[float, bool, float, int, int, Ticket | None]
"""When something happens, and what: first what arrives, by when it was sent and by its ask, then deadlines."""


class Timeline:
    """With a device model: by the virtual time at which answers arrive, and deadlines between them. What arrives while
    no ask of its lane is open waits for the next one, as it would after a restart.
    """

    def __init__(self) -> None:
        self._heap: list[Row] = []
        self._waiting: list[Row] = []
        self._count = 0
        self._forgotten = 0

    def add(self, ticket: Ticket) -> None:
        """A task was sent."""
        assert ticket.trip is not None
        self._push(ticket.trip.ends, ticket)

    def wake(self, at: float) -> None:
        """Something is due at this time."""
        self._push(at, None)

    def _push(self, at: float, ticket: Ticket | None) -> None:
        self._count += 1
        # What arrives at the moment of a deadline is in time. Tasks that arrive together, such as those of a device
        # that went offline, have an order that a restart does not change.
        sent, ask = (0.0, 0) if ticket is None else (ticket.at, ticket.task.ask)
        heapq.heappush(self._heap, (at, ticket is None, sent, ask, self._count, ticket))

    def head(self, open: Iterable[SimulatedAsk]) -> tuple[float, Ticket | None] | None:
        """The next time at which something happens, and what arrives then: None for a deadline."""
        lanes = {sent.lane for sent in open}
        while self._heap:
            at, *_, ticket = self._heap[0]
            if ticket is None:
                return at, None
            if ticket.wanted and not ticket.told:
                if ticket.sent.lane in lanes:
                    return at, ticket
                self._waiting.append(self._heap[0])
            heapq.heappop(self._heap)
        return None

    def resume(self) -> None:
        """An ask opens: what waited for one may have its turn."""
        for row in self._waiting:
            heapq.heappush(self._heap, row)
        self._waiting.clear()

    def pop(self) -> None:
        """It has happened."""
        heapq.heappop(self._heap)

    def forget(self) -> None:
        """A task is not wanted any more. What it would have held is let go of well before its time."""
        self._forgotten += 1
        if 2 * self._forgotten > len(self._heap):
            self._heap = [row for row in self._heap if (t := row[-1]) is None or (t.wanted and not t.told)]
            heapq.heapify(self._heap)
            self._forgotten = 0

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._waiting.clear()


class SimulatedTime:
    """The virtual clock of a session, and when tasks were sent by it."""

    def __init__(self) -> None:
        self.at = 0.0
        self.sent: dict[str, float] = {}

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self.at

    def advance_to(self, at: float) -> None:
        """Set the clock, which never goes back."""
        self.at = max(self.at, at)

    def sent_at(self, task: str) -> float:
        """When a task was sent."""
        return self.sent.get(task, 0.0)

    def was_sent_at(self, task: str, at: float) -> None:
        """Know again when a task was sent."""
        self.sent[task] = at
