"""The asks of a run: sent through the coordinator to the federation's session, closed, journaled, and replayed from the
journal where a run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from ..core.answer import Answer, Receipts
from ..core.arrays import Arrays, Schema
from ..core.ask import Ask
from ..core.randomness import Key
from ..core.task import Failed, Finished, Task, Ticked
from ..core.transform import Chain, Named, named, place
from ..core.update import MOST_METRICS
from ..entropy import Entropy
from ..errors import ClientId, CorruptFile, InternalError, NondeterministicStrategy, NothingToFold
from ..work.account import Account
from ..work.intake import ClosedAsk
from ..work.late import call_for, lasting
from ..work.state import ClientStates
from .cohorts import draw, sampling
from .coordinator import Close, Command, Coordinator, Event, Opened, TaskState
from .events import AskClosed, AskOpened, TaskEnded
from .federation import Session
from .journal import Journal
from .masking import is_masked, masked, unmasked
from .outcome import shortage
from .publisher import Publisher
from .reasons import Reasons, counted, short
from .receipts import MOST_CLIENTS, skipped, told
from .records import Records

Reply = Answer | NothingToFold
UNKNOWN = "?"
"""The digest of an ask that an earlier release recorded, which took another hash."""


@dataclass(slots=True)
class AskUnderway:
    """An ask on its way: its place in its round, what was asked of whom, since when, the state of its transforms;
    `drawn` counts those whom the sampler drew, and `there` says whether all of them were online.
    """

    id: int
    number: int
    ask: Ask
    lane: str
    cohort: Sequence[ClientId]
    drawn: int
    there: bool
    digest: str
    began: float
    place: str
    transform_state: Any
    reply: Reply | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """How many updates came, and of how many clients they would have been."""
        if isinstance(self.reply, Answer):
            return self.reply.count, self.reply.asked
        assert self.reply is not None
        return self.reply.came, self.reply.asked

    def nothing(self, came: int, failed: int, message: str) -> NothingToFold:
        """What a strategy is told of an ask that came to nothing."""
        return NothingToFold(message, asked=max(self.drawn, came, failed), came=came)

    def why_short(self, came: int, failed: Mapping[ClientId, str]) -> str:
        """Why too few updates came, for people."""
        if not self.cohort and not came and not failed:
            why = "no client that the sampler drew is online" if self.drawn else "the sampler drew no client"
            return f"nobody was asked: {why}"
        return shortage(came, len(self.cohort), self.ask.window.quorum, failed)


@dataclass(slots=True)
class Spent:
    """What asks took: where the time went, how many of their tasks failed, by kind, and how many seconds those had
    taken that were read from the journal.
    """

    account: Account = field(default_factory=Account)
    failures: Counter[str] = field(default_factory=Counter)
    replayed: float = 0.0


class RunAsks:
    """Serves what a strategy asks, one call of `serve` at a time, and keeps what outlives an ask: the states of
    transforms, and the tasks that go on beyond it.

    `clients` are all of the federation, `recorded` the asks that closed after the last commit of a run that goes on.
    `next` is the id of the next ask.
    """

    def __init__(
        self,
        clients: Sequence[ClientId],
        session: Session,
        journal: Journal,
        states: ClientStates,
        publisher: Publisher,
        key: Key,
        clock: Callable[[], float],
        recorded: Sequence[AskClosed] = (),
    ) -> None:
        self.next = 0
        self.transforms: dict[str, Any] = {}
        self.any_closed = False
        self._clients = clients
        self._session = session
        self._journal = journal
        self._states = states
        self._publisher = publisher
        self._key = key
        self._clock = clock
        # An answer that was not recorded is kept elsewhere, and asked for again.
        self._recorded = {record.ask: record for record in recorded if record.answer is not None or record.reason}
        self._coordinator = Coordinator()
        # Where time is virtual, deadlines and the log go by it; else by the time in which clients could be reached.
        self._virtual = session.virtual
        self._now = self._virtual.now if self._virtual is not None else session.clock
        self._first = 0
        self._records = Records(session)
        self._late: dict[str, list[tuple[Task, int]]] = {}
        self._going: dict[int, AskUnderway] = {}
        self._lanes: set[str] = set()
        self._spent = Spent()

    # From commit to commit

    @property
    def number(self) -> int:
        """The place of the next ask in its round."""
        return self.next - self._first

    def begin_round(self) -> None:
        """The next ask is the first of a round."""
        self._first = self.next

    def take_spent(self) -> Spent:
        """What asks took since this was taken last."""
        spent, self._spent = self._spent, Spent()
        return spent

    def has_recorded(self, kind: str) -> bool:
        """Whether the next ask is one of this kind that closed before the run stopped."""
        record = self._recorded.get(self.next)
        return record is not None and record.kind == kind

    def check_all_replayed(self, r: int) -> None:
        """Raise `NondeterministicStrategy` where round `r` is over, and the journal has asks that it did not make."""
        if leftover := sorted(self._recorded):
            raise NondeterministicStrategy(
                f"round {r} was over without ask {leftover[0]}, which the log has",
                hint="A strategy may depend on nothing but its state, the round and the answers.",
            )

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        late = {
            lane: {"tasks": self._rows(tasks), "asks": self._session.save_asks([task for task, _ in tasks])}
            for lane, tasks in self._late.items()
            if tasks
        }
        kept = {"ask": self.next, "transforms": self.transforms, "late": late, "clock": self.virtual_now()}
        return {**kept, **self._records.saved()}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; without it, from the run's beginning."""
        if checkpoint:
            self.next, self.transforms = checkpoint["ask"], dict(checkpoint["transforms"])
            self._records.restore(checkpoint)
            for lane, part in checkpoint["late"].items():
                self._late[lane] = self._tasks(part["tasks"])
                self._session.restore_asks(part["asks"])
            self._advance_to(checkpoint["clock"])
        self._forget_lost()
        self._states.keep(self.next, self._recorded)

    def _forget_lost(self) -> None:
        """Recorded asks from the first on whose answer did not reach the disk are asked again, unless a transform had a
        hand in any of their answers: that would be a second release. Raises `CorruptFile`.
        """
        for id, record in sorted(self._recorded.items()):
            try:
                if record.answer is not None:
                    self._journal.load(record.answer)
            except CorruptFile as error:
                if any(later.final for later in self._recorded.values() if later.ask >= id):
                    raise error.located(round=record.round) from error.__cause__
                self._recorded = {before: kept for before, kept in self._recorded.items() if before < id}
                return

    def forget(self) -> None:
        """A round is committed: let go of asks that nobody is to answer any more."""
        self._session.forget({task.ask for tasks in self._late.values() for task, _ in tasks})

    def virtual_now(self) -> float | None:
        """Virtual seconds, where time is virtual."""
        return None if self._virtual is None else self._virtual.now()

    def _advance_to(self, at: float | None) -> None:
        if self._virtual is not None and at is not None:
            self._virtual.advance_to(at)

    def _rows(self, tasks: Sequence[tuple[Task, int]]) -> list[list[Any]]:
        """Late tasks as they are saved, each with when it was sent and how many asks of its lane ago that was."""
        sent_at = self._virtual.sent_at if self._virtual is not None else lambda task: 0.0
        return [[task.id, task.ask, task.client, task.attempt, sent_at(task.id), age] for task, age in tasks]

    def _tasks(self, rows: Sequence[Sequence[Any]]) -> list[tuple[Task, int]]:
        for row in rows if self._virtual is not None else ():
            self._virtual.was_sent_at(row[0], row[4])  # type: ignore[union-attr]
        return [(Task(*row[:4]), row[5]) for row in rows]

    # Served

    def serve(self, asks: Sequence[Ask], r: int) -> list[AskUnderway]:
        """Ask, in round `r`, and wait until each ask has its reply."""
        going = [self._prepare(ask, r, index) for index, ask in enumerate(asks)]
        if self._recorded and self._virtual is not None:
            self._forget_unless_all(going)
        commands: list[Command] = []
        self._spent.replayed += max((self._recorded[i.id].seconds for i in going if i.id in self._recorded), default=0)
        for item in going:
            if item.id in self._recorded:
                self._replay(item, self._recorded.pop(item.id))
            else:
                commands += self._open(item, r)
        self._work(commands, r)
        if any(item.reply is None for item in going):
            raise InternalError("an ask has no reply")
        return going

    def _forget_unless_all(self, going: Sequence[AskUnderway]) -> None:
        """In virtual time asks that are open at once overlap: those that closed before the run stopped are done again,
        with the others.
        """
        if self._recorded.keys() >= {item.id for item in going}:
            return
        for item in going:
            self._recorded.pop(item.id, None)
        self._states.keep(going[0].id, ())

    def _prepare(self, ask: Ask, r: int, index: int) -> AskUnderway:
        id, number = self.next, self.number
        self.next += 1
        lane = ask.lane or ask.kind
        while any(item.lane == lane for item in self._going.values()):
            lane = f"{lane}#{index}"
            ask = replace(ask, lane=lane)
        record = self._records.of(ask.clients, lane, r)
        # Whoever knows the seed, and gets the models, is not to know whom the dice took.
        key = (self._journal.secret if ask.transform.private else self._key).derive("cohort", r, number)
        cohort, drawn, there = draw(ask.clients, self._clients, self._session.online, key, record)
        if isinstance(ask.model, Arrays) and ask.model.is_computed:
            ask = replace(ask, model=self._journal.kept(ask.model))
        if ask.window.late == "keep":
            ask = lasting(ask)
        schema = ask.schema(cohort[0] if cohort else None)
        kept = place(lane, ask.transform, schema)
        begun = self.transforms.get(kept)
        state = _begun(self._journal, ask, id, schema) if begun is None else _known(self._journal, begun)
        digest = ask.digest(cohort) if self._journal.folder is not None else ""
        self._going[id] = item = AskUnderway(
            id, number, ask, lane, cohort, drawn, there, digest, self._clock(), kept, state
        )
        self._session.open(id, ask, r, number, ask.transform.send(state), cohort)
        return item

    def _open(self, item: AskUnderway, r: int) -> list[Command]:
        self._publisher.tell(AskOpened(ask=item.id, round=r, kind=item.ask.kind, clients=len(item.cohort)))
        # Only a coordinator that has not seen this lane yet needs to be told what is out in it.
        late = () if item.lane in self._lanes else self._late.get(item.lane, ())
        self._lanes.add(item.lane)
        return self._coordinator.handle(Opened(item.id, item.lane, item.cohort, item.ask.window, late), self._now())

    def _replay(self, item: AskUnderway, record: AskClosed) -> None:
        if record.digest not in (item.digest, UNKNOWN):
            raise NondeterministicStrategy(
                f"ask {item.id} is not what it was before the run stopped: the strategy asks something else",
                round=record.round,
                hint="A strategy may depend on nothing but its state, the round and the answers; was the app changed?",
            )
        self._session.close(item.id)
        self.any_closed = True
        del self._going[item.id]
        kept = self._journal.load(record.answer) if record.answer is not None else (None, None, ())
        reply, state, late, *seen = kept
        self._late[item.lane] = tasks = self._tasks(late)
        # Before the strategy goes on: what a function says may depend on where that stands.
        call_for(item.ask, [task.client for task, _ in tasks if task.ask == item.id])
        self._spent.failures[record.kind] += record.failures
        self._spent.account.add(Account(**record.account))  # type: ignore[arg-type]
        self._advance_to(record.clock)
        if reply is None:
            item.reply = item.nothing(record.count, record.failures, record.reason or "too few updates")
        else:
            item.reply = reply
            self._keep_state(item, state)
        self._records.note(item.lane, record.round, item.cohort, seen[0] if seen else reply or Answer(Arrays()))

    def _work(self, commands: list[Command], r: int) -> None:
        """Carry out what the coordinator says until no ask is open."""
        waiting = any(item.reply is None for item in self._going.values())
        while waiting:
            for command in commands:
                if isinstance(command, Close):
                    self._close(command, r)
                else:
                    self._session.do(command)
                    self._records.done(command)
            if not self._going:
                return
            event: Event = self._session.next_event() or Ticked()
            self._records.told(event)
            self._publisher.warn_of_session(r)
            out = self._out(event) if self._publisher.watched else []
            commands = self._coordinator.handle(event, self._now())
            self._tell_ended(event, out)

    def _out(self, event: Event) -> list[str]:
        """The tasks that an event says to be over and that were out until now."""
        if not isinstance(event, Failed | Finished):
            return []
        tasks = event.tasks if isinstance(event, Finished) else [event.task]
        return [task for task in tasks if self._coordinator.state_of(task) is TaskState.SENT]

    def _tell_ended(self, event: Event, tasks: Sequence[str]) -> None:
        reason, trace = (short(event.reason), event.trace) if isinstance(event, Failed) else (None, "")
        over, again = isinstance(event, Finished), (TaskState.QUEUED, TaskState.SENT)
        for task in tasks:
            if over or self._coordinator.state_of(task) not in again:
                ask = int(task.split(".", 1)[0])
                self._publisher.announce(TaskEnded(ask=ask, task=task, reason=reason, trace=trace))

    # Closed

    def _close(self, command: Close, r: int) -> None:
        item = self._going.pop(command.ask)
        self.any_closed = True
        closed = self._session.close(command.ask)
        self._late[item.lane] = list(command.late)
        closed.agree()
        failed = _failed(item, command, closed)
        reply, state = self._finish(item, r, command, closed, failed)
        state = _kept(self._journal, item.ask.transform, state)
        if isinstance(reply, Answer) and not reply.count:
            failed = {**reply.failed}  # some may have come in vain
        seen = self._records.closed(item.lane, r, item.cohort, command.admitted, reply, failed)
        rows = self._rows(command.late)
        # What a transform drew must survive a power cut: drawn again over the same sum, it would be a second release.
        durable, saved = bool(item.ask.transform.parts), None
        again = isinstance(reply, Answer) and item.ask.window.takes_all  # of what came it is made to the same bits
        elsewhere = self._session.keeps_answers and again and not (durable or rows or failed)
        if (isinstance(reply, Answer) or rows or seen is not None) and not elsewhere:
            kept = (reply if isinstance(reply, Answer) else None, state, rows, *([] if seen is None else [seen]))
            saved = self._journal.save(f"answers/ask-{item.id:06d}.safetensors", kept, durable=durable)
            kept = self._journal.mapped(saved, kept)
            reply, state = kept[0] or reply, kept[1]
        if isinstance(reply, Answer):
            self._keep_state(item, state)
            self._states.advance(item.id, closed.states if reply.count else {}, since=self._first)
        item.reply = reply
        self._spent.account.add(closed.account)
        self._spent.failures[item.ask.kind] += len(failed)
        event = self._told(item, r, command, closed, failed)
        for name, (count, clients) in event.skipped.items():
            self._publisher.warn_once(r, _not_finite(name, count, clients), about=f"metric {name}")
        self._publisher.tell(replace(event, answer=saved), durable=durable)

    def _told(
        self, item: AskUnderway, r: int, command: Close, closed: ClosedAsk, failed: Mapping[ClientId, str]
    ) -> AskClosed:
        """How an ask ended, as the log says it."""
        answer = item.reply if isinstance(item.reply, Answer) else None
        receipts = closed.partial.in_order() if answer is None else answer.receipts
        over = {*Receipts.of(receipts).clients, *(task.client for task, _ in command.late)}
        asked = item.cohort if len(item.cohort) <= MOST_CLIENTS else ()
        clients, spread = told(receipts, failed, [c for c in asked if c not in over and c not in failed])
        return AskClosed(
            ask=item.id,
            round=r,
            kind=item.ask.kind,
            lane=item.lane,
            digest=item.digest,
            asked=len(item.cohort),
            count=len(receipts),
            metrics={} if answer is None else bounded(answer.metrics),
            weight=0.0 if answer is None else answer.weight,
            failures=len(failed),
            failed=counted(failed),
            skipped={} if answer is None else skipped(receipts),
            clients=clients,
            spread=spread,
            reason=item.reply.message if isinstance(item.reply, NothingToFold) else None,
            seconds=round(self._clock() - item.began, 6),
            account=asdict(closed.account),
            clock=self.virtual_now(),
            final=answer is not None and bool(item.ask.transform.parts),
            releases=[] if answer is None else _releases(item, answer, len(self._clients)),
        )

    def _keep_state(self, item: AskUnderway, state: Any) -> None:
        """What the transforms of an ask know after it, where there is anything to know."""
        if item.place in self.transforms or any(one is not None for one in (*item.transform_state, *state)):
            self.transforms[item.place] = state

    def _finish(
        self, item: AskUnderway, r: int, command: Close, closed: ClosedAsk, failed: Mapping[ClientId, str]
    ) -> tuple[Reply, Any]:
        partial = closed.partial
        came, quorum = partial.count, 0 if item.ask.transform.private else item.ask.window.quorum
        if came < quorum:
            return item.nothing(came, len(failed), item.why_short(came, failed)), item.transform_state
        try:
            answer = partial.finish(failed, command.asked, len(self._clients))
        except NothingToFold as error:
            if came and quorum:
                return item.nothing(came, len(failed), error.message), item.transform_state
            vain = dict.fromkeys(Receipts.of(partial.in_order()).clients, error.message)
            answer = Answer(
                Arrays(), failed={**failed, **vain}, asked=command.asked, federation=len(self._clients)
            )  # of a quorum of nobody
        try:
            return item.ask.transform.finish(answer, item.transform_state, self._key.derive("finish", r, item.number))
        except NothingToFold as error:
            return item.nothing(came, len(failed), error.message), item.transform_state


def _begun(journal: Journal, ask: Ask, id: int, schema: Schema | None) -> Any:
    """The first state of an ask's transforms, with the same names where the ask is made again after a stop."""
    state = ask.transform.init(schema)
    if not ask.transform.private:
        return state
    return named(ask.transform, state, Entropy(journal.secret.derive("names", id).draws().words))


def _known(journal: Journal, state: Any) -> Any:
    """A state that is kept, as the transforms have it."""
    return unmasked(state, journal.secret) if is_masked(state) else state


def _kept(journal: Journal, transform: Chain, state: Any) -> Any:
    """A state as it is kept: of what tells what it hides, masked."""
    hides = journal.folder is not None and any(isinstance(part, Named) for part in transform.parts)
    return masked(state, journal.secret) if hides else state


def _releases(item: AskUnderway, answer: Answer, federation: int) -> list[Mapping[str, Any]]:
    """What an answer tells of clients, as its transforms describe it, with how clients were sampled where they do not
    say that themselves.
    """
    found = item.ask.transform.event(answer, item.transform_state) or ()
    how = sampling(item.ask, item.drawn, item.there, federation) if found else {}
    return [{"sampling": how, **each} for each in found]


def nothing_came(served: Sequence[AskUnderway]) -> str | None:
    """Why nobody's update came for any of a round's asks, though clients were asked, whatever the strategy made of
    that; None where somebody's did. Evaluations count where there is nothing else.
    """
    items = [item for item in served if item.ask.kind != "evaluate"] or list(served)
    items = [item for item in items if not item.ask.transform.private]  # of these nobody is to know who came
    missed = [item for item in items if item.counts[1]]
    if not missed or any(item.counts[0] for item in missed):
        return None
    reply = missed[0].reply
    return missed[0].why_short(0, reply.failed) if isinstance(reply, Answer) else reply.message  # type: ignore[union-attr]


def bounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """So many of them as an event can hold."""
    return dict(islice(metrics.items(), MOST_METRICS))


def _failed(item: AskUnderway, command: Close, closed: ClosedAsk) -> dict[ClientId, str]:
    """Why clients failed, in the order of the cohort: that in which they were told of may differ from run to run."""
    reasons = Reasons()
    failed = {**command.failed, **{client: reasons.keep(reason) for client, reason in closed.refused.items()}}
    if len(failed) < 2:
        return failed
    places = {client: place for place, client in enumerate(item.cohort)}
    return dict(sorted(failed.items(), key=lambda row: places.get(row[0], len(places))))


def _not_finite(name: str, count: int, clients: Sequence[ClientId]) -> str:
    listed = ", ".join(map(str, clients)) + (", ..." if count > len(clients) else "")
    which = f"{count} clients ({listed})" if count > 1 else f"client {clients[0]}"
    return f"metric {name!r} of {which} is not finite: it is left out of the mean"
