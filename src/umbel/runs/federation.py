"""What a run needs of a federation and of its session there; optional capabilities are protocols of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ..core.app import App
from ..core.ask import Ask
from ..core.client import Client
from ..core.randomness import Key
from ..core.task import Admit, Cancel, Send, Task
from ..errors import ClientId
from ..work.intake import ClosedAsk
from ..work.state import ClientStates
from .coordinator import Event, Wake
from .events import RunEvent


class VirtualTime(Protocol):
    """Time that goes by what devices take, and not by any clock."""

    def now(self) -> float:
        """Virtual seconds."""

    def advance_to(self, at: float) -> None:
        """Go forward to a time that was reached before."""

    def sent_at(self, task: str) -> float:
        """When a task was sent."""

    def was_sent_at(self, task: str, at: float) -> None:
        """Know again when a task was sent."""


class Reporting(Protocol):
    """Somebody who is told of a run besides its observers, and has something to say of it."""

    def observe(self, event: RunEvent) -> None:
        """Take note of an event of the run."""

    def warnings(self) -> Iterable[tuple[ClientId | None, str]]:
        """What whoever runs this should know, since it was last asked."""


class Session(Protocol):
    """The clients of a federation as one run has them: the coordinator's commands go in, its events come out."""

    keeps_answers: bool = False
    """Whether the same answers can be had of it again, to the bit, until their round is committed."""

    @property
    def virtual(self) -> VirtualTime | None:
        """Virtual time, where there is any."""

    @property
    def reporting(self) -> Reporting | None:
        """Who is told of the run besides its observers."""

    @property
    def clock(self) -> Callable[[], float]:
        """By what deadlines go, in seconds, where time is not virtual."""

    def online(self, client: ClientId) -> bool:
        """Whether a client can be asked now."""

    def open(self, id: int, ask: Ask, round: int, number: int, params: Any, cohort: Sequence[ClientId] = ()) -> None:
        """Make an ask known before its tasks come."""

    def do(self, command: Send | Admit | Cancel | Wake) -> None:
        """Carry out a command."""

    def next_event(self) -> Event | None:
        """Wait for what happens next; None where it is only time that passes."""

    def close(self, id: int) -> ClosedAsk:
        """What an ask came to, once all that was admitted is folded."""

    def forget(self, keep: set[int]) -> None:
        """A round is committed: of asks that are not open only these matter still."""

    def save_asks(self, tasks: Sequence[Task]) -> list[Any]:
        """What is needed to go on with these tasks after a restart, as a plain tree."""

    def restore_asks(self, saved: list[Any]) -> None:
        """Know again what `save_asks` saved."""

    def disconnect(self, whole: bool = False) -> None:
        """Let go of the clients; the run is `whole` where it came to its end, so that nobody is in the middle of it."""


class Federation(Protocol):
    """The clients that a run can reach: `clients` are all of them, in an order that stays."""

    clients: Sequence[ClientId]

    def plan(self) -> dict[str, str]:
        """What results depend on besides the software: how tasks are done."""

    def describe(self) -> dict[str, Any]:
        """The settings as a plain tree, for the log."""

    def connect(
        self,
        client: Client,
        config: Mapping[str, Any],
        key: Key,
        states: ClientStates,
        clock: Callable[[], float],
    ) -> Session:
        """Make the clients ready for one run."""


class EnlistedFederation(Federation, Protocol):
    """A federation that knows of a run, and has to be let go of."""

    def close(self) -> None:
        """Let go of it, where no session came to be."""


@runtime_checkable
class Enlisting(Protocol):
    """A federation whose clients are known once they have been told of a run."""

    def enlist(
        self,
        app: App,
        *,
        run: str,
        config: Mapping[str, Any],
        name: str = "",
        tell: Callable[[RunEvent], None] = ...,
        known: Mapping[str, Any] | None = None,
        log: Collection[RunEvent] = (),
    ) -> EnlistedFederation:
        """Make a run known, and wait until its clients are ready; `known` is what `describe` gave for one that goes
        on, `log` its events so far.
        """
