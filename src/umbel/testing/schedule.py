"""Random schedules of everything that can happen to a coordinator, which replay exactly from their seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..core.randomness import Key
from ..core.task import Cancel, Failed, Finished, Send, Task, Ticked
from ..core.window import Window
from ..runs.coordinator import Close, Command, Coordinator, Event, Opened
from .clock import VirtualClock

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of a schedule: what the coordinator was told, when, and what it commanded."""

    now: float
    event: Event
    commands: tuple[Command, ...]


class Schedule:
    """A random life of a coordinator, from its seed: equal arguments give the same events at the same times.

    Asks with random cohorts and windows open in several lanes; their tasks finish, or fail with or without another
    attempt, in any order; answers come twice, late, or from tasks that nobody sent; time passes. In the end every task
    that is still out is answered and time runs past every deadline, so that a coordinator that keeps its promises has
    closed every ask; one schedule in eight is stopped instead.

    - `asks`, `clients`, `lanes`: how many of each; asks may be fewer where one never closes.
    - `attempts`: the coordinator's own setting.
    - `late`: what windows do with late answers, `"drop"` or `"keep"`; both at random where it is None.
    """

    def __init__(
        self, seed: int, *, asks: int = 6, clients: int = 8, lanes: int = 2, attempts: int = 3, late: str | None = None
    ) -> None:
        self._draws = Key.from_seed(seed).draws()
        self._asks = asks
        self._clients = clients
        self._late = late
        self.coordinator = Coordinator(attempts)
        self.clock = VirtualClock()
        self.log: list[Entry] = []
        self._open: dict[str, int | None] = {f"lane {i}": None for i in range(lanes)}
        self._opened = 0
        self._out: dict[str, Task] = {}
        self._over: list[str] = []

    def run(self) -> list[Entry]:
        """Let everything happen and return the log."""
        while self._opened < self._asks and len(self.log) < 60 * self._asks:
            self._step()
        for _ in range(60 * self._asks):
            if not self._out and not any(ask is not None for ask in self._open.values()):
                break
            self._drain()
        return self.log

    def _step(self) -> None:
        idle = [lane for lane, ask in self._open.items() if ask is None]
        roll = self._below(16)
        if idle and (roll < 3 or not self._out):
            self._open_ask(self._pick(idle))
        elif self._out and roll < 10:
            self._tell(Finished([self._pick(list(self._out))]))
        elif self._out and roll < 13:
            self._tell(Failed(self._pick(list(self._out)), f"reason {roll}", retry=roll > 10))
        elif self._over and roll < 14:
            id = self._pick(self._over)
            self._tell(Finished([id]) if self._below(2) else Failed(id, "again", retry=self._below(2) == 0))
        elif roll < 15:
            self._tell(Finished([f"{self._opened + self._below(3)}.nobody"]))
        else:
            self.clock.advance(self._below(40) / 8)
            self._tell(Ticked())

    def _drain(self) -> None:
        if self._out and self._below(4):
            id = self._pick(list(self._out))
            self._tell(Finished([id]) if self._below(4) else Failed(id, "at last", retry=self._below(2) == 0))
        else:
            self.clock.advance(5.0)
            self._tell(Ticked())

    def _open_ask(self, lane: str) -> None:
        cohort = self._draws.sample(self._clients, self._below(self._clients + 1)).tolist()
        ask, self._opened = self._opened, self._opened + 1
        self._open[lane] = ask
        self._tell(Opened(ask, lane, cohort, self._window()))

    def _window(self) -> Window:
        close_after = self._pick([None, None, 1, 2, 3, self._clients])
        return Window(
            in_flight=self._pick([None, None, 1, 2, 4]),
            close_after=close_after,
            quorum=self._below((close_after or 4) + 1),
            deadline=self._pick([None, None, 0.5, 4.0, 12.0]),
            late="keep" if (self._late or self._pick(["keep", "drop"])) == "keep" else "drop",
            staleness_exponent=self._pick([0.0, 0.5, 1.0]),
        )

    def _tell(self, event: Event) -> None:
        tasks = event.tasks if isinstance(event, Finished) else [event.task] if isinstance(event, Failed) else []
        self._over += [task for task in tasks if self._out.pop(task, None) is not None]
        commands = self.coordinator.handle(event, self.clock())
        self.log.append(Entry(self.clock(), event, tuple(commands)))
        for command in commands:
            if isinstance(command, Send):
                self._out.update((task.id, task) for task in command.tasks)
            elif isinstance(command, Cancel):
                self._over += [task for task in command.tasks if self._out.pop(task, None) is not None]
            elif isinstance(command, Close):
                lane = next(lane for lane, ask in self._open.items() if ask == command.ask)
                self._open[lane] = None

    def _below(self, bound: int) -> int:
        return int(self._draws.integers(bound, 1)[0])

    def _pick(self, items: Sequence[Item]) -> Item:
        return items[self._below(len(items))]


def replay(log: Iterable[Entry], *, attempts: int = 3) -> list[tuple[Command, ...]]:
    """What a fresh coordinator commands when it is told the same events at the same times."""
    coordinator = Coordinator(attempts)
    return [tuple(coordinator.handle(entry.event, entry.now)) for entry in log]
