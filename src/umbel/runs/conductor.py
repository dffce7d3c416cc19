"""The conductor: drives a strategy's rounds through a coordinator and a federation, and journals what must survive."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from ..core.answer import Answer
from ..core.app import App
from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.randomness import Key
from ..core.strategy import State
from ..core.task import AllFinished, Failed, Finished, Task, Ticked
from ..core.transform import place
from ..core.update import MOST_METRICS
from ..errors import (
    ClientId,
    InternalError,
    NondeterministicStrategy,
    NothingToFold,
    SamplingError,
    SettingError,
    StrategyError,
    UmbelError,
)
from ..folds.total import total
from ..samplers.shorthand import as_sampler
from ..samplers.uniform import Uniform
from ..work.account import Account
from ..work.intake import ClosedAsk
from ..work.seeding import generators_kept, seed_generators
from ..work.state import ClientStates
from .coordinator import Close, Command, Coordinator, Event, Opened, TaskState
from .events import (
    AskClosed,
    AskOpened,
    RoundCommitted,
    RoundStarted,
    RunEvent,
    RunFinished,
    RunInterruption,
    RunResumed,
    RunStarted,
    TaskEnded,
    Warned,
)
from .federation import Federation
from .history import History
from .journal import Journal, RunLog
from .observers import Observers
from .outcome import failures, is_empty, verdict
from .progress import AskUnderway, LateTask, Progress, Reply, nothing, nothing_came, why_short
from .reasons import Reasons, counted, kind
from .receipts import MOST_CLIENTS, skipped, told
from .software import changes, software, unseeded

KEPT_CHECKPOINTS = 3
REDRAWS = 30
"""How often a cohort is drawn again for those in it who are not online."""
MOST_ROWS = 200_000
"""So many rows of clients are kept in memory by a run that has no folder: those of its last rounds."""
MOST_WARNINGS = 20
"""So many clients are warned of for one reason in a round; the others are counted."""


class Conductor:
    """One run's driver. `begin` or `go_on`, then `drive`."""

    def __init__(
        self,
        app: App,
        federation: Federation,
        started: RunStarted,
        journal: Journal,
        states: ClientStates,
        observers: Observers,
        clock: Callable[[], float],
    ) -> None:
        self.app = app
        self.started = started
        self.rounds: list[RoundCommitted] = []
        self._federation = federation
        self._journal = journal
        self._states = states
        self._observers = observers
        self._clock = clock
        self._key = Key.from_seed(started.seed)
        self._coordinator = Coordinator()
        self._session = federation.connect(
            app.client, started.settings["config"], self._key.derive("task"), states, clock
        )
        # Where time is virtual, deadlines and the log go by it; else by the time in which clients could be reached.
        self._virtual = self._session.virtual
        self._now = self._virtual.now if self._virtual is not None else self._session.clock
        self._reporting = self._session.reporting
        self._going: dict[int, AskUnderway] = {}
        self._lanes: set[str] = set()
        self._first_ask = 0
        self._recorded: dict[int, AskClosed] = {}
        self._last_round = started.rounds
        self._finished: RunFinished | None = None
        self._best: tuple[int, Arrays] | None = None
        self._unevaluated = False
        self._unseeded: set[str] = set()
        self._account = Account()
        self._task_failures: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self._said: set[str] = set()
        self._rows = 0
        self.closed: list[AskClosed] = []
        self._progress: Progress
        self._seconds = 0.0
        self._since = 0.0
        self._replayed = 0.0
        self._closed = False
        self._unjudged = False

    @property
    def round(self) -> int:
        """The last committed round."""
        return self.rounds[-1].round if self.rounds else 0

    def begin(self, model: Arrays) -> None:
        """Start from the initial model."""
        self._tell(self.started)
        state = self.app.strategy.start(model)
        if not isinstance(state, State):
            raise StrategyError(f"{self.started.strategy}.start returned a {type(state).__name__}, not a State")
        self._progress = Progress(state)

    def go_on(self, log: RunLog, checkpoint: Mapping[str, Any], rounds: int | None) -> None:
        """Start from a checkpoint and the asks recorded since."""
        self.rounds = list(log.rounds)
        self._seconds = sum(r.seconds for r in self.rounds)
        self._last_round = max(self.started.rounds, log.rounds_wanted)
        if log.finished is not None and log.finished.error is not None:
            # The failed rounds in which it ended are made up for.
            self._last_round += sum(event.round > log.resumed_after for event in failures(self.rounds))
        self._last_round = max(self._last_round, rounds or 0)
        if log.finished is not None and (log.finished.error is None and self.round >= self._last_round):
            self._finished = log.finished
        # It died after its last round, and before it could say whether that was its failure.
        self._unjudged = log.finished is None and self.round > log.resumed_after
        self._recorded = {record.ask: record for record in log.pending}
        if isinstance(checkpoint["state"], State):
            self._progress = Progress(checkpoint["state"], checkpoint["ask"], dict(checkpoint["transforms"]))
            self._restore_late(checkpoint["late"])
            self._advance_to(checkpoint["clock"])
        else:
            self._progress = Progress(self.app.strategy.start(checkpoint["state"]["model"]))
        self._states.keep(self._progress.next_ask, self._recorded)
        if self._finished is None:
            changed = changes(dict(self.started.software), software(self._federation.plan()))
            self._tell(RunResumed(run=self.started.run, round=self.round, rounds=self._last_round, changed=changed))

    def drive(self) -> RunFinished:
        """Do what is left of the run and return how it ended."""
        if self._finished is None:
            with generators_kept(), _garbage_frozen():
                self._finished = self._drive()
        return self._finished

    def _drive(self) -> RunFinished:
        reason = "early stop" if self._is_early() else "rounds"
        self._since = self._clock()
        judged = self._unjudged and verdict(self.rounds, self._last_round, self.app.max_failed_rounds)
        while not judged and reason == "rounds" and self.round < self._last_round:
            try:
                self._round(self.round + 1)
            except UmbelError as error:
                raise error.located(round=self.round + 1) from error.__cause__
            judged = verdict(self.rounds, self._last_round, self.app.max_failed_rounds)
            if judged:
                break
            self._check_metrics()
            if self._is_early():
                reason = "early stop"
        event = self._end("failed", judged) if judged else self._end(reason)
        self._finish_log(event)
        return event

    def _check_metrics(self) -> None:
        """Once there are metrics, a name that is not among them is a slip that would go unnoticed to the end."""
        last = self.rounds[-1]
        for watched in (self.app.keep_best, self.app.early_stop):
            nothing = last.failed is not None or is_empty(last)
            if watched is None or nothing or watched.metric in self._history.names:
                continue
            if watched.metric.startswith("train.") or last.evaluate or last.test:
                raise SettingError(
                    f"no round has a metric {watched.metric!r}", hint=f"There are: {', '.join(self._history.names)}."
                )

    def _finish_log(self, event: RunFinished) -> None:
        metrics = self._history.metrics(event.best_round)
        self._journal.summarise({**event.record(), "strategy": self.started.strategy, "metrics": metrics})
        self._tell(event, durable=True)

    @property
    def _history(self) -> History:
        return History(self.rounds)

    def _end(self, reason: str, error: str | None = None) -> RunFinished:
        return RunFinished(
            run=self.started.run,
            rounds=self.round,
            reason=reason,
            best_round=self._best_round(),
            seconds=round(self._seconds, 6),
            model_sha256=self.final_model().sha256,
            error=error,
        )

    def refuse(self, error: UmbelError) -> None:
        """Say in the log that the run cannot be, and why, where nothing has come of it yet."""
        if not self.rounds and not self._closed:
            run = self.started.run
            event = RunFinished(run=run, rounds=0, reason="refused", error=error.message)
            self._journal.summarise({**event.record(), "strategy": self.started.strategy, "metrics": {}})
            self._tell(event, durable=True)

    def interrupt(self) -> None:
        """Say in the log that the run was stopped, where that says that it has begun."""
        if self._journal.begun:
            self._tell(RunInterruption(run=self.started.run, round=self.round), durable=True)

    def release(self) -> None:
        """Let go of files and clients."""
        self._session.disconnect()
        self._journal.close()
        self._states.close()

    def final_model(self) -> Arrays:
        """The last model, or the best where the app keeps that."""
        best = self._best_round()
        if best is None or best == self.round:
            return self._progress.state.model  # type: ignore[no-any-return]
        if self._best is not None and self._best[0] == best:
            return self._best[1]
        reference = next(r.checkpoint for r in self.rounds if r.round == best)
        assert reference is not None
        return self._journal.load(reference)["state"].model  # type: ignore[no-any-return]

    # A round

    def _round(self, r: int) -> None:
        self._tell(RoundStarted(round=r, rounds=self._last_round))
        self._warn_of_unseeded(r)
        progress, failed = self._progress, None
        self._first_ask = progress.next_ask
        served: list[AskUnderway] = []
        try:
            progress.state = self._generate(r, served)
        except NothingToFold as error:
            drew_nobody = not error.asked and any(item.reply is error for item in served)
            failed = None if drew_nobody else error.message
        failed = failed or nothing_came(served)
        evaluated, tested = self._evaluate(r) if failed is None else ({}, {})
        if leftover := sorted(self._recorded):
            raise NondeterministicStrategy(
                f"round {r} was over without ask {leftover[0]}, which the log has",
                hint="A strategy may depend on nothing but its state, the round and the answers.",
            )
        # From commit to commit, and with what recorded asks took: the account has the work of all that time.
        now = self._clock()
        seconds, self._since, self._replayed = now - self._since + self._replayed, now, 0.0
        self._seconds += seconds
        account, self._account = self._account, Account()
        lost, self._task_failures = self._task_failures, Counter()
        metrics: dict[str, float] = {}
        counts = [item.counts for item in served]
        for item in served:
            metrics.update(item.reply.metrics if isinstance(item.reply, Answer) else {})
        self._count_warnings(r)
        self._commit(
            RoundCommitted(
                round=r,
                asks=progress.next_ask,
                clients=sum(came for came, _ in counts),
                dropped=sum(asked - came for came, asked in counts),
                failures=_bounded(lost),
                train=_bounded(metrics),
                evaluate=evaluated,
                test=tested,
                seconds=round(seconds, 6),
                failed=failed,
                account={**asdict(account), "processes": max(1, self._federation.describe()["workers"])},
                clock=self._virtual_now(),
            )
        )

    def _generate(self, r: int, served: list[AskUnderway]) -> State:
        rounds = self.app.strategy.round(self._progress.state, r)
        if not hasattr(rounds, "send"):
            raise StrategyError(
                f"{self.started.strategy}.round is not a generator", hint="Write `answer = yield Ask(...)` in it."
            )
        advance, argument = rounds.send, None
        while True:
            asked, state = self._advance(advance, argument, r)
            if state is not None:
                return state
            single = isinstance(asked, Ask)
            going = self._serve([asked] if single else asked, r)
            served += going
            replies = [item.reply for item in going]
            failure = next((reply for reply in replies if isinstance(reply, NothingToFold)), None)
            reply = replies[0] if single else replies
            advance, argument = (rounds.send, reply) if failure is None else (rounds.throw, failure)

    def _advance(self, advance: Callable[[Any], Any], argument: Any, r: int) -> tuple[Any, State | None]:
        strategy = self.started.strategy
        seed_generators(self._key.derive("strategy", r, self._progress.next_ask - self._first_ask))
        try:
            return advance(argument), None
        except StopIteration as stop:
            if isinstance(stop.value, State) and isinstance(stop.value.model, Arrays):
                return None, stop.value
            raise StrategyError(
                f"round {r} of {strategy} returned a {type(stop.value).__name__}, not the next State",
                hint="End it with `return state.replace(model=Arrays(...))`.",
            ) from None
        except UmbelError:
            raise
        except Exception as error:
            raise StrategyError(f"round {r} of {strategy} raised {type(error).__name__}: {error}") from error

    def _evaluate(self, r: int) -> tuple[dict[str, float], dict[str, float]]:
        every = self.app.evaluate_every
        if not every or (r % every and r != self._last_round):
            return {}, {}
        found: dict[str, float] = {}
        if "evaluate" in self.app.client.handlers:
            clients = self.app.evaluate_clients
            if clients is None:
                clients = Uniform(min(100, len(self._federation.clients)))
            model = self._progress.state.model
            (item,) = self._serve([Ask(kind="evaluate", clients=clients, model=model, fold=total())], r)
            found = self._evaluated(item, r)
        seed_generators(self._key.derive("test", r))
        return found, self.app.run_test(self._progress.state.model) or {}

    def _warn_of_unseeded(self, r: int) -> None:
        for name in unseeded():
            if name not in self._unseeded:
                self._unseeded.add(name)
                text = f"{name} draws from generators that are not seeded for each task: a seed may give other bits"
                self._tell(Warned(round=r, text=text))

    def _evaluated(self, item: AskUnderway, r: int) -> dict[str, float]:
        """The metrics of an evaluation. One that fails is no failure of the run, whose model it does not change; it is
        told once, until one succeeds again.
        """
        reply = item.reply
        if isinstance(reply, Answer):
            self._unevaluated = False
            return dict(reply.metrics)
        if not self._unevaluated and isinstance(reply, NothingToFold) and reply.asked:
            self._unevaluated = True
            self._tell(Warned(round=r, text=f"no client could evaluate the model: {reply.message}"))
        return {}

    def _commit(self, event: RoundCommitted) -> None:
        progress = self._progress
        tree = {
            "state": progress.state,
            "ask": progress.next_ask,
            "transforms": progress.transforms,
            "late": self._saved_late(),
            "clock": self._virtual_now(),
        }
        reference = self._journal.save(f"checkpoints/round-{event.round:04d}.safetensors", tree, durable=True)
        # A large state goes on as the checkpoint's own pages, which the system can drop and read again.
        tree = self._journal.mapped(reference, tree)
        progress.state, progress.transforms = tree["state"], tree["transforms"]
        event = replace(event, checkpoint=reference)
        self._tell(event, durable=True)
        self.rounds.append(event)
        if self._best_round() == event.round:
            self._best = (event.round, progress.state.model)
        self._journal.clear_answers()
        keep = {r.round for r in self.rounds[-KEPT_CHECKPOINTS:]} | {self._best_round()}
        self._journal.keep_checkpoints(r.checkpoint["file"] for r in self.rounds if r.round in keep and r.checkpoint)
        self._session.forget({late.task.ask for tasks in progress.late.values() for late in tasks})

    # Asks

    def _serve(self, asks: Sequence[Ask], r: int) -> list[AskUnderway]:
        if not isinstance(asks, list | tuple) or not asks or not all(isinstance(ask, Ask) for ask in asks):
            raise StrategyError(
                f"round {r} of {self.started.strategy} yielded {asks!r:.80}, not an Ask or a list of them"
            )
        going = [self._prepare(ask, r, index) for index, ask in enumerate(asks)]
        if self._recorded and self._virtual is not None:
            self._forget_unless_all(going)
        commands: list[Command] = []
        self._replayed += max((self._recorded[i.id].seconds for i in going if i.id in self._recorded), default=0.0)
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
        progress = self._progress
        id = progress.next_ask
        progress.next_ask += 1
        number = id - self._first_ask
        lane = ask.lane or ask.kind
        while any(item.lane == lane for item in self._going.values()):
            lane = f"{lane}#{index}"
            ask = replace(ask, lane=lane)
        cohort, drawn = self._cohort(ask, self._key.derive("cohort", r, number))
        schema = ask.schema(cohort[0] if cohort else None)
        kept = place(lane, ask.transform, schema)
        state = progress.transforms[kept] if kept in progress.transforms else ask.transform.init(schema)
        digest = ask.digest(cohort) if self._journal.folder is not None else ""
        self._going[id] = item = AskUnderway(id, number, ask, lane, cohort, drawn, digest, self._clock(), kept, state)
        self._session.open(id, ask, r, number, ask.transform.send(state), cohort)
        return item

    def _cohort(self, ask: Ask, key: Key) -> tuple[tuple[ClientId, ...], int]:
        """Who is asked, and how many the sampler drew."""
        cohort = self._drawn(ask, key)
        if all(map(self._session.online, cohort)):
            return cohort, len(cohort)
        # Whoever is not online cannot be asked; others are drawn in their place, as far as the sampler finds any.
        wanted, found = len(cohort), dict.fromkeys(filter(self._session.online, cohort))
        for again in range(REDRAWS):
            if len(found) >= wanted:
                break
            found.update(dict.fromkeys(filter(self._session.online, self._drawn(ask, key.derive("again", again)))))
        return tuple(found)[:wanted], wanted

    def _drawn(self, ask: Ask, key: Key) -> tuple[ClientId, ...]:
        drawn = as_sampler(ask.clients).draw(self._federation.clients, key)
        cohort = tuple(drawn) if not hasattr(drawn, "tolist") else tuple(drawn.tolist())
        if len(set(cohort)) < len(cohort):
            raise SamplingError("the cohort has a client twice", hint="A sampler draws every client at most once.")
        return cohort

    def _open(self, item: AskUnderway, r: int) -> list[Command]:
        self._tell(AskOpened(ask=item.id, round=r, kind=item.ask.kind, clients=len(item.cohort)))
        # Only a coordinator that has not seen this lane yet needs to be told what is out in it.
        left = () if item.lane in self._lanes else self._progress.late.get(item.lane, ())
        self._lanes.add(item.lane)
        late = [(entry.task, entry.age) for entry in left]
        return self._coordinator.handle(Opened(item.id, item.lane, item.cohort, item.ask.window, late), self._now())

    def _replay(self, item: AskUnderway, record: AskClosed) -> None:
        if record.digest != item.digest:
            raise NondeterministicStrategy(
                f"ask {item.id} is not what it was before the run stopped: the strategy asks something else",
                round=record.round,
                hint="A strategy may depend on nothing but its state, the round and the answers; was the app changed?",
            )
        self._session.close(item.id)
        self._closed = True
        del self._going[item.id]
        reply, state, late = (None, None, ())
        if record.answer is not None:
            reply, state, late = self._journal.load(record.answer)
        self._progress.late[item.lane] = self._late(late)
        self._task_failures[record.kind] += record.failures
        self._advance_to(record.clock)
        self._account.add(Account(**record.account))  # type: ignore[arg-type]
        if reply is None:
            item.reply = nothing(item, record.count, record.failures, record.reason or "too few updates")
            return
        item.reply = reply
        self._keep_state(item, state)

    def _work(self, commands: list[Command], r: int) -> None:
        waiting = any(item.reply is None for item in self._going.values())
        while waiting:
            for command in commands:
                if isinstance(command, Close):
                    self._close(command, r)
                else:
                    self._session.do(command)
            if not self._going:
                return
            event: Event = self._session.next_event() or Ticked()
            for client, text in self._reporting.warnings() if self._reporting is not None else ():
                self._warn(r, text, client)
            out = self._out(event) if self._observers else []
            commands = self._coordinator.handle(event, self._now())
            self._tell_ended(event, out)

    def _out(self, event: Event) -> list[str]:
        """The tasks that an event says to be over and that were out until now."""
        if not isinstance(event, Failed | Finished | AllFinished):
            return []
        tasks = event.tasks if isinstance(event, AllFinished) else [event.task]
        return [task for task in tasks if self._coordinator.state_of(task) is TaskState.SENT]

    def _tell_ended(self, event: Event, tasks: Sequence[str]) -> None:
        reason, trace = (event.reason, event.trace) if isinstance(event, Failed) else (None, "")
        for task in tasks:
            if self._coordinator.state_of(task) not in (TaskState.QUEUED, TaskState.SENT):  # else it is tried again
                self._tell(TaskEnded(ask=int(task.split(".", 1)[0]), task=task, reason=reason, trace=trace))

    def _close(self, command: Close, r: int) -> None:
        item = self._going.pop(command.ask)
        self._closed = True
        closed = self._session.close(command.ask)
        self._progress.late[item.lane] = [LateTask(task, age) for task, age in command.late]
        closed.agree()
        failed = _failed(item, command, closed)
        reply, state = self._finish(item, r, command, closed, failed)
        rows = [self._row(task, age) for task, age in command.late]
        # What a transform drew must survive a power cut: drawn again over the same sum, it would be a second release.
        durable, answer = item.ask.transform.name != "identity", None
        if isinstance(reply, Answer) or rows:
            kept = (reply if isinstance(reply, Answer) else None, state, rows)
            answer = self._journal.save(f"answers/ask-{item.id:06d}.safetensors", kept, durable=durable)
            kept = self._journal.mapped(answer, kept)
            reply, state = kept[0] or reply, kept[1]
        if isinstance(reply, Answer):
            self._keep_state(item, state)
            self._states.advance(item.id, closed.states, since=self._first_ask)
        item.reply = reply
        self._account.add(closed.account)
        self._task_failures[item.ask.kind] += len(failed)
        event = self._told(item, r, command, closed, failed)
        event = replace(event, answer=answer, clock=self._virtual_now())
        for name, (count, clients) in event.skipped.items():
            self._warn_once(r, _not_finite(name, count, clients))
        self._tell(event, durable=durable)
        if self._journal.folder is None:
            self._remember(event)

    def _remember(self, event: AskClosed) -> None:
        """Keep what a run that is kept nowhere else says of its clients."""
        self.closed.append(event)
        self._rows += len(event.clients.get("client", ()))
        while self._rows > MOST_ROWS:
            self._rows -= len(self.closed.pop(0).clients.get("client", ()))

    def _told(
        self, item: AskUnderway, r: int, command: Close, closed: ClosedAsk, failed: Mapping[ClientId, str]
    ) -> AskClosed:
        """How an ask ended, as the log says it."""
        reply = item.reply
        answered = isinstance(reply, Answer)
        receipts = reply.receipts if isinstance(reply, Answer) else closed.partial.in_order()
        over = {receipt.client for receipt in receipts} | {task.client for task, _ in command.late}
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
            metrics=_bounded(reply.metrics) if isinstance(reply, Answer) else {},
            weight=reply.weight if isinstance(reply, Answer) else 0.0,
            failures=len(failed),
            failed=counted(failed),
            skipped=skipped(receipts) if answered else {},
            clients=clients,
            spread=spread,
            reason=reply.message if isinstance(reply, NothingToFold) else None,
            seconds=round(self._clock() - item.began, 6),
            account=asdict(closed.account),
        )

    def _keep_state(self, item: AskUnderway, state: Any) -> None:
        """What the transforms of an ask know after it."""
        if state is not None:
            self._progress.transforms[item.place] = state

    def _finish(
        self, item: AskUnderway, r: int, command: Close, closed: ClosedAsk, failed: Mapping[ClientId, str]
    ) -> tuple[Reply, Any]:
        partial = closed.partial
        came, quorum = len(partial.receipts), item.ask.window.quorum
        if came < quorum:
            return nothing(item, came, len(failed), why_short(item, came, failed)), item.transform_state
        try:
            answer = partial.finish(failed, command.asked)
        except NothingToFold as error:
            if came:
                return nothing(item, came, len(failed), error.message), item.transform_state
            answer = Answer(Arrays(), failed=failed, asked=command.asked)  # of a quorum of nobody
        try:
            return item.ask.transform.finish(answer, item.transform_state, self._key.derive("finish", r, item.number))
        except NothingToFold as error:
            return nothing(item, came, len(failed), error.message), item.transform_state

    # Virtual time, where there is any

    def _virtual_now(self) -> float | None:
        return None if self._virtual is None else self._virtual.now()

    def _advance_to(self, at: float | None) -> None:
        if self._virtual is not None and at is not None:
            self._virtual.advance_to(at)

    # Late tasks across a resume

    def _saved_late(self) -> dict[str, Any]:
        saved: dict[str, Any] = {}
        for lane, tasks in self._progress.late.items():
            if tasks:
                rows = [self._row(entry.task, entry.age) for entry in tasks]
                saved[lane] = {"tasks": rows, "asks": self._session.save_asks([e.task for e in tasks])}
        return saved

    def _restore_late(self, saved: Mapping[str, Any]) -> None:
        for lane, part in saved.items():
            self._progress.late[lane] = self._late(part["tasks"])
            self._session.restore_asks(part["asks"])

    def _row(self, task: Task, age: int) -> list[Any]:
        at = self._virtual.sent_at(task.id) if self._virtual is not None else 0.0
        return [task.id, task.ask, task.client, task.attempt, at, age]

    def _late(self, rows: Sequence[Sequence[Any]]) -> list[LateTask]:
        for row in rows:
            if self._virtual is not None:
                self._virtual.was_sent_at(row[0], row[4])
        return [LateTask(Task(*row[:4]), row[5]) for row in rows]

    # What is best, and when to stop

    def _values(self, name: str) -> list[tuple[int, float]]:
        history = self._history
        return history.series(name) if name in history.names else []

    def _best_round(self) -> int | None:
        keep = self.app.keep_best
        values = [(r, v) for r, v in self._values(keep.metric) if not math.isnan(v)] if keep is not None else []
        if keep is None or not values:
            return None
        sign = 1 if keep.mode == "max" else -1
        return max(values, key=lambda pair: (sign * pair[1], -pair[0]))[0]

    def _is_early(self) -> bool:
        stop = self.app.early_stop
        if stop is None:
            return False
        sign = 1 if stop.mode == "max" else -1
        best, since = -float("inf"), 0
        for _, value in self._values(stop.metric):
            better = sign * value > best + stop.min_change
            best, since = (sign * value, 0) if better else (best, since + 1)
        return since >= stop.patience

    # What is told

    def _tell(self, event: RunEvent, durable: bool = False) -> None:
        self._journal.append(event, at=time.time(), durable=durable)
        if self._reporting is not None:
            self._reporting.observe(event)
        for text in self._observers.tell(event):
            self._tell(Warned(round=self.round, text=text))

    def _warn(self, r: int, text: str, client: ClientId | None = None) -> None:
        alike = kind(text)
        self._warnings[alike] += 1
        if self._warnings[alike] <= MOST_WARNINGS:
            self._tell(Warned(round=r, client=client, text=text))

    def _warn_once(self, r: int, text: str) -> None:
        if kind(text) not in self._said:
            self._said.add(kind(text))
            self._tell(Warned(round=r, text=text))

    def _count_warnings(self, r: int) -> None:
        for alike, count in self._warnings.items():
            if count > MOST_WARNINGS:
                self._tell(Warned(round=r, text=f"{count - MOST_WARNINGS} further warnings like this: {alike}"))
        self._warnings.clear()


def _failed(item: AskUnderway, command: Close, closed: ClosedAsk) -> dict[ClientId, str]:
    """Why clients failed, in the order of the cohort: that in which they were told of may differ from run to run."""
    reasons = Reasons()
    failed = {**command.failed, **{client: reasons.keep(reason) for client, reason in closed.refused.items()}}
    if len(failed) < 2:
        return failed
    places = {client: place for place, client in enumerate(item.cohort)}
    return dict(sorted(failed.items(), key=lambda row: places.get(row[0], len(places))))


@contextmanager
def _garbage_frozen() -> Iterator[None]:
    """Spare the garbage collector what was there before: frameworks make half a million objects, and to go through them
    now and then would take a fifth of a small model's rounds.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _bounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """So many of them as an event can hold."""
    return dict(islice(metrics.items(), MOST_METRICS))


def _not_finite(name: str, count: int, clients: Sequence[ClientId]) -> str:
    listed = ", ".join(map(str, clients)) + (", ..." if count > len(clients) else "")
    which = f"{count} clients ({listed})" if count > 1 else f"client {clients[0]}"
    return f"metric {name!r} of {which} is not finite: it is left out of the mean"
