"""One run's clients on real machines: takes a coordinator's commands and gives events back, as a simulation's session
does, by way of a server.

It has no sockets and no threads: a `Link` carries messages, and says when the connection is lost and there again. Then
the session says again all that is still open; everybody else knows by the ids what is new to them. Time is that in
which the server could be reached: an outage expires nothing.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..core import encoding
from ..core.ask import Ask, for_client
from ..core.partial import Partial
from ..core.task import Admit, AllFinished, Cancel, Failed, Send, Task, Ticked
from ..core.update import Receipt, Update
from ..errors import ClientId, CorruptFile, UmbelError, UpdateRejected
from ..runs.coordinator import Event, Wake
from ..runs.events import AskClosed, RoundCommitted, RunEvent, RunFinished, RunResumed
from ..runs.federation import Reporting, Session
from ..wire import messages as m
from ..wire.names import client_id
from ..work.executor import Keys
from ..work.intake import ClosedAsk, Intake
from ..work.late import lasting, load_ask, save_ask
from .payloads import RemoteAsk, Stored, ask_spec, task_message

PARTING = 10.0
"""For how many seconds a run that is over waits until the server has stored its log."""


@dataclass(frozen=True, slots=True)
class Up:
    """The server can be reached, for the first time or again."""


@dataclass(frozen=True, slots=True)
class Down:
    """The server cannot be reached; the link tries on."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A blob is here, as a file."""

    sha: bytes
    path: Path


@dataclass(frozen=True, slots=True)
class Missing:
    """A blob is not to be had."""

    sha: bytes
    reason: str


Item = Up | Down | Arrived | Missing | m.Message


class Link(Protocol):
    """The way to the server. What is sent while it is down is lost: it is said again after the next `Up`."""

    @property
    def store(self) -> Stored:
        """What makes payloads of trees and arrays."""

    def keep(self, data: bytes) -> m.Payload:
        """Bytes as a payload, for as long as the link lasts."""

    def send(self, message: m.Message) -> None:
        """Send a message; never waits."""

    def receive(self, timeout: float | None) -> Item | None:
        """What comes next, within so many seconds of served time; None if nothing does."""

    def fetch(self, blob: m.Blob) -> None:
        """Have a blob sent; `Arrived` or `Missing` follows."""

    def release(self, sha: bytes) -> None:
        """A blob is not needed any more."""

    def served(self) -> float:
        """Seconds in which the server could be reached."""

    def close(self) -> None:
        """End the connection."""


class MarkersOf(Protocol):
    """The client states, as the conductor keeps them: here markers that say which task's state a node holds."""

    def get(self, client: ClientId) -> dict[str, Any]:
        """The marker of a client; empty for one that has no state."""


@dataclass(slots=True)
class _Flying:
    task: Task
    seen: float
    warned: bool = False


@dataclass(slots=True)
class _Log:
    """Events that the server has not stored yet; `number` is that of the first."""

    events: deque[str] = field(default_factory=deque)
    number: int = 1


class RemoteSession(Session, Reporting):
    """One run's clients by way of a server.

    - `run`: its id; `spec` what nodes are told of it; `keys` gives the keys of tasks.
    - `stall`: after so many seconds without a sign of life from a client that has a task, the task has failed; halfway
      there is a warning.
    - `log`: the events that the run's journal has already, in their order.
    """

    virtual = None

    def __init__(
        self,
        link: Link,
        spec: m.RunSpec,
        states: MarkersOf,
        *,
        keys: Keys,
        stall: float,
        log: Iterable[RunEvent] = (),
    ) -> None:
        self._link = link
        self._spec = spec
        self._run = spec.run
        self._states = states
        self._keys = keys
        self._stall = stall
        self._intake = Intake()
        self._asks: dict[int, RemoteAsk] = {}
        self._open: set[int] = set()
        self._flying: dict[str, _Flying] = {}
        self._blocked: list[Task] = []
        self._merged: set[str] = set()
        self._blobs: dict[bytes, list[m.Message]] = {}
        self._held: dict[int, set[bytes]] = {}
        self._done: set[int] = set()
        self._closed: deque[tuple[int, int]] = deque()
        self._events: deque[Event] = deque()
        self._wakes: list[float] = []
        self._warnings: list[tuple[ClientId | None, str]] = []
        self._up = True
        self._status: str | None = None
        self._freed: list[Task] = []
        self._log = _Log()
        self.members: dict[ClientId, tuple[int, str]] = {}
        since: set[int] = set()
        for event in log:
            if event.logged:
                self.observe(event)
            if isinstance(event, AskClosed):
                since.add(event.ask)
            elif isinstance(event, RoundCommitted):  # the server may not have been told that its asks are over
                self._done, since = since, set()

    # What a conductor needs of any session

    @property
    def clock(self) -> Callable[[], float]:
        """Deadlines go by the time in which the server could be reached."""
        return self._link.served

    @property
    def reporting(self) -> RemoteSession:
        """The server is told of all events."""
        return self

    def online(self, client: ClientId) -> bool:
        """Tasks of clients that are not connected wait for them."""
        return True

    def warnings(self) -> list[tuple[ClientId | None, str]]:
        """What whoever runs this should know, since it was last asked."""
        found, self._warnings = self._warnings, []
        return found

    def observe(self, event: RunEvent) -> None:
        """Tell the server of an event of the run."""
        text = json.dumps(event.record())
        if not event.logged:
            self._say(log_event=m.LogEvent(run=self._run, number=0, event=text))
            return
        self._log.events.append(text)
        number = self._log.number + len(self._log.events) - 1
        self._say(log_event=m.LogEvent(run=self._run, number=number, event=text))
        if isinstance(event, RunFinished):
            self._status = "failed" if event.error is not None else "finished"
        elif isinstance(event, RunResumed):
            self._status = None

    def disconnect(self) -> None:
        """Let go of the server. Where the run is over it is told so; else it keeps what it has for the run's next
        session.
        """
        if self._status is not None and self._up:
            until = self._link.served() + PARTING
            while self._log.events and self._up and (left := until - self._link.served()) > 0:
                item = self._link.receive(left)
                if item is None:
                    break
                self._take(item)
            self._say(close_run=m.CloseRun(run=self._run, status=self._status))
        self._link.close()

    # What the coordinator commands

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any, cohort: Sequence[ClientId] = ()) -> None:
        """Make an ask known before its tasks come."""
        if ask.window.late == "keep":
            ask = lasting(ask)
        digest = bytes.fromhex(ask.digest(tuple(cohort)))
        sent = self._asks[id] = RemoteAsk(id, ask, round, number, params, digest, tuple(cohort))
        self._open.add(id)
        self._intake.open(id, ask, round, number, params)
        self._flush()
        self._say_ask(sent)

    def do(self, command: Send | Admit | Cancel | Wake) -> None:
        """Carry out a command."""
        if isinstance(command, Send):
            if self._is_blocked(command.task):
                self._blocked.append(command.task)
            else:
                self._send(command.task)
        elif isinstance(command, Admit):
            if command.task not in self._merged:
                self._intake.admit(command)
        elif isinstance(command, Cancel):
            self._blocked = [task for task in self._blocked if task.id != command.task]
            self._freed = [task for task in self._freed if task.id != command.task]
            if self._flying.pop(command.task, None) is not None:
                self._say(cancel=m.Cancel(run=self._run, tasks=[command.task]))
            self._intake.cancel(command.task)
        else:
            self._wakes.append(command.at)

    def _is_blocked(self, task: Task) -> bool:
        """Whether the client has to be done with another ask first, whose state it goes on from."""
        return any(id < task.ask and task.client in self._asks[id].cohort for id in self._open)

    def _send(self, task: Task) -> None:
        self._flying[task.id] = _Flying(task, self._link.served())
        self._say(task=self._message(task))

    def _message(self, task: Task) -> m.Task:
        base = str(self._states.get(task.client).get("held", ""))
        message = task_message(self._run, self._asks[task.ask], task, self._keys, base, self._link.store)
        self._keep_until_closed(task.ask, message.own)
        return message

    def _say_ask(self, sent: RemoteAsk) -> None:
        spec = ask_spec(self._run, sent, self._link.store)
        for payload in (spec.model, spec.shared):
            self._keep_until_closed(sent.id, payload)
        self._say(ask_spec=spec)

    # What the coordinator is told

    def next_event(self) -> Event | None:
        """What came of a task, or a moment that was waited for; None when nothing is to come."""
        self._flush()
        while not self._events:
            served = self._link.served()
            if self._wakes and min(self._wakes) <= served:
                self._wakes.remove(min(self._wakes))
                return Ticked()
            if self._stalled(served):
                break
            if self._warnings:
                return Ticked()  # they are told of at once
            if not self._flying and not self._wakes:
                return None
            item = self._link.receive(self._patience(served))
            if item is not None:
                self._take(item)
        return self._events.popleft() if self._events else Ticked()

    def _patience(self, served: float) -> float | None:
        """For how long nothing but a message can make a difference."""
        times = list(self._wakes)
        if self._flying:
            oldest = min(flying.seen for flying in self._flying.values())
            unwarned = [flying.seen for flying in self._flying.values() if not flying.warned]
            times.append(oldest + self._stall)
            times += [min(unwarned) + self._stall / 2] if unwarned else []
        return max(0.0, min(times) - served) if times else None

    def _stalled(self, served: float) -> bool:
        """Look for clients that have shown no sign of life; whether any task failed for it."""
        for flying in list(self._flying.values()):
            silent = served - flying.seen
            task = flying.task
            where = self.members.get(task.client)
            gone = " (its node is not connected)" if where is not None and where[0] == m.STANDING_OFFLINE else ""
            if silent >= self._stall:
                self._over(task)
                self._say(cancel=m.Cancel(run=self._run, tasks=[task.id]))
                self._events.append(Failed(task.id, f"no sign of life for {silent:.0f} s{gone}"))
            elif silent >= self._stall / 2 and not flying.warned:
                flying.warned = True
                text = f"no sign of life for {silent:.0f} s{gone}; after {self._stall:.0f} s the run goes on without it"
                self._warnings.append((task.client, text))
        return bool(self._events)

    def _take(self, item: Item) -> None:
        if isinstance(item, Up):
            self._up = True
            self._say_again()
        elif isinstance(item, Down):
            self._up = False
        elif isinstance(item, Arrived):
            for message in self._blobs.pop(item.sha, []):
                self._answered(message, item.path)
            if not any(item.sha in held for held in self._held.values()):
                self._link.release(item.sha)
        elif isinstance(item, Missing):
            for message in self._blobs.pop(item.sha, []):
                for task in _tasks_of(message):
                    self._fail(task, f"its update is not to be had: {item.reason}", retry=True)
        else:
            self._read(item)

    def _read(self, message: m.Message) -> None:
        kind = message.WhichOneof("body")
        if kind in ("result", "partial"):
            payload = message.partial.partial if kind == "partial" else message.result.done.update
            if payload.HasField("blob") and any(task in self._flying for task in _tasks_of(message)):
                waiting = self._blobs.setdefault(payload.blob.sha256, [])
                waiting.append(message)
                if len(waiting) == 1:
                    self._link.fetch(payload.blob)
            else:
                self._answered(message, None)
        elif kind == "alive":
            for task in message.alive.tasks:
                if task in self._flying:
                    self._flying[task].seen, self._flying[task].warned = self._link.served(), False
        elif kind == "members":
            self._take_members(message.members)
        elif kind == "log_ack":
            self._logged(message.log_ack.number)
        elif kind == "notice":
            self._warnings.append((None, f"the server: {message.notice.text}"))

    def _take_members(self, body: m.Members) -> None:
        for member in body.members:
            client = client_id(member.client)
            self.members[client] = (member.standing, member.reason)
            if member.standing == m.STANDING_REFUSED:
                self._warnings.append((client, f"it does not take part: {member.reason}"))
            elif member.standing == m.STANDING_PREPARING and member.reason:
                self._warnings.append((client, f"it is not ready, and is tried again: {member.reason}"))

    def _logged(self, number: int) -> None:
        """The server has all events up to this one."""
        while self._log.events and self._log.number <= number:
            self._log.events.popleft()
            self._log.number += 1
        while self._closed and self._closed[0][0] <= number:
            self._closed.popleft()

    def _say_again(self) -> None:
        """Everything that is still open."""
        self._say(run_spec=self._spec)
        for _, id in self._closed:
            self._say(close_ask=m.CloseAsk(run=self._run, ask=id))
        for flying in self._flying.values():
            flying.seen = self._link.served()
        for id in sorted(self._open | {flying.task.ask for flying in self._flying.values()}):
            self._say_ask(self._asks[id])
        for flying in self._flying.values():
            self._say(task=self._message(flying.task))
        for number, text in enumerate(self._log.events, self._log.number):
            self._say(log_event=m.LogEvent(run=self._run, number=number, event=text))
        for waiting in self._blobs.values():
            self._link.fetch(_payload_of(waiting[0]).blob)

    # Answers

    def _answered(self, message: m.Message, path: Path | None) -> None:
        if message.WhichOneof("body") == "partial":
            self._partial(message.partial, path)
            return
        result = message.result
        flying = self._flying.get(result.task)
        if flying is None:
            return  # it is over: a duplicate, or not wanted
        if result.HasField("failure"):
            if result.attempt >= flying.task.attempt:
                self._fail(result.task, result.failure.reason, retry=result.failure.retry)
            return
        task, claimed = flying.task, result.done.receipt
        try:
            update = _loaded(result.done.update, path)
            if not isinstance(update, Update):
                raise UpdateRejected(f"its answer holds a {type(update).__name__}, not an update")
        except (CorruptFile, UpdateRejected) as error:
            self._fail(task.id, f"its update cannot be read: {error.message}")
            return
        state = self._marker(task.id) if claimed.kept else None
        receipt = _receipt(claimed)
        outcome = self._intake.arrived(task, update, receipt, state, mapped=path is not None)
        self._over(task)
        self._keep_until_closed(task.ask, result.done.update)
        self._events.append(outcome)

    def _partial(self, body: m.Partial, path: Path | None) -> None:
        ids = [receipt.task for receipt in body.receipts]
        if unwanted := [id for id in ids if id not in self._flying]:
            if len(unwanted) < len(ids):
                self._say(refold=m.Refold(run=self._run, ask=body.ask, without=unwanted))
            return
        states = {self._flying[r.task].task.client: self._marker(r.task) for r in body.receipts if r.kept}
        try:
            if any(self._flying[id].task.ask != body.ask for id in ids):
                raise UpdateRejected("it is of another ask")
            sent = self._asks[body.ask]
            if not sent.whole:
                raise UpdateRejected("the window of this ask does not take partials")
            expects, model = for_client(sent.ask.expects, None), for_client(sent.ask.model, None)
            partial = Partial.from_tree(sent.ask.fold, _loaded(body.partial, path), expects, model)
            clients = {id: self._flying[id].task.client for id in ids}
            if {id: receipt.client for id, receipt in partial.receipts.items()} != clients:
                raise UpdateRejected("a partial does not hold what its receipts say")
            self._intake.merge(body.ask, partial, states)
        except (UmbelError, ValueError) as error:
            told = error.message if isinstance(error, UmbelError) else str(error)
            for id in ids:
                self._fail(id, f"a relay's partial cannot be folded: {told}")
            return
        self._merged.update(ids)
        for id in ids:
            self._over(self._flying[id].task)
        self._keep_until_closed(body.ask, body.partial)
        self._events.append(AllFinished(ids))

    def _marker(self, task: str) -> bytes:
        """What the conductor keeps as the client's state: which task's state its node has."""
        return encoding.encode({"held": task})

    def _fail(self, id: str, reason: str, retry: bool = False) -> None:
        flying = self._flying.get(id)
        if flying is not None:
            self._over(flying.task)
            self._events.append(Failed(id, reason, retry))

    def _over(self, task: Task) -> None:
        self._flying.pop(task.id, None)

    def _keep_until_closed(self, ask: int, payload: m.Payload) -> None:
        if payload.HasField("blob"):
            self._held.setdefault(ask, set()).add(payload.blob.sha256)

    # The end of asks

    def close(self, id: int) -> ClosedAsk:
        """Hand over what an ask came to. The server keeps its answers until the round is committed."""
        opened = self._intake.close(id)
        self._open.discard(id)
        closed = ClosedAsk(opened.partial, opened.states, opened.refused, self._intake.take_account())
        self._done.add(id)
        self._freed += self._blocked
        self._blocked = []
        return closed

    def _flush(self) -> None:
        """Send the tasks that had to wait until the conductor recorded how an ask ended."""
        freed, self._freed = self._freed, []
        for task in freed:
            if self._is_blocked(task):
                self._blocked.append(task)
            else:
                self._send(task)

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these, whose tasks may still come: a round is committed, and not asked again.

        Only now does the server forget them, and with it the nodes, which answer each question once: a run that dies
        between the end of an ask and that of its round, or whose log loses its last lines, is given the same answers.
        """
        over = sorted(self._done - keep)
        self._done &= keep
        for id in over:
            # The server has heard of it once it has the next event of the log.
            self._closed.append((self._log.number + len(self._log.events), id))
            self._say(close_ask=m.CloseAsk(run=self._run, ask=id))
            for sha in self._held.pop(id, set()) - set().union(*self._held.values()):
                self._link.release(sha)
            self._merged = {task for task in self._merged if not task.startswith(f"{id}.")}
        self._asks = {id: sent for id, sent in self._asks.items() if id in keep or id in self._open}
        self._intake.forget(keep)

    def save_asks(self, tasks: Sequence[Task]) -> list[Any]:
        """What is needed to go on with these tasks after a restart, as a plain tree."""
        clients: dict[int, list[ClientId]] = {}
        for task in tasks:
            clients.setdefault(task.ask, []).append(task.client)
        saved = []
        for id, who in clients.items():
            sent = self._asks[id]
            saved.append([id, sent.round, sent.number, sent.params, save_ask(sent.ask, who), sent.digest, sent.cohort])
        return saved

    def restore_asks(self, saved: list[Any]) -> None:
        """Know again what `save_asks` saved."""
        for id, round, number, params, tree, digest, cohort in saved:
            ask = load_ask(tree)
            self._asks[id] = RemoteAsk(id, ask, round, number, params, digest, tuple(cohort))
            self._intake.open(id, ask, round, number, params)
            self._done.add(id)
            self._say_ask(self._asks[id])

    def _say(self, **body: Any) -> None:
        if self._up:
            self._link.send(m.Message(**body))


def _tasks_of(message: m.Message) -> list[str]:
    if message.WhichOneof("body") == "partial":
        return [receipt.task for receipt in message.partial.receipts]
    return [message.result.task]


def _payload_of(message: m.Message) -> m.Payload:
    return message.partial.partial if message.WhichOneof("body") == "partial" else message.result.done.update


def _loaded(payload: m.Payload, path: Path | None) -> Any:
    return encoding.load_file(path) if path is not None else encoding.decode(payload.inline)


def _receipt(claimed: m.Receipt) -> Receipt:
    seconds = claimed.seconds if 0 <= claimed.seconds < math.inf else 0.0
    return Receipt(claimed.task, client_id(claimed.client), claimed.weight, dict(claimed.metrics), seconds)
