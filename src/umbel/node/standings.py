"""Where a run, and each of its tasks, stands at a node: every change is a row of a table."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from ..errors import InternalError

STORY = 12
"""So many of the last steps are told when one is not allowed."""


class RunStanding(StrEnum):
    """Where a run is; `waiting` until it is tried again, `denied` by the owner."""

    NEW = "new"
    FETCHING = "fetching"
    PREPARING = "preparing"
    ASKING = "asking"
    WAITING = "waiting"
    READY = "ready"
    REFUSED = "refused"
    DENIED = "denied"


class RunStep(StrEnum):
    """What can happen to a run."""

    FETCH = "its archive has to be fetched"
    PREPARE = "its archive is here"
    ASK = "the policy leaves it to the owner"
    APPROVE = "the owner allows it"
    DENY = "the owner does not allow it"
    HOST = "its child is ready"
    FAIL = "its child dies, or its archive is not to be had"
    REFUSE = "it cannot be hosted, or has failed too often"
    RETRY = "it is tried again"
    CHANGE = "another RunSpec comes"


_R = RunStanding
RUNS: dict[tuple[RunStanding, RunStep], RunStanding] = {
    (_R.NEW, RunStep.FETCH): _R.FETCHING,
    (_R.NEW, RunStep.PREPARE): _R.PREPARING,
    (_R.NEW, RunStep.REFUSE): _R.REFUSED,
    (_R.FETCHING, RunStep.PREPARE): _R.PREPARING,
    (_R.FETCHING, RunStep.FAIL): _R.WAITING,
    (_R.FETCHING, RunStep.REFUSE): _R.REFUSED,
    (_R.PREPARING, RunStep.HOST): _R.READY,
    (_R.PREPARING, RunStep.ASK): _R.ASKING,
    (_R.PREPARING, RunStep.FAIL): _R.WAITING,
    (_R.PREPARING, RunStep.REFUSE): _R.REFUSED,
    (_R.ASKING, RunStep.APPROVE): _R.PREPARING,
    (_R.ASKING, RunStep.DENY): _R.DENIED,
    (_R.WAITING, RunStep.RETRY): _R.NEW,
    (_R.REFUSED, RunStep.RETRY): _R.NEW,
    **{(before, RunStep.CHANGE): _R.NEW for before in RunStanding if before is not _R.NEW},
}


class TaskStanding(StrEnum):
    """Where a task is; `stopping` if nobody wants it any more while its client is at work."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    ANSWERED = "answered"
    DROPPED = "dropped"


class TaskStep(StrEnum):
    """What can happen to a task."""

    START = "it gets a slot"
    DROP = "nobody wants it any more"
    END = "its client is done, or has failed"
    KILL = "its child is ended"


_T = TaskStanding
TASKS: dict[tuple[TaskStanding, TaskStep], TaskStanding] = {
    (_T.QUEUED, TaskStep.START): _T.RUNNING,
    (_T.QUEUED, TaskStep.DROP): _T.DROPPED,
    (_T.RUNNING, TaskStep.DROP): _T.STOPPING,
    (_T.RUNNING, TaskStep.END): _T.ANSWERED,
    (_T.RUNNING, TaskStep.KILL): _T.QUEUED,
    (_T.STOPPING, TaskStep.END): _T.DROPPED,
    (_T.STOPPING, TaskStep.KILL): _T.DROPPED,
}

Place = TypeVar("Place", bound=StrEnum)
Move = TypeVar("Move", bound=StrEnum)


class Standing(Generic[Place, Move]):
    """Where one thing stands by a table, and what led there; `what` names it."""

    __slots__ = ("_story", "_table", "_what", "now")

    def __init__(self, what: str, table: Mapping[tuple[Place, Move], Place], now: Place) -> None:
        self.now = now
        self._what = what
        self._table = table
        self._story: deque[str] = deque([now.value], STORY)

    def take(self, step: Move) -> Place:
        """Take a step; where it leads. Raises `InternalError`, with the last steps, if the table does not have it."""
        after = self._table.get((self.now, step))
        if after is None:
            story = "; ".join(self._story)
            raise InternalError(f"{self._what} is {self.now}, which does not allow: {step} (what led to it: {story})")
        self.now = after
        self._story.append(f"{step}, so {after}")
        return after
