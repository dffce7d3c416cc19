"""The record of who did what, and of who was refused; nothing in it may be secret."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import Refused
from ..store.records import Store
from ..wire import messages as m

REFUSALS = 60
"""So many refused attempts are recorded in a minute; of further ones only their number."""
KEPT_REFUSALS = 10_000
"""So many records stay of what those did who are not known."""


class Audit:
    """The audit record of one server; `clock` gives the wall time in seconds. What it notes is queued in the store."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._count = store.greatest("audit")
        self._minute, self._refused = -1, 0
        strange = [row["number"] for did in ("refused", "nodes.wait") for row in store.rows("audit", did=did)]
        self._strangers = deque(sorted(strange))

    def record(self, who: str, did: str, /, **what: Any) -> None:
        """Note who did what."""
        self._count += 1
        row = {"number": self._count, "at": self._clock(), "who": who, "did": did}
        self._store.put("audit", {**row, "what": {key: value for key, value in what.items() if value is not None}})

    def limited(self, who: str, did: str, /, **what: Any) -> None:
        """Note what somebody was refused, unless there was too much of that in this minute: then only how much."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            left = self._refused - REFUSALS
            self._minute, self._refused = minute, 0
            if left > 0:
                self.record_stranger("server", "refused", more=left)
        self._refused += 1
        if self._refused <= REFUSALS:
            self.record_stranger(who, did, **what)

    def record_stranger(self, who: str, did: str, /, **what: Any) -> None:
        """Note what somebody did who is not known: of such records the last so many are kept."""
        self.record(who, did, **what)
        self._strangers.append(self._count)
        while len(self._strangers) > KEPT_REFUSALS:
            self._store.delete("audit", number=self._strangers.popleft())

    def last(self, count: int = 100) -> list[dict[str, Any]]:
        """The last so many records, oldest first."""
        return self._store.rows("audit", above=max(0, self._count - count))

    def refusal(self, hello: m.Hello, code: int, text: str, *, retry: bool = False, **what: Any) -> Refused:
        """The error for who is not let in, which is noted unless there were too many in this minute."""
        said = {"role": hello.role, "name": hello.name[:64] or None, "token": hello.token[:64] or None}
        self.limited("unknown", "refused", code=int(code), reason=text, **said, **what)
        return Refused(text, code, retry=retry)
