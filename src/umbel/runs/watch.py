"""How far a run is, by its events, and what to say of them in a line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ClientId
from .events import (
    AskClosed,
    AskOpened,
    RoundCommitted,
    RoundStarted,
    RunEvent,
    RunResumed,
    RunStarted,
    TaskEnded,
    Waiting,
    Warned,
)
from .words import PARTS, duration, in_order, number, plural

MOST_METRICS = 6
MOST_TRACES = 10
RECENT = 10
STEPS = {"train": "training", "evaluate": "evaluating"}
WORDS = {"train": "training", "evaluate": "evaluation"}


@dataclass
class Watch:
    """How far a run is, by its events. `clock` counts seconds.

    `asked`, `done` and `failed` count the clients of the asks that are open, `failures` those of the whole round by the
    kind of ask.
    """

    clock: Callable[[], float] = time.monotonic
    debug: bool = False
    rounds: int = 0
    round: int = 0
    committed: int = 0
    kind: str = ""
    asked: int = 0
    done: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    _reason: str | None = None
    _told: set[str] = field(default_factory=set)
    _traced: set[str] = field(default_factory=set)
    _closed: int = 0
    _refused: set[str] = field(default_factory=set)
    _open: set[int] = field(default_factory=set)
    _began: float = 0.0
    _spent: list[float] = field(default_factory=list)

    def see(self, event: RunEvent) -> None:
        """Take in the next event."""
        if isinstance(event, TaskEnded):
            if event.ask in self._open:  # else it is late, and not among those that are asked now
                self.done += event.reason is None
                self.failed += event.reason is not None
        elif isinstance(event, RunStarted):
            self.rounds = event.rounds
        elif isinstance(event, RunResumed):
            self.committed, self.rounds = event.round, event.rounds or self.rounds
        elif isinstance(event, RoundStarted):
            self.round, self.rounds, self._began = event.round, event.rounds, self.clock()
            self._reason = None
            self.failures.clear()
            self._open.clear()
        elif isinstance(event, AskOpened):
            if not self._open:
                self.kind, self.asked, self.done, self.failed = event.kind, 0, 0, 0
            self._open.add(event.ask)
            self.asked += event.clients
        elif isinstance(event, AskClosed):
            self._open.discard(event.ask)
            if event.round != self._closed:  # logs that are read again do not say when a round started
                self._closed, self._reason = event.round, None
                self.failures.clear()
            self.failures[event.kind] += event.failures
            if event.failed and self._reason is None:
                self._reason = self._worded(event)
        elif isinstance(event, RoundCommitted):
            self.committed = event.round
            self._spent.append(self.clock() - self._began)
            for name, value in metrics_of(event).items():
                self.metrics.setdefault(name, []).append(value)

    @property
    def reason(self) -> str | None:
        """Why clients failed in this round; None if nobody did, or if an earlier round said the same."""
        return self._reason or None

    def trace(self, event: RunEvent) -> str:
        """The traceback of what a client raised, where it is to be shown: once for each reason, and of a few only."""
        if not (self.debug and isinstance(event, TaskEnded) and event.trace and event.reason):
            return ""
        if event.reason in self._traced or len(self._traced) >= MOST_TRACES:
            return ""
        self._traced.add(event.reason)
        return f"task {event.task} failed:\n{event.trace.rstrip()}"

    def knows(self, event: Waiting) -> bool:
        """Whether a list of lines needs no further one for this: there are clients enough, and nobody else refuses."""
        said, self._refused = self._refused, set(event.refused)
        return event.ready >= event.wanted and self._refused <= said

    def seconds_left(self) -> float | None:
        """How long the rest is likely to take, by the last rounds; None as long as there was none."""
        if not self._spent:
            return None
        recent = self._spent[-RECENT:]
        mean = sum(recent) / len(recent)
        this = max(0.0, mean - (self.clock() - self._began)) if self.round > self.committed else 0.0
        return this + mean * (self.rounds - max(self.round, self.committed))

    def _worded(self, event: AskClosed) -> str:
        reason, _, clients = event.failed[0]
        if reason in self._told:
            return ""
        self._told.add(reason)
        return failure(reason, event.failures, clients)


def failure(reason: str, count: int, clients: Sequence[ClientId]) -> str:
    """That clients failed, so many of them, and the first of them."""
    more = f" (and {plural(count - 1, 'more client')})" if count > 1 else ""
    return f"client {clients[0]} failed: {reason}{more}"


def failures(found: Mapping[str, int]) -> list[str]:
    """How many clients failed, by the kind of ask; those of training first, and also where there are none."""
    others = [(WORDS.get(kind, kind), count) for kind, count in found.items() if kind != "train" and count]
    return [f"{found.get('train', 0)} failed", *(f"{count} failed in {name}" for name, count in others)]


def metrics_of(event: RoundCommitted) -> dict[str, float]:
    """A round's metrics by names such as `test.accuracy`, those of the test first."""
    found = {f"{part}.{name}": value for part in PARTS for name, value in getattr(event, part).items()}
    return {name: found[name] for name in in_order(found)}


def round_line(watch: Watch, event: RoundCommitted) -> str:
    """A committed round in one line."""
    if event.failed is not None:
        return f"round {event.round}/{watch.rounds}  nothing learned: {event.failed}"
    metrics = [f"{name} {number(value)}" for name, value in metrics_of(event).items()]
    counts = [plural(event.clients, "client"), *failures(event.failures)]
    return "  ".join([f"round {event.round}/{watch.rounds}", *counts, *metrics, duration(event.seconds)])


def heading(event: RunEvent) -> str | None:
    """What stands above a run's progress from this event on, if it says that."""
    if isinstance(event, RunStarted):
        counts = f"{plural(event.clients, 'client')}, {plural(event.rounds, 'round')}"
        return f"run {event.run}: {event.strategy}, {counts}, seed {event.seed}"
    if isinstance(event, RunResumed):
        return f"run {event.run}: goes on after round {event.round}{_differences(event.changed)}"
    if isinstance(event, Waiting):
        refused = "".join(f"; client {client} does not take part: {why}" for client, why in event.refused.items())
        ready = f"{event.ready} of {event.wanted} ready" if event.ready < event.wanted else f"{event.ready} ready"
        more = f" and {event.ready - len(event.there)} more" if event.there and event.ready > len(event.there) else ""
        there = f" ({', '.join(event.there)}{more})" if event.there else ""
        return f"waiting for clients: {ready}{there}{refused}"
    return None


def warning(event: Warned) -> str:
    """A warning in one line."""
    of = "" if event.client is None else f"client {event.client}: "
    return f"round {event.round}: {of}{event.text}"


def _differences(changed: Mapping[str, list[str]]) -> str:
    if not changed:
        return ""
    listed = ", ".join(f"{name} {before or '?'} -> {now or '?'}" for name, (before, now) in changed.items())
    return f"; the software differs, so the bits may: {listed}"
