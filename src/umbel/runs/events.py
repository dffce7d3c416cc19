"""The events of a run: typed, plain, appended to its log. Progress bars, trackers, replay and recovery read these and
nothing else.

Every event fits into one frame of the protocol, whatever clients and strategies say and however many there are: its
texts are cut, and its lists are bounded by whoever makes them. `LARGEST` is what all keep to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, ClassVar

from ..errors import ClientId
from .reasons import short

LARGEST = 1 << 20
"""The bytes of an event as JSON are never more."""
LONGEST_TEXT = 2000
"""So many characters of a text go into an event."""
MOST_REFUSED = 20


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Base of all events; `logged` says whether it goes into the log, or only to whoever watches, `at` the wall time of
    its line there, for whoever is told of it by the run itself.
    """

    name: ClassVar[str]
    logged: ClassVar[bool] = True
    at: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is str and len(value) > LONGEST_TEXT:
                object.__setattr__(self, name, short(value, LONGEST_TEXT))

    def record(self) -> dict[str, Any]:
        """The event as a plain dictionary, which is not to be changed."""
        return {"event": self.name, **{each.name: getattr(self, each.name) for each in fields(self)}}


@dataclass(frozen=True, kw_only=True)
class RunStarted(RunEvent):
    """A run begins. `app` says how to find the app again; `software` names versions and the processor; `settings` are
    those laid over the app's; `federation` says who does the tasks; `folder` is where the run is kept.
    """

    name: ClassVar[str] = "run_started"
    run: str
    format: int
    seed: int
    rounds: int
    clients: int
    strategy: str
    app: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    federation: Mapping[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    model_file: str | None = None
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class RunResumed(RunEvent):
    """A run goes on after `round`, to `rounds` in all; `changed` lists software that differs from when it started,
    and, from when it last went on, the run's folder, the app's file and its code.
    """

    name: ClassVar[str] = "run_resumed"
    run: str
    round: int
    rounds: int = 0
    changed: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Waiting(RunEvent):
    """A run that has not begun waits for its clients; `refused` says why some do not take part, `there` names those
    that are ready: up to 20 of each.
    """

    name: ClassVar[str] = "waiting"
    logged: ClassVar[bool] = False
    ready: int
    wanted: int
    refused: Mapping[str, str] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "there", [short(client) for client in self.there[:MOST_REFUSED]])
        few = {client: short(why) for client, why in islice(self.refused.items(), MOST_REFUSED)}
        object.__setattr__(self, "refused", few)


@dataclass(frozen=True, kw_only=True)
class RoundStarted(RunEvent):
    """A round begins."""

    name: ClassVar[str] = "round_started"
    logged: ClassVar[bool] = False
    round: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class AskOpened(RunEvent):
    """An ask goes out."""

    name: ClassVar[str] = "ask_opened"
    logged: ClassVar[bool] = False
    ask: int
    round: int
    kind: str
    clients: int


@dataclass(frozen=True, kw_only=True)
class TaskEnded(RunEvent):
    """A client's task is over; `reason` says why it failed, None if it did not. In a simulation `trace` is the
    traceback of the client's code, of the first that failed for a reason.
    """

    name: ClassVar[str] = "task_ended"
    logged: ClassVar[bool] = False
    ask: int
    task: str
    reason: str | None = None
    trace: str = ""

    def __post_init__(self) -> None:
        if self.reason is not None:  # there are many without
            super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class AskClosed(RunEvent):
    """An ask is over. `digest` covers all that was asked and of whom, `asked` says how many they are, `count` how many
    updates were folded; with fewer than the quorum there is no answer but a `reason`. `answer` names the file with the
    answer as the strategy got it, and with the tasks that go on. `account` says where the time went; `clock` is the
    virtual time, where time is virtual; `final` says that a transform had a hand in the answer, which is never to be
    made another time. `releases` describes what the answer tells of clients, where a transform hides them: one dict
    each, with `sampling`, which says how clients were drawn.

    What became of the clients is told in little: `failures` counts those that failed, `failed` has rows of a reason,
    how many failed for it, and the first of them; `skipped` says which metrics were left out of the means because they
    are not finite, ``{name: [how many, [first clients]]}``; `clients` has a column for each fact of all clients, or,
    where they are too many, `spread` has the quantiles (see `receipts`).
    """

    name: ClassVar[str] = "ask_closed"
    ask: int
    round: int
    kind: str
    lane: str
    digest: str
    asked: int
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    failures: int = 0
    failed: list[list[Any]] = field(default_factory=list)
    skipped: Mapping[str, list[Any]] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict, compare=False)
    spread: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    answer: Mapping[str, str] | None = None
    reason: str | None = None
    seconds: float = 0.0
    account: Mapping[str, float] = field(default_factory=dict, compare=False)
    clock: float | None = None
    final: bool = False
    releases: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RoundCommitted(RunEvent):
    """A round is over and its checkpoint is on disk: the point to which a run goes back. `failed` says why the round
    brought nothing, `account` where its time went; `clock` is the virtual time, where time is virtual. `failures`
    counts the tasks that failed by the kind of their ask.
    """

    name: ClassVar[str] = "round_committed"
    round: int
    asks: int
    clients: int = 0
    dropped: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    train: Mapping[str, float] = field(default_factory=dict)
    evaluate: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str | None = None
    account: Mapping[str, float] = field(default_factory=dict, compare=False)
    clock: float | None = None
    checkpoint: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Warned(RunEvent):
    """Something that whoever runs the federation should know, of one client or of all; the run goes on."""

    name: ClassVar[str] = "warned"
    round: int
    text: str
    client: ClientId | None = None


@dataclass(frozen=True, kw_only=True)
class RunInterruption(RunEvent):
    """Somebody stopped the run; it can be resumed."""

    name: ClassVar[str] = "run_interrupted"
    run: str
    round: int


@dataclass(frozen=True, kw_only=True)
class RunFinished(RunEvent):
    """The run is over. `reason` is `"rounds"`, `"early stop"` or what the app says, `"failed"`, or `"refused"` where it
    could not begin; of the last two `error` says why.
    """

    name: ClassVar[str] = "run_finished"
    run: str
    rounds: int
    reason: str
    best_round: int | None = None
    seconds: float = 0.0
    model_sha256: str = ""
    error: str | None = None


Observer = Callable[[RunEvent], None]
"""Somebody who watches a run; called in its thread with every event."""

UNREADABLE = "unreadable"
"""Stands in a log that is read to somebody where an event makes no sense."""
EVENTS: dict[str, type[RunEvent]] = {kind.name: kind for kind in RunEvent.__subclasses__()}
"""All events by name."""
