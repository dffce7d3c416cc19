"""The state machine of a node: what it was asked, what runs, what it owes the server; events in, effects out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ..core.task import Ticked
from ..errors import ProtocolError
from ..wire import messages as m
from ..wire.blobs import Fetched, NotFetched
from ..wire.limits import ALIVE_TASKS
from ..wire.portions import portions, text_bytes
from .holdings import NeededBlobs, OwedAnswers, outcome
from .hosted import HostedRun, HostedTask
from .hosting import RunHosting
from .orders import ask_text, blob_of, check, task_text, too_large
from .session import ServerSession
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
    ReleaseBlob,
    ServerSaid,
    SessionBegun,
    SessionEnded,
    Stepped,
    TaskDone,
    TaskFailed,
)
from .spool import Ended, Settled, Spool

TOGETHER = 0.05
"""So many seconds an update waits for others to be on disk with, while its run has more to do here."""
FINISHED = 32
"""So many finished runs are kept for those who want further rounds of them."""


class NodeMachine:
    """A node that hosts clients for any number of runs, as a state machine.

    `handle(event, now)` takes an event and the time in seconds, and returns what is to be done, in order. `next_tick`
    is when it wants a `Ticked`, None for never. Only what the spool has outlives the machine; all else comes again from
    the server. At most `slots` tasks run at once, over all runs; the run that has used the least seconds goes first,
    and never do two tasks of one client of a run run at once.

    `clients` are those that it hosts, by their text. `allows(spec, ask)` is the owner's policy about what a run asks:
    the reason against it, empty where it is allowed; `admits(spec)` is that about a run before its archive is fetched.
    `account(task, ask)` is called as an answer is put into the spool, for what goes there with it. No task is done that
    needs a blob of more than `largest` bytes.
    """

    def __init__(
        self,
        spool: Spool,
        clients: Iterable[str],
        *,
        slots: int = 1,
        allows: Callable[[m.RunSpec, m.AskSpec], str] | None = None,
        admits: Callable[[m.RunSpec], str] | None = None,
        largest: int | None = None,
        account: Callable[[m.Task, m.AskSpec], None] | None = None,
    ) -> None:
        self.next_tick: float | None = None
        self._spool = spool
        self._clients = frozenset(clients)
        self._slots = slots
        self._allows, self._admits = allows, admits
        self._largest = largest
        self._account = account
        self._runs: dict[str, HostedRun] = {}
        self._asleep = spool.runs()
        self._finished: deque[str] = deque()
        self._spoiled: dict[str, str] = {}
        self._out: list[Effect] = []
        self._do = self._out.append
        self._session = ServerSession(self._do)
        self._blobs = NeededBlobs(self._do)
        self._answers = OwedAnswers(spool, self._blobs, self._session)
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event; what is to be done about it.

        Raises `ProtocolError` for a message that the server may not send, which changes nothing, and `InternalError`
        for an event that cannot come now.
        """
        self._out.clear()
        self._now = now
        match event:
            case SessionBegun():
                self._connect()
            case SessionEnded():
                self._session.end()
            case ServerSaid(message, more):
                self._hear(message)
                if more:
                    return list(self._out)
            case Fetched(run, sha):
                self._fetched(run, sha)
            case NotFetched(run, sha, reason):
                self._not_fetched(run, sha, reason)
            case Moved(run, sha):
                self._moved(run, sha)
            case HostReady() | HostRefused() | HostDied() | OwnerAsked() | Approved() | Denied():
                if (hosted := self._runs.get(event.run)) is not None:
                    hosted.hosting.handle(event, now)
                    hosted.judge()
            case TaskDone():
                self._done(event)
            case TaskFailed():
                if (held := self._ended(event)) is not None:
                    self._answers.fail(held.task, event.reason, retry=event.retry)
            case Stepped(run, task):
                if run in self._runs and self._runs[run].at_work(task):
                    self._session.stepped(run, task)
            case Ticked():
                pass
        for hosted in self._runs.values():
            hosted.hosting.try_again(now)
        self._fill()
        times = [self._session.tell_alive(now, lambda: {run.id: run.waiting() for run in self._runs.values()})]
        times += [run.hosting.again_at for run in self._runs.values()]
        self.next_tick = min([at for at in times if at is not None], default=None)
        return list(self._out)

    def needed(self) -> set[tuple[str, bytes]]:
        """The blobs (run, sha) that have to be held: a node that starts holds those of its answers again."""
        return self._blobs.needed()

    # the server

    def _connect(self) -> None:
        self._session.begin(self._now)
        self._answers.say_again()
        for run in self._runs.values():
            run.meet()
        self._blobs.fetch()
        # All that it has: the server answers with a Cancel of what is not wanted, a CloseRun for a run that is over.
        held = {run.id: run.tasks() for run in self._runs.values()}
        for id in sorted(self._asleep | held.keys() | self._answers.runs()):
            for part in portions(held.get(id, []), text_bytes, most=ALIVE_TASKS) if held.get(id) else [[]]:
                self._session.say(alive=m.Alive(run=id, tasks=part))

    def _hear(self, message: m.Message) -> None:
        """Take what the server says. What cannot be handled costs the run that it is about, or else the session."""
        kind = message.WhichOneof("body") or ""
        run = getattr(getattr(message, kind), "run", "") if kind else ""
        if run in self._spoiled and kind not in ("run_spec", "close_run"):
            if kind == "task":
                self._answers.refuse(message.task, self._spoiled[run])
            return
        try:
            self._receive(message)
        except ProtocolError:
            raise
        except Exception as error:
            reason = f"this node cannot handle the {kind} that the server says: {error!r:.200}"
            if run not in self._runs:
                raise ProtocolError(reason) from error
            self._do(Note(f"run {run}: {reason}"))
            self._close_run(m.CloseRun(run=run, status="failed"))
            self._spoiled[run] = reason
            self._session.say(run_answer=m.RunAnswer(run=run, reason=reason))

    def _receive(self, message: m.Message) -> None:
        check(message)
        match message.WhichOneof("body"):
            case "run_spec":
                self._run_spec(message.run_spec)
            case "ask_spec":
                if not self._spool.ended(message.ask_spec.run):
                    self._known(message.ask_spec.run, ask_text(message.ask_spec)).ask(message.ask_spec)
            case "task":
                self._task(message.task)
            case "cancel":
                if message.cancel.run in self._runs:
                    self._runs[message.cancel.run].let_go(message.cancel.tasks)
            case "close_ask":
                self._close_ask(message.close_ask)
            case "close_run":
                self._close_run(message.close_run)
            case "ack":
                self._answers.acknowledged(message.ack)
            case "notice":
                self._do(Note(f"the server says: {message.notice.text}"))
            case None:
                raise ProtocolError("a message without a body", m.CODE_MALFORMED)
            case body:
                raise ProtocolError(f"a server does not send a node a message {body!r}", m.CODE_NOT_ALLOWED)

    def _run_spec(self, spec: m.RunSpec) -> None:
        self._spoiled.pop(spec.run, None)
        if self._spool.ended(spec.run):
            self._session.say(run_answer=m.RunAnswer(run=spec.run, reason="the run was finished before"))
            return
        if spec.run not in self._runs:
            hosting = RunHosting(spec, self._session, self._blobs, self._do, self._allows, self._admits)
            self._runs[spec.run] = HostedRun(spec.run, hosting, self._spool, self._blobs, self._answers, self._do)
            self._asleep.discard(spec.run)
            if spec.run in self._finished:
                self._finished.remove(spec.run)
        run = self._runs[spec.run]
        if run.hosting.asked(spec):
            run.kill(self._now)

    def _task(self, task: m.Task) -> None:
        if self._spool.ended(task.run):
            self._answers.refuse(task, "the run was finished before")
            return
        what = task_text(task)
        run = self._known(task.run, what)
        ask = run.asks.get(task.ask)
        if ask is None:
            raise ProtocolError(f"{what} came before the AskSpec {task.ask}", m.CODE_UNKNOWN)
        if self._answers.answered(task, ask.digest) or run.has(task):
            return
        reason = run.hosting.against(ask) or too_large(task, ask, self._largest)
        if not reason:
            here = task.client in self._clients
            reason = run.lost(task) if here else f"client {task.client} is not hosted on this node"
        if reason:
            self._answers.refuse(task, reason)
        else:
            run.admit(task, ask)

    def _close_ask(self, close: m.CloseAsk) -> None:
        run = self._runs.get(close.run)
        newest = run.close(close.ask) if run is not None else None
        self._blobs.drop(close.run, {*self._answers.users(close.run, close.ask), f"ask {close.ask}"})
        self._answers.drop(close.run, close.ask)
        self._spool.put(Settled(close.run, close.ask, newest))

    def _close_run(self, close: m.CloseRun) -> None:
        self._spoiled.pop(close.run, None)
        if self._runs.pop(close.run, None) is not None:
            self._do(EndRun(close.run))
            self._do(Note(f"run {close.run} has {close.status}"))
        self._session.forget(close.run)
        # It may be resumed, or get further rounds: what its clients have answered and keep has to be here then.
        self._blobs.drop_run(close.run, but=self._answers.users(close.run))
        self._asleep.add(close.run)
        if close.status == "finished" and close.run not in self._finished:
            self._finished.append(close.run)
            if len(self._finished) > FINISHED:
                self._forget(self._finished.popleft())

    def _forget(self, run: str) -> None:
        """A run is over for good."""
        self._answers.drop(run)
        self._blobs.drop_run(run)
        self._asleep.discard(run)
        if not self._spool.ended(run):
            self._spool.put(Ended(run))

    def _known(self, run: str, what: str) -> HostedRun:
        if run not in self._runs:
            raise ProtocolError(f"{what} came before its RunSpec", m.CODE_UNKNOWN)
        return self._runs[run]

    # blobs

    def _fetched(self, run_id: str, sha: bytes) -> None:
        self._blobs.arrived(run_id, sha)
        if (run := self._runs.get(run_id)) is not None:
            run.arrived(sha)
            if "archive" in self._blobs.users(run_id, sha):
                run.hosting.fetched()

    def _not_fetched(self, run_id: str, sha: bytes, reason: str) -> None:
        run = self._runs.get(run_id)
        users = self._blobs.users(run_id, sha)
        if run is None or self._blobs.here(run_id, [sha]):
            return
        self._blobs.lost(run_id, sha)
        if "archive" in users:
            run.hosting.failed(f"its archive cannot be fetched: {reason}", self._now)
            run.judge()
        run.lack(sha, reason)

    def _moved(self, run_id: str, sha: bytes) -> None:
        users = self._blobs.users(run_id, sha)
        self._session.moved(run_id, *(u.partition(" ")[2] for u in users if u.startswith(("task ", "answer "))))
        if run_id in self._runs:
            self._session.moved(run_id, *self._runs[run_id].waiting(sha))

    # tasks

    def _fill(self) -> None:
        """Start what can be started; of runs that have used as much the older goes first."""
        free = self._slots - sum([run.slots() for run in self._runs.values()])
        while free > 0 and (runs := [run for run in self._runs.values() if run.startable]):
            runs.sort(key=lambda run: run.seconds(self._now))
            started = next((it for run in runs if (it := run.start(self._now)) is not None), None)
            if started is None:
                return
            free -= started

    def _ended(self, event: TaskDone | TaskFailed) -> HostedTask | None:
        """A task has left its slot; None if nobody waits for it any more."""
        run = self._runs.get(event.run)
        return run.end(event.task, event.attempt, self._now) if run is not None else None

    def _done(self, event: TaskDone) -> None:
        held = self._ended(event)
        if held is None:
            blob = blob_of(event.result, "update")
            if blob is not None and not self._blobs.users(event.run, blob.sha256):
                self._do(ReleaseBlob(event.run, blob.sha256))
            return
        result = outcome(held.task)
        result.done.CopyFrom(event.result)
        result.done.receipt.task = held.task.task
        result.done.receipt.client = held.task.client
        result.done.receipt.kept = event.state is not None
        if self._account is not None:
            self._account(held.task, held.ask)
        more = held.ask.whole and self._runs[event.run].has_more
        self._answers.keep(result, held.ask.digest, event.state, TOGETHER if more else 0.0)
