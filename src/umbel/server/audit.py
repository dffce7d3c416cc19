"""The record of who did what on a server, and of who was refused; nothing in it may be secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..store.records import Store
from ..trust import audit
from ..wire import messages as m

PASSING = ("refused", "connections.refused", "clients.refused", "nodes.wait", "denied", "runs.logs")
"""Records that anybody can cause who may do little: of each kind the last so many are kept."""


class ServerAudit(audit.Audit):
    """The audit of one server; `folder` has its key and its head, and without one there is neither."""

    def __init__(self, store: Store, clock: Callable[[], float], folder: Path | None = None) -> None:
        given: dict[str, Any] = {} if folder is None else {"key": audit.key_of(folder), "head": folder / audit.HEAD}
        super().__init__(store, clock, passing=PASSING, **given)

    def refusal(self, hello: m.Hello, code: int, text: str, *, retry: bool = False, **what: Any) -> Refused:
        """The error for who is not let in, which is noted unless there were too many in this minute."""
        said = {"role": hello.role, "name": hello.name[:64] or None, "token": hello.token[:64] or None}
        self.limited("unknown", "refused", code=int(code), reason=text, **said, **what)
        return Refused(text, code, retry=retry)
