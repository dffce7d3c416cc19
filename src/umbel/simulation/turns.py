"""In which order a simulation tells of what its tasks came to, so that the order is the same however they were done:
here without a device model; see `virtual` for the other one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from .backlog import SimulatedAsk, Ticket


class Queues:
    """Without a device model: asks that are open at once come one after the other, each in the order in which its tasks
    were sent, and late tasks wait for the next ask of their lane. `clock` is that of deadlines; None: they never pass.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._queues: dict[str, OrderedDict[str, Ticket]] = {}
        self._wakes: list[float] = []

    def open(self, sent: SimulatedAsk) -> None:
        """An ask opens."""
        sent.closes_at = sent.ask.window.deadline

    def wake(self, at: float) -> None:
        """Something is due at this time."""
        self._wakes.append(at)

    def wait(self) -> float | None:
        """In how many seconds something is due."""
        return max(0.0, min(self._wakes) - self._clock()) if self._clock is not None and self._wakes else None

    def ticked(self) -> bool:
        """Whether something was due, which is then over."""
        if self._clock is None or not self._wakes or min(self._wakes) > self._clock():
            return False
        self._wakes.remove(min(self._wakes))
        return True

    def add(self, ticket: Ticket) -> bool:
        """A task was sent, which is to be done; one that is tried again goes first."""
        queue = self._queues.setdefault(ticket.sent.lane, OrderedDict())
        queue[ticket.task.id] = ticket
        if ticket.task.attempt > 1:
            queue.move_to_end(ticket.task.id, last=False)
        return True

    def remove(self, ticket: Ticket) -> None:
        """A task was told of, or is not wanted any more."""
        self._queues[ticket.sent.lane].pop(ticket.task.id, None)

    def head(self, open: Iterable[SimulatedAsk]) -> Ticket | None:
        """Whose turn it is."""
        for sent in open:
            if queue := self._queues.get(sent.lane):
                return next(iter(queue.values()))
        return None

    def due(self, open: Collection[SimulatedAsk]) -> Ticket | None:
        """Who can be told of: whose turn it is; of a plain ask any that has a result, and where there is a deadline,
        the first that has one.
        """
        head = self.head(open)
        if head is None:
            return None
        if (ready := head.sent.done) is not None:
            while ready and (ready[0].told or not ready[0].wanted or not ready[0].done):
                ready.popleft()
            if ready:
                return ready[0]
        elif head.done:
            return head
        # Whose time runs out waits for nobody, in its own ask or in another.
        for sent in open:
            if sent.closes_at is not None:
                for ticket in self._queues.get(sent.lane, {}).values():
                    if ticket.done:
                        return ticket
        return None

    def batch(self, open: Iterable[SimulatedAsk], at_once: Callable[[SimulatedAsk], int]) -> list[Ticket]:
        """What is to be done next: the ticket whose turn it is, and of a plain ask those right after it, so many at
        most.
        """
        head = self.head(open)
        if head is None:
            return []
        most = at_once(head.sent) if head.sent.plain else 1
        found: list[Ticket] = []
        for ticket in self._queues[head.sent.lane].values():
            if ticket.sent is not head.sent or len(found) == most:
                break
            found.append(ticket)
        return found

    def overlap(self, open: Mapping[int, SimulatedAsk]) -> bool:
        """Whether tasks of other asks than these end in one of them."""
        lanes = {sent.lane for sent in open.values()}
        return any(ticket.sent.id not in open for lane in lanes for ticket in self._queues.get(lane, {}).values())

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()
