"""The network of a deployment in memory: its time, what is on its way over wires, and the blobs that cross them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..server.signals import Lost, Received
from ..wire import messages as m
from ..wire.blobs import NotFetched
from .clock import VirtualClock

if TYPE_CHECKING:
    from .misfortune import Chance
    from .station import Station

INLINE = 256
"""What is larger crosses as a blob."""


class HeldBlobs(dict[bytes, bytes]):
    """The blobs that one party has, by their hash; also as files in a `folder`, which nobody writes to again."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def payload(self, data: bytes) -> m.Payload:
        """Bytes as a payload; large ones are kept as a blob."""
        if len(data) <= INLINE:
            return m.Payload(inline=data)
        sha = hashlib.sha256(data).digest()
        self[sha] = data
        return m.Payload(blob=m.Blob(sha256=sha, size=len(data)))

    def file(self, sha: bytes) -> Path:
        """A blob as a file."""
        path = self.folder / sha.hex()
        if not path.exists():
            path.write_bytes(self[sha])
        return path


class GoneBlob(Exception):
    """A blob is not to be had any more; the text says why."""


class WireEnd(Protocol):
    """Who connects to a station."""

    def hear(self, message: m.Message) -> None:
        """The station says something."""

    def give(self, run: str, sha: bytes) -> bytes | None:
        """A blob for the station, None for one that is not there yet or may not be given yet. Raises `GoneBlob`."""

    def take(self, run: str, sha: bytes, data: bytes, giver: str) -> None:
        """A blob has come, in somebody's name."""

    def parted(self) -> None:
        """The wire was cut."""


@dataclass(eq=False)
class Wire:
    """What connects somebody to a station, again and again: what is on its way up, to the station, and down.

    `peer` is what the station calls the connection, empty while it is cut; `back_at` from when on there can be another,
    `served` for how many seconds there was one. `transfers` are blobs, each of a run, whether it goes up, and
    in whose name it comes.
    """

    name: str
    to: Station
    end: WireEnd
    peer: str = ""
    back_at: float = 0.0
    served: float = 0.0
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    transfers: list[tuple[bool, str, m.Blob, str]] = field(default_factory=list)

    def send(self, message: m.Message) -> None:
        """Send a message up; it is lost where the wire is cut."""
        if self.peer:
            self.up.append(message.SerializeToString())

    def fetch(self, run: str, blob: m.Blob, giver: str = "") -> None:
        """Have a blob sent down."""
        if self.peer:
            self.transfers.append((False, run, blob, giver))


class Network:
    """The time and all wires of a deployment; which thing crosses next is up to the caller.

    `wires` are those that are plugged in, by what their stations call them, in that order; `folder` is for files.
    """

    def __init__(self, chance: Chance, folder: Path) -> None:
        self.clock = VirtualClock()
        self.chance = chance
        self.folder = folder
        self.wires: dict[str, Wire] = {}
        self._all: list[Wire] = []
        self._number = 0

    def wire(self, name: str, to: Station, end: WireEnd) -> Wire:
        """A wire that is not plugged in yet."""
        self._all.append(Wire(name, to, end))
        return self._all[-1]

    def may_plug(self, wire: Wire) -> bool:
        """Whether a wire can be plugged in now."""
        return wire.to.up and not wire.peer and wire.back_at <= self.clock()

    def plug(self, wire: Wire) -> str:
        """Plug a wire in, of which its station is not told; what the station is to call it."""
        self._number += 1
        wire.peer = f"{wire.name} #{self._number}"
        self.wires[wire.peer] = wire
        return wire.peer

    def cut(self, wire: Wire | None, *, tell_station: bool = True) -> None:
        """Cut a wire, unless it is: all that is on its way is lost, and both ends are told."""
        if wire is None or not wire.peer:
            return
        peer, wire.peer = wire.peer, ""
        del self.wires[peer]
        for lane in (wire.up, wire.down, wire.transfers):
            lane.clear()
        wire.back_at = self.clock() + 0.1 + self.chance.below(10) / 10
        wire.end.parted()
        if tell_station:
            wire.to.tell(Lost(peer))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        for wire in self.wires.values():
            wire.served += seconds

    def moments(self) -> list[float]:
        """When somebody can connect again."""
        return [wire.back_at for wire in self._all if not wire.peer and wire.back_at > self.clock()]

    def actions(self) -> list[Callable[[], None]]:
        """What can cross now."""
        return [
            partial(cross, wire)
            for wire in self.wires.values()
            for cross, waiting in ((self._up, wire.up), (self._down, wire.down), (self._transfer, wire.transfers))
            if waiting
        ]

    def _up(self, wire: Wire) -> None:
        wire.to.tell(Received(wire.peer, m.Message.FromString(wire.up.popleft())))

    def _down(self, wire: Wire) -> None:
        wire.end.hear(m.Message.FromString(wire.down.popleft()))

    def _transfer(self, wire: Wire) -> None:
        """A blob crosses, or the transfer breaks, which breaks the connection."""
        up, run, blob, giver = transfer = wire.transfers.pop(self.chance.below(len(wire.transfers)))
        if self.chance.breaks_transfer():
            self.cut(wire)
            return
        try:
            data = wire.end.give(run, blob.sha256) if up else wire.to.give_below(wire.peer, run, blob.sha256)
        except GoneBlob as error:
            wire.to.tell(NotFetched(run, blob.sha256, str(error), giver))
            return
        if data is None:
            wire.transfers.append(transfer)  # it waits until the sender has it, and may give it
            self.advance(0.01)
        else:
            (wire.to if up else wire.end).take(run, blob.sha256, data, giver)
