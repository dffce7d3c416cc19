"""The run's side of a deployment in memory: its way to the server, over a wire."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..core import encoding
from ..core.arrays import Arrays
from ..remote.session import Arrived, Down, Item, Link, Up
from ..server.signals import Connected
from ..wire import messages as m
from ..work.contents import in_message
from .network import INLINE, GoneBlob, HeldBlobs, Network, WireEnd
from .station import Station


class RunLink(Link, WireEnd):
    """A `Link`: what has come for the run, the blobs that it has, and its wire.

    It is one for all lives of the run's process. `step` lets one thing happen in the deployment, by a moment of served
    time at the latest.
    """

    federation = None

    def __init__(self, server: Station, network: Network, step: Callable[[float | None], None]) -> None:
        self.run = ""
        self._network = network
        self._wire = network.wire("", server, self)
        self._blobs = HeldBlobs(network.folder)
        self._step = step
        self._inbox: deque[Item] = deque()

    @property
    def connected(self) -> bool:
        """Whether the server can be reached."""
        return bool(self._wire.peer)

    def open(self, run: str) -> RunLink:
        """Be the link of a run whose process has just begun, once it is connected."""
        self.run, self._wire.name = run, f"run {run}"
        self._wire.back_at = self._network.clock()
        while not self.connected:
            self._step(None)
        self._inbox.clear()
        return self

    def crash(self) -> None:
        """The run's process is gone."""
        self.close()
        self._inbox.clear()

    def actions(self) -> list[Callable[[], None]]:
        """What it can do now."""
        return [self._connect] if self.run and self._network.may_plug(self._wire) else []

    def _connect(self) -> None:
        peer = self._network.plug(self._wire)
        self._wire.to.tell(Connected(peer, "run", self.run, "someone"))
        self._inbox.append(Up())

    # What comes over the wire

    def hear(self, message: m.Message) -> None:
        self._inbox.append(message)

    def give(self, run: str, sha: bytes) -> bytes | None:
        if sha not in self._blobs:
            raise GoneBlob("the run has let go of it")
        return self._blobs[sha]

    def take(self, run: str, sha: bytes, data: bytes, giver: str) -> None:
        self._blobs[sha] = data
        self._inbox.append(Arrived(sha, self._blobs.file(sha)))

    def parted(self) -> None:
        self._inbox.append(Down())

    # What the run's session calls

    def keep(self, data: bytes) -> m.Payload:
        return m.Payload(inline=data)

    def store(self, value: Any) -> m.Payload:
        if len(data := in_message(value)) <= INLINE:
            return m.Payload(message=data)
        return self._blobs.payload(value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value))

    def send(self, message: m.Message) -> None:
        self._wire.send(message)

    def receive(self, timeout: float | None) -> Item | None:
        until = None if timeout is None else self.served() + timeout
        while not self._inbox:
            if until is not None and self.served() >= until:
                return None
            self._step(until)
        return self._inbox.popleft()

    def fetch(self, blob: m.Blob) -> None:
        if blob.sha256 in self._blobs:
            self._inbox.append(Arrived(blob.sha256, self._blobs.file(blob.sha256)))
        else:
            self._wire.fetch(self.run, blob)

    def release(self, sha: bytes) -> None:
        self._blobs.pop(sha, None)

    def served(self) -> float:
        return self._wire.served

    def close(self) -> None:
        self._network.cut(self._wire)
