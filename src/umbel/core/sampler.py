"""Samplers: which clients of a federation are asked in a round.

A sampler is a frozen description. `draw(clients, key)` takes the federation's clients as a sequence, which may be
`range(15_000_000)`, and a key that serves this one draw. Equal clients in equal order, an equal sampler and an equal
key give an equal cohort, in an equal order, which each sampler states; no client is in it twice. Only `Everyone` and
`Weighted` go through all clients, and `Fixed` where they are not a range; the others take time and memory for the
cohort alone.

An adaptive sampler has `choose(clients, record, key)` in place of `draw`: it goes by what the run has seen of clients
(see `record.Record`), which is kept for it alone. It takes time for those that were ever asked besides, and for all
clients where they are not a range, or where it says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ..errors import ClientId, SamplingError, SettingError
from .randomness import Draws, Floats, Indices, Key
from .record import Record
from .update import LARGEST

LOOKED_AT = 31
"""So many times as many clients as a cohort has are looked at, at most, to find some that are online."""


@runtime_checkable
class Sampler(Protocol):
    """Decides who is asked."""

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """The cohort of one round; raises `SamplingError` where the federation cannot fill it."""

    def spec(self) -> dict[str, Any]:
        """A plain description that JSON can hold: equal for equal samplers, and part of what a run records."""


@runtime_checkable
class Adaptive(Protocol):
    """Decides who is asked by what was seen of clients before."""

    def choose(self, clients: Sequence[ClientId], record: Record, key: Key) -> tuple[ClientId, ...]:
        """The cohort of one ask; those in it that are not online are left out, and chosen anew with another key.

        Equal clients, records and keys give equal cohorts, whatever the order of the record's rows. Raises
        `SamplingError` where the federation cannot fill it.
        """

    def spec(self) -> dict[str, Any]:
        """A plain description that JSON can hold: equal for equal samplers, and part of what a run records."""


@runtime_checkable
class Spacing(Adaptive, Protocol):
    """A sampler that asks no client again before `gap` asks of the lane later. It goes by when clients were asked, and
    by nothing that they told.
    """

    @property
    def gap(self) -> int:
        """How many asks later, at least."""


def is_adaptive(sampler: object) -> bool:
    """Whether a sampler, or what stands for one, goes by a record: `isinstance`, but fast."""
    return hasattr(sampler, "choose") and hasattr(sampler, "spec")


@runtime_checkable
class Unbiased(Adaptive, Protocol):
    """A sampler that knows the odds at which it asks clients: with weights divided by them means have no bias."""

    def odds(self, clients: Sequence[ClientId], record: Record, cohort: Sequence[ClientId]) -> Floats:
        """For each client of a cohort the probability with which it is in one; that it is online is taken for granted.
        The record is the one that the cohort was chosen by.
        """


def draw_uniform(clients: Sequence[ClientId], count: int, key: Key, who: str) -> tuple[ClientId, ...]:
    """`count` different clients in the order in which they were drawn; `who` asks for them."""
    if count > len(clients):
        raise _too_few(who, count, len(clients))
    return at_indices(clients, key.draws().sample(len(clients), count))


def check_enough(sampler: object, count: int, clients: Sequence[ClientId]) -> None:
    """Raise `SamplingError` where a federation has fewer clients than a sampler asks for."""
    if count > len(clients):
        raise _too_few(f"{type(sampler).__name__}(cohort={count})", count, len(clients))


def _too_few(who: str, count: int, there: int) -> SamplingError:
    return SamplingError(
        f"{who} asks for {clients_text(count)}, but the federation has {there}",
        hint='Ask for fewer, for all of them ("all"), or wait until more clients have joined.',
    )


def others(clients: Sequence[ClientId], places: Indices, count: int, draws: Draws) -> Iterator[ClientId]:
    """Clients that are not at these ascending places, each order of them equally likely; so many are wanted, of those
    that are online. Of very many `LOOKED_AT` times that many are given at most, in time for these and the places.
    """
    left = len(clients) - len(places)
    if 2 * count > left or 8 * len(places) > 7 * len(clients):
        free = np.ones(len(clients), np.bool_)
        free[places] = False
        yield from at_indices(clients, np.flatnonzero(free)[draws.permutation(left)])
        return
    seen = {*places.tolist()}
    most = min(len(clients), len(seen) + LOOKED_AT * count)
    while len(seen) < most:
        for place in draws.integers(len(clients), count).tolist():
            if place not in seen and len(seen) < most:
                seen.add(place)
                yield clients[place]


def ranked(
    clients: Sequence[ClientId], places: Indices, scores: Floats, score: float, count: int, key: Key
) -> Iterator[ClientId]:
    """Clients by their scores, the highest first, and in random order where they are equal: those at these ascending
    places, and the others, each of which has one `score`. So many are wanted, of those that are online.
    """
    apart = scores != score
    order = np.lexsort((key.derive("ties").draws().words(len(places)), -scores))
    order = order[apart[order]]
    above = scores[order] > score
    yield from at_indices(clients, places[order[above]])
    yield from others(clients, places[apart], count, key.draws())
    yield from at_indices(clients, places[order[~above]])


def online_first(ranked: Iterable[ClientId], count: int, record: Record) -> tuple[ClientId, ...]:
    """The first `count` different clients that are online, in their order; where there are too few, those before them
    that are not.
    """
    found: dict[ClientId, None] = {}
    away: dict[ClientId, None] = {}
    for client in ranked:
        if len(found) == count:
            break
        (found if record.online(client) else away)[client] = None
    return (*found, *list(away)[: count - len(found)])


def capped(values: Floats, counts: Floats, total: float) -> Floats:
    """Odds in proportion to values, but at most 1, that sum to `total`, where there are so many of each value as
    `counts` says, and not fewer than `total` in all. Where values of 0 would be needed all of them are equal.
    """
    odds, full = np.ones(len(values)), np.zeros(len(values), np.bool_)
    while not full.all():
        left = total - float(counts[full].sum())
        among, values_left = counts[~full], values[~full]
        whole = float((values_left * among).sum())
        share = left * values_left / whole if whole > 0 else np.full(len(among), left / max(float(among.sum()), 1.0))
        odds[~full] = np.clip(share, 0.0, 1.0)
        if not (share >= 1.0).any():
            break
        full[~full] = share >= 1.0
    return odds


def products(weights: Floats, values: Floats) -> Floats:
    """Weights times what clients told, no larger than that many of them can be added up."""
    with np.errstate(over="ignore"):
        return np.clip(weights * values, -LARGEST, LARGEST)


def quantile(values: Floats, share: float) -> float:
    """That of the values which is so far up among them."""
    ordered = np.sort(values)
    return float(ordered[min(int(len(ordered) * share), len(ordered) - 1)])


def places_of(clients: Sequence[ClientId], named: Iterable[ClientId]) -> dict[ClientId, int]:
    """Where clients stand, of those that are named and are there."""
    if isinstance(clients, range):  # a range looks at each of its numbers to find text
        return {client: clients.index(client) for client in named if isinstance(client, int) and client in clients}
    places = {client: place for place, client in enumerate(clients)}
    return {client: places[client] for client in named if client in places}


def spec_of(sampler: Any) -> dict[str, Any]:
    """A sampler's settings as a plain dict, under its name in small letters."""
    values = {each.name: getattr(sampler, each.name) for each in fields(sampler)}
    return {
        "name": type(sampler).__name__.lower(),
        **{n: v.spec() if hasattr(v, "spec") else v for n, v in values.items()},
    }


def at_indices(clients: Sequence[ClientId], indices: Indices) -> tuple[ClientId, ...]:
    """The clients that stand at these places."""
    return tuple(map(clients.__getitem__, indices.tolist()))


def clients_text(count: int) -> str:
    """A number of clients, in words."""
    return "1 client" if count == 1 else f"{count} clients"


def set_frozen(sampler: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass that is being built."""
    object.__setattr__(sampler, name, value)


def whole_number(sampler: str, setting: str, value: object) -> int:
    """A sampler's setting as a number from 1 on. Raises `SettingError`."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise SettingError(f"{sampler}: {setting} must be a whole number of at least 1, not {value!r}")


def share(sampler: str, setting: str, value: object) -> float:
    """A sampler's setting as a share above 0. Raises `SettingError`."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if number and 0.0 < float(cast(float, value)) <= 1.0:
        return float(cast(float, value))
    raise SettingError(
        f"{sampler}: {setting} must be above 0 and at most 1, not {value!r}",
        hint="For a number of clients write a whole number without a point, such as 10.",
    )


def amount(sampler: str, setting: str, value: object, least: float = 0.0, most: float = math.inf) -> float:
    """A sampler's setting as a finite number from `least` to `most`. Raises `SettingError`."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if number and math.isfinite(cast(float, value)) and least <= cast(float, value) <= most:
        return float(cast(float, value))
    upto = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
    raise SettingError(f"{sampler}: {setting} must be a number {upto}, not {value!r}")


def metric_name(sampler: str, setting: str, value: object) -> str:
    """A sampler's setting as the name of a metric. Raises `SettingError`."""
    if isinstance(value, str) and value:
        return value
    raise SettingError(f"{sampler}: {setting} must be the name of a metric, not {value!r}")


def client_name(sampler: str, name: object) -> ClientId:
    """What a sampler was given as a client. Raises `SettingError`."""
    if isinstance(name, str):
        return str(name)
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return int(name)
    raise SettingError(f"{sampler}: clients are named by whole numbers or text, not by {name!r}")
