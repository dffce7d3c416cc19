"""What runs and their asks are at a relay: which tasks wait for an answer, which answers for those, who takes part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..errors import ProtocolError
from ..folds.catalogue import fold_from_spec
from ..wire import messages as m
from ..wire.bodies import tasks_of
from ..wire.limits import ALIVE_TASKS
from ..wire.portions import portions, text_bytes
from ..wire.texts import read_json
from ..work import retries
from .ledger import OWNER, ask_of
from .signals import Connected, Lost, Received, TellRouter
from .uplink import BundledAnswers, Uplink

LARGE = 64 << 20
"""Models and updates beyond so many bytes are not folded here."""
LINGER = 0.2
"""Seconds after the last task of an ask until its answers are put together: further tasks may be on their way."""


class RelayedAsk:
    """An ask of the server above: `tasks` are its tasks with their attempts, `bundles` what goes up of their answers.

    `tell` tells the router in the name of its run. It is not `open` while none of its clients is asked: the router has
    closed it then.
    """

    def __init__(self, spec: m.AskSpec, uplink: Uplink, tell: Callable[..., None]) -> None:
        self.spec = spec
        self.open = True
        self.tasks: dict[str, int] = {}
        self.bundles = BundledAnswers(spec, uplink)
        self._uplink, self._tell = uplink, tell
        self._folds = _folds(spec)
        self._changed = False
        self._last = 0.0
        self._own: dict[str, bytes] = {}
        self._pending: set[str] = set()
        # Partials from below, some of whose tasks the server above may still be about to ask for again.
        self._early: dict[str, m.Message] = {}
        self._answers: dict[str, m.Message] = {}

    # From above

    def ask(self, task: m.Task, now: float) -> None:
        """A client is asked, for the first time or once more; an answer that is here is said again."""
        id = task.task
        self._last, self._changed = now, True
        if task.attempt <= self.tasks.get(id, 0) and (self.bundles.say_again(id) or id in self._waiting()):
            return
        if not self.open:
            self.open = True
            self._tell(ask_spec=self.spec)
        self._take_out([id])
        self.tasks[id] = max(task.attempt, self.tasks.get(id, 0))
        if task.own.HasField("blob"):
            self._own[id] = task.own.blob.sha256
        self._pending.add(id)
        self._tell(task=task)

    def cancel(self, tasks: Collection[str]) -> None:
        """No answer is wanted to these, which are no tasks any more."""
        self._pending.difference_update(tasks)
        self._take_out(tasks)
        self._changed = True

    def refold(self, without: Collection[str]) -> None:
        """The answers are wanted again, without those to some tasks."""
        if below := self._take_out(without):
            self._tell(refold=m.Refold(run=self.spec.run, ask=self.spec.ask, without=sorted(below)))
        self._changed = True

    def _take_out(self, tasks: Collection[str]) -> set[str]:
        """Let go of the answers to these tasks; gives those that are in partials from below.

        The other tasks of such a partial are answered anew.
        """
        gone, below = set(tasks), set()
        self._answers.update((tasks_of(message)[0], message) for message in self.bundles.take_out(gone))
        for key, message in list(self._answers.items()):
            held = set(tasks_of(message))
            if found := held & gone:
                del self._answers[key]
                if message.WhichOneof("body") == "partial":
                    below |= found
                    self._pending |= (held - gone) & self.tasks.keys()
        return below

    # From below

    def answered(self, message: m.Message) -> None:
        """A `Result` or a `Partial` has come."""
        self._changed = True
        tasks = tasks_of(message)
        if self._pending.isdisjoint(tasks):
            return
        result = message.result
        if message.WhichOneof("body") == "partial":
            self._early[tasks[0]] = message
        elif not result.HasField("failure"):
            self._settle(message, fold=result.done.update.blob.size <= LARGE)
        elif result.attempt >= self.tasks[result.task]:
            self._pending.discard(result.task)
            self._uplink.say(result=result)

    def lack(self, sha: bytes, reason: str) -> None:
        """A blob is not to be had: the tasks that need it fail."""
        gone = [task for task in sorted(self._pending) if self._needs(task, sha)]
        if gone:
            self._tell(cancel=m.Cancel(run=self.spec.run, tasks=gone))
        why = m.Failure(reason=f"the relay cannot fetch what it needs: {reason}", retry=True)
        for task in gone:
            self._pending.discard(task)
            run, id, client, attempt = self.spec.run, self.spec.ask, task.partition(".")[2], self.tasks.pop(task)
            failed = m.Result(run=run, task=task, ask=id, client=client, attempt=attempt, failure=why)
            self._uplink.say(result=failed)
        if gone and not self.tasks:  # asked again, it is opened again, and what it needs is fetched
            self.open = False
            self._tell(close_ask=m.CloseAsk(run=self.spec.run, ask=self.spec.ask))
        self._changed = True

    # Together

    def put_together(self, now: float) -> float | None:
        """Once no task waits for an answer, have those that are here folded; when it is to be called again."""
        if not self._changed:
            return None
        if now < self._last + LINGER:
            return self._last + LINGER
        self._changed = False
        self._sort_early()
        if not self._pending:
            answers, self._answers = self._answers, {}
            self.bundles.put(message for _, message in sorted(answers.items()))
        return None

    def _sort_early(self) -> None:
        """See which partials from below hold nothing but what is asked."""
        early, self._early = self._early, {}
        for message in early.values():
            tasks = tasks_of(message)
            other = [task for task in tasks if task not in self._pending]
            if not other:
                self._settle(message)
            elif len(other) < len(tasks):
                self._tell(refold=m.Refold(run=self.spec.run, ask=self.spec.ask, without=other))

    def _settle(self, answer: m.Message, *, fold: bool = True) -> None:
        """Have an answer wait for others to be folded with, or pass it on."""
        tasks = tasks_of(answer)
        self._pending.difference_update(tasks)
        if fold and self._folds:
            self._answers[tasks[0]] = answer
        else:
            self.bundles.pass_on(answer)

    # Signs of life

    def moved(self, sha: bytes, *, archive: bool) -> set[str]:
        """The tasks that a transfer is progress for; the `archive` is needed by all."""
        waiting = {task for task in self._pending if archive or self._needs(task, sha)}
        return waiting.union(self.bundles.offers.get(sha, ()))

    def held(self) -> set[str]:
        """The tasks whose answers are here, and wait for others or to be folded or acknowledged."""
        return self._waiting() | self.bundles.tasks()

    def _waiting(self) -> set[str]:
        return {task for message in self._answers.values() for task in tasks_of(message)}

    def _needs(self, task: str, sha: bytes) -> bool:
        return sha in (self.spec.model.blob.sha256, self.spec.shared.blob.sha256, self._own.get(task))


class RelayedRun:
    """A run of the server above, which is asked to the router as by its own process.

    `clients` have been ready once, and get their tasks whether or not their node is connected; `asks` are open, or may
    be opened again. Tasks in `progress` have shown signs of life that were not told yet. `peer` is by what the router
    knows it, empty while it does not.
    """

    def __init__(self, spec: m.RunSpec, uplink: Uplink) -> None:
        self.id = spec.run
        self.clients: set[str] = set()
        self.asks: dict[int, RelayedAsk] = {}
        self.again_at: float | None = None
        self.progress: set[str] = set()
        self._spec, self._uplink = spec, uplink
        self.peer = ""
        self._asked = False
        self._told: dict[str, tuple[bool, bool, str]] = {}  # what was said of clients in this session
        self._tries = 0

    def meet(self) -> None:
        """A session has begun: the server above says Cancel of what is over, and CloseRun for a run that is."""
        self._asked, self._told = False, {}
        self.asks = {id: ask for id, ask in self.asks.items() if ask.open}
        self._uplink.say_alive(self.id, [task for ask in self.asks.values() for task in ask.tasks])

    def tell(self, **body: Any) -> None:
        """Tell the router something in the name of the run."""
        if not self.peer:
            self.peer = f"relay {self.id}"
            self._uplink.do(TellRouter(Connected(self.peer, "run", self.id, OWNER)))
        self._uplink.do(TellRouter(Received(self.peer, m.Message(**body))))

    def dropped(self, text: str) -> None:
        """The router hears it no more: none of its clients takes part."""
        self.peer = ""
        self._uplink.say(run_answer=m.RunAnswer(run=self.id, reason=f"the relay cannot go on with it: {text}"))

    # From above

    def asked(self, spec: m.RunSpec) -> None:
        """The run itself is asked, in this session."""
        if self._spec != spec:
            self._spec = spec
            self.clients.clear()
        self._asked, self._told, self._tries, self.again_at = True, {}, 0, None
        self.tell(run_spec=spec)

    def open_ask(self, spec: m.AskSpec) -> RelayedAsk:
        """Have an ask, without telling of it; one of the same number with another digest is over."""
        ask = self.asks.get(spec.ask)
        if ask is None or ask.spec.digest != spec.digest:
            self._drop(spec.ask)
            ask = self.asks[spec.ask] = RelayedAsk(spec, self._uplink, self.tell)
        ask.open = True
        return ask

    def ask(self, spec: m.AskSpec) -> None:
        """The run asks something."""
        self.open_ask(spec)
        self.tell(ask_spec=spec)

    def task(self, task: m.Task, now: float) -> None:
        """The run asks a client."""
        if task.ask not in self.asks:
            raise ProtocolError(f"task {task.task!r:.250} came before its AskSpec", m.CODE_UNKNOWN)
        self.asks[task.ask].ask(task, now)

    def cancel(self, tasks: Iterable[str]) -> None:
        """The run wants no answer to these tasks."""
        known: dict[int, list[str]] = {}
        for id in tasks:
            number = ask_of(id)
            if number in self.asks and self.asks[number].tasks.pop(id, None) is not None:
                known.setdefault(number, []).append(id)
        if known:
            self.tell(cancel=m.Cancel(run=self.id, tasks=[id for gone in known.values() for id in gone]))
        for number, gone in known.items():
            ask = self.asks[number]
            ask.cancel(gone)
            if not ask.tasks:
                # Asked about none of its clients any more, or closed unheard. If more are asked, it is opened again.
                self._drop(number)
                self.open_ask(ask.spec).open = False
                self.tell(close_ask=m.CloseAsk(run=self.id, ask=number))

    def acknowledged(self, tasks: Iterable[str]) -> None:
        """The server above has the answers to these tasks."""
        done = set(tasks)
        for ask in self.asks.values():
            ask.bundles.acknowledged(done)

    def close_ask(self, body: m.CloseAsk) -> None:
        """An ask is over."""
        self._drop(body.ask)
        self.tell(close_ask=body)

    def close(self, body: m.CloseRun) -> None:
        """The run is over, and this object with it."""
        for ask in list(self.asks):
            self._drop(ask)
        self.tell(close_run=body)
        self._uplink.do(TellRouter(Lost(self.peer)))

    def _drop(self, id: int) -> None:
        ask = self.asks.pop(id, None)
        if ask is not None:
            ask.bundles.forget()

    # From below

    def members(self, members: Iterable[m.Member]) -> None:
        """Tell above which clients take part, where that is not what it was told in this session."""
        news: dict[tuple[bool, bool, str], list[str]] = {}  # ready, retry, reason
        for member in members:
            if member.standing == m.STANDING_READY:
                self.clients.add(member.client)
            elif member.standing == m.STANDING_REFUSED:
                self.clients.discard(member.client)
            if member.client in self.clients:
                word = (True, False, "")
            elif member.standing == m.STANDING_REFUSED:
                word = (False, False, member.reason or "it is refused")
            elif member.standing == m.STANDING_PREPARING and member.reason:
                word = (False, True, member.reason)
            else:
                continue
            if self._asked and self._told.get(member.client) != word:
                self._told[member.client] = word
                news.setdefault(word, []).append(member.client)
        for (ready, retry, reason), clients in sorted(news.items(), reverse=True):
            for part in portions(clients, text_bytes, most=ALIVE_TASKS):
                answer = m.RunAnswer(run=self.id, ready=ready, retry=retry, reason=reason, clients=part)
                self._uplink.say(run_answer=answer)

    # Blobs

    def lack(self, sha: bytes, reason: str, now: float) -> None:
        """A blob is not to be had from above."""
        if self._spec.archive.blob.sha256 == sha:
            # As a node tries again what should host a run: the disk, say, may have room the next time.
            self._tries += 1
            answer = m.RunAnswer(run=self.id, reason=f"the relay cannot fetch its archive: {reason}", retry=True)
            if self._tries < retries.HOST_TRIES:
                self.again_at = now + retries.wait(self._tries)
            else:
                answer.retry = False
                answer.reason += f" ({self._tries} times in a row)"
            self._uplink.say(run_answer=answer)
        for ask in self.asks.values():
            ask.lack(sha, reason)

    def try_again(self, now: float) -> None:
        """Have the router fetch the archive again, if that is due by `again_at`."""
        if self.again_at is not None and self.again_at <= now:
            self.again_at = None
            self.tell(run_spec=self._spec)

    # Signs of life

    def moved(self, sha: bytes) -> None:
        """A transfer of a blob has made progress."""
        for ask in self.asks.values():
            self.progress |= ask.moved(sha, archive=sha == self._spec.archive.blob.sha256)

    def tell_alive(self) -> None:
        """Tell above which tasks have shown signs of life since it was told last."""
        self.progress.update(*(ask.held() for ask in self.asks.values()))
        if self.progress:
            self._uplink.say_alive(self.id, sorted(self.progress))
            self.progress = set()


def _folds(spec: m.AskSpec) -> bool:
    """Whether answers to an ask may be put together here."""
    if not spec.whole or spec.model.blob.size > LARGE:
        return False
    try:
        fold = fold_from_spec(read_json(spec.fold, "its fold", list))
    except ProtocolError:
        return False
    return fold is not None and not fold.single
