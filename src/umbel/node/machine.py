"""The state machine of a node: what it was asked, what runs, what it owes the server; events in, effects out."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..core.task import Ticked
from ..errors import ProtocolError
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched
from ..work import retries
from .holdings import Held, HostedRun, HostStanding, NeededBlobs, OwedAnswers, Slot
from .signals import (
    Approved,
    Denied,
    Effect,
    EndRun,
    Event,
    HostDied,
    HostReady,
    HostRefused,
    Moved,
    Note,
    OwnerAsked,
    Prepare,
    ReleaseBlob,
    SayToServer,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Start,
    Stepped,
    Stop,
    TaskDone,
    TaskFailed,
)
from .spool import Advanced, Ended, Settled, Spool

FINISHED = 32
"""So many finished runs are kept for those who want further rounds of them."""
ALIVE_SECONDS = 5.0
_REASON_LETTERS = 2000
_LARGEST_ASK = 2**63 - 1
_RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_OVER = ("finished", "failed", "stopped")


class NodeMachine:
    """A node that hosts clients for any number of runs, as a state machine.

    `handle(event, now)` takes an event and the time in seconds, and returns what is to be done, in order. `next_tick`
    is when it wants a `Ticked`, None for never. Only what the spool has outlives the machine; all else comes again from
    the server. At most `slots` tasks run at once, over all runs; the run that has used the least seconds goes first,
    and never do two tasks of one client of a run run at once.

    `clients` are those that it hosts, by their text. `allows(spec, ask)` is the owner's policy about what a run asks:
    the reason against it, empty where it is allowed.
    """

    def __init__(
        self,
        spool: Spool,
        clients: Iterable[str],
        *,
        slots: int = 1,
        allows: Callable[[m.RunSpec, m.AskSpec], str] | None = None,
    ) -> None:
        self.next_tick: float | None = None
        self._spool = spool
        self._clients = frozenset(clients)
        self._slots = slots
        self._allows = allows
        self._runs: dict[str, HostedRun] = {}
        self._numbers = 0
        self._asleep = spool.runs()
        self._finished: deque[str] = deque()
        self._answers = OwedAnswers(spool)
        self._blobs = NeededBlobs()
        for result in self._answers:
            self._hold_update(result)
        self._session = 0
        self._connected = False
        self._alive_at = -ALIVE_SECONDS
        self._progress: dict[str, set[str]] = {}
        self._stepped = False
        self._out: list[Effect] = []
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event; what is to be done about it.

        Raises `ProtocolError` for a message that the server may not send, which changes nothing.
        """
        self._out, self._now = [], now
        match event:
            case SessionBegun():
                self._connect()
            case SessionEnded():
                self._connected = False
                self._answers.part()
            case ServerSaid(message):
                self._receive(message)
            case Fetched(run, sha):
                self._fetched(run, sha)
            case NotFetched(run, sha, reason):
                self._not_fetched(run, sha, reason)
            case Moved(run, sha):
                self._moved(run, sha)
            case HostReady() | HostRefused() | HostDied() | OwnerAsked() | Approved() | Denied():
                if event.run in self._runs:
                    self._host(self._runs[event.run], event)
            case TaskDone():
                self._done(event)
            case TaskFailed():
                self._failed(event)
            case Stepped(run, task):
                self._step(run, task)
            case Ticked():
                pass
        self._try_hosts()
        self._fill()
        times = (self._tell_alive(), *(run.again_at for run in self._runs.values()))
        self.next_tick = min((at for at in times if at is not None), default=None)
        return self._out

    def needed(self) -> set[tuple[str, bytes]]:
        """The blobs (run, sha) that have to be held: a node that starts holds those of its answers again."""
        return self._blobs.needed()

    # sessions

    def _connect(self) -> None:
        self._connected = True
        self._session += 1
        self._answers.part()
        for result in self._answers:
            self._say_result(result, durable=True)
        for run in self._runs.values():
            # Others come again with their tasks, or have been closed unheard.
            run.fed, idle = False, run.asks.keys() - {_ask_of(task) for task in run.tasks()}
            run.asks = {ask: spec for ask, spec in run.asks.items() if ask not in idle}
            self._out += self._blobs.drop(run.id, {f"ask {ask}" for ask in idle})
        self._out += self._blobs.missing()
        # All that it has: the server answers with a Cancel of what is not wanted, a CloseRun for a run that is over.
        held = {run.id: run.tasks() for run in self._runs.values()}
        for id in sorted(self._asleep | held.keys() | {result.run for result in self._answers}):
            self._say(alive=m.Alive(run=id, tasks=held.get(id, [])))
        self._alive_at = self._now
        self._progress.clear()
        self._stepped = False

    def _say(self, *, durable: bool = False, **body: Any) -> None:
        if self._connected:
            self._out.append(SayToServer(m.Message(**body), durable))

    def _say_result(self, result: m.Result, *, durable: bool) -> None:
        if self._connected:
            self._answers.said(result)
            self._say(durable=durable, result=result)

    def _tell_alive(self) -> float | None:
        """Say which tasks make progress, or when that is due."""
        if not self._connected or not self._progress:
            return None
        if self._now < self._alive_at + ALIVE_SECONDS:
            return self._alive_at + ALIVE_SECONDS
        for run in self._runs.values():
            tasks = self._progress.pop(run.id, set())
            if self._stepped and run.standing is HostStanding.READY:
                # Those that wait for a slot are as alive as those that they wait for.
                tasks |= {task for task, held in run.queue.items() if self._blobs.here(run.id, held.blobs)}
            if tasks:
                self._say(alive=m.Alive(run=run.id, tasks=sorted(tasks)))
        for id, tasks in self._progress.items():
            self._say(alive=m.Alive(run=id, tasks=sorted(tasks)))
        self._progress.clear()
        self._stepped = False
        self._alive_at = self._now
        return None

    # messages

    def _receive(self, message: m.Message) -> None:
        match message.WhichOneof("body"):
            case "run_spec":
                self._run_spec(message.run_spec)
            case "ask_spec":
                self._ask_spec(message.ask_spec)
            case "task":
                self._task(message.task)
            case "cancel":
                self._cancel(message.cancel)
            case "close_ask":
                self._close_ask(message.close_ask)
            case "close_run":
                self._close_run(message.close_run)
            case "ack":
                for task in message.ack.tasks:
                    if self._answers.acknowledged(message.ack.run, task):
                        self._out += self._blobs.drop(message.ack.run, {f"answer {task}"})
            case "notice":
                self._out.append(Note(f"the server says: {message.notice.text}"))
            case None:
                raise ProtocolError("a message without a body", m.CODE_MALFORMED)
            case body:
                raise ProtocolError(f"a server does not send a node a message {body!r}", m.CODE_NOT_ALLOWED)

    def _run_spec(self, spec: m.RunSpec) -> None:
        _require(_RUN_NAME.fullmatch(spec.run) is not None, f"a RunSpec with the run {spec.run!r:.250}")
        _check_payload(spec, "archive", f"the RunSpec of {spec.run}")
        if self._spool.ended(spec.run):
            self._say(run_answer=m.RunAnswer(run=spec.run, reason="the run was finished before"))
            return
        run = self._runs.get(spec.run)
        if run is None:
            self._numbers += 1
            run = self._runs[spec.run] = HostedRun(spec.run, self._numbers, spec)
            self._asleep.discard(spec.run)
            if spec.run in self._finished:
                self._finished.remove(spec.run)
        elif run.spec != spec:
            self._end_host(run)
            run.spec, run.approved, run.denied = spec, False, False
        elif run.standing is not HostStanding.REFUSED or run.denied or run.refused_in == self._session:
            self._tell_standing(run)
            return
        run.tries = 0
        self._prepare(run)

    def _ask_spec(self, spec: m.AskSpec) -> None:
        what = f"the AskSpec {spec.ask} of {spec.run}"
        _require(bool(spec.kind) and bool(spec.digest) and spec.ask <= _LARGEST_ASK, what)
        _steps(spec.transforms, what)
        for name in ("model", "shared"):
            _check_payload(spec, name, what)
        if self._spool.ended(spec.run):
            return
        run = self._known(spec.run, what)
        run.fed, run.newest = True, max(run.newest, spec.ask)
        before = run.asks.get(spec.ask)
        if before == spec:
            return
        if before is not None and before.digest != spec.digest:
            self._let_go(run, [task for task in run.tasks() if _ask_of(task) == spec.ask])
        run.asks[spec.ask] = spec
        run.against.pop(spec.ask, None)

    def _task(self, task: m.Task) -> None:
        what = f"the Task {task.task!r:.250} of {task.run}"
        _require(task.task == f"{task.ask}.{task.client}" and bool(task.client) and task.attempt > 0, what)
        _require(len(task.key) == 32 and len(task.data_key) == 32, what)
        _require(not task.base or _client_of(task.base) == task.client, f"{what}, base")
        _check_payload(task, "own", what)
        if self._spool.ended(task.run):
            self._refuse(task, "the run was finished before")
            return
        run = self._known(task.run, what)
        ask = run.asks.get(task.ask)
        if ask is None:
            raise ProtocolError(f"{what} came before the AskSpec {task.ask}", m.CODE_UNKNOWN)
        if self._answered(task, ask) or self._under_way(run, task):
            return
        reason = self._against(run, ask) or self._against_task(run, task)
        if reason:
            self._refuse(task, reason)
        else:
            self._admit(run, task, ask)

    def _answered(self, task: m.Task, ask: m.AskSpec) -> bool:
        """Whether a task needs nothing to be done, for it was answered before."""
        kept = self._answers.get(task.run, task.task)
        digest = self._spool.digest(task.run, task.task)
        if digest is not None and digest != ask.digest:
            reason = f"client {task.client} has answered ask {task.ask} before, when it asked something else"
            self._refuse(task, reason)
        elif kept is not None and (kept.HasField("done") or task.attempt <= kept.attempt):
            self._say_result(kept, durable=True)
        elif digest is not None:
            self._refuse(task, f"client {task.client} has answered ask {task.ask} before, and the answer was received")
        else:
            return False
        return True

    def _under_way(self, run: HostedRun, task: m.Task) -> bool:
        """Whether a task waits or runs already; if the server counts it as failed, it is dropped instead."""
        slot = run.busy.get(task.client)
        if slot is not None and (slot.held.task.task != task.task or not slot.wanted):
            slot = None
        held = slot.held if slot is not None else run.queue.get(task.task)
        if held is None:
            return False
        if task.attempt <= held.task.attempt:
            return True
        self._let_go(run, [task.task])
        return False

    def _admit(self, run: HostedRun, task: m.Task, ask: m.AskSpec) -> None:
        blobs: list[bytes] = []
        for source, name, user in (
            (ask, "model", f"ask {task.ask}"),
            (ask, "shared", f"ask {task.ask}"),
            (task, "own", f"task {task.task}"),
        ):
            blob = _blob_of(source, name)
            if blob is not None:
                blobs.append(blob.sha256)
                self._out += self._blobs.add(run.id, blob, user)
        run.queue[task.task] = Held(task, ask, tuple(blobs))
        self._advance(run, task)

    def _advance(self, run: HostedRun, task: m.Task) -> None:
        """Let go of states that no task can begin with any more.

        The oldest open ask is asked with the newest state that was admitted by then; so what was settled before it, and
        is another, is older. Tasks of older asks might still have to be done with it, tasks of newer ones never.
        """
        if task.ask == min(run.asks):
            held = [*run.queue.values(), *(slot.held for slot in run.busy.values())]
            bases = {each.task.base for each in held if each.task.client == task.client and each.task.base}
            self._spool.put(Advanced(run.id, task.client, task.ask, tuple(sorted(bases))))

    def _cancel(self, cancel: m.Cancel) -> None:
        run = self._runs.get(cancel.run)
        if run is not None:
            self._let_go(run, cancel.tasks)

    def _close_ask(self, close: m.CloseAsk) -> None:
        _require(close.ask <= _LARGEST_ASK, f"the CloseAsk of {close.run}")
        run = self._runs.get(close.run)
        newest = run.newest if run is not None and run.fed else None
        if run is not None and run.asks.pop(close.ask, None) is not None:
            run.against.pop(close.ask, None)
            self._let_go(run, [task for task in run.tasks() if _ask_of(task) == close.ask])
        users = {f"answer {task}" for task in self._answers.drop(close.run, close.ask)}
        self._out += self._blobs.drop(close.run, {*users, f"ask {close.ask}"})
        self._spool.put(Settled(close.run, close.ask, newest))

    def _close_run(self, close: m.CloseRun) -> None:
        _require(close.status in _OVER, f"the CloseRun of {close.run} with the status {close.status!r:.50}")
        _require(_RUN_NAME.fullmatch(close.run) is not None, f"a CloseRun with the run {close.run!r:.250}")
        if self._runs.pop(close.run, None) is not None:
            self._out += [EndRun(close.run), Note(f"run {close.run} has {close.status}")]
        self._progress.pop(close.run, None)
        owed = {f"answer {result.task}" for result in self._answers if result.run == close.run}
        # It may be resumed, or get further rounds: what its clients have answered and keep has to be here then.
        self._out += self._blobs.drop_run(close.run, but=owed)
        self._asleep.add(close.run)
        if close.status == "finished" and close.run not in self._finished:
            self._finished.append(close.run)
            if len(self._finished) > FINISHED:
                self._forget(self._finished.popleft())

    def _forget(self, run: str) -> None:
        """A run is over for good."""
        self._answers.drop(run)
        self._out += self._blobs.drop_run(run)
        self._asleep.discard(run)
        if not self._spool.ended(run):
            self._spool.put(Ended(run))

    def _known(self, run: str, what: str) -> HostedRun:
        if run not in self._runs:
            raise ProtocolError(f"{what} came before its RunSpec", m.CODE_UNKNOWN)
        return self._runs[run]

    # hosts

    def _prepare(self, run: HostedRun) -> None:
        run.reason, run.again_at = "", None
        run.against.clear()
        blob = _blob_of(run.spec, "archive")
        if blob is not None:
            self._out += self._blobs.add(run.id, blob, "archive")
            if not self._blobs.here(run.id, [blob.sha256]):
                run.standing = HostStanding.FETCHING
                return
        run.standing = HostStanding.PREPARING
        self._out.append(Prepare(run.id, run.spec, run.approved))

    def _try_hosts(self) -> None:
        for run in self._runs.values():
            if run.again_at is not None and run.again_at <= self._now:
                self._prepare(run)

    def _prepare_again(self, run: HostedRun, reason: str) -> None:
        """What should have hosted a run did not come to be, for a reason that may be gone the next time."""
        run.tries += 1
        if run.tries >= retries.HOST_TRIES:
            self._refuse_run(run, f"{reason} ({run.tries} times in a row)")
            return
        wait = retries.wait(run.tries)
        run.standing, run.again_at, run.reason = HostStanding.PREPARING, self._now + wait, reason[:_REASON_LETTERS]
        self._out.append(Note(f"run {run.id} ({run.spec.name}) is tried again in {wait:g} s: {run.reason}"))
        self._tell_standing(run)

    def _host(self, run: HostedRun, event: HostReady | HostRefused | HostDied | OwnerAsked | Approved | Denied) -> None:
        match event:
            case HostReady():
                run.tries, run.reason = 0, ""
                run.kinds, run.steps = event.handlers, event.transforms
                run.standing = HostStanding.READY
                run.against.clear()
                self._out.append(Note(f"run {run.id} ({run.spec.name}) is hosted"))
                self._tell_standing(run)
                for held in list(run.queue.values()):
                    reason = self._against(run, held.ask)
                    if reason:
                        self._let_go(run, [held.task.task])
                        self._refuse(held.task, reason)
            case HostRefused():
                self._refuse_run(run, event.reason)
            case HostDied():
                self._prepare_again(run, event.reason)
            case OwnerAsked():
                run.standing = HostStanding.ASKING
                self._out.append(Note(f"run {run.id} ({run.spec.name}) waits for the owner's approval"))
            case Approved() if run.standing is HostStanding.ASKING:
                run.approved, run.standing = True, HostStanding.PREPARING
                self._out.append(Prepare(run.id, run.spec, run.approved))
            case Denied():
                run.denied = True
                self._end_host(run)
                self._refuse_run(run, "the owner of this node does not allow it")
            case _:
                pass

    def _refuse_run(self, run: HostedRun, reason: str) -> None:
        run.standing, run.reason, run.refused_in = HostStanding.REFUSED, reason[:_REASON_LETTERS], self._session
        run.again_at = None
        run.against.clear()
        self._out.append(Note(f"run {run.id} ({run.spec.name}) is refused: {run.reason}"))
        self._tell_standing(run)
        for held in list(run.queue.values()):
            self._let_go(run, [held.task.task])
            self._refuse(held.task, run.reason)

    def _tell_standing(self, run: HostedRun) -> None:
        again = run.again_at is not None
        if again or run.standing in (HostStanding.READY, HostStanding.REFUSED):
            ready = run.standing is HostStanding.READY
            self._say(run_answer=m.RunAnswer(run=run.id, ready=ready, reason=run.reason, retry=again))

    def _end_host(self, run: HostedRun) -> None:
        """Kill the child; the tasks that it worked on wait again."""
        self._out.append(EndRun(run.id))
        self._out += self._blobs.drop(run.id, {"archive"})
        run.past, run.again_at = run.seconds(self._now), None
        again = {slot.held.task.task: slot.held for slot in run.busy.values() if slot.wanted}
        run.busy.clear()
        run.queue = again | run.queue

    # what speaks against tasks

    def _against(self, run: HostedRun, ask: m.AskSpec) -> str:
        """Why the tasks of an ask are not done here; empty while that is not known."""
        if run.standing is HostStanding.REFUSED:
            return run.reason
        if run.standing is not HostStanding.READY:
            return ""
        if run.asks.get(ask.ask) is not ask:
            return self._against_ask(run, ask)
        if ask.ask not in run.against:
            run.against[ask.ask] = self._against_ask(run, ask)
        return run.against[ask.ask]

    def _against_ask(self, run: HostedRun, ask: m.AskSpec) -> str:
        if ask.kind not in run.kinds:
            return f"the client has no handler for {ask.kind} (it has: {', '.join(sorted(run.kinds)) or 'none'})"
        for name, version in _steps(ask.transforms, ""):
            if (name, version) not in run.steps:
                return f"the transform {name!r} version {version} is not known on this node"
        return self._allows(run.spec, ask) if self._allows is not None else ""

    def _against_task(self, run: HostedRun, task: m.Task) -> str:
        if task.client not in self._clients:
            return f"client {task.client} is not hosted on this node"
        if task.base and self._spool.state(run.id, task.base) is None:
            return _lost(task)
        return ""

    def _refuse(self, task: m.Task, reason: str, *, retry: bool = False) -> None:
        # Not kept: the server asks again until it has an answer, and is refused again.
        self._say_result(_failure(task, reason, retry), durable=False)

    # blobs

    def _hold_update(self, result: m.Result) -> None:
        blob = _blob_of(result.done, "update")
        if blob is not None:
            self._blobs.add(result.run, blob, f"answer {result.task}", here=True)

    def _fetched(self, run_id: str, sha: bytes) -> None:
        self._blobs.arrived(run_id, sha)
        run = self._runs.get(run_id)
        if run is not None and run.standing is HostStanding.FETCHING and "archive" in self._blobs.users(run_id, sha):
            self._prepare(run)

    def _not_fetched(self, run_id: str, sha: bytes, reason: str) -> None:
        run = self._runs.get(run_id)
        users = self._blobs.users(run_id, sha)
        if run is None or self._blobs.here(run_id, [sha]):
            return
        self._blobs.lost(run_id, sha)
        if "archive" in users:
            self._prepare_again(run, f"its archive cannot be fetched: {reason}")
        for held in [held for held in run.queue.values() if sha in held.blobs]:
            self._let_go(run, [held.task.task])
            told = f"what the task of client {held.task.client} needs cannot be fetched: {reason}"
            self._refuse(held.task, told, retry=True)

    def _moved(self, run_id: str, sha: bytes) -> None:
        users = self._blobs.users(run_id, sha)
        tasks = {user.partition(" ")[2] for user in users if user.startswith(("task ", "answer "))}
        run = self._runs.get(run_id)
        if run is not None:
            tasks |= {task for task, held in run.queue.items() if sha in held.blobs}
        if tasks:
            self._progress.setdefault(run_id, set()).update(tasks)

    # tasks

    def _fill(self) -> None:
        """Start what can be started."""
        free = self._slots - sum(len(run.busy) for run in self._runs.values())
        while free > 0:
            ready = [run for run in self._runs.values() if run.queue and run.standing is HostStanding.READY]
            ready.sort(key=lambda run: (run.seconds(self._now), run.number))
            found = next(((run, held) for run in ready if (held := self._next(run)) is not None), None)
            if found is None:
                return
            free -= self._start(*found)

    def _next(self, run: HostedRun) -> Held | None:
        for held in run.queue.values():
            if held.task.client not in run.busy and self._blobs.here(run.id, held.blobs):
                return held
        return None

    def _start(self, run: HostedRun, held: Held) -> bool:
        task = held.task
        del run.queue[task.task]
        base = self._spool.state(run.id, task.base) if task.base else None
        if task.base and base is None:
            self._out += self._blobs.drop(run.id, {f"task {task.task}"})
            self._refuse(task, _lost(task))
            return False
        run.busy[task.client] = Slot(held, self._now)
        self._out.append(Start(run.id, task, held.ask, base))
        return True

    def _let_go(self, run: HostedRun, tasks: Iterable[str]) -> None:
        """Tasks are not wanted any more: those that wait never start, those that run are stopped."""
        gone: set[str] = set()
        for task in tasks:
            slot = run.busy.get(_client_of(task))
            if slot is not None and slot.held.task.task == task and slot.wanted:
                slot.wanted = False
                self._out.append(Stop(run.id, task, slot.held.task.attempt))
                gone.add(f"task {task}")
            if run.queue.pop(task, None) is not None:
                gone.add(f"task {task}")
        if gone:
            self._out += self._blobs.drop(run.id, gone)

    def _ended(self, event: TaskDone | TaskFailed) -> Held | None:
        """A task has left its slot; None if nobody waits for it any more."""
        run = self._runs.get(event.run)
        slot = run.busy.get(_client_of(event.task)) if run is not None else None
        if run is None or slot is None or (slot.held.task.task, slot.held.task.attempt) != (event.task, event.attempt):
            return None
        run.past += self._now - slot.since
        del run.busy[_client_of(event.task)]
        return slot.held if slot.wanted else None

    def _done(self, event: TaskDone) -> None:
        held = self._ended(event)
        if held is None:
            blob = _blob_of(event.result, "update")
            if blob is not None and not self._blobs.users(event.run, blob.sha256):
                self._out.append(ReleaseBlob(event.run, blob.sha256))
            return
        result = _outcome(held.task)
        result.done.CopyFrom(event.result)
        result.done.receipt.task = held.task.task
        result.done.receipt.client = held.task.client
        result.done.receipt.kept = event.state is not None
        self._finish(held, result, held.ask.digest, event.state)

    def _failed(self, event: TaskFailed) -> None:
        held = self._ended(event)
        if held is not None:
            self._finish(held, _failure(held.task, event.reason, event.retry))

    def _finish(self, held: Held, result: m.Result, digest: bytes | None = None, state: bytes | None = None) -> None:
        self._answers.keep(result, digest, state)
        self._hold_update(result)
        self._out += self._blobs.drop(result.run, {f"task {held.task.task}"})
        self._say_result(result, durable=True)

    def _step(self, run_id: str, task: str) -> None:
        run = self._runs.get(run_id)
        slot = run.busy.get(_client_of(task)) if run is not None else None
        if slot is not None and slot.wanted and slot.held.task.task == task:
            self._progress.setdefault(run_id, set()).add(task)
            self._stepped = True


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ProtocolError(f"{what}: a field is missing or out of range", m.CODE_MALFORMED)


def _check_payload(message: Any, name: str, what: str) -> None:
    if not message.HasField(name):
        return
    payload: m.Payload = getattr(message, name)
    at = payload.WhichOneof("at")
    _require(at is not None and (at != "blob" or len(payload.blob.sha256) == 32), f"{what}, {name}")


def _blob_of(message: Any, name: str) -> m.Blob | None:
    payload: m.Payload = getattr(message, name)
    return payload.blob if payload.WhichOneof("at") == "blob" else None


def _steps(text: str, what: str) -> list[tuple[str, int]]:
    """The transforms of an ask, from their JSON: a chain's one by one."""
    try:
        waiting, found = [json.loads(text)], []
        while waiting:
            spec = waiting.pop()
            if spec["name"] == "chain":
                waiting += reversed(spec["settings"]["parts"])
            else:
                found.append((str(spec["name"]), int(spec["version"])))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ProtocolError(f"{what}: its transforms are not described as JSON", m.CODE_MALFORMED) from None
    return found


def _ask_of(task: str) -> int:
    return int(task.partition(".")[0])


def _client_of(task: str) -> str:
    return task.partition(".")[2]


def _outcome(task: m.Task) -> m.Result:
    return m.Result(run=task.run, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt)


def _failure(task: m.Task, reason: str, retry: bool) -> m.Result:
    result = _outcome(task)
    result.failure.CopyFrom(m.Failure(reason=reason[:_REASON_LETTERS], retry=retry))
    return result


def _lost(task: m.Task) -> str:
    return (
        f"the state that task {task.base} left at client {task.client} is not on this node: "
        "its disk was lost, or another one took its place"
    )
