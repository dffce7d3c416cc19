"""Transforms: two-sided steps on updates, run at the holder (`encode`) and wherever the update is folded (`decode`).

A transform is a frozen dataclass with a registered name and version, so that a node knows whether it can take part. The
coordinator owns its state, checkpoints it, and sends what `send` makes of it with each task. What a holder must
remember between its tasks is `local`. Both are kept for each lane, each transform and each schema by itself (`place`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError, UmbelError, UpdateRejected
from . import encoding
from .answer import Answer
from .arrays import Array, Arrays, Schema, is_floating
from .correction import Correction
from .fold import Fold
from .randomness import Key
from .update import Expectation, Free, Update
from .update import as_arrays as arrays_of

_registry: dict[tuple[str, int], type[Any]] = {}
CATALOGUES = ("umbel.transforms", "umbel.privacy")
"""Rooms with transforms of which nobody need have used anything so far."""


@dataclass(frozen=True)
class Transform:
    """A two-sided step; this base class changes nothing.

    `params`, the state and `local` are plain trees. Subclasses are frozen dataclasses with a name, decorated with
    `register_transform`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    linear: ClassVar[bool] = False
    """Whether sums of what it encodes, by one key, are decoded to sums, and it does nothing after the fold."""

    @property
    def bound(self) -> float:
        """The largest L2 norm over its parameters that what leaves `encode` may have, which `decode` checks again;
        infinity for no bound.
        """
        return math.inf

    @property
    def grows(self) -> bool:
        """Whether `encode` can enlarge an update, and so break a bound that an earlier step set."""
        return False

    @property
    def moving(self) -> tuple[str, ...]:
        """Settings that say where it begins, and not what holds in every round."""
        return ()

    @property
    def brings_aux(self) -> bool:
        """Whether `encode` adds aux arrays of its own, which `decode` has to check by `checked_aux`, and of whose mean
        `finish` makes what it needs.
        """
        return False

    @property
    def measures(self) -> bool:
        """Whether the aux arrays that it brings are made by `decode`, of what is folded: then a bound of updates bounds
        them too.
        """
        return False

    @property
    def keeps_norm(self) -> bool:
        """Whether what leaves `encode` has the norm that `decode` gives, so that a step behind it can bound that."""
        return True

    @property
    def feeds_back(self) -> bool:
        """Whether `encode` adds what earlier updates left out, as one step of a chain may at most."""
        return False

    @property
    def private(self) -> bool:
        """Whether it hides every client's part in the answer. Then nothing else of an update may be told: metrics are
        dropped, and the answer is released whoever came, nobody included.
        """
        return False

    @property
    def most_answers(self) -> float:
        """For how many answers it is made, after which there is an error."""
        return math.inf

    @property
    def apart(self) -> int:
        """How many answers later a client may be in one again at the earliest. 0 where what it hides is who is in one
        by chance, and not the traces that this leaves in later ones, as with a sampler that lets clients wait.
        """
        return 0

    @property
    def of_metrics(self) -> Expectation | None:
        """What it makes of an evaluation's metrics, where it hides these; None where they are told as they are."""
        return None

    def encoded(self, schema: Schema, sent: Mapping[str, Array] | None = None) -> Schema:
        """What a difference of this schema is once it is encoded: its `nbytes` are those on the wire. Where that
        depends on values, `sent` has the arrays of an update, which need not be true; without them it is the most.
        """
        return schema

    def check(self, fold: Fold, expects: Expectation) -> None:
        """Raise `StrategyError` where this step and the rest of the ask disagree."""

    def init(self, schema: Schema | None) -> Any:
        """The state before the first ask; `schema` is what the ask expects of updates, None where that is free."""
        return None

    def send(self, state: Any) -> Any:
        """The parameters that travel with each task."""
        return None

    @property
    def reports(self) -> tuple[str, ...]:
        """Metrics that it needs every update to bring: see `Correction`."""
        return ()

    @property
    def corrects(self) -> bool:
        """Whether it has something for the training loop: see `correct`."""
        return type(self).correct is not Transform.correct

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction | None:
        """At the holder, before it trains: what the training loop has to do beside its own. `model` is what was sent,
        `local` what the last encode here left.
        """
        return None

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        """At the holder: change the update; `local` is what the last encode here left. `key` is the task's own, which
        the run knows; noise that hides something from the run is drawn from `own`, which nobody else knows.
        """
        return update, local

    def settle(self, local: Any, received: Callable[[], Update]) -> Any:
        """At the holder, once all steps of a chain have encoded: what to keep of what `encode` left, given what the
        receiver will have of the update once it has decoded the steps behind this one.
        """
        return local

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        """Wherever it is folded: undo what the wire needed, and check every bound again. Raises `UpdateRejected`.

        `schema` is what the ask expects, or in a chain what the steps before this one make of that: names, shapes and
        roles are to be taken from it, never from what the holder sent.
        """
        return update

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        """On the server, after the fold: change the answer and the state. What `own` gives is drawn once: the answer
        is recorded before anything is made of it.
        """
        return answer, state

    def event(self, answer: Answer, state: Any) -> Any:
        """What releasing the answer costs in privacy, as a plain dict; None for nothing to account. `state` is the one
        with which the ask was sent.
        """
        return None

    def promises(self, params: Any) -> Any:
        """At the holder, before it trains: what its answer will cost at most, as `event` says it; None where nothing
        holds. `params` is what was sent. By default `event` of an answer that nobody has given, with `params` for the
        state: override it where that is not all that `event` needs, or where what holds is said in another way.

        Where several releases cost no more than one, as where their noise is correlated, each has the same text as
        `stream`, of 64 letters at most, and as `answers` in how many of them one client may be for that.
        """
        return self.event(Answer(Arrays()), params)

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
    for catalogue in CATALOGUES:
        import_module(catalogue)
    return sorted(_registry)


def transform_from_spec(spec: Mapping[str, Any]) -> Transform:
    """Rebuild a transform from what its `spec` described. Raises `StrategyError` for one that is not known here."""
    place = spec["name"], spec["version"]
    for catalogue in CATALOGUES:
        if place not in _registry:
            import_module(catalogue)  # of which nobody need have used anything so far
    kind = _registry.get(place)
    if kind is None:
        raise StrategyError(f"the transform {spec['name']!r} version {spec['version']} is not known here")
    try:
        made: Transform = kind(**spec["settings"])
    except TypeError as error:
        raise StrategyError(f"the settings of the transform {spec['name']!r} do not fit: {error}") from error
    return made


@dataclass(frozen=True)
class Chain(Transform):
    """Transforms as one, or none: encoded in order, decoded and finished in reverse.

    What each makes of a state, sends and keeps stands in a tuple, in their order.
    """

    name: ClassVar[str] = "chain"
    parts: tuple[Transform, ...] = ()

    @property
    def bound(self) -> float:
        return min((part.bound for part in self.parts), default=math.inf)

    @property
    def keeps_norm(self) -> bool:
        return all(part.keeps_norm for part in self.parts)

    @property
    def private(self) -> bool:
        return any(part.private for part in self.parts)

    @property
    def most_answers(self) -> float:
        return min((part.most_answers for part in self.parts), default=math.inf)

    @property
    def apart(self) -> int:
        return max((part.apart for part in self.parts), default=0)

    @property
    def of_metrics(self) -> Expectation | None:
        return next((part.of_metrics for part in self.parts if part.of_metrics is not None), None)

    def encoded(self, schema: Schema, sent: Mapping[str, Array] | None = None) -> Schema:
        for part in self.parts:
            schema = part.encoded(schema, sent)
        return schema

    @property
    def sealing(self) -> Sealing | None:
        """Its last part, where that seals updates."""
        last: Any = self.parts[-1] if self.parts else None
        return last if hasattr(last, "take_part") else None  # a `Sealing`, which would take long to see

    def folded(self, expects: Expectation) -> Expectation:
        """What updates look like as they are folded: those that are sealed stay as they came."""
        return expects if self.sealing is None else Free()

    def check(self, fold: Fold, expects: Expectation) -> None:
        for part in self.parts[:-1]:
            if isinstance(part, Sealing):
                raise StrategyError(f"{part.name} stands before other steps", hint=f"Put {part.name} last.")
            if self.sealing is not None and not part.linear:
                raise StrategyError(
                    f"{part.name} cannot be undone of a sum of sealed updates",
                    hint="Before it is sealed an update may go through clip_by_norm, rotate and random_k.",
                )
        if self.private and len(self.parts) > 1 and self.sealing is None:
            names = [part.name for part in self.parts]
            own = next(part.name for part in self.parts if part.private)
            raise StrategyError(
                f"{own} stands in a chain of {', '.join(names)}, of which not all is accounted for",
                hint=f"Use {own} alone.",
            )
        bounded: Transform | None = None
        hidden: Transform | None = None
        for part in self.parts:
            part.check(fold, expects)
            if bounded is not None and part.grows:
                raise StrategyError(
                    f"{part.name} after {bounded.name} can break the bound: it enlarges what was bounded before",
                    hint=f"Put {part.name} first."
                    if part.keeps_norm
                    else f"Leave one out, or set {part.name} so that it does not.",
                )
            if hidden is not None and part.bound < math.inf:
                raise StrategyError(
                    f"{part.name} after {hidden.name} bounds nothing: what {hidden.name} sends has another norm",
                    hint=f"Put {part.name} first.",
                )
            bounded = part if part.bound < math.inf else bounded
            hidden = hidden if part.keeps_norm else part
        self._check_first(fold)
        if len(back := [part.name for part in self.parts if part.feeds_back]) > 1:
            raise StrategyError(
                f"{' and '.join(back)} both add what earlier updates left out, which would count twice",
                hint="Write top_k(..., error_feedback=False) behind error_feedback().",
            )

    def _check_first(self, fold: Fold) -> None:
        """Steps that have to do with training see updates as they were trained, and bring what nothing bounds."""
        first = [part.corrects or part.brings_aux for part in self.parts]
        for before, part in zip(self.parts, self.parts[1:], strict=False):
            if (part.corrects or part.brings_aux) and not (before.corrects or before.brings_aux):
                raise StrategyError(
                    f"{part.name} after {before.name} does not see the update as it was trained",
                    hint=f"Put {part.name} first.",
                )
        names = [part.name for part, own in zip(self.parts, first, strict=True) if own]
        if len({*names}) < len(names):
            raise StrategyError(f"{', '.join(names)}: a step that has to do with training is there twice")
        bringing = [part for part in self.parts if part.brings_aux and (fold.single or not part.measures)]
        if bringing and (fold.single or self.bound < math.inf):
            raise StrategyError(
                f"what {bringing[0].name} adds to updates is averaged as it is, so that one client could move it at "
                f"will, whatever {'the fold ' + fold.name if fold.single else 'the bound'} does",
                hint="Use a fold that sums, and no bound, or another strategy.",
            )

    def init(self, schema: Schema | None) -> Any:
        if schema is not None:
            self.encoded(schema)  # raises where the names of what is sent would clash
        return tuple(_called(part, part.init, schema) for part in self.parts)

    def send(self, state: Any) -> Any:
        return encoding.settled(tuple(_called(part, part.send, s) for part, s in zip(self.parts, state, strict=True)))

    @property
    def brings_aux(self) -> bool:
        return any(part.brings_aux for part in self.parts)

    @property
    def corrects(self) -> bool:
        return any(part.corrects for part in self.parts)

    @property
    def reports(self) -> tuple[str, ...]:
        return tuple(sorted({name for part in self.parts for name in part.reports}))

    def correct(self, model: Arrays | None, params: Any, local: Any) -> Correction | None:
        found: Correction | None = None
        before = local if local is not None else (None,) * len(self.parts)
        for part, sent, old in zip(self.parts, params, before, strict=True):
            own = part.correct(model, sent, old) if part.corrects else None
            found = own if found is None else found.with_(own)
        return found

    def encode(self, update: Update, params: Any, local: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Update, Any]:
        left, schemas = [], []
        before = local if local is not None else (None,) * len(self.parts)
        for i, (part, sent, old) in enumerate(zip(self.parts, params, before, strict=True)):
            shared = key if self.sealing is None or part is self.parts[-1] else self.sealing.key
            update, kept = part.encode(update, sent, old, shared.derive("part", i), own)
            left.append(kept)
            schemas.append(as_arrays(update).schema)
        for i, part in enumerate(self.parts):
            behind = Chain(self.parts[i + 1 :])
            left[i] = part.settle(left[i], partial(behind.decode, update, params[i + 1 :], schemas[i]))
        return update, None if all(kept is None for kept in left) else tuple(left)

    def decode(self, update: Update, params: Any, schema: Schema | None = None) -> Update:
        if self.sealing is not None:  # what comes before it is undone of the sum
            return self.parts[-1].decode(update, params[-1], schema)
        schemas, arrays = [], as_arrays(update)
        for part in self.parts:
            schemas.append(schema)
            schema = None if schema is None else part.encoded(schema, arrays)
        for part, sent, expected in reversed([*zip(self.parts, params, schemas, strict=True)]):
            update = part.decode(update, sent, expected)
        return update

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        after = list(state)
        for i in reversed(range(len(self.parts))):
            part = self.parts[i]
            answer, after[i] = _called(part, part.finish, answer, state[i], key.derive("part", i), own)
        return answer, encoding.settled(tuple(after))

    def event(self, answer: Answer, state: Any) -> Any:
        told = (part.event(answer, own) for part, own in zip(self.parts, state, strict=True))
        return [event for event in told if event is not None] or None

    def promises(self, params: Any) -> Any:
        if not self.private or (len(self.parts) > 1 and self.sealing is None):
            return None  # something would be told beside it, as it is
        told = (part.promises(sent) for part, sent in zip(self.parts, params, strict=True))
        return [release for release in told if release is not None] or None

    def spec(self) -> Any:
        return [part.spec() for part in self.parts]


def _called(part: Transform, step: Callable[..., Any], *arguments: Any) -> Any:
    """What a step of a transform gives. Raises `StrategyError` where it raises."""
    try:
        return step(*arguments)
    except UmbelError:
        raise
    except Exception as error:
        raise StrategyError.raised(f"the transform {part.name}", error, step.__name__) from error


def chain(*transforms: Transform | Iterable[Transform]) -> Chain:
    """Transforms as one, in the order in which holders apply them; chains and sequences in it are flattened, so
    chaining is associative. Raises `StrategyError` for anything else.
    """
    if len(transforms) == 1 and isinstance(transforms[0], Chain):
        return transforms[0]  # of whatever kind of chain
    parts: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, Chain):
            parts.extend(transform.parts)
        elif isinstance(transform, Transform):
            parts.append(transform)
        elif isinstance(transform, Iterable) and not isinstance(transform, str | Mapping):
            parts.extend(chain(*transform).parts)
        else:
            raise StrategyError(f"{transform!r} is not a transform")
    return Chain(tuple(parts))


@runtime_checkable
class Named(Protocol):
    """A step whose state has a name, which no other has, and tells what the step hides: a run keeps it masked."""

    def named(self, state: Any, own: Entropy) -> Any:
        """The state that `init` gave, with a name that `own` gives."""


@runtime_checkable
class Sealing(Protocol):
    """A step, the last of its chain, that takes part in a protocol by which updates are summed and nobody sees one.

    Asks of the kinds in `phases` are answered by it alone, without data or a handler. What it keeps from phase to
    phase, its secrets, stays at the holder, beside what handlers and other steps keep. A holder answers each phase of
    one `session` once, and one ask of any other kind.
    """

    phases: tuple[str, ...]
    session: str

    @property
    def key(self) -> Key:
        """By which the steps before it draw, the same at all holders, so that what they encode can be summed."""

    def take_part(
        self, kind: str, update: Update, inbox: Mapping[str, Array], secrets: Any, own: Entropy
    ) -> tuple[Update, Any]:
        """At the holder: what to send in an ask of this kind, and the next secrets, None to wipe them. `update` is what
        the steps before it have encoded, with its weight and metrics, and empty in a phase of its own; `inbox` is what
        came for this client. Raises `ClientError` where what came is not as it has to be.
        """


def named(step: Transform, state: Any, own: Entropy) -> Any:
    """The state that `init` gave, with the names of those steps that are `Named`: where a run is killed and goes on,
    `own` gives the same ones again.
    """
    if isinstance(step, Chain):
        return tuple(named(part, of, own) for part, of in zip(step.parts, state, strict=True))
    return step.named(state, own) if isinstance(step, Named) else state


def accounts(step: Transform) -> bool:
    """Whether a step says what its noise costs, which is then all that is told of a client; a chain, if it is all."""
    if isinstance(step, Chain):
        return (len(step.parts) == 1 or step.sealing is not None) and accounts(step.parts[-1])
    kind = type(step)
    return step.private and not (kind.event is Transform.event and kind.promises is Transform.promises)


def chain_from_spec(specs: Iterable[Mapping[str, Any]]) -> Chain:
    """Rebuild a chain from what its `spec` described. Raises `StrategyError` for a transform that is not known here."""
    return Chain(tuple(map(transform_from_spec, specs)))


def place(lane: str, transform: Chain, schema: Schema | None) -> str:
    """Where what a transform keeps between asks has its place: the same for asks of one lane whose updates look alike
    and go through the same steps.

    Settings do not count, so that they may change from round to round and nothing is lost.
    """
    rows = None if schema is None else [[n, list(s.shape), s.dtype.name, s.role] for n, s in sorted(schema.items())]
    text = json.dumps([[[part.name, part.version] for part in transform.parts], rows])
    return f"{lane}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def with_aux(update: Update, step: Transform, aux: Mapping[str, Any]) -> Update:
    """The update with aux arrays of a step beside those that it has."""
    return replace(update, aux=Arrays({**update.aux, **{f"{step.name}:{name}": array for name, array in aux.items()}}))


def checked_aux(update: Update, step: Transform, shapes: Mapping[str, tuple[int, ...]]) -> Update:
    """The update, once its aux arrays of a step are known to be floats of just these names and shapes. Raises
    `UpdateRejected`.
    """
    prefix, found = f"{step.name}:", {}
    for name, array in Arrays(update.aux).items():
        if name.startswith(prefix) and is_floating(array.dtype):
            found[name.removeprefix(prefix)] = array.shape
    if found != dict(shapes):
        wrong = sorted({*found, *shapes}, key=lambda name: (found.get(name) == shapes.get(name), name))[0]
        raise UpdateRejected(
            f"what {step.name} adds to the update is not what it has to be: the aux array {prefix}{wrong} has shape "
            f"{found.get(wrong)}, not {shapes.get(wrong)}"
        )
    return update


def taken_aux(answer: Answer, step: Transform) -> tuple[dict[str, Array], Answer]:
    """The means of a step's own aux arrays, and the answer without them."""
    prefix = f"{step.name}:"
    mine = {name.removeprefix(prefix): array for name, array in answer.aux.items() if name.startswith(prefix)}
    rest = answer.aux.select(name for name in answer.aux if not name.startswith(prefix))
    return mine, replace(answer, aux=rest)


def as_arrays(update: Update) -> Arrays:
    """The arrays of an update as `Arrays`. Raises `UpdateRejected` for what is none."""
    return arrays_of(update.arrays, "array")
