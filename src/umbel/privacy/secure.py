"""Secure aggregation of whatever a strategy sums: the server learns sums of many updates, and no single one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.answer import Answer, client_order
from ..core.arrays import Array, Arrays, Schema, wide
from ..core.ask import SEALED, Ask, PerClient, for_client
from ..core.contract import first_asks
from ..core.randomness import Key
from ..core.settings import not_negative, whole
from ..core.strategy import Asks, State, Strategy
from ..core.transform import as_arrays, chain
from ..core.update import Free, Like, Update
from ..core.window import Window
from ..entropy import SYSTEM, Entropy
from ..errors import ClientId, NothingToFold, SettingError, StrategyError, UpdateRejected
from ..folds.collect import collect
from ..folds.total import total
from .neighbours import graph, neighbourhood
from .noised_sum import noised_sum
from .secure_sum import BODY, FIXED, HEAD, KEYS, SHARES, UNMASK, secure_sum
from .unmasking import SumSession, sound

FOLDS = ("mean", "weighted_mean", "total")
NO_KEY = Key.from_seed(0)
MOST_BITS = 24
"""More bits a value do not have by default: float32 has no more."""


@dataclass(frozen=True, kw_only=True)
class Secured(Strategy):
    """A strategy whose asks are summed securely: see `secure`."""

    strategy: Strategy
    clip: float
    bits: int | None
    weight: float
    metrics: tuple[str, ...]
    corrupt: float
    dropped: float
    attempts: int
    noise: float
    mechanism: str

    def __post_init__(self) -> None:
        not_negative(self, "noise")
        whole(self, attempts=1)
        not_negative(self, "corrupt", "dropped", most=math.nextafter(1, 0))
        bits = MOST_BITS if self.bits is None else self.bits
        secure_sum("", 2, 3, self.clip, bits, self.weight, self.metrics)  # which looks at these
        if not isinstance(self.strategy, Strategy):
            raise StrategyError(f"secure wraps a strategy, not {self.strategy!r:.60}")
        fold = getattr(self.strategy, "fold", None)
        if fold is not None:
            self._check_fold(fold.name)

    def start(self, model: Arrays) -> State:
        return self.strategy.start(model)

    def served(self, state: State) -> PerClient[Arrays]:
        return self.strategy.served(state)

    @property
    def wrapped(self) -> Strategy:
        return self.strategy.wrapped

    def in_round(self, r: int) -> Strategy:
        inner = self.strategy.in_round(r)
        return self if inner is self.strategy else replace(self, strategy=inner)

    def round(self, state: State, r: int) -> Asks:
        inner, number = self.strategy.round(state, r), 0
        try:
            asked = next(inner)
            while True:
                asks, answers = [asked] if isinstance(asked, Ask) else list(asked), []
                try:
                    for ask in asks:
                        number += 1  # first: what comes to nothing has used up its sessions
                        answers.append((yield from self._summed(ask, f"{r}.{number - 1}")))
                except NothingToFold as error:
                    asked = inner.throw(error)
                else:
                    asked = inner.send(answers[0] if isinstance(asked, Ask) else answers)
        except StopIteration as over:
            done: State = over.value
            return done

    def _summed(self, ask: Ask, name: str) -> Generator[Ask, Any, Answer]:
        """What an ask comes to, over a session or several. Raises `NothingToFold`."""
        self._check(ask)
        for attempt in range(1, self.attempts):
            try:
                return (yield from self._session(ask, f"{name}.{attempt}"))
            except NothingToFold as error:
                if not error.asked:  # the sampler drew nobody
                    raise
        return (yield from self._session(ask, f"{name}.{self.attempts}"))

    def _session(self, ask: Ask, name: str) -> Generator[Ask, Any, Answer]:
        """One session: fresh keys, their shares, masked updates, and what takes the masks off."""

        def phase(kind: str, clients: Any, inbox: Callable[[ClientId], Mapping[str, Array]] | None = None) -> Ask:
            return Ask(
                kind=kind, clients=clients, inbox=inbox and _sealed(inbox), expects=Free(), fold=collect(),
                transforms=chain(ask.transforms, step), window=Window(deadline=ask.window.deadline),
                lane=f"{ask.lane}:{kind}",
            )  # fmt: skip

        step = self.step(ask, name, 2, 3)
        told = yield phase(KEYS, ask.clients)
        keys = sound(_checked(told, "keys"))
        if len(keys) < 3:
            raise _too_few(f"{len(keys)} clients have sent keys, and secure sums are of 3 at least", told)
        clients = sorted(keys, key=client_order)
        degree, threshold = self._neighbourhood(len(clients), told)
        seed = hashlib.sha256(b"".join(keys[client].tobytes() for client in clients)).digest()
        points = {client: at for at, client in enumerate(clients, 1)}
        around = [tuple(clients[at] for at in peers) for peers in graph(len(clients), degree, seed)]
        session = SumSession(name, threshold, points, dict(zip(clients, around, strict=True)), keys)
        step = self.step(ask, name, threshold, len(clients))
        shared = yield phase(SHARES, tuple(clients), session.asked)
        session.take_shares(_checked(shared, "shares"))
        told_shares = len(session.shares)
        if not (able := session.able()):
            raise _too_few(f"{told_shares} clients have shared their keys, too few for {threshold} each", shared)
        inner = ask.inbox
        answer: Answer = yield replace(
            ask, clients=_in_order(able, points), fold=total(), transforms=chain(ask.transforms, step),
            inbox=_sealed(session.received, inner), window=replace(ask.window, late="drop"),
        )  # fmt: skip
        if isinstance(step, noised_sum) and answer.count < step.fewest:
            raise _too_few(f"{answer.count} clients have sent updates, and the noise is for {step.fewest}", answer)
        session.summed = frozenset(answer.clients)

        def opened(last: Answer) -> Answer:
            whole = replace(answer, asked=told.asked, failed={**told.failed, **shared.failed, **answer.failed})
            try:
                step.decode(Update(answer.value), None, Schema({}))  # a relay's sum may look like anything
                vectors = [answer.value[HEAD].copy(), answer.value[BODY].copy()]
                session.unmask(vectors, {client: update.arrays for client, update in last.value.items()})
                return self._answer(ask, step, whole, *vectors)
            except UpdateRejected as error:
                raise _too_few(f"the sum could not be unmasked: {error.message}", last) from error

        if not (left := session.enough(session.summed)):
            raise _too_few(f"{answer.count} clients have sent updates, too few for {threshold} neighbours each", answer)
        step = _opening(step, opened)
        whole: Answer = yield phase(UNMASK, _in_order(left, points), session.told)
        return whole

    def _neighbourhood(self, clients: int, told: Answer) -> tuple[int, int]:
        """How many neighbours each has, and how many of them have to stay."""
        try:
            return neighbourhood(clients, self.corrupt, self.dropped)
        except SettingError as error:
            if clients == told.asked:
                raise
            raise _too_few(f"{clients} clients have sent keys: {error.message}", told) from error

    def _answer(self, ask: Ask, step: secure_sum, answer: Answer, head: Array, body: Array) -> Answer:
        """The answer that the strategy would have had of its own ask, made of the sums alone."""
        share, cut, *metrics = (head.view("<i8") / FIXED).tolist()
        if not share > 0:
            raise _too_few(f"the weights of {answer.count} updates are 0", answer)
        steps, alike = body.view(body.dtype.str.replace("u", "i")), not step.weight
        most, largest = step.most(share, answer.count), np.abs(steps, dtype="f8").max(initial=0)
        if share > answer.count or (alike and share != answer.count) or largest > most:
            raise _too_few(f"the sum of {answer.count} updates is one that no such updates have", answer)
        values = steps * (step.clip / step.levels / share)
        value = self._decoded(ask, step, values)
        if ask.fold.name == "total":
            value = value.map(lambda name, array: array * share)
        found = {name: each / share for name, each in zip(step.metrics, metrics, strict=True)}
        if not self.noise:
            found["secure.cut"] = cut * FIXED / max(1, answer.count * body.size)
        weight = share * (step.weight or 1.0)
        return replace(answer, value=value, metrics=found, weight=weight)

    def _decoded(self, ask: Ask, step: secure_sum, values: Array) -> Arrays:
        """The mean of what clients encoded, as it was before they encoded it."""
        update, schemas = self._zeros(ask, step.key)
        arrays, at, made = as_arrays(update), 0, dict[str, Array]()
        parameters = arrays.of_role("parameter")
        if values.size != (size := sum(array.size for array in parameters.values())):
            raise UpdateRejected(f"it is of {values.size} elements, and the model has {size}")
        for name, array in parameters.items():
            made[name] = values[at : at + array.size].reshape(array.shape).astype(array.dtype)
            at += array.size
        update = replace(update, arrays=arrays.replace(made))
        for part, before in reversed([*zip(ask.transform.parts, schemas, strict=True)]):
            if part.encoded(before) != before:
                update = part.decode(update, None, before)
        return as_arrays(update)

    def _zeros(self, ask: Ask, key: Key = NO_KEY) -> tuple[Update, list[Schema]]:
        """What the steps of an ask make of an update of zeros, and what it looks like before each of them."""
        looks, schemas = ask.schema(None) or Schema({}), list[Schema]()
        zeros = {n: np.zeros(shape, wide(dtype)) for n, (shape, dtype, role) in looks.items() if role == "parameter"}
        update = Update(Arrays(zeros, dict.fromkeys(zeros, "parameter")), delta=True)
        for i, part in enumerate(ask.transform.parts):
            schemas.append(as_arrays(update).schema)
            update, _ = part.encode(update, None, None, key.derive("part", i))
        return update, schemas

    def step(self, ask: Ask, name: str, threshold: int, clients: int) -> secure_sum:
        """What an ask of so many clients is sealed by, in the session of this name."""
        weight = self.weight if ask.fold.name == "weighted_mean" else 0.0
        if not self.noise:
            bits = self.bits or max(8, min(MOST_BITS, 32 - clients.bit_length()))
            return secure_sum(name, threshold, clients, self.clip, bits, weight, self.metrics)
        colluding = math.floor(self.corrupt * clients)
        sharers = max(1, clients - math.floor(self.dropped * clients) - colluding)
        size = sum(array.size for array in as_arrays(self._zeros(ask)[0]).of_role("parameter").values())

        def noised(bits: int) -> noised_sum:
            return noised_sum(
                name, threshold, clients, self.clip, bits, weight, self.metrics, noise=self.noise, size=size,
                sharers=sharers, colluding=colluding, mechanism=self.mechanism,
            )  # fmt: skip

        if self.bits is not None:
            return noised(self.bits)
        return next((step for bits in range(MOST_BITS, 8, -1) if (step := noised(bits)).modulus_bits <= 32), noised(8))

    def alone(self, update: Update, model: Arrays, clients: int, key: Key) -> Arrays:
        """What a sum shows of one client's difference to a model to whoever knows all others', with the noise of the
        fewest who have to stay of so many: for attacks.
        """
        ask = first_asks(self.wrapped, model)[0]
        step = self.step(ask, "alone", 2, clients)
        steps = chain(ask.transforms, step)
        params = steps.send(steps.init(ask.schema(None)))
        body = as_arrays(steps.encode(replace(update, weight=self.weight or 1.0), params, None, key)[0])[BODY]
        values = body.view(body.dtype.str.replace("u", "i")).astype(np.int64)
        if isinstance(step, noised_sum):
            values = values + sum(step.shares.share() for _ in range(step.fewest - 1))
        return self._decoded(ask, step, values * (step.clip / step.levels))

    def _check(self, ask: Ask) -> None:
        """Raise `StrategyError` for an ask that cannot be summed securely."""
        self._check_fold(ask.fold.name)
        if ask.fold.name == "weighted_mean" and not self.weight:
            raise StrategyError(
                "weighted_mean takes weights, and a secure sum has to know the largest there may be",
                hint="Write secure(..., weight=1000), or fold with mean().",
            )
        if ask.fold.name == "weighted_mean" and self.noise:
            raise StrategyError(
                "under noise all clients count alike, and weighted_mean takes weights", hint="Fold with mean()."
            )
        if callable(ask.model) or callable(ask.expects) or not (isinstance(ask.expects, Like) and ask.expects.delta):
            raise StrategyError("secure sums are of differences to one model, the same for all clients of an ask")
        if ask.kind == "evaluate" or ask.expects.aux is not None:
            raise StrategyError("metrics of evaluations, and aux arrays, are not summed securely")
        if ask.window.late == "keep":
            raise StrategyError("late updates are masked for a sum that is over", hint="Use a window with late='drop'.")
        if reports := getattr(ask.correction, "reports", ()):
            raise StrategyError(f"the strategy needs metrics ({', '.join(reports)}) of each client, and none are told")
        replace(ask, fold=total(), transforms=chain(ask.transforms, self.step(ask, "", 2, 3)))  # looks at its steps

    def _check_fold(self, name: str) -> None:
        if name not in FOLDS:
            raise StrategyError(
                f"{name} has to see single updates, and a secure sum shows none",
                hint=f"Fold with {', '.join(FOLDS)}.",
            )


def _opening(step: secure_sum, opened: Callable[[Answer], Answer]) -> secure_sum:
    """The step of the last phase, as the run has it: what shares came is made the sum. Clients have the plain one."""
    kind, settings = type(step), {each.name: getattr(step, each.name) for each in fields(step)}

    class Opening(kind):  # type: ignore[valid-type, misc]
        def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
            return opened(answer), state

        def event(self, answer: Answer, state: Any) -> Any:
            return None  # it was told of with the masked sum

        def __reduce__(self) -> tuple[Any, ...]:
            return partial(kind, **settings), ()

    made: secure_sum = Opening(**settings)
    return made


def secure(
    strategy: Strategy,
    *,
    clip: float = 4.0,
    bits: int | None = None,
    weight: float = 0.0,
    metrics: Sequence[str] = (),
    corrupt: float = 0.1,
    dropped: float = 0.3,
    attempts: int = 2,
    noise: float = 0.0,
    mechanism: str = "distributed_gaussian",
) -> Secured:
    """The strategy with each of its asks summed securely: the server learns the sum of the updates of those who stay,
    and of no client's alone (Bonawitz et al. 2017, IACR 2017/281; Bell et al. 2020, IACR 2020/704).

    Each ask becomes four: public keys; shares of secrets, encrypted between neighbours; masked updates; and, of those
    who stayed, the shares that take the masks off that did not cancel. How many neighbours a client has, and how many
    of them have to stay, follows from the shares of clients that may be `corrupt`, with the server or among themselves,
    and that may have `dropped` out; where more are gone, the whole is done again with fresh keys, `attempts` times at
    most, and then comes to `NothingToFold`.

    Elements of an update are cut off at `clip` (which share was, is the metric ``secure.cut``) and have `bits` bits:
    by default as many, up to 24, as make sums fit in 32. Under `weighted_mean` `weight` is the largest there may be. Of
    metrics only those named are told, as means. Buffers are not sent: the model keeps its own. Folds are `mean`,
    `weighted_mean` and `total`, transforms `clip_by_norm`, `rotate` and `random_k`; anything else is a `StrategyError`.

    With `noise` the sum that the server learns has noise in it, of which each client adds a share (`noised_sum`): a
    standard deviation of `noise` times the norm that an update may have, which `clip` bounds then, as a whole, and
    rounding makes a little longer. So much is there as long as no more clients have dropped out, or are corrupt, than
    was stated; where more are gone, there is no sum. The `mechanism` is ``distributed_gaussian``, or
    ``distributed_skellam``, which a coarse grid takes. Who was asked is not hidden, all count alike, and metrics are
    not told.
    """
    if isinstance(metrics, str):
        raise SettingError(f"metrics are names in a list, not {metrics!r:.60}")
    return Secured(
        strategy=strategy, clip=clip, bits=bits, weight=weight, metrics=tuple(metrics), corrupt=corrupt,
        dropped=dropped, attempts=attempts, noise=noise, mechanism=mechanism,
    )  # fmt: skip


def _sealed(own: Callable[[ClientId], Mapping[str, Array]], inner: Any = None) -> Callable[[ClientId], dict[str, Any]]:
    """What a client gets in its inbox: what is for the step that seals, and what the strategy sends beside it."""

    def inbox(client: ClientId) -> dict[str, Any]:
        return {**(for_client(inner, client) or {}), **{SEALED + name: array for name, array in own(client).items()}}

    return inbox


def _checked(answer: Answer, name: str) -> dict[ClientId, Array]:
    """The arrays of this name that clients have sent."""
    found = {client: update.arrays.get(name) for client, update in answer.value.items()}
    return {client: array for client, array in found.items() if array is not None and array.dtype == np.uint8}


def _in_order(clients: frozenset[ClientId], points: Mapping[ClientId, int]) -> tuple[ClientId, ...]:
    return tuple(sorted(clients, key=points.__getitem__))


def _too_few(why: str, answer: Answer) -> NothingToFold:
    return NothingToFold(why, asked=answer.asked, came=answer.count)
