"""What is still to do in a simulation, and in which portions it is handed to worker processes."""

from __future__ import annotations

import heapq
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.ask import SENT, Ask
from ..core.task import Admit, Failed, Task
from ..errors import ClientId, StrategyError, UmbelError
from .channel import PackedMessage

if TYPE_CHECKING:
    from .devices import TaskFate
    from .hosts import HostedWorker, Local

PORTION = 0.25
"""Seconds of work that a worker is handed at most where tasks are short; several such portions make a round."""
LEAST = 0.005
UNKNOWN = 2 * PORTION
MOST_AT_ONCE = 256
NOTED_FROM = 0.005
NOTED = 10_000


@dataclass(eq=False)
class SimulatedAsk:
    """An ask as a simulation knows it.

    `plain` when each result can be folded as soon as it is there; `done` holds those that are to be told of as they
    come, and is None where all are told of in turn; `transfers` is how many bytes each client gets and sends.
    """

    id: int
    ask: Ask
    round: int
    number: int
    params: Any
    cohort: tuple[ClientId, ...] = ()
    plain: bool | None = None
    parcel: PackedMessage | None = None
    done: deque[Ticket] | None = None
    admitted: list[Ticket] = field(default_factory=list)
    refused: dict[ClientId, str] = field(default_factory=dict)
    closes_at: float | None = None
    transfers: tuple[int, int] | None = None

    @cached_property
    def lane(self) -> str:
        """The lane that the ask belongs to."""
        return str(self.ask.lane)

    @cached_property
    def routed(self) -> tuple[str, ...]:
        """The fields that each client gets its own of."""
        return tuple(name for name in SENT if callable(getattr(self.ask, name)))

    @cached_property
    def clients(self) -> frozenset[ClientId]:
        """Its cohort as a set."""
        return frozenset(self.cohort)

    def packed(self) -> PackedMessage:
        """The message that makes it known to a worker."""
        if self.parcel is None:
            # A client's own share of an ask goes with its task; what is a function never leaves this process.
            routed: dict[str, Any] = dict.fromkeys(self.routed, _nothing)
            lean = replace(self.ask, clients=(), **routed)
            try:
                self.parcel = PackedMessage(("open", self.id, lean, self.routed, self.round, self.number, self.params))
            except (UmbelError, MemoryError):
                raise
            except Exception as error:
                raise StrategyError(
                    f"an ask cannot be sent to worker processes: {type(error).__name__}: {error}",
                    hint="What it holds has to be picklable: arrays, numbers, text, functions. Or use workers=0.",
                ) from error
        return self.parcel

    def let_go(self) -> None:
        """Nobody needs it any more."""
        if self.parcel is not None:
            self.parcel.close()


class Ticket:
    """A task on its way through a simulation.

    `admit` says how its result is folded, once that is known, and `into` which ask; `told` that the coordinator knows
    its end; `folding` that its holder folds it without being told again; `state` is the client's state that it was
    handed; `trip` what becomes of it on the client's device; `losses` counts the workers that it has ended.
    """

    # There are many, most of which never have anything else than this.
    admit: Admit | None = None
    into: SimulatedAsk | None = None
    done = False
    told = False
    wanted = True
    folding = False
    failed: Failed | None = None
    holder: HostedWorker | Local | None = None
    state: bytes | None = None
    losses = 0
    at = 0.0
    trip: TaskFate | None = None

    def __init__(self, task: Task, sent: SimulatedAsk) -> None:
        self.task, self.sent = task, sent

    def fold(self) -> None:
        """Have its result folded as it was admitted."""
        assert self.into is not None
        if self.failed is not None:  # done again after its first result was lost with a worker
            self.into.refused[self.task.client] = self.failed.reason
        else:
            assert self.holder is not None
            self.holder.admit(self.admission, self.into)

    @property
    def admission(self) -> Admit:
        """How its result alone is folded."""
        assert self.admit is not None
        return replace(self.admit, tasks=[self.task.id])


def _nothing(client: ClientId) -> None:
    """Stands for a function of the client."""


class Durations:
    """How long tasks take: by client where they take long, and on average."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, ClientId], float] = OrderedDict()
        self._mean: dict[str, float] = {}

    def note(self, kind: str, client: ClientId, seconds: float) -> None:
        """A task of this kind took so long."""
        mean = self._mean.get(kind)
        self._mean[kind] = seconds if mean is None else mean + 0.05 * (seconds - mean)
        if seconds < NOTED_FROM:
            return
        self._of[kind, client] = seconds
        self._of.move_to_end((kind, client))
        if len(self._of) > NOTED:
            self._of.popitem(last=False)

    def guess(self, kind: str, client: ClientId) -> float | None:
        """How long a task will take; None where nothing is known."""
        mean = self._mean.get(kind)
        return self._of.get((kind, client), mean) if self._of else mean


class Backlog:
    """Tickets that no worker has, to be handed out.

    Those of plain asks may be done in any order: the longest go first, and each client has a worker that is preferred,
    since it may still have the client's data. All others are handed out by the time or the turn they have.
    """

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._lost: deque[Ticket] = deque()
        self._turns: list[tuple[float, int, Ticket]] = []
        self._count = 0
        self._fresh: list[Ticket] = []
        self._homes: list[deque[tuple[float, Ticket]]] = [deque() for _ in range(self._workers)]
        self._left = [0.0] * self._workers
        self.durations = Durations()

    def __bool__(self) -> bool:
        return bool(self._lost or self._turns or self._fresh or any(self._homes))

    def add(self, ticket: Ticket) -> None:
        """A new ticket."""
        if ticket.sent.plain:
            self._fresh.append(ticket)
            return
        self._count += 1
        heapq.heappush(self._turns, (ticket.trip.ends if ticket.trip else 0.0, self._count, ticket))

    def again(self, ticket: Ticket) -> None:
        """A ticket to be done once more, which no worker has now: it goes first."""
        ticket.done, ticket.holder = False, None
        self._lost.append(ticket)

    def portion(self, worker: int) -> tuple[list[Ticket], float]:
        """What a worker is handed next, and about how long it takes."""
        if found := self._again() or self._by_turn():
            return found, sum(self._guess(ticket) or 0.0 for ticket in found)
        self._sort()
        goal = max(LEAST, min(PORTION, sum(self._left) / (2 * self._workers)))
        chosen: list[Ticket] = []
        seconds = unknown = 0.0
        while len(chosen) < MOST_AT_ONCE:
            home = worker
            if not self._homes[home]:
                if chosen or not any(self._homes):
                    break
                home = max((n for n, waiting in enumerate(self._homes) if waiting), key=lambda n: self._left[n])
            guess, ticket = self._homes[home][0]
            if chosen and seconds + guess > goal:
                break
            self._homes[home].popleft()
            self._left[home] -= guess
            if ticket.wanted:
                worker = home
                chosen.append(ticket)
                seconds += guess
                unknown += guess if guess == UNKNOWN else 0.0
        return chosen, seconds - unknown

    def _again(self) -> list[Ticket]:
        while self._lost:
            ticket = self._lost.popleft()
            if ticket.wanted:
                return [ticket]  # one by one: one of them may have ended its worker
        return []

    def _by_turn(self) -> list[Ticket]:
        chosen: list[Ticket] = []
        seconds = 0.0
        while self._turns and len(chosen) < MOST_AT_ONCE:
            ticket = self._turns[0][2]
            guess = self._guess(ticket)
            hurried = ticket.trip is None and ticket.sent.closes_at is not None  # what is done is told of at once
            if chosen and (guess is None or hurried or seconds + guess > LEAST):
                break
            heapq.heappop(self._turns)
            if ticket.wanted:
                chosen.append(ticket)
                seconds += guess or 0.0
        return chosen

    def _sort(self) -> None:
        if not self._fresh:
            return
        # While nothing is known they are handed out one by one.
        known = [(UNKNOWN if (guess := self._guess(t)) is None else guess, t) for t in self._fresh if t.wanted]
        self._fresh.clear()
        for home in self._homes:
            known += home
            home.clear()
        if len({guess for guess, _ in known}) > 1:
            known.sort(key=lambda row: -row[0])
        self._left = [0.0] * self._workers
        for row in known:
            home_index = home_of(row[1].task.client, self._workers)
            self._homes[home_index].append(row)
            self._left[home_index] += row[0]

    def _guess(self, ticket: Ticket) -> float | None:
        return self.durations.guess(ticket.sent.ask.kind, ticket.task.client)

    def reconsider(self) -> None:
        """Guess again how long everything takes, now that more is known."""
        for home in self._homes:
            self._fresh += [ticket for _, ticket in home]
            home.clear()


def home_of(client: ClientId, workers: int) -> int:
    """The worker that a client's tasks go to unless another one is idle."""
    return (client if isinstance(client, int) else zlib.crc32(client.encode())) % workers
