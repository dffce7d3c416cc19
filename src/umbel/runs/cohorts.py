"""Who is asked: the clients that a sampler draws, as far as they are online."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .. import samplers
from ..core.ask import Ask
from ..core.randomness import Key
from ..core.record import Record
from ..core.sampler import is_adaptive
from ..errors import ClientId, SamplingError, UmbelError
from ..samplers.shorthand import as_sampler

OURS = tuple(found for name in samplers.__all__ if isinstance(found := getattr(samplers, name), type))

REDRAWS = 30
"""How often a cohort is drawn again for those in it who are not online."""


def draw(
    sampler: Any,
    clients: Sequence[ClientId],
    online: Callable[[ClientId], bool],
    key: Key,
    record: Record | None = None,
) -> tuple[tuple[ClientId, ...], int, bool]:
    """The clients to ask, how many the sampler drew, and whether all that it drew first are online. In place of those
    who are not, and cannot be asked, others are drawn, as far as the sampler finds any. An adaptive one goes by
    `record`. Raises `SamplingError`.
    """
    cohort = drawn_by(sampler, clients, key, record)
    wanted, found = len(cohort), dict.fromkeys(filter(online, cohort))
    there = len(found) == wanted
    for again in range(REDRAWS):
        if len(found) == wanted:
            break
        drawn = drawn_by(sampler, clients, key.derive("again", again), record)
        others = (client for client in drawn if client not in found and online(client))
        found.update(dict.fromkeys(islice(others, wanted - len(found))))
    return tuple(found), wanted, there


def sampling(ask: Ask, drawn: int, there: bool, federation: int) -> dict[str, Any]:
    """How the clients of an ask were sampled, for who accounts for privacy: `kind` is ``"poisson"`` with its `rate`,
    ``"fixed"`` (`count` clients `of` so many), ``"everyone"``, or ``"unknown"``, and `why`.
    """
    sampler: Any = as_sampler(ask.clients)
    if not there:
        return {"kind": "unknown", "why": "clients that the sampler drew were not online, and others took their place"}
    if not ask.window.takes_all:
        return {"kind": "unknown", "why": f"who comes in time is in it: {ask.window}"}
    if isinstance(sampler, samplers.Poisson):
        return {"kind": "poisson", "rate": sampler.rate}
    if isinstance(sampler, samplers.Everyone):
        return {"kind": "everyone"}
    if isinstance(sampler, samplers.Uniform | samplers.Fraction):
        return {"kind": "fixed", "count": drawn, "of": federation}
    if isinstance(sampler, samplers.Spaced):
        return {"kind": "unknown", "why": f"clients that were asked wait {sampler.gap} rounds"}
    return {"kind": "unknown", "why": f"the sampler {type(sampler).__name__} goes by something else than chance alone"}


def drawn_by(sampler: Any, clients: Sequence[ClientId], key: Key, record: Record | None = None) -> tuple[ClientId, ...]:
    """The clients that a sampler draws, online or not; without a record nothing was seen yet. Raises `SamplingError`,
    whatever it does.
    """
    drawing: Any = as_sampler(sampler)
    name = f"the sampler {type(drawing).__name__}"
    try:
        if is_adaptive(drawing):
            drawn: Any = drawing.choose(clients, Record() if record is None else record, key)
        else:
            drawn = drawing.draw(clients, key)
        listed = drawn.tolist() if hasattr(drawn, "tolist") else drawn
        cohort = tuple(listed) if isinstance(listed, Iterable) and not isinstance(listed, str) else None
    except UmbelError:
        raise
    except Exception as error:
        raise SamplingError(f"{name} raised {type(error).__name__}: {error}") from error
    if cohort is None:
        raise SamplingError(f"{name} drew {drawn!r:.60}, not clients", hint="Return a tuple of clients.")
    if type(drawing) not in OURS:  # these draw from the clients that there are, which may be millions
        cohort = tuple(_client(client, name) for client in cohort)
        _check_known(cohort, clients, name)
    if len(set(cohort)) < len(cohort):
        raise SamplingError("the cohort has a client twice", hint="A sampler draws every client at most once.")
    return cohort


def _client(drawn: Any, name: str) -> ClientId:
    """A client as the run names it, of whatever kind of number it is."""
    if isinstance(drawn, str):
        return str(drawn)
    if isinstance(drawn, int | np.integer) and not isinstance(drawn, bool):
        return int(drawn)
    raise SamplingError(
        f"{name} drew {drawn!r:.60}, which is no client", hint="Draw from the `clients` that are given."
    )


def _check_known(cohort: Sequence[ClientId], clients: Sequence[ClientId], name: str) -> None:
    if isinstance(clients, range):  # a range looks at each of its numbers to find text
        unknown = [client for client in cohort if isinstance(client, str) or client not in clients]
    else:
        known = frozenset(clients)
        unknown = [client for client in cohort if client not in known]
    if unknown:
        shown = ", ".join(repr(client) for client in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise SamplingError(
            f"{name} drew clients that are not among the {len(clients)} in the federation: {shown}",
            hint="Draw from the `clients` that are given.",
        )
