"""The run's side of a deployment in memory: its way to the server, over a wire."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..core import encoding
from ..core.arrays import Arrays
from ..remote.session import Arrived, Down, Item, Up
from ..server.signals import Connected
from ..wire import messages as m
from .network import HeldBlobs, Network, Wire
from .station import Station


class RunLink:
    """A `Link`: what has come for the run, the blobs that it has, and its wire while it is connected.

    It is one for all lives of the run's process. `step` lets one thing happen in the deployment, by a moment of served
    time at the latest.
    """

    def __init__(
        self, server: Station, blobs: HeldBlobs, network: Network, step: Callable[[float | None], None]
    ) -> None:
        self.run = ""
        self._server = server
        self._blobs = blobs
        self._network = network
        self._step = step
        self._inbox: deque[Item] = deque()
        self._wire: Wire | None = None
        self._back_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether the server can be reached."""
        return self._wire is not None

    def open(self, run: str) -> RunLink:
        """Be the link of a run whose process has just begun, once it is connected."""
        self.run = run
        self._back_at = self._network.clock()
        while self._wire is None:
            self._step(None)
        self._inbox.clear()
        return self

    def crash(self) -> None:
        """The run's process is gone."""
        self.close()
        self._inbox.clear()

    def actions(self) -> list[Callable[[], None]]:
        """What it can do now."""
        may = self.run and self._wire is None and self._back_at <= self._network.clock() and self._server.up
        return [self._connect] if may else []

    def moments(self) -> list[float]:
        """When it can do something next."""
        return [self._back_at] if self._wire is None and self._back_at > self._network.clock() else []

    def _connect(self) -> None:
        self._wire = self._network.plug(f"run {self.run}", self._server, self)
        self._network.clock.connected = True
        self._server.tell(Connected(self._wire.peer, "run", self.run, "someone"))
        self._inbox.append(Up())

    # What comes over the wire

    def hear(self, message: m.Message) -> None:
        """The server says something."""
        self._inbox.append(message)

    def give(self, run: str, sha: bytes) -> bytes | None:
        """A blob for the server."""
        if sha not in self._blobs:
            raise LookupError("the run has let go of it")
        return self._blobs[sha]

    def take(self, run: str, sha: bytes, data: bytes) -> None:
        """A blob has come."""
        self._blobs[sha] = data
        self._inbox.append(Arrived(sha, self._blobs.file(sha)))

    def part(self, back_at: float) -> None:
        """The wire is cut."""
        self._wire, self._back_at = None, back_at
        self._network.clock.connected = False
        self._inbox.append(Down())

    # What the run's session calls

    def keep(self, data: bytes) -> m.Payload:
        """Bytes as a payload."""
        return m.Payload(inline=data)

    def store(self, value: Any) -> m.Payload:
        """A tree or arrays as a payload."""
        return self._blobs.payload(value.to_bytes() if isinstance(value, Arrays) else encoding.encode(value))

    def send(self, message: m.Message) -> None:
        """Put a message on the wire."""
        if self._wire is not None:
            self._wire.up.append(message.SerializeToString())

    def receive(self, timeout: float | None) -> Item | None:
        """Let things happen until something comes, or so much served time has passed."""
        until = None if timeout is None else self.served() + timeout
        while not self._inbox:
            if until is not None and self.served() >= until:
                return None
            self._step(until)
        return self._inbox.popleft()

    def fetch(self, blob: m.Blob) -> None:
        """Have a blob sent."""
        if blob.sha256 in self._blobs:
            self._inbox.append(Arrived(blob.sha256, self._blobs.file(blob.sha256)))
        elif self._wire is not None:
            self._wire.transfers.append((False, self.run, blob))

    def release(self, sha: bytes) -> None:
        """Let go of a blob."""
        self._blobs.pop(sha, None)

    def served(self) -> float:
        """The time in which the run was connected."""
        return self._network.clock.served

    def close(self) -> None:
        """End the connection."""
        self._network.cut(self._wire)
