"""Clients by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.randomness import Key
from ..core.sampler import at_indices, client_name, clients_text, set_frozen, whole_number
from ..errors import ClientId, SamplingError, SettingError


@dataclass(frozen=True, eq=False)
class Weighted:
    """`cohort` different clients, drawn one after the other with odds proportional to the weights that are left.

    `weights` maps clients to weights, or is a sequence of one weight for each client in the federation's order. They
    are copied, and need not sum to one; a client of weight zero is never asked. A mapping may name clients that are
    absent, but a client that it does not name is a `SamplingError`.
    """

    cohort: int
    weights: Mapping[ClientId, float] | Sequence[float] | npt.NDArray[Any] = field(repr=False)

    def __post_init__(self) -> None:
        set_frozen(self, "cohort", whole_number("Weighted", "cohort", self.cohort))
        if isinstance(self.weights, Mapping):
            names = [client_name("Weighted", name) for name in self.weights]
            values = _weights(list(self.weights.values()), names)
            set_frozen(self, "weights", dict(zip(names, values.tolist(), strict=True)))
        else:
            set_frozen(self, "weights", _weights(self.weights, None))

    def draw(self, clients: Sequence[ClientId], key: Key) -> tuple[ClientId, ...]:
        """`cohort` clients in the order in which they were drawn (Efraimidis & Spirakis 2006)."""
        weights = self._of(clients)
        usable = int(np.count_nonzero(weights))
        if self.cohort > usable:
            raise SamplingError(
                f"Weighted(cohort={self.cohort}) asks for {clients_text(self.cohort)}, but of the {len(clients)} in "
                f"the federation {usable} have a weight above zero",
                hint="Ask for fewer clients, or give more of them a weight.",
            )
        return at_indices(clients, key.draws().weighted(weights, self.cohort))

    def spec(self) -> dict[str, Any]:
        """The sampler as a plain dict, with the number of weights and their SHA-256 in place of the weights."""
        return {"name": "weighted", "cohort": self.cohort, "weights": self._digest}

    def _of(self, clients: Sequence[ClientId]) -> npt.NDArray[np.float64]:
        if not isinstance(self.weights, Mapping):
            if len(self.weights) != len(clients):
                raise SamplingError(
                    f"Weighted has {len(self.weights)} weights, but the federation has {clients_text(len(clients))}",
                    hint="Give one weight for each client, or a mapping from clients to weights.",
                )
            return np.asarray(self.weights)
        try:
            return np.array([self.weights[client] for client in clients], dtype=np.float64)
        except KeyError as error:
            raise SamplingError(
                f"Weighted has no weight for client {error.args[0]!r}",
                hint="Give each client of the federation a weight; 0 means never asked.",
            ) from None

    @cached_property
    def _digest(self) -> dict[str, Any]:
        if isinstance(self.weights, Mapping):
            named = sorted((isinstance(c, str), str(c), float(w).hex()) for c, w in self.weights.items())
            data = json.dumps(named).encode()
        else:
            data = np.asarray(self.weights, "<f8").tobytes()
        kind = "mapping" if isinstance(self.weights, Mapping) else "sequence"
        return {"kind": kind, "count": len(self.weights), "sha256": hashlib.sha256(data).hexdigest()}

    def __eq__(self, other: object) -> bool:
        return self.spec() == other.spec() if isinstance(other, Weighted) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.cohort, self._digest["sha256"]))


def _weights(given: object, names: list[ClientId] | None) -> npt.NDArray[np.float64]:
    """A read-only copy of the weights, checked; `names` are the clients of a mapping."""
    try:
        weights = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(f"Weighted takes one number for each client as weights: {error}") from error
    if weights.ndim != 1:
        raise SettingError(f"Weighted takes one number for each client as weights, not shape {weights.shape}")
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        place = int(wrong[0])
        where = f"at position {place}" if names is None else f"of client {names[place]!r}"
        raise SettingError(
            f"Weighted: the weight {where} is {weights[place]}; {wrong.size} of {weights.size} weights cannot be used",
            hint="Weights are finite and not negative; 0 means never asked.",
        )
    weights += 0.0  # turns -0.0 into 0.0, so that equal weights have equal bytes
    weights.flags.writeable = False
    return weights
