"""What clients keep between their tasks: versioned, so that only an admitted result advances it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import encoding
from ..errors import ClientId
from ..store.patience import Patience
from ..store.sqlite import Database

_SCHEMA = "CREATE TABLE IF NOT EXISTS state (client TEXT, ask INTEGER, data BLOB, PRIMARY KEY (client, ask))"


class ClientStates:
    """Client states by client and by the ask that wrote them, in memory or in a file.

    What a client's state was at the last commit is kept beside what came after it, so that a run that dies between
    writing states and recording their ask goes back. `patience` is had with a full disk.
    """

    def __init__(self, path: Path | None = None, patience: Patience | None = None) -> None:
        self._patience = patience or Patience(0.0, str)
        self._database = Database(
            path,
            _SCHEMA,
            what="the client states",
            mend="Nothing learned before is lost: make room or mend the folder, then `umbel resume` the run.",
            large="A state is larger than SQLite takes here: have the clients keep less in ctx.state.",
            lost="The checkpoints beside it can still be used: `umbel run APP --init <checkpoint>`.",
        )
        self._empty = not self._database.rows("SELECT 1 FROM state LIMIT 1")

    def get(self, client: ClientId) -> dict[str, Any]:
        """The newest state of a client; empty for one that has none."""
        data = self.encoded(client)
        return {} if data is None else dict(encoding.decode(data))

    def encoded(self, client: ClientId) -> bytes | None:
        """The newest state of a client as bytes; None for one that has none."""
        if self._empty:
            return None
        query = "SELECT data FROM state WHERE client = ? ORDER BY ask DESC LIMIT 1"
        rows = self._database.rows(query, json.dumps(client))
        return rows[0][0] if rows else None

    def advance(self, ask: int, states: Mapping[ClientId, bytes], *, since: int) -> None:
        """Write the states that the admitted results of an ask carry, all or none. Raises `StorageError`.

        `since` is the first ask that is not committed: what was there before it is kept, for `keep` to go back to.
        """
        if not states:
            return
        self._empty = False
        self._patience(self._advance, ask, states, since)

    def _advance(self, ask: int, states: Mapping[ClientId, bytes], since: int) -> None:
        with self._database.write() as execute:
            for client, data in states.items():
                name = json.dumps(client)
                execute(
                    "DELETE FROM state WHERE client = ? AND ask < "
                    "(SELECT max(ask) FROM state WHERE client = ? AND ask < ?)",
                    (name, name, since),
                )
                execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (name, ask, data))

    def keep(self, before: int, asks: Iterable[int]) -> None:
        """Go back to what states were when only the asks before this one, and these, had closed."""
        marks = ",".join(str(int(ask)) for ask in asks)
        self._patience(self._keep, marks, before)

    def _keep(self, marks: str, before: int) -> None:
        with self._database.write() as execute:
            execute(f"DELETE FROM state WHERE ask >= ? AND ask NOT IN ({marks})", (before,))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
