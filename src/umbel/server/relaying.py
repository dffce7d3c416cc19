"""The state machine of a relay: a node to the server above, and every run to the router of the nodes below.

It keeps nothing on disk. What was asked and answered is in the router's store; the server above says again, in each
session, what it has no answer to, and the router then gives the answers that it has. So a relay that was killed comes
to the same answers, though it may group them otherwise; a server above that has some of them already says `Refold`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..core.task import Ticked
from ..errors import ProtocolError
from ..folds.catalogue import fold_from_spec
from ..store.records import Store
from ..wire import messages as m
from ..wire.portions import HOSTED_BYTES, portions, text_bytes
from ..work import retries
from .ledger import ENDED, ask_of
from .signals import Connected, Event, Lost, Received

OWNER = "the server above"
"""To whom the runs of a relay belong, in its store."""
FEWEST = 4
"""Fewer answers than this go up as they came."""
LARGE = 64 << 20
"""Models and updates beyond so many bytes are not folded here."""
RECEIPT_BYTES = 1 << 20
"""So many bytes of receipts go into one partial; a message has to fit into a frame."""
LINGER = 0.2
"""Seconds after the last task of an ask until its answers are put together: further tasks may be on their way."""
ALIVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reached:
    """Event: a session with the server above has begun, in which it was told of these clients."""

    clients: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parted:
    """Event: the session is over."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Event: a message of the server above."""

    message: m.Message


@dataclass(frozen=True, slots=True)
class RouterSaid:
    """Event: what the router says to a run."""

    message: m.Message


@dataclass(frozen=True, slots=True)
class Hosting:
    """Event: the nodes below host these clients from now on."""

    clients: frozenset[str]


@dataclass(frozen=True, slots=True)
class Folded:
    """Event: what a fold came to. `refused` are tasks whose answers it could not take; without a payload, all."""

    number: int
    payload: m.Payload | None
    receipts: tuple[m.Receipt, ...] = ()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Unfetched:
    """Event: a blob is not to be had from above."""

    run: str
    sha: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class MovedAbove:
    """Event: a transfer from or to above has made progress."""

    sha: bytes


RelayEvent: TypeAlias = Reached | Parted | Asked | RouterSaid | Hosting | Folded | Unfetched | MovedAbove | Ticked


@dataclass(frozen=True, slots=True)
class SayAbove:
    """Effect: say something above; if `durable`, once all that the router's store was given before is on disk."""

    message: m.Message
    durable: bool = False


@dataclass(frozen=True, slots=True)
class TellRouter:
    """Effect: tell the router; what it says to the run is `RouterSaid`."""

    event: Event


@dataclass(frozen=True, slots=True)
class FoldAnswers:
    """Effect: check and fold these answers to an ask, and hold the result under its number; `Folded` follows."""

    number: int
    spec: m.AskSpec
    answers: tuple[m.Message, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Effect: a fold, or what it came to, is not needed any more."""

    number: int


RelayEffect: TypeAlias = SayAbove | TellRouter | FoldAnswers | Forget


@dataclass(slots=True)
class _Group:
    """Answers that go up together; `message` once they are folded, `session` in which it was said last."""

    answers: list[m.Message]
    tasks: set[str]
    message: m.Message | None = None
    session: int = 0


@dataclass(slots=True)
class _RelayedAsk:
    """`tasks` with their attempts, those that wait for an answer, and answers that wait for those.

    `early` are partials from below, some of whose tasks the server above may still be about to ask for again.
    """

    spec: m.AskSpec
    folds: bool
    open: bool = True
    last: float = 0.0
    tasks: dict[str, int] = field(default_factory=dict)
    own: dict[str, bytes] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    early: dict[str, m.Message] = field(default_factory=dict)
    answers: dict[str, m.Message] = field(default_factory=dict)
    groups: dict[int, _Group] = field(default_factory=dict)
    offers: dict[bytes, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    """`clients` have been ready once, and get their tasks whether or not their node is connected. Its archive could not
    be fetched `tries` times, and is fetched again at `again_at`.
    """

    id: str
    spec: m.RunSpec
    peer: str = ""
    asked: bool = False
    clients: set[str] = field(default_factory=set)
    told: dict[str, tuple[bool, bool, str]] = field(default_factory=dict)
    asks: dict[int, _RelayedAsk] = field(default_factory=dict)
    progress: set[str] = field(default_factory=set)
    tries: int = 0
    again_at: float | None = None


class Relaying:
    """What is between the server above and the router below.

    `store` is the router's, `clients` are those that its nodes host. `handle(event, now)` gives what is to be done, in
    order; `next_tick` is when it wants a `Ticked`.
    """

    def __init__(self, store: Store, clients: Iterable[str]) -> None:
        self.next_tick: float | None = None
        self._runs: dict[str, _Run] = {}
        self._clients = frozenset(clients)
        self._connected = False
        self._session = 0
        self._numbers = 0
        self._due: set[tuple[str, int]] = set()
        self._from_above: dict[str, Callable[[_Run, Any], None]] = {
            "ask_spec": self._ask_spec,
            "task": self._task,
            "cancel": self._cancel,
            "close_ask": self._close_ask,
            "close_run": self._close_run,
            "refold": self._refold,
            "ack": self._ack,
        }
        self._alive_at = 0.0
        self._out: list[RelayEffect] = []
        self._now = 0.0
        self._load(store)

    def _load(self, store: Store) -> None:
        for row in store.rows("runs"):
            if row["owner"] == OWNER and row["status"] not in ENDED and row["spec"]:
                self._runs[row["id"]] = _Run(row["id"], m.RunSpec.FromString(row["spec"]))
        for row in store.rows("asks"):
            if row["run"] in self._runs:
                spec = m.AskSpec.FromString(row["spec"])
                self._runs[row["run"]].asks[row["ask"]] = _RelayedAsk(spec, _folds(spec))
        for row in store.rows("tasks"):
            run = self._runs.get(row["run"])
            if run is not None and row["ask"] in run.asks:
                run.asks[row["ask"]].tasks[row["task"]] = row["attempt"]
                run.clients.add(row["client"])

    def handle(self, event: RelayEvent, now: float) -> list[RelayEffect]:
        """Take an event; what is to be done about it. Raises `ProtocolError` for what the server may not send."""
        self._out, self._now = [], now
        match event:
            case Asked(message):
                self._asked(message)
            case RouterSaid(message):
                self._answered(message)
            case Folded():
                self._folded(event)
            case Reached(clients):
                self._reach(clients)
            case Parted():
                self._connected = False
            case Hosting(clients):
                self._host(clients)
            case Unfetched():
                self._unfetched(event)
            case MovedAbove(sha):
                self._moved(sha)
            case Ticked():
                pass
        for run, ask in list(self._due):
            self._put_together(run, ask)
        self._tell_alive()
        return self._out

    def may_read(self, run: str, sha: bytes) -> bool:
        """Whether the server above may have a blob: one that was named to it, while its ask is open."""
        return run in self._runs and any(sha in ask.offers for ask in self._runs[run].asks.values())

    # Who is there

    def _reach(self, clients: frozenset[str]) -> None:
        self._connected = True
        self._session += 1
        self._alive_at = self._now
        for run in self._runs.values():
            run.asked, run.told = False, {}
            run.asks = {id: ask for id, ask in run.asks.items() if ask.open}
            # The server says Cancel of what is over, and CloseRun for a run that is.
            self._say_alive(run, [task for ask in run.asks.values() for task in ask.tasks])
        if clients != self._clients:
            self._say_hosted()

    def _host(self, clients: frozenset[str]) -> None:
        if clients != self._clients:
            self._clients = clients
            self._say_hosted()

    def _say_hosted(self) -> None:
        """Say whose clients these are; beyond what a message holds, which are some 300,000, there are none."""
        self._say(
            hosted=m.Hosted(clients=next(portions(sorted(self._clients), text_bytes, most_bytes=HOSTED_BYTES), []))
        )

    def _members(self, run: _Run, members: Iterable[m.Member]) -> None:
        """Tell above which clients take part, where that is not what it was told in this session."""
        news: dict[tuple[bool, bool, str], list[str]] = {}  # ready, retry, reason
        for member in members:
            if member.standing == m.STANDING_READY:
                run.clients.add(member.client)
            elif member.standing == m.STANDING_REFUSED:
                run.clients.discard(member.client)
            if member.client in run.clients:
                word = (True, False, "")
            elif member.standing == m.STANDING_REFUSED:
                word = (False, False, member.reason or "it is refused")
            elif member.standing == m.STANDING_PREPARING and member.reason:
                word = (False, True, member.reason)
            else:
                continue
            if run.asked and run.told.get(member.client) != word:
                run.told[member.client] = word
                news.setdefault(word, []).append(member.client)
        for (ready, retry, reason), clients in sorted(news.items(), reverse=True):
            for part in portions(clients, text_bytes):
                self._say(run_answer=m.RunAnswer(run=run.id, ready=ready, retry=retry, reason=reason, clients=part))

    # From above

    def _asked(self, message: m.Message) -> None:
        kind = message.WhichOneof("body") or ""
        if kind == "run_spec":
            self._run_spec(message.run_spec)
            return
        if kind not in self._from_above:
            raise ProtocolError(f"a server does not send a relay a message {kind!r}", m.CODE_NOT_ALLOWED)
        body = getattr(message, kind)
        run = self._runs.get(body.run)
        if run is not None:
            self._from_above[kind](run, body)
        elif kind in ("ask_spec", "task"):
            raise ProtocolError(f"a {kind} of {body.run!r:.250}, whose RunSpec has not come", m.CODE_UNKNOWN)

    def _run_spec(self, spec: m.RunSpec) -> None:
        run = self._runs.setdefault(spec.run, _Run(spec.run, spec))
        if run.spec != spec:
            run.spec = spec
            run.clients.clear()
        run.asked, run.told, run.tries, run.again_at = True, {}, 0, None
        self._tell(run, run_spec=spec)

    def _ask_spec(self, run: _Run, spec: m.AskSpec) -> None:
        ask = run.asks.get(spec.ask)
        if ask is not None and ask.spec.digest != spec.digest:
            self._drop(run, spec.ask)
            ask = None
        if ask is None:
            ask = run.asks[spec.ask] = _RelayedAsk(spec, _folds(spec))
        ask.open = True
        self._tell(run, ask_spec=spec)

    def _task(self, run: _Run, task: m.Task) -> None:
        ask = run.asks.get(task.ask)
        if ask is None:
            raise ProtocolError(f"task {task.task!r:.250} came before its AskSpec", m.CODE_UNKNOWN)
        ask.last = self._now
        self._due.add((run.id, task.ask))
        if task.attempt <= ask.tasks.get(task.task, 0) and self._is_held(ask, task.task):
            return
        if not ask.open:
            ask.open = True
            self._tell(run, ask_spec=ask.spec)
        self._take_out(ask, [task.task])
        ask.tasks[task.task] = max(task.attempt, ask.tasks.get(task.task, 0))
        if task.own.HasField("blob"):
            ask.own[task.task] = task.own.blob.sha256
        ask.pending.add(task.task)
        self._tell(run, task=task)

    def _is_held(self, ask: _RelayedAsk, task: str) -> bool:
        """Whether the answer to a task is here; it is said again if it was not said in this session."""
        for group in ask.groups.values():
            if task in group.tasks:
                self._say_group(group)
                return True
        return any(task in _tasks_of(message) for message in ask.answers.values())

    def _cancel(self, run: _Run, body: m.Cancel) -> None:
        known: dict[int, list[str]] = {}
        for id in body.tasks:
            number = ask_of(id)
            if number in run.asks and run.asks[number].tasks.pop(id, None) is not None:
                known.setdefault(number, []).append(id)
        gone = [id for tasks in known.values() for id in tasks]
        if gone:
            self._tell(run, cancel=m.Cancel(run=run.id, tasks=gone))
        for number, tasks in known.items():
            ask = run.asks[number]
            ask.pending.difference_update(tasks)
            self._take_out(ask, tasks)
            self._due.add((run.id, number))
            if not ask.tasks:
                # Asked about none of its clients any more, or closed unheard. If more are asked, it is opened again.
                self._drop(run, number)
                run.asks[number] = _RelayedAsk(ask.spec, ask.folds, open=False)
                self._tell(run, close_ask=m.CloseAsk(run=run.id, ask=number))

    def _refold(self, run: _Run, body: m.Refold) -> None:
        ask = run.asks.get(body.ask)
        if ask is None:
            return
        below = self._take_out(ask, body.without)
        if below:
            self._tell(run, refold=m.Refold(run=run.id, ask=body.ask, without=sorted(below)))
        self._due.add((run.id, body.ask))

    def _ack(self, run: _Run, body: m.Ack) -> None:
        tasks = set(body.tasks)
        for ask in run.asks.values():
            for number, group in list(ask.groups.items()):
                if group.message is not None and group.tasks <= tasks:
                    del ask.groups[number]
                    self._out.append(Forget(number))

    def _close_ask(self, run: _Run, body: m.CloseAsk) -> None:
        self._drop(run, body.ask)
        self._tell(run, close_ask=body)

    def _close_run(self, run: _Run, body: m.CloseRun) -> None:
        for ask in list(run.asks):
            self._drop(run, ask)
        self._tell(run, close_run=body)
        self._out.append(TellRouter(Lost(run.peer)))
        del self._runs[run.id]

    def _drop(self, run: _Run, id: int) -> None:
        ask = run.asks.pop(id, None)
        self._due.discard((run.id, id))
        if ask is not None:
            self._out += [Forget(number) for number in ask.groups]

    def _take_out(self, ask: _RelayedAsk, tasks: Collection[str]) -> set[str]:
        """Let go of the answers to these tasks; gives those that are in partials from below.

        The other tasks of such a partial are answered anew.
        """
        gone, below = set(tasks), set()
        for number, group in list(ask.groups.items()):
            if not gone.isdisjoint(group.tasks):
                del ask.groups[number]
                self._out.append(Forget(number))
                ask.answers.update((_tasks_of(message)[0], message) for message in group.answers)
        for key, message in list(ask.answers.items()):
            held = set(_tasks_of(message))
            if found := held & gone:
                del ask.answers[key]
                if message.WhichOneof("body") == "partial":
                    below |= found
                    ask.pending |= (held - gone) & ask.tasks.keys()
        return below

    # From below

    def _answered(self, message: m.Message) -> None:
        kind = message.WhichOneof("body") or ""
        if kind not in ("members", "alive", "result", "partial"):
            return
        body = getattr(message, kind)
        run = self._runs.get(body.run)
        if run is None:
            return
        if kind == "members":
            self._members(run, body.members)
        elif kind == "alive":
            run.progress.update(body.tasks)
        elif body.ask in run.asks:
            ask = run.asks[body.ask]
            self._due.add((run.id, body.ask))
            if kind == "partial":
                if not ask.pending.isdisjoint(_tasks_of(message)):
                    ask.early[_tasks_of(message)[0]] = message
            elif body.task in ask.pending:
                self._result(ask, message)

    def _result(self, ask: _RelayedAsk, message: m.Message) -> None:
        result = message.result
        if result.HasField("failure"):
            if result.attempt >= ask.tasks[result.task]:
                ask.pending.discard(result.task)
                self._say(result=result)
            return
        ask.pending.discard(result.task)
        update = result.done.update
        if ask.folds and update.blob.size <= LARGE:
            ask.answers[result.task] = message
        else:
            self._pass_on(ask, message)

    def _pass_on(self, ask: _RelayedAsk, message: m.Message) -> None:
        """Say an answer as it came. It is not kept here: if it gets lost, the server asks again."""
        partial = message.WhichOneof("body") == "partial"
        payload = message.partial.partial if partial else message.result.done.update
        self._offer(ask, payload, _tasks_of(message))
        if self._connected:
            self._out.append(SayAbove(message, durable=True))

    def _offer(self, ask: _RelayedAsk, payload: m.Payload, tasks: Iterable[str]) -> None:
        if payload.HasField("blob"):
            ask.offers[payload.blob.sha256] = tuple(tasks)

    # Together

    def _put_together(self, id: str, number: int) -> None:
        """Once no task of an ask waits for an answer, have those that are here folded."""
        run = self._runs.get(id)
        ask = run.asks.get(number) if run is not None else None
        if run is None or ask is None:
            self._due.discard((id, number))
            return
        if self._now < ask.last + LINGER:
            return
        self._due.discard((id, number))
        self._sort_early(run, ask)
        if ask.pending or not ask.answers:
            return
        answers, ask.answers = [message for _, message in sorted(ask.answers.items())], {}
        for batch in portions(answers, _receipt_bytes, most_bytes=RECEIPT_BYTES):
            if len(batch) == 1 or sum(len(_tasks_of(message)) for message in batch) < FEWEST:
                for message in batch:
                    self._pass_on(ask, message)
                continue
            self._numbers += 1
            tasks = {task for message in batch for task in _tasks_of(message)}
            ask.groups[self._numbers] = _Group(batch, tasks)
            self._out.append(FoldAnswers(self._numbers, ask.spec, tuple(batch)))

    def _sort_early(self, run: _Run, ask: _RelayedAsk) -> None:
        """See which partials from below hold nothing but what is asked."""
        early, ask.early = ask.early, {}
        for message in early.values():
            tasks = _tasks_of(message)
            other = [task for task in tasks if task not in ask.pending]
            if not other:
                ask.pending.difference_update(tasks)
                if ask.folds:
                    ask.answers[tasks[0]] = message
                else:
                    self._pass_on(ask, message)
            elif len(other) < len(tasks):
                self._tell(run, refold=m.Refold(run=run.id, ask=ask.spec.ask, without=other))

    def _folded(self, event: Folded) -> None:
        for run in self._runs.values():
            for ask in run.asks.values():
                group = ask.groups.get(event.number)
                if group is not None:
                    self._take_fold(run, ask, group, event)
                    return
        self._out.append(Forget(event.number))  # it is not wanted any more

    def _take_fold(self, run: _Run, ask: _RelayedAsk, group: _Group, event: Folded) -> None:
        for message in list(group.answers):
            tasks = _tasks_of(message)
            if event.payload is None or not event.refused.isdisjoint(tasks):
                self._pass_on(ask, message)
                group.answers.remove(message)
                group.tasks.difference_update(tasks)
        if event.payload is None or not group.answers:
            del ask.groups[event.number]
            self._out.append(Forget(event.number))
            return
        partial = m.Partial(run=run.id, ask=ask.spec.ask, receipts=event.receipts, partial=event.payload)
        group.message = m.Message(partial=partial)
        self._offer(ask, event.payload, sorted(group.tasks))
        self._say_group(group)

    def _say_group(self, group: _Group) -> None:
        if self._connected and group.message is not None and group.session != self._session:
            group.session = self._session
            self._out.append(SayAbove(group.message, durable=True))

    # Blobs, and signs of life

    def _unfetched(self, event: Unfetched) -> None:
        run = self._runs.get(event.run)
        if run is None:
            return
        if run.spec.archive.blob.sha256 == event.sha:
            self._fetch_again(run, f"the relay cannot fetch its archive: {event.reason}")
        for ask in run.asks.values():
            common = event.sha in (ask.spec.model.blob.sha256, ask.spec.shared.blob.sha256)
            gone = [task for task in sorted(ask.pending) if common or ask.own.get(task) == event.sha]
            if gone:
                self._tell(run, cancel=m.Cancel(run=run.id, tasks=gone))
            for task in gone:
                ask.pending.discard(task)
                attempt = ask.tasks.pop(task)
                why = m.Failure(reason=f"the relay cannot fetch what it needs: {event.reason}", retry=True)
                client = task.partition(".")[2]
                failed = m.Result(run=run.id, task=task, ask=ask.spec.ask, client=client, attempt=attempt, failure=why)
                self._say(result=failed)
            self._due.add((run.id, ask.spec.ask))

    def _fetch_again(self, run: _Run, reason: str) -> None:
        """As a node tries again what should host a run: the disk, say, may have room the next time."""
        run.tries += 1
        if run.tries >= retries.HOST_TRIES:
            self._say(run_answer=m.RunAnswer(run=run.id, reason=f"{reason} ({run.tries} times in a row)"))
            return
        run.again_at = self._now + retries.wait(run.tries)
        self._say(run_answer=m.RunAnswer(run=run.id, reason=reason, retry=True))

    def _try_again(self) -> list[float]:
        """Have the router fetch again what is due; when what is not due yet is."""
        for run in self._runs.values():
            if run.again_at is not None and run.again_at <= self._now:
                run.again_at = None
                self._tell(run, run_spec=run.spec)
        return [run.again_at for run in self._runs.values() if run.again_at is not None]

    def _moved(self, sha: bytes) -> None:
        for run in self._runs.values():
            for ask in run.asks.values():
                if sha in (run.spec.archive.blob.sha256, ask.spec.model.blob.sha256, ask.spec.shared.blob.sha256):
                    run.progress |= ask.pending
                run.progress.update(task for task, own in ask.own.items() if own == sha and task in ask.pending)
                run.progress.update(ask.offers.get(sha, ()))

    def _tell_alive(self) -> None:
        times = [self._runs[run].asks[ask].last + LINGER for run, ask in self._due]
        busy = self._connected and any(run.progress or run.asks for run in self._runs.values())
        if busy and self._now >= self._alive_at + ALIVE_SECONDS:
            self._alive_at = self._now
            for run in self._runs.values():
                for ask in run.asks.values():  # these are answered, and wait for others or to be folded
                    run.progress.update(task for message in ask.answers.values() for task in _tasks_of(message))
                    run.progress.update(*(group.tasks for group in ask.groups.values()))
                if run.progress:
                    self._say_alive(run, sorted(run.progress))
                    run.progress = set()
        if busy:
            times.append(self._alive_at + ALIVE_SECONDS)
        self.next_tick = min([*times, *self._try_again()], default=None)

    def _say_alive(self, run: _Run, tasks: list[str]) -> None:
        for part in portions(tasks, text_bytes) if tasks else [[]]:
            self._say(alive=m.Alive(run=run.id, tasks=part))

    def _say(self, **body: Any) -> None:
        if self._connected:
            self._out.append(SayAbove(m.Message(**body)))

    def _tell(self, run: _Run, **body: Any) -> None:
        if not run.peer:
            run.peer = f"relay {run.id}"
            self._out.append(TellRouter(Connected(run.peer, "run", run.id, OWNER)))
        self._out.append(TellRouter(Received(run.peer, m.Message(**body))))


def _folds(spec: m.AskSpec) -> bool:
    """Whether answers to an ask may be put together here."""
    if not spec.whole or spec.model.blob.size > LARGE:
        return False
    try:
        fold = fold_from_spec(json.loads(spec.fold))
    except ValueError:
        return False
    return fold is not None and not fold.single


def _receipt_bytes(message: m.Message) -> int:
    """What the receipts of an answer take in a message."""
    return sum(receipt.ByteSize() + 8 for receipt in receipts_of(message))


def receipts_of(message: m.Message) -> list[m.Receipt]:
    """The receipts of a `Result` that is done, or of a `Partial`."""
    if message.WhichOneof("body") == "partial":
        return list(message.partial.receipts)
    return [message.result.done.receipt]


def _tasks_of(message: m.Message) -> list[str]:
    if message.WhichOneof("body") == "partial":
        return [receipt.task for receipt in message.partial.receipts]
    return [message.result.task]
