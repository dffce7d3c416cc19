"""What a node knows of the server that it connects to."""

from __future__ import annotations

from collections.abc import Iterable

from ..wire import messages as m
from .authority import endorses

ENDORSEMENTS = 32
"""So many are heard in a welcome."""


class KnownServer:
    """A server by the public key of its `authority`, empty without TLS.

    `federations` are the keys, in hexadecimal, of the authorities in whose federations one is by being connected to it:
    its own, and of a relay those of the servers above.
    """

    def __init__(self, authority: bytes = b"") -> None:
        self._authority = authority
        self.federations: set[str] = {authority.hex()} if authority else set()

    def welcomed(self, welcome: m.Welcome) -> None:
        """The server has let this one in, and said this."""
        if self._authority:
            self.federations |= {key.hex() for key in above({self._authority}, welcome.endorsements)}


def above(authorities: set[bytes], said: Iterable[m.Endorsement]) -> set[bytes]:
    """The authorities that have said, of one of these or of one that was found so, that it is their relay's."""
    found, left = set(authorities), [one for one in said if one.role == "relay"][:ENDORSEMENTS]
    while good := [one for one in left if one.of in found]:
        left = [one for one in left if one.of not in found]
        found |= {one.by for one in good if endorses(one)}
    return found - authorities
