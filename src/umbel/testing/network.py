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


class ServedClock(VirtualClock):
    """A virtual clock that also counts, in `served`, the time in which the run is `connected`."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0.0
        self.connected = False

    def advance(self, seconds: float) -> float:
        """Move on by `seconds`."""
        if self.connected:
            self.served += seconds
        return super().advance(seconds)


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


class WireEnd(Protocol):
    """Who has connected to a station: takes what comes over the wire, and gives blobs.

    `give` is None for a blob that is not there yet or may not be given yet; it raises `LookupError`, which says why,
    for one that is gone for good. `part` says that the wire is cut, and from when on another can be had.
    """

    def hear(self, message: m.Message) -> None: ...
    def give(self, run: str, sha: bytes) -> bytes | None: ...
    def take(self, run: str, sha: bytes, data: bytes) -> None: ...
    def part(self, back_at: float) -> None: ...


@dataclass(eq=False)
class Wire:
    """One connection to a station: what is on its way there, and what to the other end.

    `transfers` are blobs, each of a run, and whether it goes up, to the station.
    """

    peer: str
    to: Station
    end: WireEnd
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    transfers: list[tuple[bool, str, m.Blob]] = field(default_factory=list)


class Network:
    """All wires of a deployment, in the order in which they were plugged in; what crosses next is up to the caller."""

    def __init__(self, chance: Chance) -> None:
        self.clock = ServedClock()
        self.wires: dict[str, Wire] = {}
        self._chance = chance
        self._number = 0

    def plug(self, name: str, to: Station, end: WireEnd) -> Wire:
        """Connect somebody to a station, which is not told."""
        self._number += 1
        wire = self.wires[f"{name} #{self._number}"] = Wire(f"{name} #{self._number}", to, end)
        return wire

    def cut(self, wire: Wire | None, *, tell_station: bool = True) -> None:
        """Cut a wire, unless it is: all that is on its way is lost, and both ends are told."""
        if wire is None or self.wires.pop(wire.peer, None) is None:
            return
        wire.end.part(self.clock() + 0.1 + self._chance.below(10) / 10)
        if tell_station:
            wire.to.tell(Lost(wire.peer))

    def cut_off(self, station: Station) -> None:
        """Cut all wires to a station, which is not told."""
        for wire in list(self.wires.values()):
            if wire.to is station:
                self.cut(wire, tell_station=False)

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
        up, run, blob = transfer = wire.transfers.pop(self._chance.below(len(wire.transfers)))
        if self._chance.breaks_transfer():
            self.cut(wire)
            return
        try:
            data = wire.end.give(run, blob.sha256) if up else wire.to.give_below(wire.peer, run, blob.sha256)
        except LookupError as error:
            wire.to.tell(NotFetched(run, blob.sha256, str(error.args[0])))
            return
        if data is None:
            wire.transfers.append(transfer)  # it waits until the sender has it, and may give it
            self.clock.advance(0.01)
        else:
            (wire.to if up else wire.end).take(run, blob.sha256, data)
