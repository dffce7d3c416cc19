"""Whose client names are: each is bound to the node that used it first, within the bounds that an admin set for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from ..errors import SettingError
from ..store.records import Store
from .audit import ServerAudit

MOST = 300_000
"""So many names a node may have where nobody says otherwise, used or not: about what a message can name."""
LISTED = 5
"""So many refused names are noted of each claim."""
ANOTHERS = "the name is another node's"
"""Why a name is refused that somebody else has."""


@dataclass(frozen=True)
class Bounds:
    """What a node may call its clients: these names, or what fits these shell-style patterns, or anything where there
    are none; and at `most` so many, where that is said.
    """

    names: tuple[str, ...] = ()
    most: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any] | None) -> Bounds:
        """The bounds that a row of a store holds."""
        return cls(tuple(row["names"]), row["most"]) if row else cls()

    def row(self) -> dict[str, Any] | None:
        """These bounds as a store holds them."""
        return {"names": list(self.names), "most": self.most} if self else None

    def __bool__(self) -> bool:
        return bool(self.names) or self.most is not None

    @property
    def exact(self) -> tuple[str, ...]:
        """The names in it that are no patterns."""
        return tuple(name for name in self.names if not set("*?[") & set(name))

    @property
    def fits(self) -> Callable[[str], object]:
        """Tells whether a name is one of these."""
        return re.compile("|".join(map(translate, self.names))).match if self.names else lambda name: True


ANY = Bounds()


class Claims:
    """The client names of a server, and whose they are; `store` keeps that, `audit` notes what is refused.

    A name stays its node's, also where that uses it no more, is away or is revoked, until it is released.
    """

    def __init__(self, store: Store, audit: ServerAudit | None = None) -> None:
        self._store, self._audit = store, audit
        self._owners: dict[str, str] = {row["client"]: row["node"] for row in store.rows("claims")}
        self._counts = Counter(self._owners.values())
        self._bounds = {row["id"]: Bounds.of(row["bounds"]) for row in store.rows("nodes") if row["bounds"]}
        self._noted: dict[str, dict[str, str]] = {}

    def owner(self, client: str) -> str | None:
        """The node whose name it is, if it is anybody's."""
        return self._owners.get(client)

    def bound(self, node: str, bounds: Bounds) -> None:
        """From now on a node has these bounds; names in them that are nobody's become its own at once.

        Raises `SettingError` for one that is another node's.
        """
        for client in bounds.exact:
            if self._owners.get(client, node) != node:
                raise SettingError(
                    f"the client name {client!r:.80} is that of another node, {self._owners[client][:8]}",
                    hint=f"`umbel nodes release {client}` frees it.",
                )
        self._bounds[node] = bounds
        for client in bounds.exact[: bounds.most]:
            self._bind(client, node)

    def take(self, node: str, clients: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """A node claims names: those that are its own now, and why the others are not, which is noted."""
        mine: list[str] = []
        refused: dict[str, str] = {}
        bounds = self._bounds.get(node, ANY)
        fits, most = bounds.fits, bounds.most or MOST
        for client in dict.fromkeys(clients):
            owner = self._owners.get(client)
            if owner not in (None, node):
                refused[client] = ANOTHERS
            elif not fits(client):
                refused[client] = f"this node was let in for clients {', '.join(bounds.names)}"
            elif owner is None and self._counts[node] >= most:
                refused[client] = f"this node may have {most} client names, and has them"
            else:
                self._bind(client, node)
                mine.append(client)
        if refused != self._noted.get(node, {}):
            self._noted[node] = refused
            self._note(node, refused)
        return tuple(mine), refused

    def names(self, node: str) -> tuple[str, ...]:
        """All names of a node."""
        return tuple(client for client, owner in self._owners.items() if owner == node)

    def release(self, client: str) -> str:
        """A name is nobody's any more; gives the node whose it was. Raises `SettingError` where it was nobody's."""
        if (owner := self._owners.pop(client, None)) is None:
            raise SettingError(f"the client name {client!r:.80} is no node's", hint="`umbel nodes ls` lists them.")
        self._counts[owner] -= 1
        self._store.delete("claims", client=client)
        return owner

    def _note(self, node: str, refused: Mapping[str, str]) -> None:
        for why, names in by_reason(refused).items():
            if self._audit is not None:
                told = {"clients": names[:LISTED], "count": len(names), "why": why}
                self._audit.limited(f"node:{node}", "clients.refused", **told)

    def _bind(self, client: str, node: str) -> None:
        if client not in self._owners:
            self._owners[client] = node
            self._counts[node] += 1
            self._store.put("claims", {"client": client, "node": node})


def by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that were refused, by the reason."""
    found: dict[str, list[str]] = {}
    for client, why in refused.items():
        found.setdefault(why, []).append(client)
    return found
