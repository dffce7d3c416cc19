"""What a peer may have its server do in a while: who is beyond it is not read until it is not."""

from __future__ import annotations

from collections.abc import Callable

from ..wire.limits import PEER_BURST, PEER_BURST_BYTES, PEER_BYTES, PEER_WORK


class Budget:
    """Two buckets that fill as time passes: work, in messages and what stands for them, and bytes. `clock` counts
    seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._work, self._bytes = float(PEER_BURST), float(PEER_BURST_BYTES)

    def spend(self, work: float, size: int = 0) -> None:
        """Something has come that is this much work, and so many bytes."""
        now = self._clock()
        passed, self._at = max(0.0, now - self._at), now
        self._work = min(float(PEER_BURST), self._work + passed * PEER_WORK) - work
        self._bytes = min(float(PEER_BURST_BYTES), self._bytes + passed * PEER_BYTES) - size

    @property
    def pause(self) -> float:
        """For how many seconds the peer is not to be read; 0 where it may be read on."""
        self.spend(0)
        return max(0.0, -self._work / PEER_WORK, -self._bytes / PEER_BYTES)
