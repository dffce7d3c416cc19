"""The conductor: drives a strategy's rounds, evaluates, and commits each round to the journal."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from ..core.answer import Answer
from ..core.app import App, EarlyStop, KeepBest
from ..core.arrays import Arrays
from ..core.ask import Ask, phases
from ..core.randomness import Key
from ..core.strategy import State
from ..errors import NothingToFold, SettingError, StrategyError, UmbelError
from ..folds.total import total
from ..samplers.uniform import Uniform
from ..work.seeding import generators_kept, seed_generators
from ..work.state import ClientStates
from .asks import UNKNOWN, AskUnderway, RunAsks, bounded, nothing_came
from .events import (
    AskClosed,
    RoundCommitted,
    RoundStarted,
    RunEvent,
    RunFinished,
    RunInterruption,
    RunResumed,
    RunStarted,
    Warned,
)
from .federation import Federation, Session
from .history import History
from .journal import FORMAT, Journal, RunLog
from .observers import Observers
from .outcome import best_round, early_end, failures, is_empty, told_to_end, verdict
from .publisher import Held, Publisher
from .software import changes, software
from .usage import ProcessUsage

OnRound = Callable[[RoundCommitted, Arrays], bool | str | None]
"""What is called after each round with what it brought and the model; where it is True, or says why, the run ends."""
KEPT_CHECKPOINTS = 3


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
        self._clock = clock
        self._key = Key.from_seed(started.seed)
        self._publisher = Publisher(journal, observers, Held())
        self._session: Session | None = None
        self._asks: RunAsks
        self._state: State
        self._last_round = started.rounds
        self._finished: RunFinished | None = None
        self._best: tuple[int, Arrays] | None = None
        self._unevaluated = False
        self._private = False
        self._seconds = 0.0
        self._since = 0.0
        self._unjudged = False
        self._usage = ProcessUsage()

    @property
    def round(self) -> int:
        """The last committed round."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def closed(self) -> list[AskClosed]:
        """How asks of the last rounds ended, of a run that is kept nowhere else."""
        return self._publisher.closed

    def begin(self, model: Arrays) -> None:
        """Start from the initial model."""
        self.app.check_released()
        self.app.check_rounds(self.started.rounds)
        self._tell(self.started)
        self._connect()
        self._state = self._start(model)

    def _start(self, model: Arrays) -> State:
        name = f"{self.started.strategy}.start"
        with generators_kept():
            seed_generators(self._key.derive("strategy", 0, 0))
            try:
                state = self.app.strategy.start(model)
            except UmbelError:
                raise
            except Exception as error:
                raise StrategyError.raised(name, error) from error
        if not isinstance(state, State):
            raise StrategyError(f"{name} returned a {type(state).__name__}, not a State")
        return state

    def go_on(
        self, log: RunLog, checkpoint: Mapping[str, Any], rounds: int | None, moved: Mapping[str, list[str]]
    ) -> None:
        """Start from a checkpoint and the asks recorded since; `moved` is what is elsewhere than before."""
        self.rounds = list(log.rounds)
        self._seconds = sum(r.seconds for r in self.rounds)
        self._last_round = max(self.started.rounds, log.rounds_wanted)
        if log.finished is not None and log.finished.error is not None:
            # The failed rounds in which it ended are made up for.
            self._last_round += sum(event.round > log.resumed_after for event in failures(self.rounds))
        self._last_round = max(self._last_round, rounds or 0)
        self.app.check_rounds(self._last_round)
        over = self.round >= self._last_round or early_end(self.app.early_stop, self._history) is not None
        if log.finished is not None and log.finished.error is None and over:
            self._finished = log.finished
        # It died after its last round, and before it could say whether that was its failure.
        self._unjudged = log.finished is None and self.round > log.resumed_after
        earlier = self.started.format < FORMAT
        self._connect([replace(record, digest=UNKNOWN) for record in log.pending] if earlier else log.pending)
        if isinstance(checkpoint["state"], State):
            self._state = checkpoint["state"]
            self._asks.restore(checkpoint)
        else:
            self._state = self._start(checkpoint["state"]["model"])
            self._asks.restore({})
        if self._finished is None:
            changed = {**changes(dict(self.started.software), software(self._federation.plan())), **moved}
            self._tell(RunResumed(run=self.started.run, round=self.round, rounds=self._last_round, changed=changed))

    def drive(self, on_round: OnRound | None = None) -> RunFinished:
        """Do what is left of the run and return how it ended."""
        if self._finished is None:
            with generators_kept(), _garbage_frozen():
                self._finished = self._drive(on_round)
        return self._finished

    def _drive(self, on_round: OnRound | None) -> RunFinished:
        reason = early_end(self.app.early_stop, self._history) or "rounds"
        self._since = self._clock()
        judged = self._unjudged and verdict(self.rounds, self._last_round, self.app.max_failed_rounds)
        while not judged and reason == "rounds" and self.round < self._last_round:
            r = 0 if self.app.evaluate_at_start and not self.rounds else self.round + 1
            try:
                self._round(r)
                judged = verdict(self.rounds, self._last_round, self.app.max_failed_rounds)
                if judged:
                    break
                self._check_metrics()
                told = on_round and told_to_end("on_round", on_round, self.rounds[-1], self._state.model)
                reason = early_end(self.app.early_stop, self._history) or told or "rounds"
            except UmbelError as error:
                raise error.located(round=r) from error.__cause__
        event = self._end("failed", judged) if judged else self._end(reason)
        self._finish_log(event)
        return event

    def _check_metrics(self) -> None:
        """Once there are metrics, a name that is not among them is a slip that would go unnoticed to the end."""
        last = self.rounds[-1]
        for watched in (self.app.keep_best, self.app.early_stop):
            nothing = last.failed is not None or is_empty(last)
            if (
                not isinstance(watched, KeepBest | EarlyStop)
                or nothing
                or self._history.last(watched.metric) is not None
            ):
                continue
            of_clients = watched.metric.startswith("evaluate.") and "evaluate" in self.app.client.handlers
            told = last.evaluate if of_clients else last.evaluate or last.test  # an evaluation may have failed
            if watched.metric.startswith("train.") or told:
                raise SettingError(
                    f"no round has a metric {watched.metric!r}", hint=f"There are: {', '.join(self._history.names)}."
                )

    def _finish_log(self, event: RunFinished) -> None:
        metrics = self._history.metrics(event.best_round)
        self._journal.summarise({**event.record(), "strategy": self.started.strategy, "metrics": metrics})
        self._publisher.write(event, durable=True)
        self._finished = event
        self._publisher.announce(event)

    @property
    def _history(self) -> History:
        return History(self.rounds)

    def _end(self, reason: str, error: str | None = None) -> RunFinished:
        return RunFinished(
            run=self.started.run,
            rounds=self.round,
            reason=reason,
            best_round=best_round(self.app.keep_best, self._history),
            seconds=round(self._seconds, 6),
            model_sha256=self.final_model().sha256,
            error=error,
        )

    def refuse(self, error: UmbelError) -> None:
        """Say in the log that the run cannot be, and why, where nothing has come of it yet."""
        if not self.rounds and (self._session is None or not self._asks.any_closed):
            run = self.started.run
            event = RunFinished(run=run, rounds=0, reason="refused", error=error.message)
            self._journal.summarise({**event.record(), "strategy": self.started.strategy, "metrics": {}})
            self._tell(event, durable=True)

    def interrupt(self) -> None:
        """Say in the log that the run was stopped, where that says that it has begun, and not that it has ended."""
        if self._journal.begun and self._finished is None:
            self._tell(RunInterruption(run=self.started.run, round=self.round), durable=True)

    def _connect(self, recorded: Sequence[AskClosed] = ()) -> None:
        """Have the clients ready, and what serves asks of them."""
        federation, config, key = self._federation, self.started.settings["config"], self._key
        session = federation.connect(self.app.client, config, key.derive("task"), self._states, self._clock)
        self._session = session
        self._publisher.report_to(session.reporting)
        self._asks = RunAsks(
            federation.clients, session, self._journal, self._states, self._publisher, key, self._clock, recorded
        )

    def _tell(self, event: RunEvent, durable: bool = False) -> None:
        self._publisher.tell(event, durable)

    def release(self) -> None:
        """Let go of files and clients."""
        if self._session is not None:
            self._session.disconnect(whole=self._finished is not None)
        self._journal.close()
        self._states.close()

    def final_model(self) -> Arrays:
        """The last model, or the best where the app keeps that."""
        best = best_round(self.app.keep_best, self._history)
        if best is None or best == self.round:
            return self._state.model  # type: ignore[no-any-return]
        if self._best is not None and self._best[0] == best:
            return self._best[1]
        reference = next(r.checkpoint for r in self.rounds if r.round == best)
        assert reference is not None
        return self._journal.load(reference)["state"].model  # type: ignore[no-any-return]

    # A round

    def _round(self, r: int) -> None:
        self._tell(RoundStarted(round=r, rounds=self._last_round))
        self._publisher.warn_of_unseeded(r)
        self._asks.begin_round()
        failed = None
        served: list[AskUnderway] = []
        try:
            if r:  # else the initial model is evaluated, and nothing else
                self._state = self._journal.kept(self._generate(r, served))
        except NothingToFold as error:
            drew_nobody = not error.asked and any(item.reply is error for item in served)
            failed = None if drew_nobody else error.message
        failed = failed or nothing_came(served)
        self._private = self._private or any(item.ask.transform.private for item in served)
        evaluated, tested = self._evaluate(r) if failed is None else ({}, {})
        self._asks.check_all_replayed(r)
        # From commit to commit, and with what recorded asks took: the account has the work of all that time.
        now, spent = self._clock(), self._asks.take_spent()
        seconds, self._since = now - self._since + spent.replayed, now
        self._seconds += seconds
        metrics: dict[str, float] = {}
        counts = [item.counts for item in served if item.ask.kind not in phases(item.ask.transform)]
        for item in served:
            metrics.update(item.reply.metrics if isinstance(item.reply, Answer) else {})
        self._publisher.count_warnings(r)
        self._commit(
            RoundCommitted(
                round=r,
                asks=self._asks.next,
                clients=sum(came for came, _ in counts),
                dropped=sum(asked - came for came, asked in counts),
                failures=bounded(spent.failures),
                train=bounded(metrics),
                evaluate=evaluated,
                test=tested,
                seconds=round(seconds, 6),
                failed=failed,
                account={
                    **asdict(spent.account),
                    "processes": max(1, self._federation.describe()["workers"]),
                    **self._usage.since(),
                },
                clock=self._asks.virtual_now(),
            )
        )

    def _generate(self, r: int, served: list[AskUnderway]) -> State:
        rounds = self.app.strategy.in_round(r).round(self._state, r)
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
            asks = [asked] if single else asked
            if not isinstance(asks, list | tuple) or not asks or not all(isinstance(ask, Ask) for ask in asks):
                raise StrategyError(
                    f"round {r} of {self.started.strategy} yielded {asks!r:.80}, not an Ask or a list of them"
                )
            going = self._asks.serve(asks, r)
            served += going
            replies = [item.reply for item in going]
            failure = next((reply for reply in replies if isinstance(reply, NothingToFold)), None)
            reply = replies[0] if single else replies
            advance, argument = (rounds.send, reply) if failure is None else (rounds.throw, failure)

    def _advance(self, advance: Callable[[Any], Any], argument: Any, r: int) -> tuple[Any, State | None]:
        strategy = self.started.strategy
        seed_generators(self._key.derive("strategy", r, self._asks.number))
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
        # What is recorded counts, too: the round may have been the last when it was evaluated, and be so no more.
        due = r == 0 or (every and (r % every == 0 or r == self._last_round or self._asks.has_recorded("evaluate")))
        if not due:
            return {}, {}
        found: dict[str, float] = {}
        if "evaluate" in self.app.client.handlers:
            self.app.check_released(self._private)
            clients = self.app.evaluate_clients
            if clients is None:
                clients = Uniform(min(100, len(self._federation.clients)))
            model = self.app.strategy.served(self._state)
            noise = () if self.app.evaluate_noise is None else self.app.evaluate_noise
            (item,) = self._asks.serve(
                [Ask(kind="evaluate", clients=clients, model=model, fold=total(), transforms=noise)], r
            )
            found = self._evaluated(item, r)
        seed_generators(self._key.derive("test", r))
        return found, self.app.run_test(self._state.model) or {}

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
        tree = {"state": self._state, **self._asks.saved()}
        reference = self._journal.save(f"checkpoints/round-{event.round:04d}.safetensors", tree, durable=True)
        # A large state goes on as the checkpoint's own pages, which the system can drop and read again.
        tree = self._journal.mapped(reference, tree)
        self._state, self._asks.transforms = tree["state"], tree["transforms"]
        event = replace(event, checkpoint=reference)
        self._publisher.write(event, durable=True)
        self.rounds.append(event)
        self._publisher.announce(event)
        best = best_round(self.app.keep_best, self._history)
        if best == event.round:
            self._best = (event.round, self._state.model)
        self._journal.clear_answers()
        keep = {r.round for r in self.rounds[-KEPT_CHECKPOINTS:]} | {best}
        if every := self.app.checkpoint_every:
            keep |= {r.round for r in self.rounds if r.round % every == 0}
        self._journal.keep_checkpoints(r.checkpoint["file"] for r in self.rounds if r.round in keep and r.checkpoint)
        self._asks.forget()


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
