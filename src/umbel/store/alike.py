"""Blobs that may have much in common: the next model of a run and the one before."""

from __future__ import annotations

from ..wire import messages as m
from ..wire.blobs import LARGE_BLOB, of_run


class AlikeBlobs:
    """The last blob of each size of each run, until that is `over`; safe to use from several threads."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], bytes] = {}

    def brought(self, blob: m.Blob, giver: str) -> None:
        """A `giver` has brought a blob."""
        if of_run(giver) and blob.size >= LARGE_BLOB:
            self._last[giver, blob.size] = blob.sha256

    def find(self, blob: m.Blob, giver: str) -> bytes:
        """The hash of another blob of that size and `giver`; empty where there is none."""
        found = self._last.get((giver, blob.size), b"")
        return found if found != blob.sha256 else b""

    def forget(self, blob: m.Blob, giver: str) -> None:
        """What was made of the one that is found is not what it should be."""
        self._last.pop((giver, blob.size), None)

    def over(self, giver: str) -> None:
        """A `giver` will bring no more."""
        for key in [key for key in list(self._last) if key[0] == giver]:
            self._last.pop(key, None)

    def clear(self) -> bool:
        """Let go of all; whether there was one."""
        there = bool(self._last)
        self._last.clear()
        return there

    def kept(self) -> set[bytes]:
        """The hashes of those that stay."""
        return set(self._last.copy().values())
