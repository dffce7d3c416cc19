"""DP-FTRL: noise that is correlated over rounds, so that much of a round's is taken back in later ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer, Receipts, packed_ids, unpacked_ids
from ..core.arrays import Schema
from ..core.randomness import Key
from ..core.settings import whole
from ..core.transform import register_transform
from ..entropy import SYSTEM, Entropy
from ..errors import StrategyError
from .clipped import Clipped, grid
from .discrete import Integers, discrete_gaussian
from .matrices import BandedToeplitz, Factorisation, banded, tree


@register_transform
@dataclass(frozen=True)
class dp_ftrl(Clipped):
    """Hide every client behind noise that is correlated over rounds, with no need of sampling (Kairouz et al. 2021,
    arXiv 2103.00039; Choquette-Choo et al. 2023, arXiv 2306.08153).

    Holders do as with `central_gaussian`. What the model has learned by a round is the sum of all rounds so far, and
    its noise is far less than that of as many independent releases: it is B z, z being discrete Gaussian and B C the
    running sum (`matrices`). C is banded, with so many `bands` (the server keeps as many arrays as the model has, less
    one), or without them a binary tree. All `rounds` together are one Gaussian release: z has the standard deviation
    `noise` times how far one client can move C x, x being the rounds' sums of clipped differences. That is known for a
    client that is asked in any two rounds at least `separation` apart, so in ceil(rounds / separation) at most; so
    the sampler has to be one that waits so long (`Spaced`), and an answer to which a client came too soon again is an
    error before anything is told of it. Costs the same however many of the rounds are done. Neighbours are federations
    where one client sends zeros: that another was asked for it would be a difference over many rounds.

    The noise's stream is the state, which the run keeps and sends to nobody: with the models it tells the sums.
    Settings do not change on the way. A server optimiser only processes what is told, momentum too.
    """

    name: ClassVar[str] = "dp_ftrl"
    rounds: int
    separation: int = 1
    bands: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, rounds=1, separation=1)
        if self.bands is not None:
            whole(self, bands=1)

    @property
    def most_answers(self) -> int:
        return self.rounds

    @property
    def apart(self) -> int:
        return min(self.separation, self.rounds)

    def init(self, schema: Schema | None) -> dict[str, Any]:
        made = _factorisation(self.rounds, self.bands)
        self._variance(made)  # raises where there is too much of it
        state = {**super().init(schema), "as": self._settings, "noise": made.stream().state, "recent": []}
        return self.named(state, SYSTEM)

    def named(self, state: Any, own: Entropy) -> dict[str, Any]:
        """With an id of its stream, for accounts: which releases are of one."""
        return {**state, "id": f"{int(own.words(1)[0]):016x}"}

    def send(self, state: Any) -> Any:
        """Raises `StrategyError` before anybody is asked in vain."""
        if state["noise"]["round"] >= self.rounds:
            raise StrategyError(
                f"the noise of {self.name} was made for {self.rounds} rounds, which are over",
                hint="Set its rounds to all that there will be, in a new run; the last model is kept.",
            )
        if state["as"] != self._settings:
            raise StrategyError(
                f"{self.name} was begun with {state['as']}, and is now set to {self._settings}",
                hint="Its settings hold for all rounds: go on with the first ones, or begin a new run.",
            )
        return {**super().send(state), "stream": state["id"]}

    def finish(self, answer: Answer, state: Any, key: Key, own: Entropy = SYSTEM) -> tuple[Answer, Any]:
        recent = self._recent(answer, state)
        made = _kept(state)
        sizes = [math.prod(shape) for shape, _ in state["looks"].values()]
        stream = made.stream(state["noise"])
        noise, at = stream.next(discrete_gaussian(self._variance(made), sum(sizes), own)), 0

        def draw(size: int) -> Integers:
            nonlocal at
            at += size
            return np.array(noise[at - size : at], np.int64)

        return self._released(answer, state, draw), {**state, "noise": stream.state, "recent": recent}

    def event(self, answer: Answer, state: Any) -> dict[str, Any]:
        return self._release(_kept(state), state["id"])

    def promises(self, params: Any) -> dict[str, Any]:
        release = self._release(_factorisation(self.rounds, self.bands), params["stream"])
        return {**release, "answers": -(-self.rounds // self.apart)}

    def _release(self, made: Factorisation, stream: str) -> dict[str, Any]:
        return {
            "mechanism": "discrete_gaussian",
            "unit": "client",
            "neighbours": "zero out one",
            "noise": self.noise,
            "norm": self.norm,
            "steps": math.sqrt(self._variance(made)),
            "denominator": self.expected,
            "stream": stream,
        }

    @property
    def _settings(self) -> dict[str, Any]:
        """What the account of the stream rests on."""
        return {name: getattr(self, name) for name in ("norm", "noise", "rounds", "separation", "bands")}

    def _recent(self, answer: Answer, state: Any) -> list[Any]:
        """Who came in the rounds in which nobody of this one may be, and then this one's. Raises `StrategyError`."""
        came = Receipts.of(answer.receipts).clients
        for before in state["recent"]:
            if twice := {*came} & {*unpacked_ids(before)}:
                raise StrategyError(
                    f"{self.name} counts on it that clients come again {self.apart} rounds later at the earliest, and "
                    f"{min(map(str, twice))!r:.60} came sooner: nothing was told of this round",
                    hint="Draw clients by umbel.samplers.Spaced, and ask in no other way in the same lane.",
                )
        return [*state["recent"], packed_ids(came)][-(self.apart - 1) :] if self.apart > 1 else []

    def _variance(self, made: Factorisation) -> int:
        """That of z, in steps of the grid squared: a whole number, not below what it has to be."""
        # A float's square root is the nearest one, so that the next float is not below the true sensitivity.
        moved = Fraction(math.nextafter(_sensitivity(made, self.apart), math.inf)) * Fraction(self.norm)
        variance = math.ceil((Fraction(self.noise) * moved / Fraction(grid(self.norm))) ** 2)
        if variance > 1 << 100:
            raise StrategyError(f"{self.name} with a noise of {self.noise:g} needs more than whole numbers of 64 bits")
        return variance


@lru_cache(maxsize=16)
def _factorisation(rounds: int, bands: int | None) -> Factorisation:
    return tree(rounds) if bands is None else banded(rounds, min(bands, rounds))


def _kept(state: Mapping[str, Any]) -> Factorisation:
    """The factorisation that a stream began with: found again elsewhere, its last digits might differ."""
    of = state["noise"]["of"]
    if "coefficients" not in of:
        return _factorisation(of["rounds"], None)
    return BandedToeplitz((1.0,) * of["rounds"], tuple(of["coefficients"]))


@lru_cache(maxsize=16)
def _sensitivity(made: Factorisation, separation: int) -> float:
    return made.sensitivity(made.rounds, separation)
