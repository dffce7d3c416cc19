"""The server's side of secure aggregation: the masks that did not cancel are taken off a sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.arrays import Array
from ..errors import ClientId, UpdateRejected
from . import shamir
from .masks import KEY_BYTES, add_masks
from .secure_sum import KeyPair, own_mask, pairwise

_ANY = bytes(31) + b"\1"


def sound(keys: Mapping[ClientId, Array]) -> dict[ClientId, Array]:
    """The public keys with which something secret can be agreed, and that nobody else has told: with others a client
    would make its neighbours refuse, and not itself.
    """
    halves = Counter(half.tobytes() for each in keys.values() for half in each.reshape(2, -1))
    pair, found = KeyPair(_ANY), dict[ClientId, Array]()
    for client, both in keys.items():
        mine = [half.tobytes() for half in both.reshape(2, -1)]
        try:
            agreed = [pair.agreed(each) for each in mine]
        except UpdateRejected:
            continue
        if agreed and max(halves[each] for each in mine) == 1:
            found[client] = both
    return found


@dataclass(slots=True)
class SumSession:
    """What a server knows of one session of `secure_sum`: the clients' points, neighbours and public keys, who has
    shared its secrets, and who is in the sum.
    """

    name: str
    threshold: int
    points: Mapping[ClientId, int]
    neighbours: Mapping[ClientId, Sequence[ClientId]]
    keys: Mapping[ClientId, Array]
    shares: dict[ClientId, Mapping[ClientId, Array]] = field(default_factory=dict)
    summed: frozenset[ClientId] = frozenset()

    def asked(self, client: ClientId) -> dict[str, Array]:
        """What a client gets when it is to share its secrets."""
        peers = self.neighbours[client]
        keys = np.stack([self.keys[peer] for peer in peers])
        return {"point": np.array(self.points[client]), "points": self._points(peers), "keys": keys}

    def take_shares(self, told: Mapping[ClientId, Array]) -> None:
        """What clients have encrypted for their neighbours; who has not done so for each of them has dropped out."""
        for client, rows in told.items():
            if rows.ndim == 2 and len(rows) == len(self.neighbours[client]):
                self.shares[client] = dict(zip(self.neighbours[client], rows, strict=True))

    def received(self, client: ClientId) -> dict[str, Array]:
        """What a client gets when it is to mask its update: the shares that its neighbours have for it."""
        peers = self.sharing(client)
        return {"points": self._points(peers), "shares": np.stack([self.shares[peer][client] for peer in peers])}

    def told(self, client: ClientId) -> dict[str, Array]:
        """What a client gets when it is to tell the shares that it has: which neighbours are in the sum."""
        peers = self.sharing(client)
        there = [peer for peer in peers if peer in self.summed]
        gone = [peer for peer in peers if peer not in self.summed]
        return {"there": self._points(there), "gone": self._points(gone)}

    def sharing(self, client: ClientId) -> list[ClientId]:
        """The neighbours of a client that have shared their secrets."""
        return [peer for peer in self.neighbours[client] if peer in self.shares]

    def enough(self, clients: Iterable[ClientId]) -> frozenset[ClientId]:
        """Those of these who have as many neighbours among them as the threshold says."""
        left = frozenset(clients)
        counts = Counter(peer for client in left for peer in self.neighbours[client])
        return frozenset(client for client in left if counts[client] >= self.threshold)

    def able(self) -> frozenset[ClientId]:
        """Those who can be asked for updates. Who has too few neighbours that have shared is left out with its shares,
        as if it had dropped out: nobody could take its masks off, and so nobody makes any with it.
        """
        while len(left := self.enough(self.shares)) < len(self.shares):
            self.shares = {client: rows for client, rows in self.shares.items() if client in left}
        return left

    def unmask(self, vectors: Sequence[Array], opened: Mapping[ClientId, Mapping[str, Array]]) -> None:
        """Take the masks off a sum, in place, with what clients have told. Raises `UpdateRejected` where it is too
        little, or not what they were given.
        """
        seeds, masks = dict[ClientId, dict[int, Array]](), dict[ClientId, dict[int, Array]]()
        for client, parts in opened.items():
            peers = self.sharing(client)
            for name, kept, stays in (("seeds", seeds, True), ("masks", masks, False)):
                about = [peer for peer in peers if (peer in self.summed) is stays]
                if name not in parts or len(parts[name]) != len(about):
                    raise UpdateRejected(f"client {client} has told other shares than it was asked for")
                for peer, share in zip(about, parts[name], strict=True):
                    kept.setdefault(peer, {})[self.points[client]] = share
        plus, minus = list[bytes](), [own_mask(self._recovered(client, seeds), self.name) for client in self.summed]
        for gone in self.shares.keys() - self.summed:
            if there := [peer for peer in self.neighbours[gone] if peer in self.summed]:
                keys = self._pairwise(gone, self._recovered(gone, masks), there)
                plus += [key for peer, key in keys.items() if self.points[peer] > self.points[gone]]
                minus += [key for peer, key in keys.items() if self.points[peer] < self.points[gone]]
        add_masks(vectors, plus=plus, minus=minus)

    def _recovered(self, client: ClientId, shares: Mapping[ClientId, Mapping[int, Array]]) -> bytes:
        own = shares.get(client, {})
        if len(own) < self.threshold:
            raise UpdateRejected(
                f"{len(own)} neighbours have told a share of a secret of client {client}, fewer than {self.threshold}"
            )
        return shamir.recover(own, self.threshold, KEY_BYTES)

    def _pairwise(self, gone: ClientId, private: bytes, there: Iterable[ClientId]) -> dict[ClientId, bytes]:
        """The keys of the masks that others have for a client that is not in the sum."""
        pair = KeyPair(private)
        if pair.public != self.keys[gone][KEY_BYTES:].tobytes():
            raise UpdateRejected(f"the shares of client {gone}'s secret are not of the key that it has told")
        return {peer: pairwise(pair, self.keys[peer][KEY_BYTES:].tobytes(), self.name) for peer in there}

    def _points(self, clients: Iterable[ClientId]) -> Array:
        return np.array([self.points[client] for client in clients], np.int64)
