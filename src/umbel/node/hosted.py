"""A run at its node: its open asks, and its tasks, those that wait for a slot and those that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..wire import messages as m
from .holdings import NeededBlobs, OwedAnswers
from .hosting import RunHosting
from .orders import ask_of, blob_of, client_of
from .signals import Effect, Start, Stop
from .spool import Advanced, Spool
from .standings import TASKS, Standing, TaskStanding, TaskStep


@dataclass(slots=True)
class HostedTask:
    """A task that is to be done, the ask it came with, the blobs that it needs, and since when it has had a slot."""

    task: m.Task
    ask: m.AskSpec
    blobs: tuple[bytes, ...]
    standing: Standing[TaskStanding, TaskStep]
    since: float = 0.0


class HostedRun:
    """One run: `hosting` is how far its host is, `asks` are open. Never do two tasks of one client have slots at once.

    `do` takes effects. What its tasks need is in `blobs`, the states that they begin with are in `spool`, what is said
    of them goes through `answers`.
    """

    def __init__(
        self,
        id: str,
        hosting: RunHosting,
        spool: Spool,
        blobs: NeededBlobs,
        answers: OwedAnswers,
        do: Callable[[Effect], None],
    ) -> None:
        self.id = id
        self.hosting = hosting
        self.asks: dict[int, m.AskSpec] = {}
        self._spool = spool
        self._blobs = blobs
        self._answers = answers
        self._do = do
        self._queue: dict[str, HostedTask] = {}
        self._startable: dict[str, HostedTask] = {}  # of the queue, those whose blobs are here
        self._queued: dict[str, set[str]] = {}  # of the queue, by client
        self._busy: dict[str, HostedTask] = {}
        self._past = self._since = 0.0  # what tasks have taken that are over, and the sum of when the others began
        self._newest = -1
        self._fed = False  # whether asks have come in this session

    def ask(self, spec: m.AskSpec) -> None:
        """An ask has come; if it asks something else than before, its tasks are let go of."""
        self._fed, self._newest = True, max(self._newest, spec.ask)
        before = self.asks.get(spec.ask)
        if before != spec:
            if before is not None and before.digest != spec.digest:
                self.let_go(task for task in self.tasks() if ask_of(task) == spec.ask)
            self.asks[spec.ask] = spec

    def close(self, ask: int) -> int | None:
        """An ask is closed; the newest ask that there was, None where that is not known."""
        if self.asks.pop(ask, None) is not None:
            self.hosting.forget(ask)
            self.let_go(task for task in self.tasks() if ask_of(task) == ask)
        return self._newest if self._fed else None

    def meet(self) -> None:
        """A session has begun: asks without tasks come again with these, or have been closed unheard."""
        self._fed, idle = False, self.asks.keys() - {ask_of(task) for task in self.tasks()}
        for ask in idle:
            del self.asks[ask]
            self.hosting.forget(ask)
        self._blobs.drop(self.id, {f"ask {ask}" for ask in idle})

    def tasks(self) -> list[str]:
        """The tasks that are wanted."""
        return [*self._queue, *(task for held in self._busy.values() if self.at_work(task := held.task.task))]

    def waiting(self, sha: bytes | None = None) -> list[str]:
        """The tasks that wait for nothing but a slot; or those that wait, for that or more, and need this blob."""
        if sha is not None:
            return [task for task, held in self._queue.items() if sha in held.blobs]
        return list(self._startable) if self.startable else []

    @property
    def startable(self) -> bool:
        """Whether tasks wait for nothing but a slot."""
        return bool(self._startable) and self.hosting.ready

    @property
    def has_more(self) -> bool:
        """Whether tasks are at work, or can be."""
        return bool(self._busy or self._startable)

    def slots(self) -> int:
        """How many slots its tasks have."""
        return len(self._busy)

    def seconds(self, now: float) -> float:
        """How long its tasks have had slots."""
        return self._past + len(self._busy) * now - self._since

    def at_work(self, task: str) -> HostedTask | None:
        """A task if it has a slot and is wanted."""
        held = self._busy.get(client_of(task))
        fits = held is not None and held.task.task == task and held.standing.now is TaskStanding.RUNNING
        return held if fits else None

    def has(self, task: m.Task) -> bool:
        """Whether a task waits or is at work already; an earlier attempt, which the server counts as failed, is let
        go of.
        """
        held = self.at_work(task.task) or self._queue.get(task.task)
        if held is not None and task.attempt > held.task.attempt:
            self.let_go([task.task])
            return False
        return held is not None

    def lost(self, task: m.Task) -> str:
        """That the state to begin with is not here; empty if it is."""
        return _lost(task) if task.base and self._spool.state(self.id, task.base) is None else ""

    def admit(self, task: m.Task, ask: m.AskSpec) -> None:
        """A task is to be done."""
        blobs: list[bytes] = []
        for source, name, user in (
            (ask, "model", f"ask {task.ask}"),
            (ask, "shared", f"ask {task.ask}"),
            (task, "own", f"task {task.task}"),
        ):
            blob = blob_of(source, name)
            if blob is not None:
                blobs.append(blob.sha256)
                self._blobs.add(self.id, blob, user)
        standing = Standing(f"attempt {task.attempt} of task {task.task} of run {self.id}", TASKS, TaskStanding.QUEUED)
        self._wait(HostedTask(task, ask, tuple(blobs), standing))
        # The oldest open ask is asked with the newest state that was admitted by then; so what was settled before it,
        # and is another, is older. Tasks of older asks might still have to be done with it, tasks of newer ones never.
        if task.ask == min(self.asks) and self._spool.has_states(self.id, task.client):
            held = [self._queue[each] for each in self._queued[task.client]]
            held += [self._busy[task.client]] if task.client in self._busy else []
            bases = {each.task.base for each in held if each.task.base}
            self._spool.put(Advanced(self.id, task.client, task.ask, tuple(sorted(bases))))

    def arrived(self, sha: bytes) -> None:
        """A blob is here: what waited for nothing else can be started."""
        for task in self.waiting(sha):
            if self._blobs.here(self.id, (held := self._queue[task]).blobs):
                self._startable[task] = held

    def _wait(self, held: HostedTask) -> None:
        self._queue[held.task.task] = held
        self._queued.setdefault(held.task.client, set()).add(held.task.task)
        if self._blobs.here(self.id, held.blobs):
            self._startable[held.task.task] = held

    def _unqueue(self, task: str) -> HostedTask | None:
        """A task does not wait for a slot any more; None if it did not."""
        held = self._queue.pop(task, None)
        if held is not None:
            self._startable.pop(task, None)
            mine = self._queued[held.task.client]
            mine.discard(task)
            if not mine:
                del self._queued[held.task.client]
        return held

    def start(self, now: float) -> bool | None:
        """Start a task; whether it has a slot now, None where no task can be started."""
        ready = self._startable.values() if self.startable else ()
        held = next((each for each in ready if each.task.client not in self._busy), None)
        if held is None:
            return None
        task = held.task
        base = self._spool.state(self.id, task.base) if task.base else None
        if task.base and base is None:
            self._refuse(held, _lost(task))
            return False
        held.standing.take(TaskStep.START)
        held.since = now
        self._since += now
        self._unqueue(task.task)
        self._busy[task.client] = held
        self._do(Start(self.id, task, held.ask, base))
        return True

    def end(self, task: str, attempt: int, now: float) -> HostedTask | None:
        """A task has left its slot; None if nobody waits for it any more."""
        held = self._busy.get(client_of(task))
        if held is None or (held.task.task, held.task.attempt) != (task, attempt):
            return None
        self._past += now - held.since
        self._since -= held.since
        del self._busy[held.task.client]
        return held if held.standing.take(TaskStep.END) is TaskStanding.ANSWERED else None

    def let_go(self, tasks: Iterable[str]) -> None:
        """Tasks are not wanted any more: those that wait never start, those that have a slot keep it until they end."""
        gone: set[str] = set()
        for task in tasks:
            for held in (self.at_work(task), self._unqueue(task)):
                if held is not None:
                    gone.add(f"task {task}")
                    if held.standing.take(TaskStep.DROP) is TaskStanding.STOPPING:
                        self._do(Stop(self.id, task, held.task.attempt))
        self._blobs.drop(self.id, gone)

    def judge(self) -> None:
        """Refuse what waits for a slot and cannot be done, as far as that is known of the host."""
        for held in list(self._queue.values()):
            if reason := self.hosting.against(held.ask):
                self._refuse(held, reason)

    def lack(self, sha: bytes, why: str) -> None:
        """A blob is not to be had: refuse what needs it."""
        for held in [self._queue[task] for task in self.waiting(sha)]:
            reason = f"what the task of client {held.task.client} needs cannot be fetched: {why}"
            self._refuse(held, reason, retry=True)

    def kill(self, now: float) -> None:
        """The child is ended: those of its tasks that are wanted wait again, before all others."""
        self._past, self._since = self.seconds(now), 0.0
        busy, self._busy = self._busy.values(), {}
        again = [held for held in busy if held.standing.take(TaskStep.KILL) is TaskStanding.QUEUED]
        waiting = list(self._queue.values())
        for held in waiting:
            self._unqueue(held.task.task)
        for held in again + waiting:
            self._wait(held)

    def _refuse(self, held: HostedTask, reason: str, *, retry: bool = False) -> None:
        self.let_go([held.task.task])
        self._answers.refuse(held.task, reason, retry=retry)


def _lost(task: m.Task) -> str:
    return (
        f"the state that task {task.base} left at client {task.client} is not on this node: "
        "its disk was lost, or another one took its place"
    )
