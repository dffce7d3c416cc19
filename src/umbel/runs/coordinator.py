"""The coordinator: the state machine of one run's asks. Events go in, commands come out; it has no clock, no sockets
and no threads.

Every change of a task's state is a row of `TRANSITIONS`; the diagram in the documentation is drawn from it by
`diagram()`. Time is what the caller passes as `now`, in seconds of served time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..core.task import Admit, AllFinished, Cancel, Failed, Finished, Send, Task, Ticked
from ..core.window import Window
from ..errors import ClientId, InternalError
from .reasons import Reasons


class TaskState(StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    SENT = "sent"
    HELD = "held"
    ADMITTED = "admitted"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """What can happen to a task."""

    SEND = "send"
    FINISH = "finish while its lane's ask is open"
    HOLD = "finish between two asks"
    ADMIT = "the next ask opens"
    FAIL = "fail for good"
    RETRY = "fail, with attempts left"
    DROP = "its ask closes"


_S = TaskState
TRANSITIONS: dict[tuple[TaskState, Step], TaskState] = {
    (_S.QUEUED, Step.SEND): _S.SENT,
    (_S.QUEUED, Step.DROP): _S.CANCELLED,
    (_S.SENT, Step.FINISH): _S.ADMITTED,
    (_S.SENT, Step.HOLD): _S.HELD,
    (_S.SENT, Step.FAIL): _S.FAILED,
    (_S.SENT, Step.RETRY): _S.QUEUED,
    (_S.SENT, Step.DROP): _S.CANCELLED,
    (_S.HELD, Step.ADMIT): _S.ADMITTED,
    (_S.HELD, Step.DROP): _S.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Opened:
    """Event: an ask begins, with its cohort drawn.

    `late` are tasks of earlier asks to go on with after a resume, each with how many asks of the lane ago it was sent;
    all of them are sent at once, since all of them were out.
    """

    ask: int
    lane: str
    clients: Sequence[ClientId]
    window: Window
    late: Sequence[tuple[Task, int]] = ()


Event = Opened | Finished | AllFinished | Failed | Ticked


@dataclass(frozen=True, slots=True)
class Close:
    """Command: the ask is over.

    `enough` says whether its quorum was reached; `admitted` are tasks in the order of admission; `late` are those that
    go on, each with how many asks ago it was sent when the lane's next ask opens; `asked` counts the clients whose
    tasks came to an end in this ask: admitted, failed or cancelled.
    """

    ask: int
    enough: bool
    admitted: tuple[str, ...]
    failed: dict[ClientId, str]
    asked: int
    late: tuple[tuple[Task, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """Command: send `Ticked` at this time."""

    at: float


Command = Send | Admit | Cancel | Close | Wake


STORY = 10
"""So many events are told where something went wrong."""


@dataclass(slots=True)
class _Ask:
    id: int
    number: int
    window: Window
    lane: str
    closes_at: float | None
    queue: deque[Task]
    admitted: list[str] = field(default_factory=list)
    contributed: set[ClientId] = field(default_factory=set)
    failed: dict[ClientId, str] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=Reasons)


@dataclass(slots=True)
class _Lane:
    number: int = 0
    open: _Ask | None = None
    out: dict[str, tuple[Task, int]] = field(default_factory=dict)  # sent or held, with the lane's ask count when sent
    flying: set[ClientId] = field(default_factory=set)
    held: list[str] = field(default_factory=list)


class Coordinator:
    """Decides which task is sent, admitted, cancelled, and when an ask closes.

    `attempts` is how often a task is tried whose executor dies. A duplicate, or word of a task that is over, changes
    nothing.
    """

    def __init__(self, attempts: int = 3) -> None:
        self._attempts = attempts
        self._lanes: dict[str, _Lane] = {}
        self._open_lanes: dict[int, _Lane] = {}  # by the asks that are open, in the order of these
        self._states: dict[str, TaskState] = {}
        self._lane_of: dict[str, str] = {}
        self._last_ask = -1
        self._story: deque[Event] = deque(maxlen=STORY)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event and return what has to be done, in order. The same events at the same times give the same
        commands. Raises `InternalError`, with the last events, for one that cannot be.
        """
        self._story.append(event)
        try:
            return self._handled(event, now)
        except InternalError as error:
            error.add_note("what led to it: " + "; ".join(f"{told!r:.200}" for told in self._story))
            raise

    def _handled(self, event: Event, now: float) -> list[Command]:
        commands: list[Command] = []
        if isinstance(event, Opened):
            self._open(event, now, commands)
        elif isinstance(event, Finished):
            self._finish(event.task, commands)
        elif isinstance(event, AllFinished):
            self._finish_all(event.tasks, now, commands)
        elif isinstance(event, Failed):
            self._fail(event, commands)
        for lane in list(self._open_lanes.values()):
            if lane.open is not None:
                self._advance(lane, lane.open, now, commands)
        return commands

    def state_of(self, task: str) -> TaskState | None:
        """Where a task is; None for one that is not known, or forgotten because its ask is over."""
        return self._states.get(task)

    def _move(self, task: str, step: Step) -> None:
        before = self._states[task]
        try:
            self._states[task] = TRANSITIONS[before, step]
        except KeyError:
            raise InternalError(f"task {task} is {before.value}, which does not allow: {step.value}") from None

    def _forget(self, task: str) -> None:
        del self._states[task], self._lane_of[task]

    def _open(self, event: Opened, now: float, commands: list[Command]) -> None:
        lane = self._lanes.setdefault(event.lane, _Lane())
        if lane.open is not None or event.ask <= self._last_ask:
            raise InternalError(f"ask {event.ask} opens in lane {event.lane!r}, where ask {self._last_ask} came last")
        self._last_ask = event.ask
        lane.number += 1
        window = event.window
        closes_at = None if window.deadline is None else now + window.deadline
        queue = deque(Task(f"{event.ask}.{client}", event.ask, client) for client in event.clients)
        self._open_lanes[event.ask] = lane
        lane.open = ask = _Ask(event.ask, lane.number, window, event.lane, closes_at, queue)
        for task in queue:
            self._register(task, event.lane)
        if closes_at is not None:
            commands.append(Wake(closes_at))
        for task, age in event.late:
            self._register(task, event.lane)
            self._send(lane, task, lane.number - age, commands)
        for held in lane.held:
            if not self._is_full(ask):
                self._admit(lane, ask, held, Step.ADMIT, commands)
        lane.held = [task for task in lane.held if task in lane.out]

    def _register(self, task: Task, lane: str) -> None:
        if task.id in self._states:
            raise InternalError(f"task {task.id} exists already")
        self._states[task.id] = TaskState.QUEUED
        self._lane_of[task.id] = lane

    def _is_full(self, ask: _Ask) -> bool:
        return ask.window.close_after is not None and len(ask.admitted) >= ask.window.close_after

    def _admit(self, lane: _Lane, ask: _Ask, task: str, step: Step, commands: list[Command]) -> None:
        sent, number = lane.out.pop(task)
        lane.flying.discard(sent.client)
        self._move(task, step)
        ask.admitted.append(task)
        ask.contributed.add(sent.client)
        ask.failed.pop(sent.client, None)  # an older task of this client failed while this ask was open
        staleness = ask.number - number
        commands.append(Admit(task, ask.id, staleness, ask.window.discount(staleness)))

    def _finish(self, task: str, commands: list[Command]) -> None:
        state = self._states.get(task)
        if state is not TaskState.SENT:
            if state is not TaskState.ADMITTED and state is not TaskState.HELD:
                commands.append(Cancel(task))  # late, or never asked for: let go of the result
            return
        lane = self._lanes[self._lane_of[task]]
        if lane.open is not None:
            self._admit(lane, lane.open, task, Step.FINISH, commands)
        else:
            self._move(task, Step.HOLD)
            lane.held.append(task)

    def _finish_all(self, tasks: Sequence[str], now: float, commands: list[Command]) -> None:
        for task in tasks:
            lane = self._lanes.get(self._lane_of.get(task, ""))
            self._finish(task, commands)
            if lane is not None and lane.open is not None and not lane.open.window.unbounded:
                self._advance(lane, lane.open, now, commands)  # it may be full, or have room for another task

    def _fail(self, event: Failed, commands: list[Command]) -> None:
        if self._states.get(event.task) is not TaskState.SENT:
            return
        lane = self._lanes[self._lane_of[event.task]]
        task, number = lane.out.pop(event.task)
        lane.flying.discard(task.client)
        if event.retry and task.attempt < self._attempts:
            self._move(task.id, Step.RETRY)
            again = Task(task.id, task.ask, task.client, task.attempt + 1)
            if lane.open is not None and task.ask == lane.open.id:
                lane.open.queue.appendleft(again)
            else:
                self._send(lane, again, number, commands)  # a late task goes on, whether or not an ask is open
            return
        self._move(task.id, Step.FAIL)
        if lane.open is not None:
            lane.open.failed[task.client] = lane.open.reasons.keep(event.reason)
        self._forget_unless_open(task.id, lane)

    def _forget_unless_open(self, task: str, lane: _Lane) -> None:
        if lane.open is None or not task.startswith(f"{lane.open.id}."):
            self._forget(task)

    def _advance(self, lane: _Lane, ask: _Ask, now: float, commands: list[Command]) -> None:
        due = ask.closes_at is not None and now >= ask.closes_at
        if not self._is_full(ask) and not due:
            self._dispatch(lane, ask, commands)
            if lane.out or ask.queue:
                return
        self._close(lane, ask, commands)

    def _dispatch(self, lane: _Lane, ask: _Ask, commands: list[Command]) -> None:
        most = ask.window.in_flight
        while ask.queue and (most is None or len(lane.out) < most):
            task = ask.queue.popleft()
            if task.client in lane.flying or task.client in ask.contributed:
                # A client works on one task of a lane at a time, and counts once in an ask.
                self._move(task.id, Step.DROP)
                continue
            self._send(lane, task, ask.number, commands)

    def _send(self, lane: _Lane, task: Task, number: int, commands: list[Command]) -> None:
        self._move(task.id, Step.SEND)
        lane.out[task.id] = (task, number)
        lane.flying.add(task.client)
        commands.append(Send(task))

    def _close(self, lane: _Lane, ask: _Ask, commands: list[Command]) -> None:
        for task in ask.queue:
            self._move(task.id, Step.DROP)
        ended = ask.contributed | ask.failed.keys()
        if ask.window.late == "drop":
            ended |= lane.flying
            for id in lane.out:
                self._move(id, Step.DROP)
                commands.append(Cancel(id))
            lane.out.clear()
            lane.flying.clear()
            lane.held.clear()
        lane.open = None
        del self._open_lanes[ask.id]
        for id in [t for t, name in self._lane_of.items() if name == ask.lane and t not in lane.out]:
            self._forget(id)
        commands.append(
            Close(
                ask.id,
                len(ask.admitted) >= ask.window.quorum,
                tuple(ask.admitted),
                dict(ask.failed),
                len(ended),
                tuple((task, ask.number + 1 - number) for task, number in lane.out.values()),
            )
        )


def diagram() -> str:
    """The life of a task as a Mermaid state diagram, drawn from `TRANSITIONS`."""
    rows = [f"    {a.value} --> {b.value}: {step.value}" for (a, step), b in TRANSITIONS.items()]
    ends = sorted({b.value for b in TRANSITIONS.values()} - {a.value for a, _ in TRANSITIONS})
    return "\n".join(["stateDiagram-v2", "    [*] --> queued", *rows, *(f"    {end} --> [*]" for end in ends)])
