"""Where a simulation's tasks are done: in this process, or in a worker process, which may die."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from ..core.ask import for_client
from ..core.task import Admit, Failed, Task
from ..errors import ClientId, StrategyError, UmbelError
from ..work.account import Account
from ..work.executor import Executor
from .backlog import SimulatedAsk, Ticket
from .channel import PackedMessage
from .processes import Process
from .status import BATCH, CANCELLED, PLACE, STEPS
from .worker import Portion, Report

Contents = tuple[tuple[Any, ...], dict[ClientId, bytes], dict[ClientId, str], Account]
"""What a host gives back of an ask: the contents of its partial, clients' new states, refused updates, its account."""


class Local:
    """Does tasks in this process, as soon as they are handed over."""

    def __init__(self, executor: Executor, one_thread: Callable[[], AbstractContextManager[None]]) -> None:
        self._executor = executor
        self._one_thread = one_thread
        self._known: set[int] = set()

    def at_once(self, sent: SimulatedAsk) -> int:
        """How many tasks of an ask may be done before the first is told of."""
        self._open(sent)
        return self._executor.at_once(sent.id)

    def do(self, tickets: Sequence[Ticket], until: float) -> None:
        """Do the first of these now, and as many others as can be begun until then."""
        for ticket in tickets:
            self._open(ticket.sent)
        with self._one_thread():
            outcomes = self._executor.run_all([t.task for t in tickets], _before(until))
        for ticket, outcome in zip(tickets, outcomes, strict=False):
            ticket.done = True
            ticket.failed = outcome if isinstance(outcome, Failed) else None
            if ticket.failed is None and ticket.admit is not None:
                self.admit(ticket.admit, ticket.sent)

    def _open(self, sent: SimulatedAsk) -> None:
        if sent.id not in self._known:
            self._known.add(sent.id)
            self._executor.open(sent.id, sent.ask, sent.round, sent.number, sent.params)

    def admit(self, command: Admit, into: SimulatedAsk) -> None:
        """Fold a result into an ask."""
        self._open(into)
        self._executor.admit(command)

    def cancel(self, task: str) -> None:
        """Let go of a result."""
        self._executor.cancel(task)

    def close(self, sent: SimulatedAsk) -> Contents:
        """Give back what was folded."""
        self._open(sent)
        opened = self._executor.close(sent.id)
        return opened.partial.contents(), opened.states, opened.refused, self._executor.take_account()

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these."""
        self._executor.forget(keep)
        self._known &= keep


class WorkerHost:
    """A worker process as the main process sees it. Every method that talks to it does nothing once it is gone."""

    def __init__(self, index: int, process: Process, row: memoryview, beginning: PackedMessage) -> None:
        self.index = index
        self.process = process
        self.row = row
        self.holds: set[int] = set()
        self.out: dict[int, list[Ticket]] = {}
        self.seconds_out = 0.0
        self.alive = True
        self._known: set[int] = set()
        self._batch = 0
        self._guesses: dict[int, float] = {}
        self._admits: list[Admit] = []
        self._cancels: list[str] = []
        self._sign: tuple[Any, ...] = ()
        self._since = 0.0
        self._unwanted: tuple[int, float] | None = None
        for word in (BATCH, PLACE, STEPS, CANCELLED):
            row[word] = 0
        self._post(beginning)

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
            ticket.host, ticket.folding = self, folded or ticket.admit is not None
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
                admits.append(ticket.admit)
                self.holds.add(ticket.admit.ask)
        self.flush()
        self._batch += 1
        if not self.out:
            self._since = time.monotonic()
        self.out[self._batch] = tickets
        self._guesses[self._batch] = guess
        self.seconds_out += guess
        self._send(("do", self._batch, portions))

    def reported(self, report: Report) -> list[Ticket]:
        """Take in what came of a batch: its tickets, those among them that are not done being to do again."""
        self._since = time.monotonic()
        tickets = self.out.pop(report.batch)
        self.seconds_out -= self._guesses.pop(report.batch)
        skipped = set(report.skipped)
        for ticket in tickets:
            ticket.done = ticket.task.id not in skipped
            ticket.failed = report.failed.get(ticket.task.id)
            if ticket.done and ticket.failed is None and not ticket.wanted:
                self.cancel(ticket.task.id)
        return tickets

    def _open(self, sent: SimulatedAsk) -> None:
        if sent.id in self._known:
            return
        self._known.add(sent.id)
        if sent.parcel is None:
            # A client's own share of an ask goes with its task; what is a function never leaves this process.
            routed: dict[str, Any] = dict.fromkeys(sent.routed, _nothing)
            lean = replace(sent.ask, clients=(), **routed)
            try:
                sent.parcel = PackedMessage(("open", sent.id, lean, sent.routed, sent.round, sent.number, sent.params))
            except (UmbelError, MemoryError):
                raise
            except Exception as error:
                raise StrategyError(
                    f"an ask cannot be sent to worker processes: {type(error).__name__}: {error}",
                    hint="What it holds has to be picklable: arrays, numbers, text, functions. Or use workers=0.",
                ) from error
        self._post(sent.parcel)

    def admit(self, command: Admit, into: SimulatedAsk) -> None:
        """Have a result folded into an ask."""
        self._open(into)
        self.holds.add(command.ask)
        self._admits.append(command)

    def cancel(self, task: str) -> None:
        """Let go of a result."""
        self._cancels.append(task)

    def cancel_batch_of(self, ticket: Ticket) -> None:
        """Have a batch broken off in which only this task is not wanted any more: what else is in it comes back."""
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

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these."""
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
        steps = self.row[STEPS]
        try:
            pid = self.process.pid
        except EOFError:
            return False  # it never came to be, which is seen where its messages are read
        sign = (self.row[BATCH], self.row[PLACE], steps, 0 if steps else _processor_time(pid))
        if sign != self._sign:
            self._sign, self._since = sign, now
        return now - self._since > limit

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
        """Bytes of memory that it has held at most; 0 where the system does not say."""
        with suppress(OSError, EOFError), open(f"/proc/{self.process.pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return 0

    def end(self) -> None:
        """End it: at once if it is at work."""
        if self.out:
            self.process.kill()
        self.process.channel.close()
        self.process.dismiss()
        self.alive = False

    def _send(self, message: tuple[Any, ...]) -> None:
        with suppress(EOFError):  # that it is gone is seen where its messages are read
            self.process.channel.post(message)

    def _post(self, parcel: PackedMessage) -> None:
        with suppress(EOFError):
            self.process.channel.post_parcel(parcel)


def _nothing(client: ClientId) -> None:
    """Stands for a function of the client."""


def _before(until: float) -> Callable[[Task], bool]:
    """Says yes to the first task, and to others until then."""
    first = True

    def begins(task: Task) -> bool:
        nonlocal first
        said, first = first or time.perf_counter() <= until, False
        return said

    return begins


def _processor_time(pid: int) -> int:
    """Ticks of the processor that a process has had, where the system says so; else ever more, which means progress."""
    if not sys.platform.startswith("linux"):
        return time.monotonic_ns()
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
