"""The coordinator: the state machine of one run's asks. Events go in, commands come out; it has no clock, no sockets
and no threads.

Every change of a task's state is a row of `TRANSITIONS`; the diagram in the documentation is drawn from it by
`diagram()`. Time is what the caller passes as `now`, in seconds of served time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..core.task import Admit, Cancel, Failed, Finished, Send, Task, Ticked
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


Event = Opened | Finished | Failed | Ticked


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
    queue: deque[ClientId | Task]  # clients whose turn is still to come, and tasks to be tried again
    tasks: list[Task] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    contributed: set[ClientId] = field(default_factory=set)
    failed: dict[ClientId, str] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=Reasons)


@dataclass(slots=True)
class _Lane:
    number: int = 0
    open: _Ask | None = None
    states: dict[str, TaskState] = field(default_factory=dict)
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
        self._lane_of: dict[str, _Lane] = {}  # by the asks that tasks are known of, as they are written in their ids
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
            self._finish(event.tasks, now, commands)
        elif isinstance(event, Failed):
            self._fail(event, commands)
        for lane in list(self._open_lanes.values()):
            if lane.open is not None:
                self._advance(lane, lane.open, now, commands)
        return commands

    def state_of(self, task: str) -> TaskState | None:
        """Where a task is; None for one that was never sent, or that is forgotten because its ask is over."""
        return self._known(task).states.get(task)

    def _known(self, task: str) -> _Lane:
        """The lane of a task that is known; one with nothing in it for all others."""
        return self._lane_of.get(task.partition(".")[0]) or _NOWHERE

    def _open(self, event: Opened, now: float, commands: list[Command]) -> None:
        lane = self._lanes.setdefault(event.lane, _Lane())
        if lane.open is not None or event.ask <= self._last_ask:
            raise InternalError(f"ask {event.ask} opens in lane {event.lane!r}, where ask {self._last_ask} came last")
        self._last_ask = event.ask
        lane.number += 1
        window = event.window
        closes_at = None if window.deadline is None else now + window.deadline
        self._open_lanes[event.ask] = self._lane_of[str(event.ask)] = lane
        lane.open = ask = _Ask(event.ask, lane.number, window, event.lane, closes_at, deque(event.clients))
        if len({*event.clients}) < len(event.clients):
            twice = next(client for client, count in Counter(event.clients).items() if count > 1)
            raise InternalError(f"task {event.ask}.{twice} exists already")
        if closes_at is not None:
            commands.append(Wake(closes_at))
        for task, age in event.late:
            self._lane_of[str(task.ask)] = lane
            if task.id in lane.states:
                raise InternalError(f"task {task.id} exists already")
            lane.states[task.id] = TaskState.QUEUED
            self._send(lane, [task], lane.number - age, commands)
        for held in lane.held:
            if not self._is_full(ask):
                self._admit(lane, ask, [held], Step.ADMIT, commands)
        lane.held = [task for task in lane.held if task in lane.out]

    def _is_full(self, ask: _Ask) -> bool:
        return ask.window.close_after is not None and len(ask.admitted) >= ask.window.close_after

    def _admit(self, lane: _Lane, ask: _Ask, tasks: list[str], step: Step, commands: list[Command]) -> None:
        _move(lane, tasks, step)
        ask.admitted += tasks
        for task in tasks:
            sent, number = lane.out.pop(task)
            lane.flying.discard(sent.client)
            ask.contributed.add(sent.client)
            if ask.failed:
                ask.failed.pop(sent.client, None)  # an older task of this client failed while this ask was open
            staleness, last = ask.number - number, commands[-1] if commands else None
            if isinstance(last, Admit) and last.ask == ask.id and last.staleness == staleness:
                last.tasks.append(task)
            else:
                commands.append(Admit([task], ask.id, staleness, ask.window.discount(staleness)))

    def _finish(self, tasks: Sequence[str], now: float, commands: list[Command]) -> None:
        together: dict[str, None] = {}
        of = _NOWHERE
        for task in tasks:
            lane = self._known(task)
            state, ask = lane.states.get(task), lane.open
            if state is not TaskState.SENT:
                if state is not TaskState.ADMITTED and state is not TaskState.HELD:
                    commands.append(Cancel([task]))  # late, or never asked for: let go of the result
            elif ask is None:
                _move(lane, [task], Step.HOLD)
                lane.held.append(task)
            elif ask.window.unbounded and (not together or lane is of):
                together[task], of = None, lane
            else:  # it may be full, or have room for another task
                self._admit(lane, ask, [task], Step.FINISH, commands)
                self._advance(lane, ask, now, commands)
        if of.open is not None:
            self._admit(of, of.open, list(together), Step.FINISH, commands)

    def _fail(self, event: Failed, commands: list[Command]) -> None:
        lane = self._known(event.task)
        if lane.states.get(event.task) is not TaskState.SENT:
            return
        task, number = lane.out.pop(event.task)
        lane.flying.discard(task.client)
        if event.retry and task.attempt < self._attempts:
            _move(lane, [task.id], Step.RETRY)
            again = task._replace(attempt=task.attempt + 1)
            if lane.open is not None and task.ask == lane.open.id:
                lane.open.queue.appendleft(again)
            else:
                self._send(lane, [again], number, commands)  # a late task goes on, whether or not an ask is open
            return
        _move(lane, [task.id], Step.FAIL)
        if lane.open is not None:
            lane.open.failed[task.client] = lane.open.reasons.keep(event.reason)
        if lane.open is None or task.ask != lane.open.id:
            del lane.states[task.id]

    def _advance(self, lane: _Lane, ask: _Ask, now: float, commands: list[Command]) -> None:
        due = ask.closes_at is not None and now >= ask.closes_at
        if not self._is_full(ask) and not due:
            self._dispatch(lane, ask, commands)
            if lane.out or ask.queue:
                return
        self._close(lane, ask, commands)

    def _dispatch(self, lane: _Lane, ask: _Ask, commands: list[Command]) -> None:
        most = ask.window.in_flight
        tasks: list[Task] = []
        while ask.queue and (most is None or len(lane.out) + len(tasks) < most):
            task = ask.queue.popleft()
            if not isinstance(task, Task):
                task = Task(f"{ask.id}.{task}", ask.id, task)
                ask.tasks.append(task)
                lane.states[task.id] = TaskState.QUEUED
            if task.client in lane.flying or task.client in ask.contributed:
                # A client works on one task of a lane at a time, and counts once in an ask.
                _move(lane, [task.id], Step.DROP)
            else:
                tasks.append(task)
        if tasks:
            self._send(lane, tasks, ask.number, commands)

    def _send(self, lane: _Lane, tasks: list[Task], number: int, commands: list[Command]) -> None:
        _move(lane, [task.id for task in tasks], Step.SEND)
        for task in tasks:
            lane.out[task.id] = (task, number)
            lane.flying.add(task.client)
        if commands and isinstance(commands[-1], Send):
            commands[-1].tasks.extend(tasks)
        else:
            commands.append(Send(tasks))

    def _close(self, lane: _Lane, ask: _Ask, commands: list[Command]) -> None:
        _move(lane, [task.id for task in ask.queue if isinstance(task, Task)], Step.DROP)
        ended = ask.contributed | ask.failed.keys()
        over = [*(task.id for task in ask.tasks), *ask.admitted]
        if ask.window.late == "drop" and lane.out:
            ended |= lane.flying
            _move(lane, list(lane.out), Step.DROP)
            commands.append(Cancel(list(lane.out)))
            over += lane.out
            lane.out.clear()
            lane.flying.clear()
            lane.held.clear()
        lane.open = None
        del self._open_lanes[ask.id]
        for id in over:
            if id not in lane.out:
                lane.states.pop(id, None)
        out = {task.ask for task, _ in lane.out.values()}
        self._lane_of = {id: of for id, of in self._lane_of.items() if of is not lane or int(id) in out}
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


_NOWHERE = _Lane()


def _move(lane: _Lane, tasks: list[str], step: Step) -> None:
    """Have tasks take a step."""
    states, before, after = lane.states, None, None
    for task in tasks:
        if states[task] is not before:
            before = states[task]
            after = TRANSITIONS.get((before, step))
        if after is None:
            raise InternalError(f"task {task} is {states[task].value}, which does not allow: {step.value}")
        states[task] = after


def diagram() -> str:
    """The life of a task as a Mermaid state diagram, drawn from `TRANSITIONS`."""
    rows = [f"    {a.value} --> {b.value}: {step.value}" for (a, step), b in TRANSITIONS.items()]
    ends = sorted({b.value for b in TRANSITIONS.values()} - {a.value for a, _ in TRANSITIONS})
    return "\n".join(["stateDiagram-v2", "    [*] --> queued", *rows, *(f"    {end} --> [*]" for end in ends)])
