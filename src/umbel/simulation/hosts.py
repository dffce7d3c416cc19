"""Where a simulation's tasks are done: in this process, or by workers that something else hosts, which may die."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from ..core.ask import for_client
from ..core.task import Admit
from ..errors import ClientId
from ..work.intake import ClosedAsk
from .backlog import SimulatedAsk, Ticket
from .channel import Channel, PackedMessage
from .status import BATCH, CANCELLED, PLACE, STEPS

if TYPE_CHECKING:
    from ..work.executor import Executor
    from .turns import Queues
    from .virtual import DeviceTurns
    from .worker import Portion, Report

MOMENT = 0.1
"""For how many seconds, about, tasks are done in this process before the first of them is told of."""

BLOCKS = 16
"""So many blocks of small tasks are done at most before the first is told of."""


class Usage(Protocol):
    """What a system says of a process. Both raise EOFError where it never came to be."""

    def processor_time(self) -> int:
        """Ticks of the processor that it has had."""

    def peak_memory(self) -> int:
        """Bytes of memory that it has held at most."""


class Host(Protocol):
    """Where one worker is: a process of this machine; or, say, an actor of an engine that has workers of its own.

    It is spoken to by the channel, whose other end closes as the worker ends. `usage` is None where nobody knows it.
    """

    channel: Channel

    @property
    def usage(self) -> Usage | None: ...

    def kill(self) -> None:
        """End it at once."""

    def ended(self) -> str:
        """Wait for its end, which is near, and say how it came, in words."""

    def dismiss(self) -> None:
        """Nobody will ask how it ended."""


class Local:
    """Does tasks in this process, when their turn has come."""

    backlog = None
    workers = ()

    def __init__(
        self,
        executor: Executor,
        one_thread: Callable[[], AbstractContextManager[None]],
        keep: Callable[[], None] | None = None,
    ) -> None:
        self._executor = executor
        self._one_thread = one_thread
        self._keep = keep
        self._known: set[int] = set()

    def work(self, turns: Queues | DeviceTurns, open: Collection[SimulatedAsk]) -> bool:
        """Do the task whose turn it is, and others after it for a moment; False if there is none."""
        tickets = turns.batch(open, self.at_once)
        if tickets:
            self.do(tickets, time.perf_counter() + MOMENT)
        return bool(tickets)

    def at_once(self, sent: SimulatedAsk) -> int:
        """How many tasks of an ask may be done before the first is told of."""
        self._open(sent)
        block = self._executor.at_once(sent.id)
        return BLOCKS * block if block > 1 else 1

    def do(self, tickets: Sequence[Ticket], until: float) -> None:
        """Do the first of these now, and as many others as can be begun until then."""
        sent, first = tickets[0].sent, iter([True])
        self._open(sent)
        block = self._executor.at_once(sent.id)
        with self._one_thread():
            for start in range(0, len(tickets), block):
                part = tickets[start : start + block]
                outcomes = self._executor.run_all(
                    sent.id,
                    [ticket.task.client for ticket in part],
                    lambda: next(first, False) or time.perf_counter() <= until,
                    fold=bool(sent.plain),
                )
                for ticket, outcome in zip(part, outcomes, strict=False):
                    ticket.done, ticket.holder, ticket.failed = True, self, outcome
                    if sent.done is not None:
                        sent.done.append(ticket)
                if len(outcomes) < len(part):
                    break

    def _open(self, sent: SimulatedAsk) -> None:
        if sent.id not in self._known:
            self._known.add(sent.id)
            self._executor.open(sent.id, sent.ask, sent.round, sent.number, sent.params)

    def admit(self, command: Admit, into: SimulatedAsk) -> None:
        """Fold a result into an ask."""
        self._open(into)
        self._executor.admit(command)

    def cancel(self, ticket: Ticket) -> None:
        """Let go of a result."""
        self._executor.cancel([ticket.task.id])

    def close(self, sent: SimulatedAsk) -> ClosedAsk:
        """Give back what was folded."""
        self._open(sent)
        opened = self._executor.close(sent.id)
        return ClosedAsk(opened.partial, opened.states, opened.refused, self._executor.take_account())

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these."""
        self._executor.forget(keep)
        self._known &= keep

    def disconnect(self, whole: bool = False) -> None:
        """Forget all asks, and have the client let go of what it holds."""
        self.forget(set())
        self._executor.release()
        if whole and self._keep is not None:
            self._keep()


class HostedWorker:
    """A worker as the main process sees it: what it was handed, and what it holds. Every method that talks to it does
    nothing once it is gone.

    `row` are the words that it shares with the main process (see `status`), `duty` is which run it is to work for.
    """

    def __init__(self, index: int, host: Host, row: memoryview, duty: PackedMessage) -> None:
        self.index = index
        self.host = host
        self.channel = host.channel
        self.row = row
        self.holds: set[int] = set()
        self.out: dict[int, list[Ticket]] = {}
        self.seconds_out = 0.0
        self.alive = True
        self._done: list[Ticket] = []
        self._known: set[int] = set()
        self._batch = 0
        self._guesses: dict[int, float] = {}
        self._admits: list[Admit] = []
        self._cancels: list[str] = []
        self._sign: tuple[Any, ...] = ()
        self._since = 0.0
        self._step: tuple[Any, ...] = ()
        self._step_since = 0.0
        self._unwanted: tuple[int, float] | None = None
        for word in (BATCH, PLACE, STEPS, CANCELLED):
            row[word] = 0
        self._send(duty)

    def do(self, tickets: list[Ticket], guess: float, encoded: Callable[[ClientId], bytes | None]) -> None:
        """Hand over a batch."""
        portions: list[Portion] = []
        sent, folded = None, False
        for ticket in tickets:
            plain = bool(ticket.sent.plain)
            if ticket.sent is not sent or plain is not folded:
                sent, folded = ticket.sent, plain
                self._open(sent)
                portions.append((sent.id, [], folded, {}, {}, []))
                if folded:
                    self.holds.add(sent.id)
            _, clients, _, states, own, admits = portions[-1]
            client = ticket.task.client
            ticket.holder, ticket.folding = self, folded or ticket.admit is not None
            if not ticket.told:  # else it has to come out as it did before, whatever came to the client since
                ticket.state = encoded(client)
            clients.append(client)
            if ticket.state is not None:
                states[client] = ticket.state
            if sent.routed:
                own[client] = {name: for_client(getattr(sent.ask, name), client) for name in sent.routed}
            if ticket.admit is not None and not folded:
                assert ticket.into is not None
                self._open(ticket.into)
                admits.append(ticket.admission)
                self.holds.add(ticket.admit.ask)
        self.flush()
        self._batch += 1
        if not self.out:
            self._since, self._step = time.monotonic(), ()
        self.out[self._batch] = tickets
        self._guesses[self._batch] = guess
        self.seconds_out += guess
        self._send(("do", self._batch, portions))

    def reported(self, report: Report) -> list[Ticket]:
        """Take in what came of a batch: its tickets, those among them that are not done being to do again."""
        self._since, self._step = time.monotonic(), ()
        tickets = self.out.pop(report.batch)
        self.seconds_out -= self._guesses.pop(report.batch)
        skipped = set(report.skipped)
        for ticket in tickets:
            ticket.done = ticket.task.id not in skipped
            ticket.failed = report.failed.get(ticket.task.id)
            if ticket.done and ticket.failed is None and not ticket.wanted:
                self.cancel(ticket)
        self._done += tickets
        return tickets

    def _open(self, sent: SimulatedAsk) -> None:
        if sent.id in self._known:
            return
        self._known.add(sent.id)
        self._send(sent.packed())

    def admit(self, command: Admit, into: SimulatedAsk) -> None:
        """Have a result folded into an ask."""
        self._open(into)
        self.holds.add(command.ask)
        self._admits.append(command)

    def cancel(self, ticket: Ticket) -> None:
        """Let go of a result. Where there is none yet, and nothing else in the batch is wanted, it is broken off; what
        else is in it comes back.
        """
        if ticket.done:
            self._cancels.append(ticket.task.id)
            return
        for batch, tickets in self.out.items():
            if ticket in tickets and not any(other.wanted for other in tickets):
                self.row[CANCELLED] = max(self.row[CANCELLED], batch)

    def flush(self) -> None:
        """Send what was kept back so far, since it had time."""
        if self._admits:
            self._send(("admit", self._admits))
            self._admits = []
        if self._cancels:
            self._send(("cancel", self._cancels))
            self._cancels = []

    def ask_to_close(self, sent: SimulatedAsk) -> None:
        """Ask for what was folded; it comes as a message."""
        self._open(sent)
        self.flush()
        self.holds.discard(sent.id)
        self._send(("close", sent.id))

    def gave(self, sent: SimulatedAsk) -> None:
        """What it had folded of an ask is safe in the main process."""
        for ticket in self._done:
            # Else it is another's by now, or on its way here for the second time.
            if ticket.into is sent and ticket.holder is self and ticket.done:
                ticket.holder = None
        self._let_go()

    def _let_go(self) -> None:
        self._done = [t for t in self._done if t.holder is self and t.done and t.wanted and t.failed is None]

    @property
    def tickets(self) -> list[Ticket]:
        """What would have to be done again without it, and what it is still to do."""
        self._let_go()
        out = (ticket for ticket in chain.from_iterable(self.out.values()) if ticket.wanted)
        return [*dict.fromkeys(self._done), *out]

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these."""
        self._let_go()
        if self._known - keep:
            self._known &= keep
            self._send(("forget", keep))

    def running(self) -> Ticket | None:
        """The ticket it is at, if any."""
        tickets = self.out.get(self.row[BATCH], [])
        place = self.row[PLACE]
        return tickets[place - 1] if 0 < place <= len(tickets) else None

    def stalled(self, now: float, limit: float) -> bool:
        """Whether it has shown no sign of progress for so many seconds: no step, or, where it never steps, no time of
        the processor.
        """
        if not self.out:
            return False
        steps, usage = self.row[STEPS], self.host.usage
        try:  # where nobody knows, ever more time is taken for progress
            spent = 0 if steps else usage.processor_time() if usage is not None else time.monotonic_ns()
        except EOFError:
            return False  # it never came to be, which is seen where its messages are read
        sign = (self.row[BATCH], self.row[PLACE], steps, spent)
        if sign != self._sign:
            self._sign, self._since = sign, now
        return now - self._since > limit

    def steps_since(self, now: float) -> float:
        """For how many seconds it has been at one task without a step."""
        sign = (self.row[BATCH], self.row[PLACE], self.row[STEPS])
        if sign != self._step or not self.out:
            self._step, self._step_since = sign, now
        return now - self._step_since

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and has been sent all that there was."""
        return self.alive and not self.out and not self.channel.waiting

    @property
    def in_vain(self) -> bool:
        """Whether it is at a batch of which nothing is wanted."""
        tickets = self.out.get(self.row[BATCH], [])
        return bool(tickets) and not any(ticket.wanted for ticket in tickets)

    def unwanted_since(self, now: float) -> float:
        """For how long it has been seen to be at a batch of which nothing is wanted."""
        if not self.in_vain:
            self._unwanted = None
            return 0.0
        batch = self.row[BATCH]
        if self._unwanted is None or self._unwanted[0] != batch:
            self._unwanted = (batch, now)
        return now - self._unwanted[1]

    def peak_memory(self) -> int:
        """Bytes of memory that it has held at most; 0 where nobody says."""
        with suppress(EOFError):
            if self.host.usage is not None:
                return self.host.usage.peak_memory()
        return 0

    def lost(self) -> str:
        """Make sure that it is gone, and say how it ended, in words."""
        self.channel.close()
        self.alive = False
        self.host.kill()  # in case that it only closed its end
        return self.host.ended()

    def end(self) -> None:
        """End it: at once if it is at work."""
        if self.out:
            self.host.kill()
        self.channel.close()
        self.host.dismiss()
        self.alive = False

    def _send(self, message: tuple[Any, ...] | PackedMessage) -> None:
        with suppress(EOFError):  # that it is gone is seen where its messages are read
            self.channel.post(message)
