"""Room for blobs: how much all of them may take, how much one node's may, and who waits for room."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from ..store.blobs import Blobs
from ..wire import messages as m

FREE_SHARE = 0.8
"""So much of what is free at the start may be taken, where no quota is set."""
LISTED = 3


@dataclass
class StorageShare:
    """What came from one peer: `name` is by what operators know it, `node` whether it has a share of its own.

    `tell(run, text)` tells the peer, and the run for which it sends, that something waits.
    """

    storage: Storage
    name: str
    node: bool
    tell: Callable[[str, str], None] = lambda run, text: None
    held: dict[bytes, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """The bytes of all that came from there and is here."""
        return sum(self.held.values())

    def take(self, blob: m.Blob, giver: str = "") -> bool:
        """Take room for a blob that a `giver` brings, if there is some."""
        if not self.storage.blobs.room(blob, giver) or (self.node and not self._in_share(blob)):
            return False
        if self.node:
            self.held[blob.sha256] = blob.size
        return True

    def _in_share(self, blob: m.Blob) -> bool:
        return blob.sha256 in self.held or self.used + blob.size <= self.storage.share

    def waits(self, blob: m.Blob, run: str, waiting: bool) -> None:
        """A blob of this peer waits for room, or does no more."""
        self.storage.waits(self, blob, run, waiting)


class Storage:
    """The room for a server's blobs.

    `quota` bounds all of them; by default that is what they have, and four fifths of what is free on the disk when the
    server starts. `node_quota` bounds those that come from one node; by default that is half of the quota where there
    are `nodes` enough to need the other half. `largest` bounds a single answer of a node.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        quota: int | None = None,
        node_quota: int | None = None,
        largest: int | None = None,
        nodes: Callable[[], int] = lambda: 1,
    ) -> None:
        self.blobs = blobs
        if quota is None:
            quota = blobs.used + int(FREE_SHARE * shutil.disk_usage(blobs.folder).free)
        self.quota = blobs.quota = quota
        self._node_quota = node_quota
        self._largest = largest
        self._nodes = nodes
        self._places: dict[str, StorageShare] = {}
        self._waiting: dict[tuple[int, bytes], tuple[StorageShare, m.Blob, str]] = {}

    @property
    def share(self) -> int:
        """What the blobs of one node may take."""
        found = self._node_quota
        if found is None:
            found = self.quota if self._nodes() < 2 else self.quota // 2
        return min(found, self.quota)

    @property
    def largest(self) -> int:
        """What one answer of a node may have: more would never find room."""
        return min(self.share, self.quota if self._largest is None else self._largest)

    @property
    def waiting(self) -> int:
        """How many blobs wait for room."""
        return len(self._waiting)

    def place(
        self, id: str, name: str, node: bool, tell: Callable[[str, str], None] = lambda run, text: None
    ) -> StorageShare:
        """The place of a peer, by its id: what it holds is known still when it connects again."""
        place = self._places.setdefault(id, StorageShare(self, name, node)) if node else StorageShare(self, name, node)
        place.name, place.tell = name, tell
        return place

    def collect(self) -> None:
        """Remove what nobody needs."""
        self.blobs.collect()
        for place in self._places.values():
            place.held = {sha: size for sha, size in place.held.items() if self.blobs.has(sha)}

    def waits(self, place: StorageShare, blob: m.Blob, run: str, waiting: bool) -> None:
        """A blob waits for room, or does no more; whoever it concerns is told of the first."""
        key = (id(place), blob.sha256)
        if not waiting:
            self._waiting.pop(key, None)
            return
        known = [run for other, _, run in self._waiting.values() if other is place]
        self._waiting[key] = (place, blob, run)
        if run not in known:
            place.tell(run, f"{self.problem}; it stays where it is until then")

    @property
    def problem(self) -> str:
        """What is wrong, if something waits for room."""
        if not self._waiting:
            return ""
        names = sorted({place.name for place, _, _ in self._waiting.values()})
        listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} others" if len(names) > LISTED else "")
        size = sum(blob.size for _, blob, _ in self._waiting.values())
        text = f"no room for {size:,} bytes from {listed}: "
        if all(place.node and self.blobs.room(blob) for place, blob, _ in self._waiting.values()):
            text += f"a node may have {self.share:,}"
        else:
            text += f"{self.blobs.used:,} of the quota of {self.quota:,} are used"
        return f"{text}; there is room again when asks end (an ask that needs more ends by its stall setting only)"
