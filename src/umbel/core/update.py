"""What a client contributes, what an ask expects of it, and the check that the two agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .. import files
from ..errors import ClientId, StrategyError, UpdateRejected
from . import encoding
from .arrays import Array, Arrays, Schema, computed_difference, difference, wide
from .sums import magnitude, magnitudes
from .trees import flat, is_tree

NO_ARRAYS = Arrays()
LARGEST = 2.0**960  # what a reproducible sum can hold
MOST_METRICS = 200
"""So many metrics an update may have."""
LONGEST_NAME = 256
"""So many bytes the name of a metric may have."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a training or query handler returns.

    `arrays` are the new values, or, with `delta=True`, their difference to the model that was sent: by name, or as a
    tree like the initial model. `weight` says how
    much the update counts in a weighted fold (commonly the number of examples; zero is legal and contributes nothing).
    `metrics` are named numbers for the log. `aux` are further arrays that a strategy asked for.
    """

    arrays: Mapping[str, Any] = field(default_factory=lambda: NO_ARRAYS)
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    aux: Mapping[str, Any] = field(default_factory=lambda: NO_ARRAYS)
    delta: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an evaluation handler returns: named numbers, and the weight with which they enter the mean over clients."""

    values: Mapping[str, float]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The small facts of one finished task, which travel beside a partial.

    `seconds` is how long the handler ran; `staleness` counts the asks of its lane that closed since the task was sent.
    """

    task: str
    client: ClientId
    weight: float
    metrics: Mapping[str, float]
    seconds: float = 0.0
    staleness: int = 0


@dataclass(frozen=True)
class Like:
    """The ask expects arrays like those of a model: the same names, shapes and dtypes.

    `model` is the model meant, by default the one that the ask sends. `names` keeps only the names that match one of
    these patterns (`"head.*"`). With `delta` (the default) parameters reach the fold as differences to the model sent,
    in float32 (float64 for float64), and all other arrays as values; without it everything arrives as values. `aux` is
    what to expect of the update's aux arrays. Personal arrays are never part of it.
    """

    model: Arrays | None = None
    names: tuple[str, ...] | None = None
    delta: bool = True
    aux: Like | Free | None = None

    def __post_init__(self) -> None:
        if self.model is not None:
            object.__setattr__(self, "model", self.model.as_sent())

    def schema(self, sent: Arrays | None) -> Schema:
        """The arrays that the holder has to return when `sent` is the model it got."""
        model = self.model if self.model is not None else sent
        if model is None:
            raise StrategyError(
                "an ask without a model expects arrays like its model",
                hint="Give the ask a model, name one in `Like(model)`, or expect `Free()`.",
            )
        whole = model.schema
        if self.names is None and not model.has_personal:
            return whole
        return Schema({n: s for n, s in whole.items() if s.role != "personal" and self.wants(n)})

    def wants(self, name: str) -> bool:
        """Whether an array of this name is expected."""
        return self.names is None or any(fnmatchcase(name, pattern) for pattern in self.names)

    def spec(self) -> Any:
        """A plain description, for the digest of an ask."""
        model = self.model.sha256 if self.model is not None else None
        return ["like", model, self.names, self.delta, self.aux.spec() if self.aux else None]


@dataclass(frozen=True)
class Free:
    """The ask expects any arrays: trees, statistics, encrypted bytes. `max_bytes` bounds their total size."""

    max_bytes: int | None = None
    aux: Like | Free | None = None
    delta = False

    def schema(self, sent: Arrays | None) -> None:
        """No names, shapes or dtypes are prescribed."""
        return

    def spec(self) -> Any:
        """A plain description, for the digest of an ask."""
        return ["free", self.max_bytes, self.aux.spec() if self.aux else None]


Expectation = Like | Free
NUMBERS = Like(NO_ARRAYS, delta=False)
"""What is expected of an evaluation: metrics and a weight, no arrays."""


@dataclass(slots=True)
class Contribution:
    """A checked update, ready to be folded: `magnitudes` holds the largest absolute value of each array. `mapped` says
    that its arrays are views of files, which cost no memory while they wait.
    """

    client: ClientId
    arrays: Arrays
    aux: Arrays
    weight: float
    magnitudes: Mapping[str, float]
    aux_magnitudes: Mapping[str, float]
    mapped: bool = False


@dataclass(slots=True)
class Stack:
    """Checked updates that have the same arrays, one upon the other: row i of each array is that of client i. The
    fields are those of `Contribution`, for each client.
    """

    clients: list[ClientId]
    arrays: Arrays
    aux: Arrays
    weights: list[float]
    magnitudes: Mapping[str, Sequence[float]]
    aux_magnitudes: Mapping[str, Sequence[float]]
    mapped: bool = False

    @classmethod
    def of(cls, item: Contribution) -> Stack:
        """One update."""
        of_arrays, of_aux = ({n: [m] for n, m in each.items()} for each in (item.magnitudes, item.aux_magnitudes))
        arrays, aux = (_rows(each, None) for each in (item.arrays, item.aux))
        return cls([item.client], arrays, aux, [item.weight], of_arrays, of_aux, item.mapped)

    @classmethod
    def joined(cls, stacks: Sequence[Stack]) -> Stack:
        """Stacks without aux arrays that have the same arrays, in one."""
        first = stacks[0]
        arrays = {name: np.concatenate([each.arrays[name] for each in stacks]) for name in first.arrays}
        sizes = {name: [size for each in stacks for size in each.magnitudes[name]] for name in first.magnitudes}
        clients, weights = ([row for each in stacks for row in getattr(each, of)] for of in ("clients", "weights"))
        return cls(clients, Arrays.trusted(arrays, first.arrays.roles), NO_ARRAYS, weights, sizes, {})

    def of_aux(self) -> Stack:
        """The aux arrays as arrays, each update counting alike."""
        return Stack(self.clients, self.aux, NO_ARRAYS, [1.0] * len(self), self.aux_magnitudes, {}, self.mapped)

    def rows(self, places: Sequence[int]) -> Stack:
        """Some of the updates."""
        of_arrays, of_aux = (
            {n: [m[i] for i in places] for n, m in each.items()} for each in (self.magnitudes, self.aux_magnitudes)
        )
        arrays, aux = (_rows(each, places) for each in (self.arrays, self.aux))
        clients, weights = [self.clients[i] for i in places], [self.weights[i] for i in places]
        return Stack(clients, arrays, aux, weights, of_arrays, of_aux, self.mapped)

    def __len__(self) -> int:
        return len(self.clients)

    def __iter__(self) -> Iterator[Contribution]:
        for i, client in enumerate(self.clients):
            of_arrays, of_aux = ({n: m[i] for n, m in x.items()} for x in (self.magnitudes, self.aux_magnitudes))
            arrays, aux = (_rows(each, (i, ...)) for each in (self.arrays, self.aux))
            yield Contribution(client, arrays, aux, self.weights[i], of_arrays, of_aux, self.mapped)


def _rows(arrays: Arrays, at: Any) -> Arrays:
    return Arrays.trusted({name: array[at] for name, array in arrays.items()}, arrays.roles)


def as_delta(update: Update, expects: Expectation, sent: Arrays | None, *, at_once: bool = False) -> Update:
    """Check what a handler returned and bring it into the form that the ask expects; runs where the data is.

    Roles come from the model. Arrays that are personal, by the model or by their own role, and arrays that were not
    asked for although the model has them are left out; any other name that was not asked for is an error. Where the
    update is used `at_once`, before its arrays may change, large differences are computed. Raises `UpdateRejected`.
    """
    aux = _own(_shared(as_arrays(update.aux, "aux array"), sent)) if len(update.aux) else NO_ARRAYS
    arrays, schema = _asked_for(update, expects, sent)
    if schema is None:
        return Update(_own(arrays), update.weight, update.metrics, aux, update.delta)
    if expects.delta and not update.delta:
        large = at_once and schema.nbytes >= files.LARGE
        arrays = (computed_difference if large else difference)(arrays, check_agreement(expects, sent), schema)
    elif update.delta and not expects.delta:
        raise UpdateRejected(
            "the update is a difference (delta=True), but the ask expects values", hint="Return the new values."
        )
    else:
        arrays = _typed(arrays, schema, delta=update.delta)
    return Update(arrays if at_once else _own(arrays), update.weight, update.metrics, aux, expects.delta)


def _asked_for(update: Update, expects: Expectation, sent: Arrays | None) -> tuple[Arrays, Schema | None]:
    """The arrays of an update that were asked for, as they are, and their schema."""
    schema = expects.schema(sent)
    arrays = _shared(as_arrays(update.arrays, "array"), sent)
    if schema is not None:
        known = expects.model if isinstance(expects, Like) and expects.model is not None else sent
        if len(arrays) != len(schema) and known is not None:
            arrays = arrays.select(n for n in arrays if n in schema or n not in known)
        check_schema(arrays, schema, "array", delta=update.delta)
    return arrays, schema


def check_agreement(expects: Expectation, sent: Arrays | None) -> Arrays:
    """Raise `StrategyError` where an ask that sends this model cannot expect that of an update; gives the model that
    differences refer to.
    """
    schema = expects.schema(sent)
    if schema is None or not expects.delta:
        return NO_ARRAYS
    if sent is None:
        raise StrategyError("an ask that expects differences has to send the model they refer to")
    known = expects.model if isinstance(expects, Like) and expects.model is not None else sent
    for name, (shape, _, role) in schema.items() if sent is not known else ():
        if role == "parameter" and (name not in sent or sent[name].shape != shape):
            raise StrategyError(
                f"the ask expects the difference of array {name!r}, but the model that it sends has no such array",
                hint="Send the model that Like(...) names, or expect values with Like(delta=False).",
            )
    return sent


def check(update: Update, expects: Expectation, sent: Arrays | None, client: ClientId) -> Contribution:
    """Check a decoded update against what the ask expects, wherever it is folded, whoever sent it.

    Raises `UpdateRejected` for a missing, extra or repeated name, a wrong shape or dtype, NaN, infinity, or a weight
    that is negative or not finite.
    """
    arrays = as_arrays(update.arrays, "array")
    schema = expects.schema(sent)
    if not isinstance(update.delta, bool | np.bool_):
        raise UpdateRejected(f"the update's delta is {update.delta!r:.60}, not true or false")
    if schema is not None:
        if update.delta != expects.delta:
            have, want = ("a difference", "values") if update.delta else ("values", "a difference")
            raise UpdateRejected(f"the update is {have}, but the ask expects {want}")
        check_schema(arrays, schema, "array", delta=expects.delta)
        arrays = _typed(arrays, schema, delta=expects.delta)
    else:
        _check_size(arrays, expects, "array")
        arrays = _in_order(arrays, sorted(arrays))
    return check_values(replace(update, arrays=arrays), expects, client)


def check_values(update: Update, expects: Expectation, client: ClientId) -> Contribution:
    """The part of `check` that `as_delta` has not done: values, weight and aux arrays."""
    weight = _check_weight(update.weight)
    arrays = as_arrays(update.arrays, "array")
    aux = _check_aux(update, expects)
    sizes, aux_sizes = _magnitudes(arrays, "array"), _magnitudes(aux, "aux array")
    largest = max(sizes.values(), default=0.0) * max(weight, 1.0)
    if max(largest, *aux_sizes.values(), 0.0) >= LARGEST:
        raise UpdateRejected("the update's values times its weight are beyond 2**960", hint="Did training diverge?")
    return Contribution(client, arrays, aux, weight, sizes, aux_sizes)


class Stacking:
    """Where updates are stacked as handlers return them, for `check_values` and the difference to the model that was
    sent to be had for all at once.
    """

    __slots__ = ("_expects", "_looks", "_schema", "_sent", "stacks")

    def __init__(self, count: int, expects: Like, sent: Arrays | None) -> None:
        self._expects, self._sent, self._schema = expects, sent, expects.schema(sent)
        wider = [name for name, spec in self._schema.items() if expects.delta and spec.role == "parameter"]
        self.stacks = {
            name: np.empty((count, *shape), wide(dtype) if name in wider else dtype)
            for name, (shape, dtype, _) in self._schema.items()
        }
        self._looks = {name: (shape, dtype) for name, (shape, dtype, _) in self._schema.items()}

    def take(self, place: int, update: Update) -> bool:
        """Take an update in as it is now; False for one that has to be checked by itself. Raises `UpdateRejected`."""
        plain = isinstance(update.weight, int | float) and 0 <= update.weight < LARGEST
        if not plain or update.delta or (update.aux is not NO_ARRAYS and len(update.aux)):
            return False
        if not self._took(place, update.arrays):
            arrays, _ = _asked_for(update, self._expects, self._sent)
            for name, stack in self.stacks.items():
                stack[place] = arrays[name]
        return True

    def _took(self, place: int, arrays: Mapping[str, Any]) -> bool:
        """Take in arrays that are just those that were asked for, as can be seen at a glance; False for others."""
        if type(arrays) is not dict and (type(arrays) is not Arrays or arrays.has_personal):
            return False
        found, looks = arrays.items(), self._looks
        for name, array in found:
            if type(array) is not np.ndarray or looks.get(name) != (array.shape, array.dtype):
                return False
            self.stacks[name][place] = array
        return len(found) == len(looks)

    def checked(self, clients: dict[int, ClientId], weights: list[float]) -> tuple[Stack, dict[int, Update]]:
        """The updates that were taken in at these places; by themselves those that `check_values` does not let pass."""
        places, roles = list(clients), self._schema.roles
        stacks = {n: stack if len(stack) == len(places) else stack[places] for n, stack in self.stacks.items()}
        with np.errstate(all="ignore"):  # what is not finite is rejected by name
            for name, stack in stacks.items() if self._expects.delta else ():
                if roles[name] == "parameter":
                    np.subtract(stack, self._sent[name].astype(stack.dtype, copy=False), out=stack)  # type: ignore[index]
            sizes = {name: magnitudes(stack) for name, stack in stacks.items()}
        factors = [max(weight, 1.0) for weight in weights]
        bad = {i for each in sizes.values() for i, size in enumerate(each) if not size * factors[i] < LARGEST}
        made = Stack(list(clients.values()), Arrays.trusted(stacks, roles), NO_ARRAYS, weights, sizes, {})
        alone = {places[i]: Update(_rows(made.arrays, (i, ...)), weights[i], delta=self._expects.delta) for i in bad}
        return made.rows([i for i in range(len(places)) if i not in bad]) if bad else made, alone


def check_metrics(metrics: Any, where: str) -> dict[str, float]:
    """Turn a handler's metrics into a dictionary of floats; NaN and infinity are kept. Raises `UpdateRejected`, also
    for more than `MOST_METRICS`, and for names longer than `LONGEST_NAME`.
    """
    if not isinstance(metrics, Mapping):
        raise UpdateRejected(f"{where} are a {type(metrics).__name__}, not a dictionary of numbers")
    if len(metrics) > MOST_METRICS:
        raise UpdateRejected(
            f"{where} are {len(metrics)}; {MOST_METRICS} are the most",
            hint="Numbers beyond that go into `Update.aux`, as an array.",
        )
    result: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            result[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UpdateRejected(f"metric {name!r:.80} is a {type(value).__name__}, not a number") from error
        if len(str(name).encode(errors="replace")) > LONGEST_NAME:
            raise UpdateRejected(f"the name of metric {name!r:.80} is longer than {LONGEST_NAME} bytes")
    return result


def _check_weight(weight: Any) -> float:
    try:
        value = float(weight)
    except OverflowError:
        value = math.inf
    except (TypeError, ValueError) as error:
        raise UpdateRejected(f"the update's weight is a {type(weight).__name__}, not a number") from error
    if not 0 <= value < LARGEST:
        raise UpdateRejected(
            f"the update's weight is {value}",
            hint="A weight is zero or positive, and below 2**960: the number of examples, say.",
        )
    return value


def _check_aux(update: Update, expects: Expectation) -> Arrays:
    aux = as_arrays(update.aux, "aux array")
    if expects.aux is None:
        if len(aux):
            raise UpdateRejected(f"the update holds aux arrays ({', '.join(aux)}), but the ask expects none")
        return NO_ARRAYS
    schema = expects.aux.schema(None)
    if schema is not None:
        check_schema(aux, schema, "aux array", delta=False)
    else:
        _check_size(aux, expects.aux, "aux array")
    return _in_order(aux, sorted(aux) if schema is None else schema)


def _in_order(arrays: Arrays, names: Iterable[str]) -> Arrays:
    """The arrays in an order that does not depend on who returned them first."""
    chosen = list(names)
    return arrays if list(arrays) == chosen else arrays.select(chosen)


def _check_size(arrays: Arrays, expects: Expectation, what: str) -> None:
    if isinstance(expects, Free) and expects.max_bytes is not None and arrays.nbytes > expects.max_bytes:
        raise UpdateRejected(f"the update's {what}s hold {arrays.nbytes} bytes, the ask allows {expects.max_bytes}")


def _shared(arrays: Arrays, sent: Arrays | None) -> Arrays:
    if arrays.has_personal:
        arrays = arrays.of_role("parameter", "buffer")
    if sent is None or not sent.has_personal:  # a plain dictionary has no roles: they come from the model
        return arrays
    return arrays.select(n for n in arrays if sent.roles.get(n) != "personal")


def _own(arrays: Arrays) -> Arrays:
    """Arrays that nobody else can change: a handler may use its own again while they wait to be folded."""
    if all(a.flags.owndata and not a.flags.writeable for a in arrays.values()):
        return arrays
    owned = {n: a if a.flags.owndata and not a.flags.writeable else a.copy() for n, a in arrays.items()}
    return Arrays.trusted(owned, arrays.roles)


def _typed(arrays: Arrays, schema: Schema, *, delta: bool) -> Arrays:
    """The arrays of a schema they were checked against, with its roles, and differences in the dtype of differences."""
    widened = {
        n: arrays[n].astype(wide(dtype), copy=False) if delta and role == "parameter" else arrays[n]
        for n, (_, dtype, role) in schema.items()
    }
    return Arrays.trusted(widened, schema.roles)


def as_arrays(value: Any, what: str) -> Arrays:
    """A mapping that a handler returned as `Arrays`; `what` names one of them. Raises `UpdateRejected`."""
    if isinstance(value, Arrays):
        return value
    if not is_tree(value):
        raise UpdateRejected(f"the update's {what}s are a {type(value).__name__}, not a mapping of names to arrays")
    try:
        return Arrays(flat(value))
    except StrategyError as error:
        raise UpdateRejected(error.message, hint=error.hint) from error
    except (ValueError, TypeError) as error:
        raise UpdateRejected(f"one of the update's {what}s cannot be made an array: {error}") from error


def check_schema(arrays: Arrays, schema: Schema, what: str, *, delta: bool) -> None:
    """Raise `UpdateRejected` for arrays, each called a `what`, with other names, shapes or dtypes; with `delta`
    parameters may be in the dtype of differences.
    """
    if arrays.keys() != schema.keys():
        raise _other_names(arrays, schema, what)
    for name, (shape, dtype, role) in schema.items():
        array = arrays[name]
        if array.shape != shape:
            raise UpdateRejected(f"{what} {name!r} has shape {list(array.shape)}, expected {list(shape)}")
        if array.dtype != dtype and not (delta and role == "parameter" and array.dtype == wide(dtype)):
            raise UpdateRejected(
                f"{what} {name!r} has dtype {array.dtype.name}, expected {dtype.name}",
                hint=f"Convert it before returning it: values.astype({dtype.name!r}).",
            )


def _other_names(arrays: Arrays, schema: Schema, what: str) -> UpdateRejected:
    missing = [n for n in schema if n not in arrays]
    if missing:
        has = _names(list(arrays)) or "none"
        return UpdateRejected(f"the update lacks {what} {_names(missing)}", hint=f"It has {has}.")
    extra = [n for n in arrays if n not in schema]
    return UpdateRejected(
        f"the update has an unexpected {what} {_names(extra)}", hint=f"Expected are {_names(list(schema))}."
    )


def _magnitudes(arrays: Arrays, what: str) -> dict[str, float]:
    result: dict[str, float] = {}
    for name in arrays:
        result[name] = 0.0
        for stretch in arrays.stretches(name):
            result[name] = max(result[name], finite(stretch, name, what))
    return result


def finite(array: Array, name: str, what: str = "array") -> float:
    """The largest absolute value in an array. Raises `UpdateRejected` for NaN and infinity."""
    if not (largest := magnitude(array)) < math.inf:
        raise UpdateRejected(
            f"{what} {name!r} holds {'NaN' if math.isnan(largest) else 'infinity'}",
            hint="Training diverged? Try a smaller learning rate, or skip such a batch.",
        )
    return largest


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


encoding.register(
    Update,
    "update",
    lambda u: [as_arrays(u.arrays, "array"), u.weight, dict(u.metrics), as_arrays(u.aux, "aux array"), u.delta],
    lambda p: Update(*p),
)
encoding.register(
    Receipt,
    "receipt",
    lambda r: [r.task, r.client, r.weight, dict(r.metrics), r.seconds, r.staleness],
    lambda p: Receipt(*p),
)
encoding.register(Like, "like", lambda e: [e.model, e.names, e.delta, e.aux], lambda p: Like(*p))
encoding.register(Free, "free", lambda e: [e.max_bytes, e.aux], lambda p: Free(*p))
