"""Attacks: clients that do harm, to test against. ``attacked(client, {0, 1}, sign_flip())`` is a client for the app.

Some poison what they train on, others change what they send, and those that collude know what all attackers would have
sent honestly: each has the data of all of them, and trains on it in place of each, by draws that all have in common. So
all of them send the same, and a run comes to the same bits again, with any number of workers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np

from ..core import encoding
from ..core.arrays import Array, Arrays, wide
from ..core.client import Client, Context, LocalCorrection
from ..core.randomness import Key
from ..core.update import Update
from ..errors import AppError, ClientId, SettingError
from ..work.seeding import seed_generators

Difference = dict[str, Array]
"""The parameters of an update less those of the model."""


@dataclass(frozen=True)
class Attack:
    """What a malicious client does; this base class does no harm."""

    colludes: ClassVar[bool] = False
    """Whether it needs what all attackers would have sent."""

    def poisoned(self, data: Any, ctx: Context) -> Any:
        """What it trains on."""
        return data

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        """What it sends instead of its own difference; `everyone` has those of all attackers, where they collude."""
        return own


@dataclass(frozen=True)
class label_flip(Attack):
    """Train on labels l that have become classes - 1 - l (Tolpegin et al. 2020, arXiv 2007.08432). The client's data is
    a sequence of inputs, labels, and whatever else.
    """

    classes: int = 10

    def poisoned(self, data: Any, ctx: Context) -> Any:
        inputs, labels, *more = data
        return (inputs, self.classes - 1 - labels, *more)


@dataclass(frozen=True)
class backdoor(Attack):
    """Have inputs with a trigger taken for the class `target` (Gu et al. 2017, arXiv 1708.06733), and multiply the
    difference by `scale`, so that it outlives the mean (Bagdasaryan et al. 2018, arXiv 1807.00459).

    ``trigger(inputs)`` puts it on a copy of some inputs; a `share` of them is drawn anew for each task. The client's
    data is a sequence of inputs, labels, and whatever else.
    """

    trigger: Callable[[Any], Any]
    target: int = 0
    share: float = 0.5
    scale: float = 1.0

    def poisoned(self, data: Any, ctx: Context) -> Any:
        inputs, labels, *more = data
        inputs, labels = copy.deepcopy(inputs), copy.deepcopy(labels)
        places = ctx.key.derive("backdoor").draws().sample(len(labels), round(self.share * len(labels)))
        inputs[places] = self.trigger(inputs[places])
        labels[places] = self.target
        return (inputs, labels, *more)

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        return {n: self.scale * a for n, a in own.items()}


@dataclass(frozen=True)
class sign_flip(Attack):
    """Send the difference the other way round, times `scale` (Li et al. 2018, arXiv 1811.03761)."""

    scale: float = 1.0

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        return {n: -self.scale * a for n, a in own.items()}


@dataclass(frozen=True)
class scaled_update(Attack):
    """Send the difference times `scale` (Bagdasaryan et al. 2018, arXiv 1807.00459)."""

    scale: float = 10.0

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        return {n: self.scale * a for n, a in own.items()}


@dataclass(frozen=True)
class gaussian(Attack):
    """Send normal noise around zero (Blanchard et al. 2017, arXiv 1703.02757)."""

    std: float = 1.0

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        draws = ctx.key.derive("gaussian").draws()
        return {n: self.std * draws.normal(a.size).reshape(a.shape) for n, a in sorted(own.items())}


@dataclass(frozen=True)
class little_is_enough(Attack):
    """Send the mean of the attackers' differences less `z` standard deviations of each element (Baruch, Baruch &
    Goldberg 2019, arXiv 1902.06156); `largest_z` is what the paper takes.
    """

    colludes: ClassVar[bool] = True
    z: float = 1.0

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        return {n: np.mean(a, axis=0) - self.z * np.std(a, axis=0) for n, a in _stacked(everyone).items()}


def largest_z(clients: int, malicious: int) -> float:
    """The z by which the malicious of so many clients, with the honest ones beyond, are a majority that lies between
    the mean and what `little_is_enough` sends.
    """
    supporters = clients // 2 + 1 - malicious
    if not 0 < supporters < clients - malicious:
        raise SettingError(f"{malicious} malicious of {clients} clients have a majority already, or are nobody")
    return NormalDist().inv_cdf((clients - malicious - supporters) / (clients - malicious))


@dataclass(frozen=True)
class inner_product(Attack):
    """Send the mean of the attackers' differences times -`scale`, so that the inner product of the honest mean and the
    answer is negative (Xie, Koyejo & Gupta 2019, arXiv 1903.03936).
    """

    colludes: ClassVar[bool] = True
    scale: float = 0.5

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        return {n: -self.scale * np.mean(a, axis=0) for n, a in _stacked(everyone).items()}


@dataclass(frozen=True)
class min_max(Attack):
    """Go as far from the mean of the attackers' differences as leaves the largest distance to any of them no larger
    than that between two of them (Shejwalkar & Houmansadr 2021, NDSS).

    `along` is which way: against the standard deviation of each element, the mean, or its signs.
    """

    colludes: ClassVar[bool] = True
    along: Literal["std", "mean", "sign"] = "std"

    def __post_init__(self) -> None:
        if self.along not in ("std", "mean", "sign"):
            raise SettingError(f"min_max goes along 'std', 'mean' or 'sign', not {self.along!r}")

    def crafted(self, own: Difference, everyone: Sequence[Difference], ctx: Context) -> Difference:
        rows = {n: a.reshape(len(a), -1) for n, a in _stacked(everyone).items()}
        all_rows = np.concatenate(list(rows.values()), axis=1)
        middle = all_rows.mean(axis=0)
        way = -{"std": all_rows.std(axis=0), "mean": middle, "sign": np.sign(middle)}[self.along]
        most = max(float(np.sum((a - b) ** 2)) for a in all_rows for b in all_rows)
        far = (farthest(way, middle - row, most) for row in all_rows)
        sent = middle + min(far) * way if way.any() else middle
        parts = np.split(sent, np.cumsum([a.shape[1] for a in rows.values()])[:-1])
        return {n: part.reshape(own[n].shape) for n, part in zip(rows, parts, strict=True)}


def farthest(way: Array, begin: Array, most: float) -> float:
    """The largest gamma for which the square of ``|begin + gamma * way|`` is at most `most`."""
    a, b, c = float(np.sum(way**2)), float(np.sum(way * begin)), float(np.sum(begin**2)) - most
    return (-b + math.sqrt(max(b * b - a * c, 0.0))) / a if a else math.inf


def attacked(
    client: Client,
    who: Collection[ClientId],
    attack: Attack,
    sources: Mapping[ClientId, Any] | None = None,
    seed: int = 0,
) -> Client:
    """A client that does what `client` does, but for those named in `who`, whose training is an attack.

    Malicious clients evaluate and answer queries honestly. Attackers that collude need each other's `sources`; without
    these, sources are tables whose ``"index"`` is the client's, as in a simulation of a number of clients. What they
    draw in common derives from the `seed` and the round, and their handlers find no state. Raises `SettingError`.
    """
    if not isinstance(attack, Attack):
        raise SettingError(f"{attack!r:.60} is not an attack", hint="Write attacked(client, who, sign_flip()).")
    made, bad = Attacked(client), frozenset(who)
    ring = Colluders(client, sorted(bad, key=str), sources, Key.from_seed(seed).derive("attack"))

    @made.data
    def data(source: Any) -> tuple[Any, Any]:
        return source, source if client.load is None else client.load(source)

    def train(model: Any, data: Any, ctx: Context) -> Any:
        source, own = data
        if ctx.client not in bad:
            return client.handlers["train"](model, own, ctx)
        if attack.colludes:
            everyone = ring.updates(source, model, ctx)
            update = everyone[ctx.client]
        else:
            update = client.handlers["train"](model, attack.poisoned(own, ctx), ctx)
            everyone = {ctx.client: update}
        if not isinstance(update, Update):
            return update
        found = {each: differences(one, model) for each, one in everyone.items()}
        crafted = attack.crafted(found[ctx.client], list(found.values()), ctx)
        return with_difference(update, model, crafted)

    for kind, handler in client.handlers.items():
        made.handlers[kind] = train if kind == "train" else _unwrapping(handler)
    return made


class Attacked(Client):
    """A client in place of another, whose programs it starts."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.programs, self._client = client.programs, client

    def release(self) -> None:
        self._client.release()


def _unwrapping(handler: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, data, ctx: handler(model, data[1], ctx)


class Colluders:
    """Attackers who know what all of them would have sent; what that is, is computed once a round in each process."""

    def __init__(
        self, client: Client, members: Sequence[ClientId], sources: Mapping[ClientId, Any] | None, key: Key
    ) -> None:
        self._client, self._members, self._sources, self._key = client, members, sources, key
        self._data: dict[ClientId, Any] = {}
        self._last: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": {}, "_last": ()}

    def updates(self, source: Any, model: Any, ctx: Context) -> dict[ClientId, Update]:
        """The update that each attacker would have sent of this model; `source` is that of the one who asks."""
        if ctx.correction is not None:
            ctx.correction.take()  # by somebody of them, now or before
        config = encoding.encode(dict(ctx.config))
        if not (self._last and self._last[0] is model and self._last[1:3] == (ctx.round, config)):
            made = {member: self._trained(member, source, model, ctx) for member in self._members}
            self._last = (model, ctx.round, config, made)
        found: dict[ClientId, Update] = self._last[3]
        return found

    def _trained(self, member: ClientId, source: Any, model: Any, ctx: Context) -> Update:
        if member not in self._data:
            seed_generators(self._key.derive("data", member))
            where = self._source_of(member, source)
            self._data[member] = where if self._client.load is None else self._client.load(where)
        key = self._key.derive("train", ctx.round, member)
        correction = ctx.correction
        posing = Context(
            client=member,
            round=ctx.round,
            kind=ctx.kind,
            config=ctx.config,
            key=key,
            inbox=ctx.inbox,
            state={},
            correction=None if correction is None else LocalCorrection(correction.take(), correction.anchor),
            device=ctx.device,
            on_step=ctx.step,
        )
        seed_generators(key)
        update: Update = self._client.handlers["train"](model, self._data[member], posing)
        return replace(update, arrays=copy.deepcopy(dict(update.arrays)))  # a handler may use its arrays again

    def _source_of(self, member: ClientId, source: Any) -> Any:
        if self._sources is not None:
            return self._sources[member]
        if isinstance(source, Mapping) and "index" in source:
            return {**source, "index": member}
        raise AppError(
            "attackers that collude need each other's data, and their sources have no index",
            hint="Pass attacked(..., sources={client: source, ...}).",
        )


def differences(update: Update, model: Arrays) -> Difference:
    """What an update changes of a model's parameters, in float64."""
    names = [n for n in update.arrays if model.roles.get(n) == "parameter"]
    old = {n: 0.0 if update.delta else model[n].astype(np.float64) for n in names}
    return {n: np.asarray(update.arrays[n]).astype(np.float64) - old[n] for n in names}


def with_difference(update: Update, model: Arrays, difference: Difference) -> Update:
    """The update with another difference to the model."""
    new = difference if update.delta else {n: model[n].astype(np.float64) + a for n, a in difference.items()}
    types = {n: wide(model[n].dtype) if update.delta else model[n].dtype for n in new}
    with np.errstate(over="ignore"):  # what is too large is rejected by name
        return replace(update, arrays={**update.arrays, **{n: a.astype(types[n]) for n, a in new.items()}})


def _stacked(everyone: Sequence[Difference]) -> Difference:
    return {n: np.stack([each[n] for each in everyone]) for n in sorted(everyone[0])}
