"""One run's clients in a simulation: takes a coordinator's commands and gives events back.

Tasks are done by worker processes in any order, or in this process; what the coordinator is told, and when, does not
depend on it. So a run comes to the same bits with any number of workers, after any of them died, and after a restart.

- Results are told of in turn (see `turns`), like the instructions of a processor that executes out of order and retires
  in order. Only the results of plain asks, whose windows take everything, are folded as soon as they are there.
- A client that is in two asks at once does the second task when the first ask has closed, with the state that this left
  behind. Where a state has changed between a task and its turn, the task is done again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.ask import Ask, for_client
from ..core.task import Admit, Cancel, Finished, Send, Task, Ticked
from ..errors import ClientId
from ..runs.coordinator import Event, Wake
from ..runs.federation import Session
from ..work.intake import ClosedAsk
from ..work.late import lasting, load_ask, save_ask
from ..work.state import ClientStates
from .backlog import SimulatedAsk, Ticket
from .hosts import Local
from .turns import Queues

if TYPE_CHECKING:
    from .pool import WorkerPool
    from .virtual import DeviceTurns


class SimulationSession(Session):
    """One run's clients.

    `hands` do the tasks, `clock` is that of deadlines; `virtual` are the turns by a device model, if there is one.
    """

    def __init__(
        self,
        states: ClientStates,
        hands: Local | WorkerPool,
        *,
        virtual: DeviceTurns | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.virtual = virtual
        self._clock = clock
        self._states = states
        self._hands = hands
        self._backlog = hands.backlog
        # Where tasks are done in turn, in this process, a deadline finds all of them done.
        self._turns = virtual or Queues(None if self._backlog is None else clock)
        self._asks: dict[int, SimulatedAsk] = {}
        self._open: dict[int, SimulatedAsk] = {}
        self._tickets: dict[str, Ticket] = {}
        self._blocked: list[Ticket] = []

    reporting = None
    virtual: DeviceTurns | None = None

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of its deadlines, where time is not virtual."""
        return self._clock

    def online(self, client: ClientId) -> bool:
        """Whether a client can be asked now."""
        return self.virtual is None or self.virtual.online(client)

    # What the coordinator commands

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any, cohort: Sequence[ClientId] = ()) -> None:
        """Make an ask known before its tasks come."""
        if ask.window.late == "keep":
            ask = lasting(ask)
        self._asks[id] = self._open[id] = sent = SimulatedAsk(id, ask, round, number, params, tuple(cohort))
        self._turns.open(sent)

    def do(self, command: Send | Admit | Cancel | Wake) -> None:
        """Carry out a command."""
        if isinstance(command, Send):
            for task in command.tasks:
                self._send(task)
        elif isinstance(command, Admit):
            self._admit(command)
        elif isinstance(command, Cancel):
            for id in command.tasks:
                self._cancel(id)
        else:
            self._turns.wake(command.at)

    def _send(self, task: Task) -> None:
        sent = self._asks[task.ask]
        ticket = self._tickets[task.id] = Ticket(task, sent)
        if sent.ask.window.late == "keep":
            for name in sent.routed:
                for_client(getattr(sent.ask, name), task.client)
        if sent.plain is None:
            sent.plain = sent.ask.window.takes_all and (len(self._open) == 1 or not self._turns.overlap(self._open))
            if sent.plain and self.virtual is None:
                sent.done = deque()
        if not self._turns.add(ticket) or self._backlog is None:
            return  # nothing will come of it; or it is done when its turn has come
        if len(self._open) > 1 and self._is_blocked(ticket):
            self._blocked.append(ticket)
        else:
            self._backlog.add(ticket)

    def _is_blocked(self, ticket: Ticket) -> bool:
        """Whether the client has to be done with another ask first."""
        if self.virtual is not None:
            return False
        client, own = ticket.task.client, ticket.sent.id
        return any(id < own and client in other.clients for id, other in self._open.items())

    def _admit(self, command: Admit) -> None:
        into = self._asks[command.ask]
        for id in command.tasks:
            ticket = self._tickets[id]
            into.admitted.append(ticket)
            ticket.admit, ticket.into = command, into
            if ticket.done and not ticket.sent.plain:  # else it is folded already
                ticket.fold()

    def _cancel(self, id: str) -> None:
        ticket = self._tickets.pop(id, None)
        if ticket is None:
            return
        ticket.wanted = False
        self._turns.remove(ticket)
        if ticket.holder is not None and ticket.failed is None:
            ticket.holder.cancel(ticket)

    # What the coordinator is told

    def next_event(self) -> Event | None:
        """What came of the next task, once that is known; None when there is no task left."""
        while True:
            ticket = self._turns.due(self._open.values())
            if ticket is not None:
                event = self._told_together(ticket.sent.done) if ticket.sent.done else self._told(ticket)
                if event is not None:
                    return event
            elif self._turns.ticked():
                return Ticked()
            if not self._hands.work(self._turns, self._open.values()):
                return None

    def _told(self, ticket: Ticket) -> Event | None:
        """The event of a ticket whose turn it is; None where it has to be done again."""
        if not ticket.sent.plain and self._backlog is not None and self._is_stale(ticket):
            self._backlog.again(ticket)
            return None
        ticket.told = True
        self._turns.remove(ticket)
        if ticket.failed is not None:
            del self._tickets[ticket.task.id]
            return ticket.failed
        return Finished([ticket.task.id])

    def _told_together(self, ready: deque[Ticket]) -> Event | None:
        """The event of all these tickets of a plain ask that have a result, up to the first that has none."""
        finished: list[str] = []
        while ready and (ticket := ready[0]).failed is None:
            ready.popleft()
            if ticket.wanted and ticket.done and not ticket.told:
                self._turns.remove(ticket)
                ticket.told = True
                finished.append(ticket.task.id)
        return Finished(finished) if finished else self._told(ready.popleft())

    def _is_stale(self, ticket: Ticket) -> bool:
        """Whether the client's state is another now; what was made of the old one is let go of."""
        if ticket.holder is None or self._states.encoded(ticket.task.client) == ticket.state:
            return False
        if ticket.failed is None:
            ticket.holder.cancel(ticket)
        ticket.failed = None
        return True

    # The end of an ask

    def close(self, id: int) -> ClosedAsk:
        """Hand over what an ask came to."""
        sent = self._asks[id]
        closed = self._hands.close(sent)
        closed.refused.update(sent.refused)
        if self.virtual is not None:
            closed.account.add(self.virtual.take_account())
        del self._open[id]
        for ticket in sent.admitted:
            self._tickets.pop(ticket.task.id, None)
        sent.admitted.clear()
        if self._backlog is not None:
            waiting, self._blocked = self._blocked, []
            for ticket in waiting:
                if not ticket.wanted:
                    continue
                if self._is_blocked(ticket):
                    self._blocked.append(ticket)
                else:
                    self._backlog.add(ticket)
        return closed

    def forget(self, asks: set[int]) -> None:
        """Forget closed asks, except for these, whose tasks may still come."""
        keep = asks | self._open.keys()
        for id in [id for id in self._asks if id not in keep]:
            self._asks.pop(id).let_go()
        self._hands.forget(keep)

    # Tasks that outlive the process

    def save_asks(self, tasks: Sequence[Task]) -> list[Any]:
        """What is needed to do these tasks after a restart, as a plain tree."""
        clients: dict[int, list[ClientId]] = {}
        for task in tasks:
            clients.setdefault(task.ask, []).append(task.client)
        saved = []
        for id, who in clients.items():
            sent = self._asks[id]
            saved.append([id, sent.round, sent.number, sent.params, save_ask(sent.ask, who)])
        return saved

    def restore_asks(self, saved: list[Any]) -> None:
        """Know again what `save_asks` saved."""
        for id, round, number, params, tree in saved:
            self._asks[id] = SimulatedAsk(id, load_ask(tree), round, number, params, plain=False)

    def peak_memory(self) -> list[int]:
        """Bytes of memory that each worker has held at most, as far as the system says."""
        return [worker.peak_memory() for worker in self._hands.workers]

    def disconnect(self, whole: bool = False) -> None:
        """Let go of everything, and end the workers, or leave them to the next run; see `Simulation.warm`."""
        self._hands.disconnect(whole)
        for sent in self._asks.values():
            sent.let_go()
        self._tickets.clear()
        self._turns.clear()
