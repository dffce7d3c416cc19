"""The tasks of a run that nodes have, and the clients that show no sign of life."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..core.task import Task


@dataclass(slots=True)
class _Sent:
    task: Task
    seen: float


class Outstanding:
    """Tasks that were sent and are not over. Each has failed after `stall` seconds without a sign of life by `clock`;
    halfway there is a warning.
    """

    def __init__(self, stall: float, clock: Callable[[], float]) -> None:
        self.stall = stall
        self._clock = clock
        self._sent: dict[str, _Sent] = {}
        # Those that were not warned of, and those that were, the longest silent first: nobody else need be looked at.
        self._calm, self._warned = OrderedDict[str, _Sent](), OrderedDict[str, _Sent]()

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
        self.remove(task.id)
        self._sent[task.id] = self._calm[task.id] = _Sent(task, self._clock())

    def remove(self, id: str) -> Task | None:
        """A task is over; None where it was that before."""
        sent = self._sent.pop(id, None)
        if sent is None:
            return None
        (self._calm if id in self._calm else self._warned).pop(id)
        return sent.task

    def seen(self, ids: Iterable[str]) -> None:
        """The clients of these tasks have shown a sign of life."""
        for id in ids:
            if (sent := self._sent.get(id)) is not None:
                sent.seen = self._clock()
                self._warned.pop(id, None)
                self._calm[id] = sent
                self._calm.move_to_end(id)

    def count_anew(self) -> None:
        """All clients could not be heard until now."""
        for sent in self._sent.values():
            sent.seen = self._clock()

    def silent(self) -> Iterator[tuple[Task, float, bool]]:
        """Clients without a sign of life, each by its task, with for how many seconds, and whether the task has failed
        by that: it is over then. A task is told of once as a warning.
        """
        now = self._clock()
        for among, most in ((self._calm, self.stall / 2), (self._warned, self.stall)):
            while (sent := _first(among)) is not None and (silent := now - sent.seen) >= most:
                id = sent.task.id
                if silent >= self.stall:
                    self.remove(id)
                else:
                    self._warned[id] = self._calm.pop(id)
                yield sent.task, silent, silent >= self.stall

    def until(self) -> list[float]:
        """When somebody may come to be silent for too long."""
        calm, warned = _first(self._calm), _first(self._warned)
        times = [min(sent.seen for sent in (calm, warned) if sent is not None) + self.stall] if self._sent else []
        return times if calm is None else [*times, calm.seen + self.stall / 2]


def _first(among: OrderedDict[str, _Sent]) -> _Sent | None:
    return next(iter(among.values()), None)
