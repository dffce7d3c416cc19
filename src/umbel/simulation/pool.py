"""The workers of one run: each is handed what waits, heard, and replaced should it die.

What a worker held when it died is done again, and folded as it was before. Only the client that it was working for then
is suspected, and fails once it has ended as many workers as it has attempts.
"""

from __future__ import annotations

import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..core.partial import Partial
from ..core.task import Failed
from ..errors import AppError, ClientCrashed, ClientId
from ..work.account import Account
from ..work.intake import ClosedAsk
from .backlog import Backlog, SimulatedAsk, Ticket
from .hosts import HostedWorker
from .turns import Queues
from .worker import Contents, Report

if TYPE_CHECKING:
    from .virtual import DeviceTurns

AHEAD = 0.05
"""A worker that has less than so many seconds of work before it is handed more."""
PATIENCE = 2.0
"""For how many seconds at most a worker may go on with what nobody wants while others wait."""
REPLACED = 0.1
"""About how many seconds it takes until another worker is at work in its place."""
LONGEST_WAIT = 3600.0
"""Nobody waits longer than so many seconds at once: systems cannot wait for more than some weeks."""
IN_VAIN = 10
"""So many workers may end, one after the other, before any of them has done anything."""


class Workers(Protocol):
    """Workers, as a run starts them."""

    @property
    def size(self) -> int:
        """How many there are."""

    def hire(self, index: int) -> HostedWorker:
        """Start one, or start it again."""

    def keep(self, worker: HostedWorker) -> bool:
        """Take one back that has nothing to do; False where it is to be ended."""

    def dismiss(self) -> None:
        """Let go of what they share, once they are ended."""


class WorkerPool:
    """The workers of one run, which do what is in the `backlog`.

    `encoded` gives the states of clients, `attempts`, `stall` and `longest_step` are as in `Simulation`.
    """

    def __init__(
        self,
        crew: Workers,
        encoded: Callable[[ClientId], bytes | None],
        *,
        attempts: int,
        stall: float | None,
        longest_step: float | None = None,
    ) -> None:
        self.backlog = Backlog(crew.size)
        self.workers: list[HostedWorker] = []
        self._crew = crew
        self._encoded = encoded
        self._attempts = attempts
        self._stall, self._longest_step = stall, longest_step
        self._reports = 0
        self._in_vain = 0
        self._account = Account()
        self._contents: deque[tuple[HostedWorker, Contents]] = deque()
        self._selector = selectors.DefaultSelector()
        try:
            for index in range(crew.size):
                self.workers.append(self._hired(index))
        except BaseException:
            self.disconnect()
            raise

    def _hired(self, index: int) -> HostedWorker:
        worker = self._crew.hire(index)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        return worker

    def work(self, turns: Queues | DeviceTurns, open: Collection[SimulatedAsk]) -> bool:
        """Hand out what there is, and take in what comes next; False if nothing is on its way."""
        self._hand_out()
        wait = turns.wait()
        if wait is None and not any(worker.out for worker in self.workers):
            return False
        self._listen(wait)
        return True

    def _hand_out(self) -> None:
        for ahead in (0.0, AHEAD):
            for worker in self.workers:
                while self.backlog and (not worker.out or (len(worker.out) < 2 and 0.0 < worker.seconds_out < ahead)):
                    tickets, guess = self.backlog.portion(worker.index)
                    if not tickets:
                        break
                    worker.do(tickets, guess, self._encoded)

    def _listen(self, wait: float | None = None, *, closing: bool = False) -> None:
        """Wait for messages, for so many seconds at most, or until the next look at whether all make progress."""
        # Not by the task that a worker is seen to be at: it may begin one just after this has looked.
        limits = [0.25] if self._stall is not None or any(w.in_vain for w in self.workers) else []
        if self._longest_step is not None:
            limits.append(min(self._longest_step / 4, LONGEST_WAIT))
        if wait is not None:
            limits.append(min(wait, LONGEST_WAIT))
        for worker in self.workers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.channel.waiting else 0)
            if self._selector.get_key(worker.channel).events != events:
                self._selector.modify(worker.channel, events, worker)
        for selected, events in self._selector.select(min(limits, default=None)):
            worker = selected.data
            if not worker.alive:
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    worker.channel.flush()
                if events & selectors.EVENT_READ:
                    self._heard(worker, worker.channel.receive())
            except EOFError:
                self._lost(worker)
        if limits:
            self._watch(closing)

    def _heard(self, worker: HostedWorker, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "report":
            self._reported(worker, *rest)
        elif kind == "partial":
            self._contents.append((worker, rest[1]))
        elif kind == "printed":
            _print(rest[1], getattr(sys, rest[0]))
        else:
            raise rest[0]

    def _reported(self, worker: HostedWorker, report: Report, account: Account) -> None:
        self._account.add(account)
        tickets = worker.reported(report)
        for ticket, seconds in zip(tickets, report.seconds, strict=False):
            self.backlog.durations.note(ticket.sent.ask.kind, ticket.task.client, seconds)
        self._reports += 1
        self._in_vain = 0
        if self._reports & (self._reports - 1) == 0:
            self.backlog.reconsider()
        for ticket in tickets:
            self._came_in(ticket)

    def _came_in(self, ticket: Ticket) -> None:
        if not ticket.wanted:
            return
        if not ticket.done:
            self.backlog.again(ticket)
        elif not ticket.told:
            if ticket.sent.done is not None:
                ticket.sent.done.append(ticket)
        elif ticket.admit is not None and (not ticket.folding or ticket.failed is not None):
            ticket.fold()

    def _watch(self, closing: bool) -> None:
        now = time.monotonic()
        for worker in list(self.workers):
            if self._stall is not None and worker.stalled(now, self._stall):
                self._lost(worker, f"showed no progress for {self._stall:g} seconds and was ended")
            elif self._longest_step is not None and worker.steps_since(now) > self._longest_step:
                why = f"took more than {self._longest_step:g} seconds without a ctx.step() and was ended"
                self._lost(worker, f"{why}; if it is to take as long, say so by Simulation(longest_step=...)")
            elif self.backlog or closing or len(worker.out) > 1:
                since = worker.unwanted_since(now)
                if since > REPLACED and since > self._patience(worker):
                    self._lost(worker)

    def _patience(self, worker: HostedWorker) -> float:
        """How long to wait for a worker that is at what nobody wants: no longer than it takes to replace it and to do
        again what it holds.
        """
        guess = self.backlog.durations.guess
        held = (guess(t.sent.ask.kind, t.task.client) or 0.0 for t in worker.tickets if t.done)
        return min(PATIENCE, REPLACED + sum(held))

    def _lost(self, worker: HostedWorker, how: str | None = None) -> None:
        """A worker is gone: what it had is done again, and another one takes its place."""
        if not worker.alive:
            return
        self._selector.unregister(worker.channel)
        suspect = worker.running()
        ended = worker.lost()
        self._in_vain += suspect is None
        if self._in_vain == IN_VAIN:
            raise AppError(
                f"worker processes end before they can do anything; the last {how or ended}",
                hint="Does the client's module end the process when it is imported? Is the memory limit too low? "
                "Try workers=0.",
            )
        for ticket in worker.tickets:
            if ticket is suspect:
                self._suspect(ticket, how or ended)
            else:
                self.backlog.again(ticket)
        self.workers[worker.index] = self._hired(worker.index)

    def _suspect(self, ticket: Ticket, how: str) -> None:
        ticket.holder = None
        ticket.losses += 1
        ticket.done = ticket.losses >= self._attempts
        if ticket.done:  # it is not for the coordinator to try again: in turn, nothing has happened yet
            ticket.failed = Failed(ticket.task.id, ClientCrashed(f"its process {how}").message)
        self._came_in(ticket)

    def close(self, sent: SimulatedAsk) -> ClosedAsk:
        """Get the parts of an ask from all workers, once all that was admitted is folded."""
        closed = ClosedAsk(Partial(sent.ask.fold))
        asked: set[HostedWorker] = set()
        while True:
            if all(ticket.done for ticket in sent.admitted):
                for worker in self.workers:
                    if sent.id in worker.holds:
                        worker.ask_to_close(sent)
                        asked.add(worker)
                if not asked:
                    closed.account, self._account = self._account, Account()
                    return closed
            self._hand_out()
            self._listen(closing=True)
            asked = {worker for worker in asked if worker.alive}
            while self._contents:
                worker, contents = self._contents.popleft()
                self._take(closed, contents)
                asked.discard(worker)
                worker.gave(sent)

    def _take(self, closed: ClosedAsk, contents: Contents) -> None:
        began = time.perf_counter()
        partial, states, refused, account = contents
        closed.partial.merge_contents(partial)
        closed.states.update(states)
        closed.refused.update(refused)
        self._account.add(account)
        self._account.folding += time.perf_counter() - began

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these."""
        for worker in self.workers:
            worker.forget(keep)

    def disconnect(self, whole: bool = False) -> None:
        """End the workers; after a `whole` run those that are idle may be kept for another one."""
        alive = [worker for worker in self.workers if worker.alive]
        ending = []
        for worker in alive:
            with suppress(KeyError, ValueError):
                self._selector.unregister(worker.channel)
            if not (whole and worker.idle and self._crew.keep(worker)):
                worker.channel.close()  # which ends it if it is idle, even should an interrupt end this here
                ending.append(worker)
        for worker in ending:
            worker.end()
        self.workers.clear()
        self._selector.close()
        self._crew.dismiss()


def _print(text: str, stream: Any) -> None:
    """Print what a worker printed, as well as the stream's encoding allows."""
    try:
        print(text, end="", file=stream)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), end="", file=stream)
