"""Whom each client of a secure sum shares masks and secrets with: the sparse graph of SecAgg+ (Bell, Bonawitz, Gascón,
Lepoint & Raykova 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", IACR 2020/704).

The clients stand in a ring, in a random order, and the neighbours of each are the `degree` nearest ones, half of them
on either side: a Harary graph. Each client shares its secrets among its neighbours, of whom `threshold` recover one.
Corrupted clients tell the server all that they know; who they are does not depend on the order. The sum hides what it
should, and comes about, in a graph that is good (the paper's definition), which means three things:

1. No honest client has `threshold` corrupted neighbours, who alone could recover its secrets.
2. The honest clients that stay are connected: else the sum over each part could be told, as masks cancel within it.
   To fall apart, the ring must lose two runs of degree / 2 neighbours each, with somebody left on both sides between
   them, since whoever is left has an edge across any shorter gap. There are n (n - degree - 1) / 2 places for them.
3. Every client has `threshold` neighbours that stay, who recover its secrets.

The probability of each is bounded by the union over clients, or places, of exact hypergeometric tails.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError

_MARGIN = 1 - 1e-9  # for rounding, which moves probabilities by 3e-12 of themselves for hundreds of neighbours
_LABEL = b"umbel neighbours 1"


def neighbourhood(
    clients: int,
    corrupt: float,
    dropped: float,
    *,
    security: int = 40,
    correctness: int = 20,
    malicious: bool = False,
) -> tuple[int, int]:
    """The least degree for so many clients, and the largest threshold with it: (degree, threshold).

    The larger a threshold, the more clients have to conspire; the least one would let more drop out than was stated.

    At most the shares `corrupt` and `dropped` of the clients in the graph, rounded down, are corrupted and drop out in
    any phase. Except with a probability of 2^-`security` (1 to 256) the sum hides what it should, and except with one
    of 2^-`correctness` (likewise) it comes about. The degree is even, or that of the complete graph, clients - 1.

    By default the server is honest but curious, and who drops out does not depend on the order; then 1 and 2 above hold
    with the one probability, and 3 with the other. With `malicious` the server may lie, and once it knows the graph
    name whomever it likes as dropped out. Then 1 is that no honest client's two secrets can both be recovered, even if
    its neighbours are told different things and each gives away one of them: 2 threshold > degree + its corrupted
    neighbours. And 2 holds whichever clients the server names, up to that share. Therefore the degree is above their
    number: the paper has another graph for such a server, of fewer neighbours, with which a sum may be over a part of
    the clients. Taken for granted is that honest clients give shares for one list of survivors alone, the same for all
    of them, of at least clients - dropped (as the consistency check of Bonawitz et al. 2017 sees to), and that the seed
    of `graph` is nobody's choice: whoever can try 2^g of them takes g bits from the security. Corrupted clients that do
    not answer are among those that drop out.

    For the complete graph this says threshold > corrupted clients, or 2 threshold > clients - 1 + corrupted clients
    with `malicious`, and threshold <= clients - 1 - dropped ones: as in Bonawitz et al. 2017, where a client also holds
    a share of its own. `SettingError` where not even that is possible, and for settings out of their range.
    """
    risks = _risks(clients, corrupt, dropped, security, correctness, malicious)
    complete = risks.thresholds(clients - 1, risks.insecure)
    if len(complete) == 0:
        raise SettingError(
            f"no threshold suits {clients} clients of which {risks.corrupted} are corrupted and {risks.dropped} drop "
            f"out: even if all are neighbours it would have to be from {complete.start} to {complete.stop - 1}",
            hint="Ask more clients, or state smaller shares `corrupt` and `dropped`"
            + (", or trust the server to follow the protocol." if malicious else "."),
        )
    top = 2  # the larger a degree, the less likely does the graph fall apart
    while top < clients - 1 and risks.apart(top) > risks.insecure:
        top *= 2
    degree = 2 + 2 * bisect_left(
        range(2, min(top, clients - 1), 2), True, key=lambda each: risks.apart(each) <= risks.insecure
    )
    while degree < clients - 1:
        if possible := risks.thresholds(degree, risks.insecure - risks.apart(degree)):
            return degree, possible.stop - 1
        # One more neighbour is at most one more that is corrupted, and at most one more that drops out. So either end
        # of the range moves by 0 or 1, and it takes as many more neighbours as ends are too far apart, or more.
        most = risks.thresholds(degree, risks.insecure)
        missing = most.start - most.stop + 1
        degree += max(2, missing + missing % 2)
    return clients - 1, complete.stop - 1


def graph(clients: int, degree: int, seed: bytes) -> list[tuple[int, ...]]:
    """Each client's neighbours, ascending, for the clients 0, 1, .. in order.

    The same in every language: clients stand in the ring in the order of SHA-256("umbel neighbours 1" | seed | index),
    compared as bytes, where the seed has 32 bytes and an index has 8, big-endian. A client's neighbours are the
    degree / 2 before it and the degree / 2 behind it; all others, if the degree is clients - 1. `SettingError` for
    another degree that is odd, below 2 or above that, and for a seed of another length.
    """
    if not 2 <= degree <= clients - 1 or (degree % 2 and degree != clients - 1):
        raise SettingError(
            f"{clients} clients cannot have {degree} neighbours each",
            hint="The degree is even and at least 2, or the number of clients less 1.",
        )
    if len(seed) != 32:
        raise SettingError(f"the seed of a graph has 32 bytes, not {len(seed)}")
    keys = [sha256(_LABEL + seed + each.to_bytes(8, "big")).digest() for each in range(clients)]
    ring = np.array(sorted(range(clients), key=keys.__getitem__))
    half = np.arange(1, degree // 2 + 1)
    steps = np.arange(1, clients) if degree == clients - 1 else np.concatenate([half, -half])
    found = np.empty((clients, degree), np.int64)
    found[ring] = np.sort(ring[(np.arange(clients)[:, None] + steps) % clients], 1)
    return [tuple(row) for row in found.tolist()]


class _Risks(NamedTuple):
    """What may go wrong, and how often."""

    clients: int
    corrupted: int
    dropped: int
    insecure: float
    incorrect: float
    malicious: bool

    def apart(self, degree: int) -> float:
        """A bound of the probability that the honest clients that stay are not connected."""
        runs = self.clients * (self.clients - degree - 1) / 2
        if self.malicious:  # the server names those in both runs that are not corrupted
            return runs * _Tail.of(self.clients, self.corrupted, degree).at(degree - self.dropped)
        return runs * _Tail.of(self.clients, self.corrupted + self.dropped, degree).at(degree)

    def thresholds(self, degree: int, insecure: float) -> range:
        """Which ones suit this degree, where secrets may be recovered by corrupted clients so often."""
        corrupted = _Tail.of(self.clients - 1, self.corrupted, degree).least(insecure / self.clients)
        dropped = _Tail.of(self.clients - 1, self.dropped, degree).least(self.incorrect / self.clients)
        least = (degree + corrupted + 1) // 2 if self.malicious else corrupted
        return range(max(least, 2), degree - dropped + 2)


class _Tail(NamedTuple):
    """The probabilities of at least `first`, `first` + 1, .. marked ones among some that are drawn: of `first` it is 1,
    of more than the array has it is 0.
    """

    first: int
    odds: NDArray[np.float64]

    @classmethod
    def of(cls, all: int, marked: int, drawn: int) -> _Tail:
        first, last = max(0, drawn + marked - all), min(marked, drawn)
        x = np.arange(first, last, dtype=np.float64)
        ratios = (marked - x) / (x + 1) * ((drawn - x) / (all - marked - drawn + x + 1))
        logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
        with np.errstate(under="ignore"):
            odds = np.cumsum(np.exp(logs - logs.max())[::-1])[::-1]
            return cls(first, odds / odds[0])

    def at(self, count: int) -> float:
        """The probability of at least so many."""
        at = max(0, count - self.first)
        return float(self.odds[at]) if at < len(self.odds) else 0.0

    def least(self, odds: float) -> int:
        """The least number of which there are that many with at most this probability."""
        return self.first + int(np.count_nonzero(self.odds > odds))


def _risks(clients: int, corrupt: float, dropped: float, security: int, correctness: int, malicious: bool) -> _Risks:
    if type(clients) is not int or clients < 3:
        raise SettingError(f"a secure sum takes at least 3 clients, not {clients!r:.60}")
    for name, bits in (("security", security), ("correctness", correctness)):
        if type(bits) is not int or not 1 <= bits <= 256:
            raise SettingError(f"{name} is a whole number of bits from 1 to 256, not {bits!r:.60}")
    for name, share in (("corrupt", corrupt), ("dropped", dropped)):
        if not 0 <= share < 1:
            raise SettingError(f"{name} is a share of the clients from 0 to below 1, not {share!r:.60}")
    corrupted, gone = (math.floor(each * clients * (1 + 1e-12)) for each in (corrupt, dropped))  # 0.29 of 100 is 29
    return _Risks(clients, corrupted, gone, _MARGIN * 2.0**-security, _MARGIN * 2.0**-correctness, malicious)
