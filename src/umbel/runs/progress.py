"""How far a run is: its state between rounds, its asks on their way, and what they came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.strategy import State
from ..core.task import Task
from ..errors import ClientId, NothingToFold
from .outcome import shortage

Reply = Answer | NothingToFold


@dataclass(slots=True)
class AskUnderway:
    """An ask on its way: its place in its round, what was asked of whom, since when, the state of its transforms;
    `drawn` counts those whom the sampler drew, who need not all be online.
    """

    id: int
    number: int
    ask: Ask
    lane: str
    cohort: Sequence[ClientId]
    drawn: int
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


@dataclass(slots=True)
class LateTask:
    """A task that goes on beyond its ask, and how many asks of its lane ago it was sent."""

    task: Task
    age: int


@dataclass(slots=True)
class Progress:
    """How far a run is; what a checkpoint holds."""

    state: State
    next_ask: int = 0
    transforms: dict[str, Any] = field(default_factory=dict)
    late: dict[str, list[LateTask]] = field(default_factory=dict)


def nothing_came(served: Sequence[AskUnderway]) -> str | None:
    """Why nobody's update came for any of a round's asks, though clients were asked, whatever the strategy made of
    that; None where somebody's did. Evaluations count where there is nothing else.
    """
    items = [item for item in served if item.ask.kind != "evaluate"] or list(served)
    missed = [item for item in items if item.counts[1]]
    if not missed or any(item.counts[0] for item in missed):
        return None
    reply = missed[0].reply
    return why_short(missed[0], 0, reply.failed) if isinstance(reply, Answer) else reply.message  # type: ignore[union-attr]


def nothing(item: AskUnderway, came: int, failed: int, message: str) -> NothingToFold:
    """What a strategy is told of an ask that came to nothing."""
    return NothingToFold(message, asked=max(item.drawn, came, failed), came=came)


def why_short(item: AskUnderway, came: int, failed: Mapping[ClientId, str]) -> str:
    """Why too few updates came for an ask, for people."""
    if not item.cohort and not came and not failed:
        why = "no client that the sampler drew is online" if item.drawn else "the sampler drew no client"
        return f"nobody was asked: {why}"
    return shortage(came, len(item.cohort), item.ask.window.quorum, failed)
