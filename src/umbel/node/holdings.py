"""What a node has in hand: its runs and their tasks, the blobs that they need, the answers that it owes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from ..wire import messages as m
from .signals import Effect, FetchBlob, ReleaseBlob
from .spool import Acknowledged, Spool, StoredAnswer


class HostStanding(Enum):
    """How far the host of a run is."""

    FETCHING = "its archive is being fetched"
    PREPARING = "its client is being prepared"
    ASKING = "the owner is being asked"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Held:
    """A task that is to be done, the ask it came with, and the blobs that it needs."""

    task: m.Task
    ask: m.AskSpec
    blobs: tuple[bytes, ...]


@dataclass(slots=True)
class Slot:
    """A task that runs; `wanted` no more once it has been told to stop."""

    held: Held
    since: float
    wanted: bool = True


@dataclass(slots=True)
class HostedRun:
    """A run as its node knows it: how far its host is, its open asks, and its tasks, waiting and at work.

    `newest` is the newest ask that was ever seen; `fed` says that asks have come in this session. Its host has
    died `tries` times in a row before it was ready, and is tried again at `again_at`.
    """

    id: str
    number: int
    spec: m.RunSpec
    standing: HostStanding = HostStanding.PREPARING
    reason: str = ""
    approved: bool = False
    denied: bool = False
    refused_in: int = 0
    tries: int = 0
    again_at: float | None = None
    kinds: frozenset[str] = frozenset()
    steps: frozenset[tuple[str, int]] = frozenset()
    asks: dict[int, m.AskSpec] = field(default_factory=dict)
    against: dict[int, str] = field(default_factory=dict)
    queue: dict[str, Held] = field(default_factory=dict)
    busy: dict[str, Slot] = field(default_factory=dict)
    past: float = 0.0
    newest: int = -1
    fed: bool = False

    def seconds(self, now: float) -> float:
        """How long its tasks have had slots."""
        return self.past + sum(now - slot.since for slot in self.busy.values())

    def tasks(self) -> list[str]:
        """The tasks that it waits for."""
        return [*self.queue, *(slot.held.task.task for slot in self.busy.values() if slot.wanted)]


class NeededBlobs:
    """Which blobs are needed, by what, and which of them are there."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, bytes], set[str]] = {}
        self._missing: dict[tuple[str, bytes], m.Blob] = {}

    def add(self, run: str, blob: m.Blob, user: str, *, here: bool = False) -> list[Effect]:
        """Something needs a blob; it is fetched if nothing needed it before."""
        key = (run, blob.sha256)
        known = key in self._users
        self._users.setdefault(key, set()).add(user)
        if here:
            self._missing.pop(key, None)
        elif not known:
            self._missing[key] = blob
            return [FetchBlob(run, blob)]
        return []

    def drop(self, run: str, users: Collection[str]) -> list[Effect]:
        """These need nothing any more; what nothing needs is released."""
        gone: list[Effect] = []
        for key in [key for key, found in self._users.items() if key[0] == run and not found.isdisjoint(users)]:
            self._users[key].difference_update(users)
            if not self._users[key]:
                del self._users[key]
                self._missing.pop(key, None)
                gone.append(ReleaseBlob(*key))
        return gone

    def drop_run(self, run: str, *, but: Collection[str] = ()) -> list[Effect]:
        """A run needs nothing any more, but for these users."""
        users = {user for key, found in self._users.items() if key[0] == run for user in found}
        return self.drop(run, users.difference(but))

    def arrived(self, run: str, sha: bytes) -> None:
        """A blob is there."""
        self._missing.pop((run, sha), None)

    def lost(self, run: str, sha: bytes) -> None:
        """A blob is not to be had; whoever needs it next has it fetched again."""
        self._missing.pop((run, sha), None)
        self._users.pop((run, sha), None)

    def users(self, run: str, sha: bytes) -> set[str]:
        """What needs a blob."""
        return self._users.get((run, sha), set())

    def here(self, run: str, shas: Iterable[bytes]) -> bool:
        """Whether all of these are there."""
        return not any((run, sha) in self._missing for sha in shas)

    def missing(self) -> list[Effect]:
        """What is to be fetched."""
        return [FetchBlob(run, blob) for (run, _), blob in self._missing.items()]

    def needed(self) -> set[tuple[str, bytes]]:
        """All that is needed, there or not."""
        return set(self._users)


class OwedAnswers:
    """The results that the server has not acknowledged, and how often each was said in this session.

    An acknowledgement names a task alone, and a failed attempt and the one after it are results of the same task. The
    stream keeps order, so each acknowledgement is taken for the result that was said first. Where the server names two
    results of one task at once, one is said again in the next session: too often, never too seldom.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: dict[tuple[str, str], m.Result] = {}
        self._said: dict[tuple[str, str], deque[tuple[int, bool]]] = {}
        for data in spool.answers():
            result = m.Result.FromString(data)
            self._kept[result.run, result.task] = result

    def __iter__(self) -> Iterator[m.Result]:
        return iter(list(self._kept.values()))

    def get(self, run: str, task: str) -> m.Result | None:
        """The answer to a task, if it has not been acknowledged."""
        return self._kept.get((run, task))

    def keep(self, result: m.Result, digest: bytes | None = None, state: bytes | None = None) -> None:
        """Keep a result until it is acknowledged."""
        self._kept[result.run, result.task] = result
        data = result.SerializeToString(deterministic=True)
        self._spool.put(StoredAnswer(result.run, result.ask, result.client, result.task, data, digest, state))

    def said(self, result: m.Result) -> None:
        """A result, kept or not, goes out in this session."""
        self._said.setdefault((result.run, result.task), deque()).append(_mark(result))

    def acknowledged(self, run: str, task: str) -> bool:
        """The server has what was said first of a task; whether that is what was kept, which then goes."""
        said = self._said.get((run, task))
        if not said:
            return False
        first = said.popleft()
        if not said:
            del self._said[run, task]
        kept = self._kept.get((run, task))
        if kept is None or _mark(kept) != first:
            return False
        del self._kept[run, task]
        self._spool.put(Acknowledged(run, task))
        return True

    def drop(self, run: str, ask: int | None = None) -> list[str]:
        """Forget the answers of a run, or of one ask; which tasks had one."""
        gone = [key for key, kept in self._kept.items() if key[0] == run and ask in (None, kept.ask)]
        for key in gone:
            del self._kept[key]
        return [task for _, task in gone]

    def part(self) -> None:
        """The session has ended: what was said in it is not acknowledged in another."""
        self._said.clear()


def _mark(result: m.Result) -> tuple[int, bool]:
    return result.attempt, result.HasField("done")
