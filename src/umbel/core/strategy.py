"""Strategies: generators that yield asks and are sent back answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from . import encoding
from .answer import Answer
from .arrays import Arrays
from .ask import Ask, PerClient

Asks = Generator[Ask | Sequence[Ask], Any, "State"]
"""What `Strategy.round` is: yields an ask and is sent an `Answer`, or several asks at once and is sent a list; returns
the next state.
"""


class State:
    """What a strategy carries from round to round: `model`, and whatever else it names. Immutable, plain, and saved
    with every checkpoint. Its arrays are in C order, as they are read again.
    """

    __slots__ = ("_parts",)

    def __init__(self, model: Arrays, **parts: Any) -> None:
        object.__setattr__(self, "_parts", encoding.settled({"model": model, **parts}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._parts[name]
        except KeyError:
            raise AttributeError(f"this state has no {name!r}; it has {', '.join(self._parts)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a state does not change; use state.replace({name}=...)")

    def __repr__(self) -> str:
        return f"State({', '.join(self._parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _state, (self._parts,)

    def replace(self, **parts: Any) -> State:
        """The same state with some parts exchanged or added."""
        return State(**{**self._parts, **parts})

    def parts(self) -> dict[str, Any]:
        """All parts by name."""
        return dict(self._parts)


def _state(parts: dict[str, Any]) -> State:
    return State(**parts)


encoding.register(State, "state", State.parts, _state)


class Strategy(ABC):
    """How a federation learns. It never knows where clients run, and does no I/O.

    A round is a generator: `answer = yield Ask(...)`, or `answers = yield [Ask(...), Ask(...)]`. An ask that closes
    below its quorum raises `NothingToFold` at the yield; a strategy that lets it pass keeps its model for that round.
    """

    def start(self, model: Arrays) -> State:
        """The state before the first round."""
        return State(model)

    def served(self, state: State) -> PerClient[Arrays]:
        """What clients evaluate: the model, or, of a personalised strategy, a function of the client."""
        model: Arrays = state.model
        return model

    @property
    def wrapped(self) -> Strategy:
        """The strategy that this one wraps, by which clients train; itself if it wraps none."""
        return self

    def in_round(self, r: int) -> Strategy:
        """The strategy of round `r`, whose `round` is called: itself, or with the settings that change by then."""
        return self

    @abstractmethod
    def round(self, state: State, r: int) -> Asks:
        """Round `r` (from 1): yield asks, return the next state."""


class Question(Strategy):
    """A strategy of one round that needs no model: it ends with its answer as the run's model, `Result.answer`.

    An app of one has no `model`, one round, and no evaluation, unless it says otherwise.
    """

    unanswered: ClassVar[Arrays] = Arrays({"clients": np.array(0)})
    """The model before the round."""

    @abstractmethod
    def read(self, model: Mapping[str, Any]) -> Any:
        """The answer, under the names that people gave, of the model that the round ended with."""

    def table(self, model: Mapping[str, Any]) -> Any:
        """The answer as a table is printed of it: mappings and lists of mappings of numbers and texts."""
        return self.read(model)


__all__ = ["Answer", "Asks", "Question", "State", "Strategy"]
