"""Asks: what a strategy yields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..errors import ClientId, StrategyError, UmbelError
from . import encoding
from .arrays import Arrays, Schema
from .correction import Correction
from .elementwise import weighted_mean
from .fold import Fold
from .sampler import Spacing, is_adaptive
from .transform import Chain, Transform, chain
from .update import LARGEST, NUMBERS, Expectation, Free, Like, check_agreement
from .window import Window

Value = TypeVar("Value")
PerClient: TypeAlias = Value | Callable[[ClientId], Value]
"""A value, or a function of the client that is called when its task is sent."""


class Sent(NamedTuple):
    """What one client gets of an ask."""

    model: Any
    config: Any
    inbox: Any
    correction: Any
    expects: Any
    weight: Any


SENT = Sent._fields
"""The fields of an ask that its clients get, each a value or a function of the client."""


PHASE = "phase:"
"""What the kinds of asks begin with that a step answers by itself: see `Sealing`."""
SEALED = "sealed:"
"""What the names of those arrays of an inbox begin with that are for the step that seals updates."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A function of the client whose value leaves the run as the `field` of an ask. Raises `StrategyError` where the
    function raises, or gives what cannot be sent.
    """

    function: Callable[[ClientId], Any]
    field: str

    def __call__(self, client: ClientId) -> Any:
        try:
            return _as_sent(self.field, self.function(client))
        except StrategyError as error:
            raise error.located(client=client) from error.__cause__
        except UmbelError:
            raise
        except Exception as error:
            name = getattr(self.function, "__qualname__", type(self.function).__name__)
            raised = StrategyError.raised(f"{name}, a function of the client,", error, f"an ask's {self.field}")
            raise raised.located(client=client) from error


def _outgoing(field: str, value: Any) -> Any:
    if callable(value):
        return value if isinstance(value, Outgoing) else Outgoing(value, field)
    return _as_sent(field, value)


def _as_sent(field: str, value: Any) -> Any:
    """The value as it leaves the run: arrays that are personal go without their values."""
    kinds, wanted = _KINDS[field]
    if not isinstance(value, kinds):
        what = "what an ask expects" if field == "expects" else f"an ask's {field}"
        raise StrategyError(f"{what} is {value!r:.60}, not {wanted}")
    if field == "config":
        return encoding.settled(value)
    if field == "weight" and value is not None and not 0 <= value < LARGEST:
        raise StrategyError(f"an ask's weight is {value!r:.60}, not a number from 0 on")
    if value is None or field not in ("model", "inbox"):
        return value
    arrays = value if isinstance(value, Arrays) else Arrays(value)
    return arrays.as_sent() if field == "model" else arrays.as_given()


_KINDS: dict[str, tuple[Any, str]] = {
    "model": ((Mapping, NoneType), "Arrays"),
    "config": (Mapping, "a dictionary"),
    "inbox": ((Mapping, NoneType), "Arrays"),
    "correction": ((Correction, NoneType), "a Correction(...)"),
    "expects": ((Like, Free), "Like(...) or Free(...)"),
    "weight": ((int, float, NoneType), "a number"),
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked of which clients, and how their updates become one answer.

    - `kind`: `"train"`, `"evaluate"`, or `"query:<name>"`: which handler of the client answers.
    - `clients`: a sampler, a number or a fraction of clients to draw, or the clients themselves.
    - `model`, `config`, `inbox`, `correction`: what the client gets; each of these, and of the next two, is a value, or
      a function of the client, called when its task is sent. `config` is plain and is laid over the app's; `inbox`
      holds arrays. Personal arrays stay here: of those of a model clients are told the names alone.
    - `weight`: what its update counts, a number from 0 on; by default what its client claims.
    - `expects`: what its update has to look like: `Like(...)` a model, or `Free(...)`. An evaluation answers with
      numbers alone, whatever is given here.
    - `fold`, `transforms`, `window`: see there.
    - `lane`: tasks that outlive the ask (a window with `late="keep"`) count in the next ask of the same lane.
    """

    clients: Any
    kind: str = "train"
    model: PerClient[Arrays | None] = None
    config: PerClient[Mapping[str, Any]] = field(default_factory=dict)
    inbox: PerClient[Mapping[str, Any] | None] = None
    correction: PerClient[Correction | None] = None
    weight: PerClient[float | None] = None
    expects: PerClient[Expectation] = field(default_factory=Like)
    fold: Fold = field(default_factory=weighted_mean)
    transforms: Transform | Sequence[Transform] = ()
    window: Window = field(default_factory=Window)
    lane: str | None = None

    def __post_init__(self) -> None:
        transforms = chain(self.transforms)
        query = self.kind.startswith("query:") and len(self.kind) > len("query:")
        if self.kind not in ("train", "evaluate", *phases(transforms)) and not query:
            raise StrategyError(f"an ask is of kind 'train', 'evaluate' or 'query:<name>', not {self.kind!r}")
        object.__setattr__(self, "transforms", transforms)
        for name in SENT:
            object.__setattr__(self, name, _outgoing(name, getattr(self, name)))
        if not isinstance(self.window, Window):
            raise StrategyError(f"an ask's window is a Window(...), not {self.window!r:.60}")
        if not isinstance(self.fold, Fold):
            raise StrategyError(f"{self.fold!r} is not a fold", hint="Write fold=mean(), with the parentheses.")
        if transforms.private:
            self._check_private()
        if self.kind == "evaluate":
            object.__setattr__(self, "expects", transforms.of_metrics or NUMBERS)
            if transforms.private:
                self._check(self.expects)  # type: ignore[arg-type]
        else:
            if transforms.brings_aux:
                object.__setattr__(self, "expects", _with_aux(self.expects))
            if not callable(self.expects) and self.kind not in phases(transforms):
                self._check(self.expects)
        if self.lane is None:
            object.__setattr__(self, "lane", self.kind)

    def _check_private(self) -> None:
        """Raise `StrategyError` where more would be told of an answer than what hides its clients lets be."""
        window, own = self.window, self.transform.parts[0].name
        apart, gap = self.transform.apart, self.clients.gap if isinstance(self.clients, Spacing) else None
        if is_adaptive(self.clients) and not (apart and gap):
            raise StrategyError(
                f"the sampler {type(self.clients).__name__} goes by what clients told, or by when they were asked, "
                f"which {own} does not hide",
                hint="Draw them by chance alone: Poisson(0.01).",
            )
        nobody = isinstance(self.clients, tuple) and not self.clients  # as where others draw them
        if apart > (gap or 1) and not nobody:
            raise StrategyError(
                f"{own} counts on it that clients are asked again {apart} rounds later at the earliest, and "
                f"{self.clients!r:.60} does not see to that",
                hint=f"Draw them by umbel.samplers.Spaced(cohort, gap={apart}), or set a separation of 1.",
            )
        if window.quorum > 1:
            raise StrategyError(
                f"a quorum of {window.quorum} under {own} would tell how many clients came",
                hint="Leave it out: noise is released whoever came.",
            )
        if window.late == "keep":
            raise StrategyError(f"late updates were bounded for another round than that whose noise {own} adds")
        if callable(self.model) or callable(self.expects):
            raise StrategyError(
                f"{own} under models or expectations by client: which of them are summed would depend on who came",
                hint="Give the ask one model, and one expectation, for all its clients.",
            )
        if self.expects.aux is not None and not self.transform.brings_aux:  # which lets no other arrays pass
            raise StrategyError(f"aux arrays beside {own} would be released as they are")

    @property
    def transform(self) -> Chain:
        """All transforms as one."""
        assert isinstance(self.transforms, Chain)
        return self.transforms

    def schema(self, client: ClientId | None) -> Schema | None:
        """What the arrays of a client's update have to look like; None where they are free, or for no client at all
        where that is a question of the client. Raises `StrategyError` where such an update cannot be had.
        """
        if client is None and (callable(self.model) or callable(self.expects)):
            return None
        return self.agreed(for_client(self.model, client), for_client(self.expects, client))

    def agreed(self, model: Arrays | None, expects: Expectation) -> Schema | None:
        """The schema of an update to this model as it is expected, once it is known that this can be had, and goes
        together with the transforms. Raises `StrategyError`.
        """
        if callable(self.expects):
            self._check(expects)
        check_agreement(expects, model)
        return expects.schema(model)

    def _check(self, expects: Expectation) -> None:
        """Raise `StrategyError` where updates of this kind go together with the fold or the transforms not at all."""
        if self.fold.needs_differences and not expects.delta:
            raise StrategyError(
                f"{self.fold.name} works on differences, but the ask expects values", hint="Use Like(delta=True)."
            )
        self.transform.check(self.fold, expects)

    def digest(self, cohort: Sequence[ClientId]) -> str:
        """A hash of everything that is asked; values that are functions are taken for the first client of the
        cohort.
        """
        first = cohort[0] if len(cohort) else None
        inbox = for_client(self.inbox, first)
        correction = for_client(self.correction, first)
        model = for_client(self.model, first)
        parts = [
            self.kind,
            list(cohort),
            model.sha256 if model is not None else None,
            repr(sorted(for_client(self.config, first).items(), key=repr))
            if first is not None or not callable(self.config)
            else None,
            Arrays(inbox).sha256 if inbox else None,
            correction.plain() if correction is not None else [None, None],
            for_client(self.expects, first).spec() if first is not None or not callable(self.expects) else None,
            self.fold.spec(),
            self.transform.spec(),
            repr(self.window),
            self.lane,
        ]
        if (weight := for_client(self.weight, first)) is not None:
            parts.append(weight)
        return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()


def phases(transforms: Chain) -> tuple[str, ...]:
    """The kinds of asks that a step of a chain answers by itself."""
    return () if transforms.sealing is None else transforms.sealing.phases


def _with_aux(expects: PerClient[Expectation]) -> PerClient[Expectation]:
    """The same with room for aux arrays, where there is none."""
    if callable(expects):
        return Outgoing(lambda client: _with_aux(expects(client)), "expects")
    return expects if expects.aux is not None else replace(expects, aux=Free())


def for_client(value: Any, client: ClientId | None) -> Any:
    """The value for one client: the function's result where `value` is a function, and None for no client at all."""
    if not callable(value):
        return value
    return None if client is None else value(client)
