"""Transforms: two-sided steps on updates, run at the holder (`encode`) and wherever the update is folded (`decode`).

A transform is a frozen dataclass with a registered name and version, so that a node knows whether it can take part. The
coordinator owns its state, checkpoints it, and sends what `send` makes of it with each task. What a holder must
remember between its tasks is `local`. Both are kept for each lane, each transform and each schema by itself (`place`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from .arrays import Array, Arrays, Schema, wide
from .errors import StrategyError, UpdateRejected
from .folds import Answer, Fold
from .randomness import Key
from .update import Expectation, Update

_registry: dict[tuple[str, int], type[Any]] = {}


@dataclass(frozen=True)
class Transform:
    """A two-sided step; this base class changes nothing.

    `params`, the state and `local` are plain trees. Subclasses are frozen dataclasses decorated with
    `register_transform`.
    """

    name: ClassVar[str] = "identity"
    version: ClassVar[int] = 1

    @property
    def bounds(self) -> bool:
        """Whether what leaves `encode` has a bounded norm, which `decode` checks again."""
        return False

    @property
    def grows(self) -> bool:
        """Whether `encode` can enlarge an update, and so break a bound that an earlier step set."""
        return False

    def check(self, fold: Fold, expects: Expectation) -> None:
        """Raise `StrategyError` where this step and the rest of the ask disagree."""

    def init(self, schema: Schema | None) -> Any:
        """The state before the first ask; `schema` is what the ask expects of updates, None where that is free."""
        return None

    def send(self, state: Any) -> Any:
        """The parameters that travel with each task."""
        return None

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        """At the holder: change the update; `local` is what the last encode here left. `key` is the task's own."""
        return update, local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        """Wherever it is folded: undo what the wire needed, and check every bound again. Raises `UpdateRejected`.

        `schema` is what the ask expects: roles are to be taken from it, never from what the holder sent.
        """
        return update

    def finish(self, answer: Answer, state: Any, key: Key) -> tuple[Answer, Any]:
        """On the server, after the fold: change the answer and the state."""
        return answer, state

    def event(self, answer: Answer) -> Any:
        """What releasing the answer costs in privacy; None for nothing to account."""
        return None

    def spec(self) -> Any:
        """A plain description that `transform_from_spec` reads."""
        settings: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name, "version": self.version, "settings": settings}


Kind = TypeVar("Kind", bound=type[Transform])


def register_transform(kind: Kind) -> Kind:
    """Class decorator: make a transform known by its name and version, so that it can cross the wire."""
    key = (kind.name, kind.version)
    if _registry.setdefault(key, kind) is not kind:
        raise StrategyError(f"another transform is registered as {kind.name!r} version {kind.version}")
    return kind


def known_transforms() -> list[tuple[str, int]]:
    """The names and versions of all transforms that are known here, in order."""
    return sorted(_registry)


def transform_from_spec(spec: Mapping[str, Any]) -> Transform:
    """Rebuild a transform from what its `spec` described. Raises `StrategyError` for one that is not known here."""
    if spec["name"] == Chain.name:
        return chain(*(transform_from_spec(part) for part in spec["settings"]["parts"]))
    kind = _registry.get((spec["name"], spec["version"]))
    if kind is None:
        raise StrategyError(f"the transform {spec['name']!r} version {spec['version']} is not known here")
    try:
        made: Transform = kind(**spec["settings"])
    except TypeError as error:
        raise StrategyError(f"the settings of the transform {spec['name']!r} do not fit: {error}") from error
    return made


register_transform(Transform)


@dataclass(frozen=True)
class Chain(Transform):
    """Several transforms as one: encoded in order, decoded and finished in reverse."""

    name: ClassVar[str] = "chain"
    parts: tuple[Transform, ...] = ()

    def check(self, fold: Fold, expects: Expectation) -> None:
        bounded: Transform | None = None
        for part in self.parts:
            part.check(fold, expects)
            if bounded is not None and part.grows:
                raise StrategyError(
                    f"{part.name} after {bounded.name} can break the bound: it enlarges what was bounded before",
                    hint=f"Put {part.name} first.",
                )
            bounded = part if part.bounds else bounded

    def init(self, schema: Schema | None) -> Any:
        return tuple(part.init(schema) for part in self.parts)

    def send(self, state: Any) -> Any:
        return tuple(part.send(s) for part, s in zip(self.parts, state, strict=True))

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        left = []
        before = local if local is not None else (None,) * len(self.parts)
        for i, part in enumerate(self.parts):
            update, kept = part.encode(update, params[i], before[i], key.derive("part", i))
            left.append(kept)
        return update, None if all(kept is None for kept in left) else tuple(left)

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        for part, sent in zip(reversed(self.parts), reversed(params), strict=True):
            update = part.decode(update, sent, schema)
        return update

    def finish(self, answer: Answer, state: Any, key: Key) -> tuple[Answer, Any]:
        after = list(state)
        for i in reversed(range(len(self.parts))):
            answer, after[i] = self.parts[i].finish(answer, state[i], key.derive("part", i))
        return answer, tuple(after)

    def event(self, answer: Answer) -> Any:
        events = [e for e in (part.event(answer) for part in self.parts) if e is not None]
        return events or None

    def spec(self) -> Any:
        return {"name": self.name, "version": self.version, "settings": {"parts": [p.spec() for p in self.parts]}}


def chain(*transforms: Transform) -> Transform:
    """Several transforms as one, in the order in which holders apply them; chains in it are flattened, so chaining is
    associative.
    """
    parts: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, Chain):
            parts.extend(transform.parts)
        elif isinstance(transform, Transform):
            if type(transform) is not Transform:
                parts.append(transform)
        else:
            raise StrategyError(f"{transform!r} is not a transform")
    return Transform() if not parts else parts[0] if len(parts) == 1 else Chain(tuple(parts))


def place(lane: str, transform: Transform, schema: Schema | None) -> str:
    """Where what a transform keeps between asks has its place: the same for asks of one lane whose updates look alike
    and go through the same steps.

    Settings do not count, so that they may change from round to round and nothing is lost.
    """
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    rows = None if schema is None else [[n, list(s.shape), s.dtype.name, s.role] for n, s in sorted(schema.items())]
    text = json.dumps([[[part.name, part.version] for part in parts], rows])
    return f"{lane}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@register_transform
@dataclass(frozen=True)
class clip_by_norm(Transform):
    """Scale a client's difference down so that the L2 norm over all its parameters is at most `norm` (McMahan et al.
    2018).

    Buffers are left as they are. The bound is checked again where the update is folded: an update beyond it (by more
    than float32 rounding) is rejected. Needs differences, and a fold under which one client's claimed weight cannot
    multiply its share.
    """

    name: ClassVar[str] = "clip_by_norm"
    norm: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.norm, int | float) and 0 < self.norm < math.inf):
            raise StrategyError(f"clip_by_norm takes a positive, finite norm, not {self.norm!r}")

    @property
    def bounds(self) -> bool:
        return True

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError(
                "clip_by_norm bounds differences, but the ask expects values", hint="Use Like(delta=True)."
            )
        if fold.weights == "claimed":
            raise StrategyError(
                f"clip_by_norm under {fold.name} bounds nothing: a client that claims a large weight still moves the "
                "mean at will",
                hint="Fold with mean(), so that every client counts alike.",
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        arrays = _as_arrays(update)
        norm = parameter_norm(arrays)
        if not norm > self.norm:  # a NaN goes on, to be rejected by name
            return update, local
        scale = self.norm / norm
        scaled = {n: _scaled(a, scale) if arrays.roles[n] == "parameter" else a for n, a in arrays.items()}
        return replace(update, arrays=Arrays.trusted(scaled, dict(arrays.roles))), local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        norm = parameter_norm(_with_roles(_as_arrays(update), schema))
        if norm > self.norm * (1 + 1e-5):
            raise UpdateRejected(f"the update's norm is {norm:.6g}, but it had to be clipped to {self.norm:.6g}")
        return update


@register_transform
@dataclass(frozen=True)
class top_k(Transform):
    """Send only the largest entries of each parameter and keep the rest for the next time (Stich et al. 2018;
    Karimireddy et al. 2019).

    `fraction` of each parameter's entries travel, at least one, as indices and values. With `error_feedback` what was
    left out is added to the client's next difference. Buffers travel whole. Needs differences.
    """

    name: ClassVar[str] = "top_k"
    fraction: float = 0.01
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction <= 1):
            raise StrategyError(f"top_k takes a fraction above 0 and up to 1, not {self.fraction!r}")

    @property
    def grows(self) -> bool:
        return self.error_feedback

    def check(self, fold: Fold, expects: Expectation) -> None:
        if not expects.delta:
            raise StrategyError(
                "top_k drops entries, which makes sense for differences only", hint="Use Like(delta=True)."
            )

    def encode(self, update: Update, params: Any, local: Any, key: Key) -> tuple[Update, Any]:
        arrays = _as_arrays(update)
        residual: Mapping[str, Array] = local if local is not None and self.error_feedback else {}
        sent: dict[str, Any] = {}
        left: dict[str, Array] = {}
        for name, array in arrays.items():
            if arrays.roles[name] != "parameter" or array.size == 0:
                sent[name] = array
                continue
            whole = np.add(array, residual[name]) if name in residual else array
            flat = whole.reshape(-1)
            chosen = _largest(flat, self._count(flat.size))
            sent[f"{name}:shape"] = np.asarray(array.shape, np.int64)
            sent[f"{name}:indices"] = chosen
            sent[f"{name}:values"] = flat[chosen]
            rest = np.array(whole)
            rest.reshape(-1)[chosen] = 0
            left[name] = rest
        whole_roles = {n: arrays.roles[n] for n in sent if n in arrays}
        return replace(update, arrays=Arrays(sent, whole_roles)), Arrays(left) if self.error_feedback else None

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        arrays = _as_arrays(update)
        dense: dict[str, Array] = {}
        for key in arrays:
            name, _, part = key.rpartition(":")
            sparse = part in ("shape", "indices", "values") and f"{name}:values" in arrays
            if not sparse or (schema is not None and key in schema):
                dense[key] = arrays[key]
            elif part == "values":
                dense[name] = self._scatter(arrays, name, schema)
        return replace(update, arrays=Arrays(dense))

    def _count(self, size: int) -> int:
        return max(1, round(self.fraction * size))

    def _scatter(self, arrays: Arrays, name: str, schema: Schema | None) -> Array:
        try:
            shape, indices, values = (arrays[f"{name}:{part}"] for part in ("shape", "indices", "values"))
        except KeyError as error:
            raise UpdateRejected(f"array {name!r} lacks its indices or its shape") from error
        fits = shape.ndim == indices.ndim == values.ndim == 1 and indices.shape == values.shape
        if not fits or not shape.dtype == indices.dtype == np.int64:
            raise UpdateRejected(f"the indices, values and shape of array {name!r} do not fit together")
        claimed = tuple(shape.tolist())
        _check_claim(name, claimed, schema)
        size = math.prod(claimed)
        if values.size != self._count(size):
            raise UpdateRejected(f"the indices, values and shape of array {name!r} do not fit together")
        if indices[0] < 0 or indices[-1] >= size or (np.diff(indices) <= 0).any():
            raise UpdateRejected(f"the indices of array {name!r} are not rising within its {size} elements")
        dense = np.zeros(size, values.dtype)
        dense[indices] = values
        return dense.reshape(claimed)


def _check_claim(name: str, claimed: tuple[int, ...], schema: Schema | None) -> None:
    """Refuse the shape that a holder gives a sparse array unless the ask expects it: it says how much is allocated."""
    spec = schema.get(name) if schema is not None else None
    if spec is not None and spec.role == "parameter":
        if claimed != spec.shape or not math.prod(claimed):
            raise UpdateRejected(f"array {name!r} has shape {list(claimed)}, expected {list(spec.shape)}")
        return
    whole = name  # the values of an array that an earlier step made sparse are at most as many as it has elements
    while spec is None and whole.endswith(":values"):
        whole = whole.removesuffix(":values")
        spec = schema.get(whole) if schema is not None else None
        if spec is not None and len(claimed) == 1 and 0 < claimed[0] <= math.prod(spec.shape):
            return
    raise UpdateRejected(f"array {name!r} is sparse, and the ask expects no such parameter")


def parameter_norm(arrays: Arrays) -> float:
    """The L2 norm over all parameters together, in float64; NaN where one holds NaN or infinity."""
    parameters = [arrays[n] for n in sorted(arrays) if arrays.roles[n] == "parameter"]
    for scale in (1.0, 2.0**-600):  # finite values whose squares overflow must not pass for NaN
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [_square(a, scale) for a in parameters]
        if math.isfinite(sum(squares)):
            return math.sqrt(math.fsum(squares)) / scale
    return math.nan


def _square(array: Array, scale: float) -> float:
    flat = np.ravel(array).astype(np.float64)
    if scale != 1.0:
        flat *= scale
    return float(np.dot(flat, flat))


def _with_roles(arrays: Arrays, schema: Schema | None) -> Arrays:
    """The arrays with the roles that `schema` gives them; what it does not name is a parameter where it is a float."""
    if schema is None:
        return arrays
    return Arrays(dict(arrays), {n: schema[n].role for n in arrays if n in schema})


def _scaled(array: Array, scale: float) -> Array:
    # In float32 a scale below 1e-38 would have few digits, and the result might be beyond the bound.
    scaled = np.multiply(array, scale, dtype=np.float64 if scale < 1e-30 else wide(array.dtype))
    return np.asarray(scaled, wide(array.dtype))


def _largest(flat: Array, count: int) -> Array:
    # Ties go to the lower index, so that equal arrays give equal choices whatever the sorting method. A NaN counts as
    # the largest: it has to travel, to be rejected by name, or it would stay in the residual for good.
    size = np.abs(flat.astype(np.float64))
    size[np.isnan(size)] = math.inf
    order = np.argsort(-size, kind="stable")[:count]
    return np.sort(order).astype(np.int64)


def _as_arrays(update: Update) -> Arrays:
    return update.arrays if isinstance(update.arrays, Arrays) else Arrays(update.arrays)
