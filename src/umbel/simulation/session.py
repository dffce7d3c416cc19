"""One run's clients in a simulation: takes a coordinator's commands and gives events back.

Tasks are done by worker processes in any order, or in this process; what the coordinator is told, and when, does not
depend on it. So a run comes to the same bits with any number of workers, after any of them died, and after a restart.

- Results are told of in turn (see `turns`), like the instructions of a processor that executes out of order and retires
  in order. Only the results of plain asks, whose windows take everything, are folded as soon as they are there.
- A client that is in two asks at once does the second task when the first ask has closed, with the state that this left
  behind. Where a state has changed between a task and its turn, the task is done again.
- What a worker held when it died is done again, and folded as it was before. Only the client that it was working for
  then is suspected, and fails once it has ended as many workers as it has attempts.
"""

from __future__ import annotations

import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ..core.arrays import Arrays
from ..core.ask import Ask, for_client
from ..core.partial import Partial
from ..core.randomness import Key
from ..core.task import Admit, AllFinished, Cancel, Failed, Finished, Send, Task, Ticked
from ..core.update import Like
from ..errors import AppError, ClientCrashed, ClientId, SettingError, UmbelError
from ..runs.coordinator import Event, Wake
from ..runs.federation import Session
from ..work.account import Account
from ..work.intake import ClosedAsk
from ..work.late import lasting, load_ask, save_ask
from ..work.state import ClientStates
from .backlog import Backlog, SimulatedAsk, Ticket
from .hosts import Contents, Local, WorkerHost
from .turns import Queues, SimulatedTime, Timeline
from .worker import Report

if TYPE_CHECKING:
    from .devices import Fleet

MOMENT = 0.02
"""For how many seconds, about, tasks are done in this process before the first of them is told of."""
AHEAD = 0.05
"""A worker that has less than so many seconds of work before it is handed more."""
PATIENCE = 2.0
"""For how many seconds at most a worker may go on with what nobody wants while others wait."""
REPLACED = 0.1
"""About how many seconds it takes until another worker is at work in its place."""
IN_VAIN = 10
"""So many workers may end, one after the other, before any of them has done anything."""


class Workers(Protocol):
    """Worker processes, as a session starts them."""

    @property
    def size(self) -> int:
        """How many there are."""

    def hire(self, index: int) -> WorkerHost:
        """Start one, or start it again."""

    def dismiss(self) -> None:
        """Let go of what they share, once they are ended."""


class SimulationSession(Session):
    """One run's clients. `local` does the tasks, or a crew of worker processes.

    `key` is the run's key for tasks; `clock` that of its deadlines; `fleet` the device model, if any; `attempts` and
    `stall` as in `Simulation`.
    """

    def __init__(
        self,
        states: ClientStates,
        *,
        local: Local | None = None,
        crew: Workers | None = None,
        fleet: Fleet | None = None,
        key: Key,
        clock: Callable[[], float] = time.monotonic,
        config: Mapping[str, Any] = MappingProxyType({}),
        attempts: int = 3,
        stall: float | None = None,
    ) -> None:
        self._states = states
        self._local = local
        self._crew = crew
        self._fleet = fleet
        self._key = key
        self._clock = clock
        self._config = config
        self._attempts = attempts
        self._stall = stall
        self._asks: dict[int, SimulatedAsk] = {}
        self._open: dict[int, SimulatedAsk] = {}
        self._tickets: dict[str, Ticket] = {}
        self._blocked: list[Ticket] = []
        self._backlog = Backlog(crew.size if crew is not None else 0)
        self._reports = 0
        self._in_vain = 0
        self._queues = Queues()
        self._timeline = Timeline()
        self._wakes: list[float] = []
        self._time = SimulatedTime()
        self._account = Account()
        self._contents: deque[tuple[WorkerHost, Contents]] = deque()
        self._sizes: dict[int, tuple[int, int]] = {}
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerHost] = []
        try:
            for index in range(crew.size if crew is not None else 0):
                self._start(index)
        except BaseException:
            self.disconnect()
            raise

    reporting = None

    @property
    def virtual(self) -> SimulatedTime | None:
        """Virtual time, where there is a device model."""
        return None if self._fleet is None else self._time

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of its deadlines, where time is not virtual."""
        return self._clock

    def online(self, client: ClientId) -> bool:
        """Whether a client can be asked now."""
        return self._fleet is None or self._fleet.device(client).online(self._time.at)

    # What the coordinator commands

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any, cohort: Sequence[ClientId] = ()) -> None:
        """Make an ask known before its tasks come."""
        if ask.window.late == "keep":
            ask = lasting(ask)
        self._asks[id] = self._open[id] = sent = SimulatedAsk(id, ask, round, number, params, tuple(cohort))
        self._timeline.resume()
        if ask.window.deadline is not None:
            sent.closes_at = self._time.at + ask.window.deadline

    def do(self, command: Send | Admit | Cancel | Wake) -> None:
        """Carry out a command."""
        if isinstance(command, Send):
            self._send(command.task)
        elif isinstance(command, Admit):
            self._admit(command)
        elif isinstance(command, Cancel):
            self._cancel(command.task)
        elif self._fleet is not None:
            self._timeline.wake(command.at)
        else:
            self._wakes.append(command.at)

    def _send(self, task: Task) -> None:
        sent = self._asks[task.ask]
        ticket = self._tickets[task.id] = Ticket(task, sent)
        if sent.ask.window.late == "keep":
            for name in sent.routed:
                for_client(getattr(sent.ask, name), task.client)
        if sent.plain is None:
            # In virtual time the asks of one client overlap, and a state may change before a result has its turn.
            # So it does without a device model where late tasks end in an ask that is open too.
            alone = len(self._open) == 1
            sent.plain = sent.ask.window.takes_all and (
                alone or (self._fleet is None and not self._queues.late(self._open))
            )
        if self._fleet is None:
            self._queues.add(ticket)
        else:
            self._plan(ticket, self._fleet)
            self._timeline.add(ticket)
            trip = ticket.trip
            if trip is not None and (trip.failed or self._too_late(ticket)):
                return  # nothing will come of it: it is not done at all
        if self._local is not None:
            return  # it is done when its turn has come
        if len(self._open) > 1 and self._is_blocked(ticket):
            self._blocked.append(ticket)
        else:
            self._backlog.add(ticket)

    def _plan(self, ticket: Ticket, fleet: Fleet) -> None:
        task, sent = ticket.task, ticket.sent
        at = self._time.sent.get(task.id, self._time.at)
        self._time.sent[task.id] = ticket.at = at
        down, up = self._transfers(sent, task.client)
        config = {**self._config, **for_client(sent.ask.config, task.client)}
        key = self._key.derive(sent.ask.kind, sent.round, sent.number, task.client)
        try:
            ticket.trip = fleet.trip(
                task.client, at=at, kind=sent.ask.kind, config=config, bytes_down=down, bytes_up=up, key=key
            )
        except UmbelError:
            raise
        except Exception as error:
            raise SettingError(
                f"the fleet's work cannot be had: {type(error).__name__}: {error}",
                client=task.client,
                round=sent.round,
                hint=f"It is called with the client, the kind of ask ({sent.ask.kind!r}) and the config that it gets.",
            ) from error

    def _transfers(self, sent: SimulatedAsk, client: ClientId) -> tuple[int, int]:
        """How many bytes go to a client and come back from it."""
        ask = sent.ask
        fixed = not any(map(callable, (ask.model, ask.inbox, ask.expects, ask.correction)))
        if fixed and sent.id in self._sizes:
            return self._sizes[sent.id]
        model, inbox = for_client(ask.model, client), for_client(ask.inbox, client)
        expects = for_client(ask.expects, client)
        down = (model.nbytes if model is not None else 0) + (Arrays(inbox).nbytes if inbox else 0)
        correction = for_client(ask.correction, client)
        if correction is not None and correction.linear is not None:
            down += correction.linear.nbytes
        up = 0
        if ask.kind != "evaluate":
            up = expects.schema(model).nbytes if isinstance(expects, Like) else expects.max_bytes or 0
            if isinstance(expects.aux, Like):
                up += expects.aux.schema(None).nbytes
        if fixed:
            self._sizes[sent.id] = down, up
        return down, up

    def _too_late(self, ticket: Ticket) -> bool:
        sent, trip = ticket.sent, ticket.trip
        assert trip is not None
        return sent.closes_at is not None and sent.ask.window.late == "drop" and trip.ends > sent.closes_at

    def _is_blocked(self, ticket: Ticket) -> bool:
        """Whether the client has to be done with another ask first."""
        if self._fleet is not None:
            return False
        client, own = ticket.task.client, ticket.sent.id
        return any(id < own and client in other.clients for id, other in self._open.items())

    def _admit(self, command: Admit) -> None:
        ticket = self._tickets[command.task]
        into = self._asks[command.ask]
        into.admitted.append(ticket)
        ticket.admit, ticket.into = command, into
        if ticket.sent.plain and self._local is None:
            return  # it is folded already
        if ticket.done:
            self._fold(ticket)

    def _fold(self, ticket: Ticket) -> None:
        assert ticket.admit is not None
        assert ticket.into is not None
        if ticket.failed is not None:  # done again after its first result was lost with a worker
            ticket.into.refused[ticket.task.client] = ticket.failed.reason
        else:
            (self._local or ticket.host).admit(ticket.admit, ticket.into)

    def _cancel(self, id: str) -> None:
        ticket = self._tickets.pop(id, None)
        if ticket is None:
            return
        ticket.wanted = False
        self._forget_turn(ticket)
        if self._fleet is not None:
            self._timeline.forget()
        if ticket.done and ticket.failed is None:
            (self._local or ticket.host).cancel(id)
        elif ticket.host is not None:
            ticket.host.cancel_batch_of(ticket)

    def _forget_turn(self, ticket: Ticket) -> None:
        if self._fleet is None:
            self._queues.remove(ticket)
            return
        self._time.sent.pop(ticket.task.id, None)
        self._charge(ticket)

    def _charge(self, ticket: Ticket) -> None:
        """Note what a task cost its device until now."""
        trip = ticket.trip
        if trip is None:
            return
        whole = trip.ends - trip.begins
        now = self._time.at
        share = 1.0 if now >= trip.ends else max(0.0, now - trip.begins) / whole if whole else 1.0
        account = self._account
        account.device_seconds += trip.compute * share
        account.joules += trip.joules * share
        account.bytes_down += int(
            trip.bytes_down * min(1.0, share * whole / trip.download if trip.download else float(share > 0))
        )
        account.bytes_up += trip.bytes_up if share == 1.0 else 0

    # What the coordinator is told

    def next_event(self) -> Event | None:
        """What came of the next task, once that is known; None when there is no task left."""
        while True:
            event = self._timed() if self._fleet is not None else self._queued()
            if event is not None:
                return event
            if self._local is not None:
                if not self._do_here():
                    return None
            elif not self._work_on():
                return None

    def _queued(self) -> Event | None:
        ticket = self._queues.head(self._open.values())
        if ticket is not None and self._local is None and ticket.sent.plain:
            ready = ticket.sent.done
            while ready and (ready[0].told or not ready[0].wanted or not ready[0].done):
                ready.popleft()
            if ready:
                return self._told_together(ready)
            ticket = None
        elif ticket is not None and not ticket.done and self._has_deadline(ticket.sent.lane):
            ticket = self._queues.first_done(ticket.sent.lane)
        if ticket is not None and ticket.done:
            return self._told(ticket)
        if self._local is None and self._wakes and min(self._wakes) <= self._clock():
            self._wakes.remove(min(self._wakes))
            return Ticked()
        return None

    def _has_deadline(self, lane: str) -> bool:
        return any(sent.closes_at is not None for sent in self._open.values() if sent.lane == lane)

    def _timed(self) -> Event | None:
        found = self._timeline.head(self._open.values())
        if found is None:
            return None
        at, ticket = found
        if ticket is None:
            self._timeline.pop()
            self._time.advance_to(at)
            return Ticked()
        trip = ticket.trip
        if trip is not None and trip.failed:
            self._timeline.pop()
            self._time.advance_to(at)
            ticket.done, ticket.failed = True, Failed(ticket.task.id, trip.failed)
        if not ticket.done:
            return None
        return self._told(ticket)

    def _told(self, ticket: Ticket) -> Event | None:
        """The event of a ticket whose turn it is; None where it has to be done again."""
        if not ticket.sent.plain and self._local is None and self._is_stale(ticket):
            return None
        if self._fleet is not None:
            self._time.advance_to(ticket.trip.ends if ticket.trip else 0.0)
        ticket.told = True
        self._forget_turn(ticket)
        if ticket.failed is not None:
            del self._tickets[ticket.task.id]
            return ticket.failed
        return Finished(ticket.task.id)

    def _told_together(self, ready: deque[Ticket]) -> Event:
        """The event of all these tickets of a plain ask that have a result, up to the first that has none."""
        finished: list[str] = []
        while ready and (ticket := ready[0]).failed is None:
            ready.popleft()
            if ticket.wanted and ticket.done and not ticket.told:
                self._queues.remove(ticket)
                ticket.told = True
                finished.append(ticket.task.id)
        if finished:
            return AllFinished(finished)
        event = self._told(ready.popleft())
        assert event is not None
        return event

    def _is_stale(self, ticket: Ticket) -> bool:
        if ticket.host is None or self._states.encoded(ticket.task.client) == ticket.state:
            return False
        if ticket.failed is None:
            ticket.host.cancel(ticket.task.id)
        ticket.failed = None
        self._again(ticket)
        return True

    def _again(self, ticket: Ticket) -> None:
        """Have a ticket done once more, which no worker has now."""
        ticket.done, ticket.host = False, None
        self._backlog.again(ticket)

    def _do_here(self) -> bool:
        assert self._local is not None
        if self._fleet is not None:
            found = self._timeline.head(self._open.values())
            ticket = found[1] if found is not None else None
            batch = [ticket] if ticket is not None else []
        else:
            ticket = self._queues.head(self._open.values())
            most = self._local.at_once(ticket.sent) if ticket is not None and ticket.sent.plain else 1
            batch = [] if ticket is None else self._queues.following(ticket, most)
        if not batch:
            return False
        until = time.perf_counter() + MOMENT
        self._local.do(batch, until)
        return True

    # Worker processes

    def _start(self, index: int) -> None:
        assert self._crew is not None
        worker = self._crew.hire(index)
        self._selector.register(worker.process.channel, selectors.EVENT_READ, worker)
        if index < len(self._workers):
            self._workers[index] = worker
        else:
            self._workers.append(worker)

    def _work_on(self) -> bool:
        """Hand out what there is, and take in what comes next; False if nothing is on its way."""
        self._hand_out()
        if not any(worker.out for worker in self._workers) and not self._wakes:
            return False
        self._listen()
        return True

    def _hand_out(self) -> None:
        for ahead in (0.0, AHEAD):
            for worker in self._workers:
                while self._backlog and (not worker.out or (ahead and self._takes_more(worker, ahead))):
                    tickets, guess = self._backlog.portion(worker.index)
                    if not tickets:
                        break
                    worker.do(tickets, guess, self._states.encoded)

    def _takes_more(self, worker: WorkerHost, ahead: float) -> bool:
        return len(worker.out) < 2 and 0.0 < worker.seconds_out < ahead

    def _listen(self, closing: bool = False) -> None:
        """Wait for messages, a deadline, or the next look at whether all workers make progress."""
        # Not by the task that a worker is seen to be at: it may begin one just after this has looked.
        limits = [0.25] if self._stall is not None or any(w.in_vain for w in self._workers) else []
        if self._wakes and not closing:
            limits.append(max(0.0, min(self._wakes) - self._clock()))
        for worker in self._workers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.process.channel.waiting else 0)
            if self._selector.get_key(worker.process.channel).events != events:
                self._selector.modify(worker.process.channel, events, worker)
        for selected, events in self._selector.select(min(limits, default=None)):
            worker = selected.data
            if not worker.alive:
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    worker.process.channel.flush()
                if events & selectors.EVENT_READ:
                    self._heard(worker, worker.process.channel.receive())
            except EOFError:
                self._lost(worker)
        if limits:
            self._watch(closing)

    def _heard(self, worker: WorkerHost, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "report":
            self._reported(worker, *rest)
        elif kind == "partial":
            self._contents.append((worker, rest[1]))
        elif kind == "printed":
            _print(rest[1], getattr(sys, rest[0]))
        else:
            raise rest[0]

    def _reported(self, worker: WorkerHost, report: Report, account: Account) -> None:
        self._account.add(account)
        tickets = worker.reported(report)
        for ticket, seconds in zip(tickets, report.seconds, strict=False):
            self._backlog.durations.note(ticket.sent.ask.kind, ticket.task.client, seconds)
        self._reports += 1
        self._in_vain = 0
        if self._reports & (self._reports - 1) == 0:
            self._backlog.reconsider()
        for ticket in tickets:
            self._came_in(ticket)

    def _came_in(self, ticket: Ticket) -> None:
        if not ticket.wanted:
            return
        if not ticket.done:
            self._again(ticket)
        elif not ticket.told:
            if ticket.sent.plain:
                ticket.sent.done.append(ticket)
        elif ticket.admit is not None and not ticket.folding:
            self._fold(ticket)
        elif ticket.failed is not None and ticket.into is not None:
            # Done again after its first result was lost with a worker, and now it failed.
            ticket.into.refused[ticket.task.client] = ticket.failed.reason

    def _watch(self, closing: bool) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if self._stall is not None and worker.stalled(now, self._stall):
                self._lost(worker, f"showed no progress for {self._stall:g} seconds and was ended")
            elif (self._backlog or closing or len(worker.out) > 1) and (
                worker.unwanted_since(now) > self._patience(worker)
            ):
                self._lost(worker)

    def _patience(self, worker: WorkerHost) -> float:
        """How long to wait for a worker that is at what nobody wants: no longer than it takes to replace it and to do
        again what it holds.
        """
        held = (
            self._backlog.durations.guess(ticket.sent.ask.kind, ticket.task.client) or 0.0
            for ticket in self._tickets.values()
            if ticket.host is worker and ticket.done and ticket.failed is None
        )
        return min(PATIENCE, REPLACED + sum(held))

    def _lost(self, worker: WorkerHost, how: str | None = None) -> None:
        """A worker is gone: what it had is done again, and another one takes its place."""
        if not worker.alive:
            return
        self._selector.unregister(worker.process.channel)
        worker.process.channel.close()
        worker.alive = False
        suspect = worker.running()
        worker.process.kill()  # in case that it only closed its end
        ended = worker.process.ended()
        told = how or ended
        self._in_vain += suspect is None
        if self._in_vain == IN_VAIN:
            raise AppError(
                f"worker processes end before they can do anything; the last {told}",
                hint="Does the client's module end the process when it is imported? Is the memory limit too low? "
                "Try workers=0.",
            )
        for ticket in list(self._tickets.values()):
            if ticket.host is not worker or (ticket.admit is not None and ticket.admit.ask not in self._open):
                continue
            ticket.host = None
            if ticket is suspect and ticket.wanted:
                self._suspect(ticket, told)
            elif not ticket.done or ticket.failed is None:
                self._again(ticket)
        self._start(worker.index)

    def _suspect(self, ticket: Ticket, how: str) -> None:
        ticket.losses += 1
        ticket.done = ticket.losses >= self._attempts
        if ticket.done:  # it is not for the coordinator to try again: in turn, nothing has happened yet
            ticket.failed = Failed(ticket.task.id, ClientCrashed(f"its process {how}").message)
        self._came_in(ticket)

    # The end of an ask

    def close(self, id: int) -> ClosedAsk:
        """Hand over what an ask came to."""
        sent = self._asks[id]
        closed = ClosedAsk(Partial(sent.ask.fold))
        if self._local is not None:
            self._take(closed, self._local.close(sent))
        else:
            self._collect(sent, closed)
        closed.refused.update(sent.refused)
        closed.account, self._account = self._account, Account()
        del self._open[id]
        for ticket in sent.admitted:
            self._tickets.pop(ticket.task.id, None)
        sent.admitted.clear()
        waiting, self._blocked = self._blocked, []
        for ticket in waiting:
            if not ticket.wanted:
                continue
            if self._is_blocked(ticket):
                self._blocked.append(ticket)
            else:
                self._backlog.add(ticket)
        return closed

    def _collect(self, sent: SimulatedAsk, closed: ClosedAsk) -> None:
        """Get the parts of an ask from all workers, once all that was admitted is folded."""
        asked: set[WorkerHost] = set()
        while True:
            missing = any(not ticket.done for ticket in sent.admitted)
            if not missing:
                for worker in self._workers:
                    if sent.id in worker.holds:
                        worker.ask_to_close(sent)
                        asked.add(worker)
                if not asked:
                    return
            self._hand_out()
            self._listen(closing=True)
            asked = {worker for worker in asked if worker.alive}
            while self._contents:
                worker, contents = self._contents.popleft()
                self._take(closed, contents)
                asked.discard(worker)
                for ticket in sent.admitted:
                    if ticket.host is worker and ticket.done:  # else it is on its way there for the second time
                        ticket.host = None  # it is safe here

    def _take(self, closed: ClosedAsk, contents: Contents) -> None:
        began = time.perf_counter()
        partial, states, refused, account = contents
        closed.partial.merge_contents(partial)
        closed.states.update(states)
        closed.refused.update(refused)
        self._account.add(account)
        self._account.folding += time.perf_counter() - began

    def forget(self, asks: set[int]) -> None:
        """Forget closed asks, except for these, whose tasks may still come."""
        keep = asks | self._open.keys()
        for id in [id for id in self._asks if id not in keep]:
            if (parcel := self._asks.pop(id).parcel) is not None:
                parcel.close()
            self._sizes.pop(id, None)
        if self._local is not None:
            self._local.forget(keep)
        for worker in self._workers:
            worker.forget(keep)

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
        return [worker.peak_memory() for worker in self._workers]

    def disconnect(self) -> None:
        """Let go of everything, and end the workers."""
        alive = [worker for worker in self._workers if worker.alive]
        for worker in alive:
            with suppress(KeyError, ValueError):
                self._selector.unregister(worker.process.channel)
            worker.process.channel.close()  # which ends it if it is idle, even should an interrupt end this here
        for worker in alive:
            worker.end()
        self._workers.clear()
        self._selector.close()
        if self._crew is not None:
            self._crew.dismiss()
        for sent in self._asks.values():
            if sent.parcel is not None:
                sent.parcel.close()
        self._tickets.clear()
        self._queues.clear()
        self._timeline.clear()


def _print(text: str, stream: Any) -> None:
    """Print what a worker printed, as well as the stream's encoding allows."""
    try:
        print(text, end="", file=stream)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), end="", file=stream)
