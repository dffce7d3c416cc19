"""Who is asked: the clients that a sampler draws, as far as they are online."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.randomness import Key
from ..errors import ClientId, SamplingError
from ..samplers.shorthand import as_sampler

REDRAWS = 30
"""How often a cohort is drawn again for those in it who are not online."""


def draw(
    sampler: Any, clients: Sequence[ClientId], online: Callable[[ClientId], bool], key: Key
) -> tuple[tuple[ClientId, ...], int]:
    """The clients to ask, and how many the sampler drew. In place of those who are not online, and cannot be asked,
    others are drawn, as far as the sampler finds any. Raises `SamplingError`.
    """
    cohort = _drawn(sampler, clients, key)
    if all(map(online, cohort)):
        return cohort, len(cohort)
    wanted, found = len(cohort), dict.fromkeys(filter(online, cohort))
    for again in range(REDRAWS):
        if len(found) >= wanted:
            break
        found.update(dict.fromkeys(filter(online, _drawn(sampler, clients, key.derive("again", again)))))
    return tuple(found)[:wanted], wanted


def _drawn(sampler: Any, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
    drawn = as_sampler(sampler).draw(clients, key)
    cohort = tuple(drawn) if not hasattr(drawn, "tolist") else tuple(drawn.tolist())
    if len(set(cohort)) < len(cohort):
        raise SamplingError("the cohort has a client twice", hint="A sampler draws every client at most once.")
    return cohort
