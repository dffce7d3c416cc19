"""What all analyses have in common: questions to clients, of whose answers nothing but sums reaches the strategy."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.app import App
from ..core.arrays import Arrays
from ..core.ask import Ask
from ..core.client import Client
from ..core.strategy import Asks, Question, State
from ..core.transform import Transform
from ..core.update import Free, Like
from ..core.window import Window
from ..errors import ClientId, SettingError, StrategyError
from ..folds.total import total
from .table import Floats, label

By = Mapping[str, Sequence[Any]]
"""Columns, and the values of each by which rows are grouped: all combinations of them."""
Asked = Generator[Ask, Answer, Arrays]
"""Asks something of clients, and gives the sums of what they answer."""
Answered = Generator[Ask, Answer, Mapping[str, Any]]
"""Asks whatever an analysis needs, and gives the arrays of its result."""


@dataclass
class Asking:
    """Puts the questions of one analysis to the same clients: those that answered the first. With `noise` to all each
    time, whoever answers: which these are is not to decide what comes of it.
    """

    clients: Any
    least: int | None
    noise: Transform | None = None
    answered: tuple[ClientId, ...] = field(default=(), init=False)

    def noisy(self, name: str, config: Mapping[str, Any], shape: Sequence[int], **inbox: Any) -> Asked:
        """Ask `query:<name>` for `counts` of this shape, and give them with their noise, and its standard deviation as
        `counts:error`.
        """
        assert self.noise is not None
        looks = Arrays({"counts": np.zeros(shape, np.int64), "withheld": np.zeros(0, np.int64)})
        answer: Answer = yield Ask(
            kind=f"query:{name}",
            clients=self.clients,
            config=config,
            inbox=inbox,
            expects=Like(looks, ("counts",), delta=False),
            fold=total(),
            transforms=self.noise,
            window=Window(quorum=0),
        )
        sums: Arrays = answer.value
        return sums

    def __call__(self, name: str, config: Mapping[str, Any], **inbox: Any) -> Asked:
        """Ask `query:<name>` and give the sums. Raises `StrategyError` where the answers are not those of all."""
        first = not self.answered
        answer: Answer = yield Ask(
            kind=f"query:{name}",
            clients=self.clients if first else list(self.answered),
            config=config,
            inbox=inbox,
            expects=Free(),
            fold=total(),
            window=Window(quorum=0),
        )
        if len(answer.clients) < (len(self.answered) or self.least or max(answer.asked, 1)):
            failures = [f"client {client}: {reason}" for client, reason in answer.failed.items()]
            raise StrategyError(
                f"query:{name} was answered by {len(answer.clients)} of {answer.asked} clients. " + "; ".join(failures),
                hint=f"With least={len(answer.clients)} the analysis is of those that answer the first question."
                if first and answer.clients
                else None,
            )
        self.answered = answer.clients
        sums: Arrays = answer.value
        return sums


@dataclass(frozen=True)
class Analysis(Question):
    """A strategy of one round that asks questions and ends with their answer as the run's model.

    `clients` says who is asked, as the `clients` of an `Ask` do; all of them must answer, or as many as `least` says.
    Those that answered the first question are asked all others, and have to answer these. Settings named `columns`,
    `column`, `target`, `time`, `event`, `times`, `by`, `iterations` and `ridge` are checked here. Raises
    `SettingError`.

    With `noise`, of `umbel.privacy` a mechanism for counts, sums are told with noise that hides every client, and
    without how many answered; analyses that tell of more than counts take none.
    """

    counted: ClassVar[bool] = False
    """Whether counts are all that it asks, so that noise can hide who was counted."""
    clients: Any = field(default="all", kw_only=True)
    least: int | None = field(default=None, kw_only=True)
    noise: Transform | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.least is not None:
            check_whole(self, least=1)
        if self.noise is not None:
            self._check_noise()
        if hasattr(self, "iterations"):
            check_whole(self, iterations=1)
        if hasattr(self, "columns"):
            object.__setattr__(self, "columns", check_columns(self, self.columns))
        singly = [getattr(self, name) for name in ("column", "target", "time", "event") if hasattr(self, name)]
        if singly:
            check_columns(self, (*getattr(self, "columns", ()), *singly))
        check_by(self, getattr(self, "by", None))
        if (times := getattr(self, "times", None)) is not None:
            check_times(times)
        ridge = getattr(self, "ridge", 0.0)
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
            raise SettingError(f"{type(self).__name__} takes a ridge of at least 0, not {ridge!r}")

    def round(self, state: State, r: int) -> Asks:
        asking = Asking(self.clients, self.least, self.noise)
        answer = yield from self.questions(asking)
        if self.noise is not None:
            return State(Arrays(answer))
        return State(Arrays({**answer, "clients": np.array(len(asking.answered))}))

    def _check_noise(self) -> None:
        what = type(self).__name__
        if not (isinstance(self.noise, Transform) and self.noise.private):
            raise SettingError(
                f"{what}'s noise is {self.noise!r:.60}, which hides nobody",
                hint="Write noise=umbel.privacy.central_counts(epsilon=1.0), say.",
            )
        if not self.counted:
            raise SettingError(
                f"{what} tells of sums that {self.noise.name} cannot bound",
                hint="Histogram, Quantiles and HeavyHitters take noise.",
            )
        if self.least is not None:
            raise SettingError(f"with noise {what} is of whoever answers, and takes no least")

    @abstractmethod
    def questions(self, asking: Asking) -> Answered:
        """Ask, and give the arrays of the result; `clients`, the number of those that answered, is added to them."""


def app(client: Client, analysis: Analysis, **settings: Any) -> App:
    """The app that runs an analysis, ``umbel.App(client, strategy=analysis)``; `settings` are the app's; a `model`
    (`umbel.lifelines.model`) is what the answer is written by, in its own formats.
    """
    return App(client, strategy=analysis, **settings)


def check_whole(analysis: Any, **settings: int) -> None:
    """Raise `SettingError` unless these settings are whole numbers of at least so much."""
    for name, least in settings.items():
        value = getattr(analysis, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            what = f"{type(analysis).__name__}'s {name}"
            raise SettingError(f"{what} is a whole number of at least {least}, not {value!r}")


def check_columns(analysis: Any, columns: Any) -> tuple[str, ...]:
    """Names of columns as a tuple. Raises `SettingError` for anything else, and for a column that is named twice."""
    given = isinstance(columns, Sequence) and not isinstance(columns, str)
    if not given or not len(columns) or not all(isinstance(name, str) for name in columns):
        raise SettingError(f"{type(analysis).__name__} takes a list of columns, not {columns!r:.80}")
    if len(set(columns)) < len(columns):
        raise SettingError(f"{type(analysis).__name__} names a column twice: {', '.join(columns)}")
    return tuple(columns)


def check_by(analysis: Any, by: By | None) -> list[tuple[str, list[str]]]:
    """The columns to group by and the labels of their values, as clients get them. Raises `SettingError`."""
    made = [(name, [label(value) for value in values]) for name, values in (by or {}).items()]
    for name, labels in made:
        if not labels or len(set(labels)) < len(labels):
            raise SettingError(f"{type(analysis).__name__} groups by {name!r} with the values {labels}")
    return made


def group_names(by: By | None) -> list[Any]:
    """What groups are called, in their order: a value, or a tuple of one for each column that is grouped by."""
    combined = list(product(*(by or {}).values()))
    return [names[0] if len(names) == 1 else names for names in combined]


def by_group(by: By | None, results: Iterable[Any]) -> Any:
    """What results, one a group, are called: ``{group: result}``, or the one where there are no groups."""
    found = dict(zip(group_names(by), results, strict=True))
    return found if by else found[()]


def check_times(times: Any, what: str = "times") -> Floats:
    """A grid of times, or of something else. Raises `SettingError` unless they ascend."""
    array = finite(list(times) if isinstance(times, Sequence | range) else times, what)
    if array.ndim != 1 or not array.size or (np.diff(array) <= 0).any():
        raise SettingError(f"{what} ascend, and there is at least one: not {times!r:.80}")
    return array


def finite(values: Any, what: str) -> Floats:
    """An array of finite numbers. Raises `SettingError`."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise SettingError(f"{what} are numbers, not {values!r:.80}") from None
    if not np.isfinite(array).all():
        raise SettingError(f"{what} are finite, not {values!r:.80}")
    return array
