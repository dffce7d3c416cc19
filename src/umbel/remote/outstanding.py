"""The tasks of a run that nodes have, and the clients that show no sign of life."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..core.task import Task


@dataclass(slots=True)
class _Sent:
    task: Task
    seen: float
    warned: bool = False


class Outstanding:
    """Tasks that were sent and are not over. Each has failed after `stall` seconds without a sign of life by `clock`;
    halfway there is a warning.
    """

    def __init__(self, stall: float, clock: Callable[[], float]) -> None:
        self.stall = stall
        self._clock = clock
        self._sent: dict[str, _Sent] = {}

    def __contains__(self, id: object) -> bool:
        return id in self._sent

    def __iter__(self) -> Iterator[Task]:
        return iter([sent.task for sent in self._sent.values()])

    def __len__(self) -> int:
        return len(self._sent)

    def __getitem__(self, id: str) -> Task:
        return self._sent[id].task

    def add(self, task: Task) -> None:
        """A task is sent."""
        self._sent[task.id] = _Sent(task, self._clock())

    def remove(self, id: str) -> Task | None:
        """A task is over; None where it was that before."""
        sent = self._sent.pop(id, None)
        return None if sent is None else sent.task

    def seen(self, ids: Iterable[str]) -> None:
        """The clients of these tasks have shown a sign of life."""
        for id in ids:
            if id in self._sent:
                self._sent[id].seen, self._sent[id].warned = self._clock(), False

    def count_anew(self) -> None:
        """All clients could not be heard until now."""
        for sent in self._sent.values():
            sent.seen = self._clock()

    def silent(self) -> Iterator[tuple[Task, float, bool]]:
        """Clients without a sign of life, each by its task, with for how many seconds, and whether the task has failed
        by that: it is over then. A task is told of once as a warning.
        """
        now = self._clock()
        for sent in list(self._sent.values()):
            silent = now - sent.seen
            if silent >= self.stall:
                del self._sent[sent.task.id]
                yield sent.task, silent, True
            elif silent >= self.stall / 2 and not sent.warned:
                sent.warned = True
                yield sent.task, silent, False

    def until(self) -> list[float]:
        """When somebody may come to be silent for too long."""
        if not self._sent:
            return []
        unwarned = [sent.seen for sent in self._sent.values() if not sent.warned]
        times = [min(sent.seen for sent in self._sent.values()) + self.stall]
        return [*times, min(unwarned) + self.stall / 2] if unwarned else times
