"""One run's clients on real machines: takes a coordinator's commands and gives events back, as a simulation's session
does, by way of a server.

It has no sockets and no threads: a `Link` carries messages, and says when the connection is lost and there again. Then
the session says again all that is still open; everybody else knows by the ids what is new to them. Time is that in
which the server could be reached: an outage expires nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..core import encoding
from ..core.ask import Ask, for_client
from ..core.partial import Partial
from ..core.task import Admit, Cancel, Failed, Finished, Send, Task, Ticked
from ..core.update import Receipt, Update
from ..errors import CallerError, ClientId, CorruptFile, ProtocolError, StorageError, UmbelError, UpdateRejected
from ..runs.coordinator import Event, Wake
from ..runs.events import AskClosed, RoundCommitted, RunEvent
from ..runs.federation import Session
from ..wire import messages as m
from ..wire.blobs import most_of_answer
from ..wire.bodies import tasks_of
from ..wire.limits import CANCEL_TASKS
from ..wire.names import client_id
from ..wire.portions import portions, text_bytes
from ..work import contents
from ..work.executor import Keys
from ..work.intake import ClosedAsk, Intake
from ..work.late import lasting, load_ask, save_ask
from .outstanding import Outstanding
from .payloads import RemoteAsk, Stored, answer_bytes, ask_spec, task_message
from .reporting import ServerReporting

PARTING = 10.0
"""For how many seconds a run that is over waits until the server has stored its log."""


TOGETHER = 256
"""So many messages that are here are taken before the coordinator hears of what they say."""


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

    @property
    def federation(self) -> str | None:
        """The public key of the server's authority, in hexadecimal; None without TLS."""

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


class AskBlobs:
    """Blobs that a run has by its link: those that messages wait for, and those of asks that are not over."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[bytes, tuple[m.Blob, list[m.Message]]] = {}
        self._kept: dict[int, set[bytes]] = {}

    def keep(self, ask: int, payload: m.Payload) -> None:
        """A payload belongs to an ask."""
        if payload.HasField("blob"):
            self._kept.setdefault(ask, set()).add(payload.blob.sha256)

    def fetch_for(self, message: m.Message, blob: m.Blob) -> None:
        """Have a blob sent for a message, which `take` gives once it is here."""
        if blob.sha256 not in self._waiting:
            self._waiting[blob.sha256] = (blob, [])
            self._link.fetch(blob)
        self._waiting[blob.sha256][1].append(message)

    def fetch_again(self) -> None:
        """The link has lost what was asked for."""
        for blob, _ in self._waiting.values():
            self._link.fetch(blob)

    def take(self, sha: bytes) -> list[m.Message]:
        """The messages that waited for a blob; they wait no more."""
        return self._waiting.pop(sha)[1] if sha in self._waiting else []

    def release(self, *shas: bytes) -> None:
        """Let go of blobs that no ask needs."""
        for sha in set(shas).difference(*self._kept.values()):
            self._link.release(sha)

    def forget(self, ask: int) -> None:
        """An ask is over, and its round committed."""
        self.release(*self._kept.pop(ask, ()))


class MarkersOf(Protocol):
    """The client states, as the conductor keeps them: here markers that say which task's state a node holds."""

    def get(self, client: ClientId) -> dict[str, Any]:
        """The marker of a client; empty for one that has no state."""


class RemoteSession(Session):
    """One run's clients by way of a server.

    - `run`: its id; `spec` what nodes are told of it; `keys` gives the keys of tasks.
    - `stall`: after so many seconds without a sign of life from a client that has a task, the task has failed; halfway
      there is a warning.
    - `log`: the events that the run's journal has already, in their order.
    """

    virtual = None
    keeps_answers = True

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
        self._intake = Intake()
        self._asks: dict[int, RemoteAsk] = {}
        self._open: set[int] = set()
        self._out = Outstanding(stall, link.served)
        self._blocked: dict[str, Task] = {}
        self._merged: set[str] = set()
        self._blobs = AskBlobs(link)
        self._done: set[int] = set()
        self._events: deque[Event] = deque()
        self._wakes: list[float] = []
        self._up = True
        self._left = link.served()
        self._freed: dict[str, Task] = {}
        self._report = ServerReporting(spec.run, self._say)
        self.members: dict[ClientId, tuple[int, str]] = {}
        since: set[int] = set()
        for event in log:
            if event.logged:
                self._report.observe(event)
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
    def reporting(self) -> ServerReporting:
        """The server is told of all events."""
        return self._report

    def online(self, client: ClientId) -> bool:
        """Tasks of clients that are not connected wait for them."""
        return True

    def disconnect(self, whole: bool = False) -> None:
        """Let go of the server. Where the run is over it is told so; else it keeps what it has for the run's next
        session.
        """
        if self._report.status is not None and self._up:
            until = self._link.served() + PARTING
            while not self._report.all_stored and self._up and (left := until - self._link.served()) > 0:
                item = self._link.receive(left)
                if item is None:
                    break
                self._take(item)
            self._say(close_run=m.CloseRun(run=self._run, status=self._report.status))
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
            for task in command.tasks:
                self._send(task)
        elif isinstance(command, Admit):
            if here := [task for task in command.tasks if task not in self._merged]:
                self._intake.admit(replace(command, tasks=here))
        elif isinstance(command, Cancel):
            out = []
            for id in command.tasks:
                self._blocked.pop(id, None)
                self._freed.pop(id, None)
                if self._out.remove(id) is not None:
                    out.append(id)
            for tasks in portions(out, text_bytes, most=CANCEL_TASKS):
                self._say(cancel=m.Cancel(run=self._run, tasks=tasks))
            self._intake.cancel(command.tasks)
        else:
            self._wakes.append(command.at)

    def _send(self, task: Task) -> None:
        # The client has to be done with another ask first, whose state it goes on from.
        if any(id < task.ask and task.client in self._asks[id].clients for id in self._open):
            self._blocked[task.id] = task
            return
        self._out.add(task)
        self._say(task=self._message(task))

    def _message(self, task: Task) -> m.Task:
        base = str(self._states.get(task.client).get("held", ""))
        message = task_message(self._run, self._asks[task.ask], task, self._keys, base, self._link.store)
        self._blobs.keep(task.ask, message.own)
        return message

    def _say_ask(self, sent: RemoteAsk) -> None:
        spec = ask_spec(self._run, sent, self._link.store)
        for payload in (spec.model, spec.shared):
            self._blobs.keep(sent.id, payload)
        self._say(ask_spec=spec)

    # What the coordinator is told

    def next_event(self) -> Event | None:
        """What came of a task, or a moment that was waited for; None when nothing is to come."""
        self._flush()
        if self._link.served() - self._left > self._out.stall / 4:
            self._out.count_anew()  # this run itself was away, and has not heard whoever spoke meanwhile
        found = self._next_event()
        self._left = self._link.served()
        return found

    def _next_event(self) -> Event | None:
        while not self._events:
            served = self._link.served()
            if self._wakes and min(self._wakes) <= served:
                self._wakes.remove(min(self._wakes))
                return Ticked()
            if self._stalled():
                break
            if self._report.has_warnings:
                return Ticked()  # they are told of at once
            if not self._out and not self._wakes:
                return None
            times = [*self._wakes, *self._out.until()]  # until then nothing but a message can make a difference
            item = self._link.receive(max(0.0, min(times) - served) if times else None)
            if item is not None:
                self._take(item)
            for _ in range(TOGETHER):  # what is here already is told of as one block
                if not (self._events and self._up) or (item := self._link.receive(0.0)) is None:
                    break
                self._take(item)
        event = self._events.popleft() if self._events else Ticked()
        if isinstance(event, Finished):
            together = [*event.tasks]
            while self._events and isinstance(self._events[0], Finished):
                together += self._events.popleft().tasks  # type: ignore[union-attr]
            event = Finished(together)
        return event

    def _stalled(self) -> bool:
        """Look for clients that have shown no sign of life; whether any task failed for it."""
        for task, silent, failed in self._out.silent():
            where = self.members.get(task.client)
            gone = " (its node is not connected)" if where is not None and where[0] == m.STANDING_OFFLINE else ""
            text = f"no sign of life for {silent:.0f} s{gone}"
            if failed:
                self._say(cancel=m.Cancel(run=self._run, tasks=[task.id]))
                self._events.append(Failed(task.id, text))
            else:
                text = f"{text}; after {self._out.stall:.0f} s the run goes on without it"
                self._report.warn(task.client, text)
        return bool(self._events)

    def _take(self, item: Item) -> None:
        if isinstance(item, Up):
            self._up = True
            self._say_again()
        elif isinstance(item, Down):
            self._up = False
        elif isinstance(item, Arrived):
            for message in self._blobs.take(item.sha):
                self._answered(message, item.path)
            self._blobs.release(item.sha)
        elif isinstance(item, Missing):
            for message in self._blobs.take(item.sha):
                for task in tasks_of(message):
                    self._fail(task, f"its update is not to be had: {item.reason}", retry=True)
        else:
            try:
                self._read(item)
            except UmbelError:
                raise
            except Exception as error:
                kind = item.WhichOneof("body")
                raise ProtocolError(f"the server said a {kind} that cannot be handled: {error!r:.200}") from error

    def _read(self, message: m.Message) -> None:
        kind = message.WhichOneof("body")
        if kind in ("result", "partial"):
            payload = message.partial.partial if kind == "partial" else message.result.done.update
            wanted = [task for task in tasks_of(message) if task in self._out]
            if (
                wanted
                and payload.HasField("blob")
                and (reason := _too_large([self._asks[self._out[task].ask] for task in wanted], payload.blob, kind))
            ):
                for task in wanted:
                    self._fail(task, reason)
            elif wanted and payload.HasField("blob"):
                self._blobs.fetch_for(message, payload.blob)
            else:
                self._answered(message, None)
        elif kind == "alive":
            self._out.seen(message.alive.tasks)
        elif kind == "members":
            self._take_members(message.members)
        elif kind == "log_ack":
            self._report.stored(message.log_ack.number)
        elif kind == "notice":
            self._report.warn(None, f"the server: {message.notice.text}")

    def _take_members(self, body: m.Members) -> None:
        for member in body.members:
            client = client_id(member.client)
            self.members[client] = (member.standing, member.reason)
            if member.standing == m.STANDING_REFUSED:
                self._report.warn(client, f"it does not take part: {member.reason}")
            elif member.standing == m.STANDING_PREPARING and member.reason:
                self._report.warn(client, f"it is not ready, and is tried again: {member.reason}")

    def _say_again(self) -> None:
        """Everything that is still open."""
        self._say(run_spec=self._spec)
        self._report.close_asks_again()
        self._out.count_anew()
        for id in sorted(self._open | {task.ask for task in self._out}):
            self._say_ask(self._asks[id])
        for task in self._out:
            self._say(task=self._message(task))
        self._report.tell_again()
        self._blobs.fetch_again()

    # Answers

    def _answered(self, message: m.Message, path: Path | None) -> None:
        if message.WhichOneof("body") == "partial":
            self._partial(message.partial, path)
            return
        result = message.result
        if result.task not in self._out:
            return  # it is over: a duplicate, or not wanted
        task, claimed = self._out[result.task], result.done.receipt
        if result.HasField("failure"):
            if result.attempt >= task.attempt:
                self._fail(result.task, result.failure.reason, retry=result.failure.retry)
            return
        try:
            update = contents.answer(result.done.update, path)
            if not isinstance(update, Update):
                raise UpdateRejected(f"its answer holds a {type(update).__name__}, not an update")
            state = _marker(task.id) if claimed.kept else None
            outcome = self._intake.arrived(task, update, _receipt(claimed), state, mapped=path is not None)
        except Exception as error:  # whatever it is, this client alone pays for it
            if isinstance(error, CallerError) or _is_own(error):
                raise
            self._fail(task.id, f"its update cannot be read: {_said(error)}")
            return
        self._out.remove(task.id)
        self._blobs.keep(task.ask, result.done.update)
        self._events.append(outcome)

    def _partial(self, body: m.Partial, path: Path | None) -> None:
        ids = [receipt.task for receipt in body.receipts]
        if unwanted := [id for id in ids if id not in self._out]:
            if len(unwanted) < len(ids):
                self._say(refold=m.Refold(run=self._run, ask=body.ask, without=unwanted))
            return
        states = {self._out[r.task].client: _marker(r.task) for r in body.receipts if r.kept}
        try:
            if any(self._out[id].ask != body.ask for id in ids):
                raise UpdateRejected("it is of another ask")
            sent = self._asks[body.ask]
            if not sent.whole:
                raise UpdateRejected("the window of this ask does not take partials")
            expects, model = for_client(sent.ask.expects, None), for_client(sent.ask.model, None)
            expects = sent.ask.transform.folded(expects)
            bound = sent.ask.transform.bound
            tree = contents.answer(body.partial, path)
            partial = Partial.from_tree(sent.ask.fold, tree, expects, model, bound)
            clients = {id: self._out[id].client for id in ids}
            if {id: receipt.client for id, receipt in partial.receipts.items()} != clients:
                raise UpdateRejected("a partial does not hold what its receipts say")
            self._intake.merge(body.ask, partial, states)
        except Exception as error:
            if _is_own(error):
                raise
            for id in ids:
                self._fail(id, f"a relay's partial cannot be folded: {_said(error)}")
            return
        self._merged.update(ids)
        for id in ids:
            self._out.remove(id)
        self._blobs.keep(body.ask, body.partial)
        self._events.append(Finished(ids))

    def _fail(self, id: str, reason: str, retry: bool = False) -> None:
        if self._out.remove(id) is not None:
            self._events.append(Failed(id, reason, retry))

    # The end of asks

    def close(self, id: int) -> ClosedAsk:
        """Hand over what an ask came to. The server keeps its answers until the round is committed."""
        opened = self._intake.close(id)
        self._open.discard(id)
        closed = ClosedAsk(opened.partial, opened.states, opened.refused, self._intake.take_account())
        self._done.add(id)
        self._freed |= self._blocked
        self._blocked = {}
        return closed

    def _flush(self) -> None:
        """Send the tasks that had to wait until the conductor recorded how an ask ended."""
        freed, self._freed = self._freed, {}
        for task in freed.values():
            self._send(task)

    def forget(self, keep: set[int]) -> None:
        """Forget all asks but these, whose tasks may still come: a round is committed, and not asked again.

        Only now does the server forget them, and with it the nodes, which answer each question once: a run that dies
        between the end of an ask and that of its round, or whose log loses its last lines, is given the same answers.
        """
        over = sorted(self._done - keep)
        self._done &= keep
        for id in over:
            self._report.close_ask(id)
            self._blobs.forget(id)
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


def _marker(task: str) -> bytes:
    """What the conductor keeps as the client's state: which task's state its node has."""
    return encoding.encode({"held": task})


def _too_large(asked: Sequence[RemoteAsk], blob: m.Blob, kind: str) -> str:
    """Why an answer to these asks is not even fetched; empty where it is."""
    bounds = [most_of_answer(answer_bytes(sent.ask), partial=kind == "partial") for sent in asked]
    if not all(bounds) or blob.size <= max(bounds):
        return ""
    return f"its answer has {blob.size:,} bytes, and what is expected has at most {max(bounds):,}"


def _is_own(error: Exception) -> bool:
    """Whether it is this machine's disk that failed, and nobody's answer."""
    return isinstance(error, StorageError) and not isinstance(error, CorruptFile)


def _said(error: Exception) -> str:
    return error.message if isinstance(error, UmbelError) else f"{error!r:.200}"


def _receipt(claimed: m.Receipt) -> Receipt:
    seconds = claimed.seconds if 0 <= claimed.seconds < math.inf else 0.0
    return Receipt(claimed.task, client_id(claimed.client), claimed.weight, dict(claimed.metrics), seconds)
