"""What a node has in hand: the blobs that it needs, the answers that it owes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from ..wire import messages as m
from .orders import blob_of
from .session import ServerSession
from .signals import Effect, FetchBlob, ReleaseBlob
from .spool import Acknowledged, Spool, StoredAnswer

_LOG = logging.getLogger("umbel.node")
REASON_LETTERS = 2000
"""Reasons are cut to so many letters."""


class NeededBlobs:
    """Which blobs are needed, by what, and which of them are there; `do` takes effects."""

    def __init__(self, do: Callable[[Effect], None]) -> None:
        self._do = do
        self._users: dict[tuple[str, bytes], set[str]] = {}
        self._of: dict[tuple[str, str], dict[bytes, None]] = {}  # by run and user
        self._missing: dict[tuple[str, bytes], m.Blob] = {}

    def add(self, run: str, blob: m.Blob, user: str, *, here: bool = False) -> None:
        """Something needs a blob; it is fetched if nothing needed it before."""
        key = (run, blob.sha256)
        known = key in self._users
        self._users.setdefault(key, set()).add(user)
        self._of.setdefault((run, user), {})[blob.sha256] = None
        if here:
            self._missing.pop(key, None)
        elif not known:
            self._missing[key] = blob
            self._do(FetchBlob(run, blob))

    def drop(self, run: str, users: Collection[str]) -> None:
        """These need nothing any more; what nothing needs is released."""
        for user in sorted(users):
            for sha in self._of.pop((run, user), ()):
                self._users[run, sha].discard(user)
                if not self._users[run, sha]:
                    self.lost(run, sha)

    def drop_run(self, run: str, *, but: Collection[str] = ()) -> None:
        """A run needs nothing any more, but for these users."""
        users = {user for key, found in self._users.items() if key[0] == run for user in found}
        self.drop(run, users.difference(but))

    def arrived(self, run: str, sha: bytes) -> None:
        """A blob is there."""
        self._missing.pop((run, sha), None)

    def lost(self, run: str, sha: bytes) -> None:
        """A blob is not to be had; whoever needs it next has it fetched again."""
        self._missing.pop((run, sha), None)
        for user in (users := self._users.pop((run, sha), None)) or ():
            self._of[run, user].pop(sha)
        if users is not None:
            self._do(ReleaseBlob(run, sha))

    def users(self, run: str, sha: bytes) -> set[str]:
        """What needs a blob."""
        return self._users.get((run, sha), set())

    def here(self, run: str, shas: Iterable[bytes]) -> bool:
        """Whether all of these are there."""
        return not any((run, sha) in self._missing for sha in shas)

    def fetch(self) -> None:
        """Have what is missing fetched."""
        for (run, _), blob in self._missing.items():
            self._do(FetchBlob(run, blob))

    def needed(self) -> set[tuple[str, bytes]]:
        """All that is needed, there or not."""
        return set(self._users)


class OwedAnswers:
    """The results that the server has not acknowledged."""

    def __init__(self, spool: Spool, blobs: NeededBlobs, session: ServerSession) -> None:
        self._spool = spool
        self._blobs = blobs
        self._session = session
        self._kept: dict[tuple[str, str], m.Result] = {}
        for data in spool.answers():
            try:
                self._hold(m.Result.FromString(data))
            except Exception as error:  # it is asked for again, and its client has answered: that one is missed
                _LOG.error("an answer in this node's folder cannot be read, and is left out: %r", error)

    def runs(self) -> set[str]:
        """The runs to which answers are owed."""
        return {run for run, _ in self._kept}

    def users(self, run: str, ask: int | None = None) -> set[str]:
        """What needs blobs for answers to a run, or to one ask."""
        return {f"answer {task}" for of, task in self._keys(run, ask)}

    def keep(
        self, result: m.Result, digest: bytes | None = None, state: bytes | None = None, lazy: float = 0.0
    ) -> None:
        """Keep a result until it is acknowledged, let go of what its task needed, and say it."""
        data = result.SerializeToString(deterministic=True)
        self._spool.put(StoredAnswer(result.run, result.ask, result.client, result.task, data, digest, state))
        self._hold(result)
        self._blobs.drop(result.run, {f"task {result.task}"})
        self._say(result, durable=True, lazy=lazy)

    def fail(self, task: m.Task, reason: str, *, retry: bool) -> None:
        """Keep that a task has failed, and say it."""
        self.keep(_failure(task, reason, retry))

    def refuse(self, task: m.Task, reason: str, *, retry: bool = False) -> None:
        """Say that a task is not done. It is not kept: the server asks again until it has an answer."""
        self._say(_failure(task, reason, retry), durable=False)

    def answered(self, task: m.Task, digest: bytes) -> bool:
        """Whether a task needs nothing to be done, for it was answered before; that is then said."""
        kept, before = self._kept.get((task.run, task.task)), self._spool.digest(task.run, task.task)
        if before not in (None, digest):
            reason = f"client {task.client} has answered ask {task.ask} before, when it asked something else"
            self.refuse(task, reason)
        elif kept is not None and (kept.HasField("done") or task.attempt <= kept.attempt):
            self._say(kept, durable=True)
        elif before is not None:
            self.refuse(task, f"client {task.client} has answered ask {task.ask} before, and the answer was received")
        else:
            return False
        return True

    def say_again(self) -> None:
        """A session has begun: say all."""
        for result in list(self._kept.values()):
            self._say(result, durable=True)

    def acknowledged(self, ack: m.Ack) -> None:
        """The server has a result; it goes where it is what is kept, and not an attempt before that."""
        for task in ack.tasks:
            kept = self._kept.get((ack.run, task))
            if kept is not None and (kept.attempt, kept.HasField("failure")) == (ack.attempt, ack.failed):
                del self._kept[ack.run, task]
                self._spool.put(Acknowledged(ack.run, task))
                self._blobs.drop(ack.run, {f"answer {task}"})

    def drop(self, run: str, ask: int | None = None) -> None:
        """Forget the answers to a run, or to one ask; not their blobs."""
        for key in self._keys(run, ask):
            del self._kept[key]

    def _keys(self, run: str, ask: int | None) -> list[tuple[str, str]]:
        return [key for key, kept in self._kept.items() if key[0] == run and ask in (None, kept.ask)]

    def _hold(self, result: m.Result) -> None:
        self._kept[result.run, result.task] = result
        blob = blob_of(result.done, "update")
        if blob is not None:
            self._blobs.add(result.run, blob, f"answer {result.task}", here=True)

    def _say(self, result: m.Result, *, durable: bool, lazy: float = 0.0) -> None:
        self._session.say(durable=durable, lazy=lazy, result=result)


def outcome(task: m.Task) -> m.Result:
    """What became of a task, as yet without that."""
    return m.Result(run=task.run, task=task.task, ask=task.ask, client=task.client, attempt=task.attempt)


def _failure(task: m.Task, reason: str, retry: bool) -> m.Result:
    result = outcome(task)
    result.failure.CopyFrom(m.Failure(reason=reason[:REASON_LETTERS], retry=retry))
    return result
