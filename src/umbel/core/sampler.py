"""Samplers: which clients of a federation are asked in a round.

A sampler is a frozen description. `draw(clients, key)` takes the federation's clients as a sequence, which may be
`range(15_000_000)`, and a key that serves this one draw. Equal clients in equal order, an equal sampler and an equal
key give an equal cohort, in an equal order, which each sampler states; no client is in it twice. Only `Everyone` and
`Weighted` go through all clients, and `Fixed` where they are not a range; the others take time and memory for the
cohort alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ..errors import ClientId, SamplingError, SettingError
from .randomness import Indices, Key


@runtime_checkable
class Sampler(Protocol):
    """Decides who is asked."""

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """The cohort of one round; raises `SamplingError` where the federation cannot fill it."""

    def spec(self) -> dict[str, Any]:
        """A plain description that JSON can hold: equal for equal samplers, and part of what a run records."""


def draw_uniform(clients: Sequence[ClientId], count: int, key: Key, who: str) -> tuple[ClientId, ...]:
    """`count` different clients in the order in which they were drawn; `who` asks for them."""
    if count > len(clients):
        raise SamplingError(
            f"{who} asks for {clients_text(count)}, but the federation has {len(clients)}",
            hint='Ask for fewer, for all of them ("all"), or wait until more clients have joined.',
        )
    return at_indices(clients, key.draws().sample(len(clients), count))


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


def client_name(sampler: str, name: object) -> ClientId:
    """What a sampler was given as a client. Raises `SettingError`."""
    if isinstance(name, str):
        return str(name)
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return int(name)
    raise SettingError(f"{sampler}: clients are named by whole numbers or text, not by {name!r}")
