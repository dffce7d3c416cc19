"""What clients keep between their tasks: versioned, so that only an admitted result advances it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core import encoding
from ..errors import ClientId, CorruptFile, StorageError


class ClientStates:
    """Client states by client and by the ask that wrote them, in memory or in a file.

    What a client's state was at the last commit is kept beside what came after it, so that a run that dies between
    writing states and recording their ask goes back.
    """

    def __init__(self, path: Path | None = None) -> None:
        import sqlite3

        self._path = path
        with self._explained("opened"):
            # A database without a name is in memory as far as its cache goes, and beyond that in a file that is
            # gone with the process.
            self._db = sqlite3.connect(path if path is not None else "", isolation_level=None)
        try:
            with self._explained("read"):
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS state (client TEXT, ask INTEGER, data BLOB, PRIMARY KEY (client, ask))"
                )
                self._empty = self._db.execute("SELECT 1 FROM state LIMIT 1").fetchone() is None
        except BaseException:
            self._db.close()
            raise

    def get(self, client: ClientId) -> dict[str, Any]:
        """The newest state of a client; empty for one that has none."""
        data = self.encoded(client)
        return {} if data is None else dict(encoding.decode(data))

    def encoded(self, client: ClientId) -> bytes | None:
        """The newest state of a client as bytes; None for one that has none."""
        if self._empty:
            return None
        with self._explained("read"):
            row = self._db.execute(
                "SELECT data FROM state WHERE client = ? ORDER BY ask DESC LIMIT 1", (json.dumps(client),)
            ).fetchone()
        return row[0] if row else None

    def advance(self, ask: int, states: Mapping[ClientId, bytes], *, since: int) -> None:
        """Write the states that the admitted results of an ask carry, all or none. Raises `StorageError`.

        `since` is the first ask that is not committed: what was there before it is kept, for `keep` to go back to.
        """
        if not states:
            return
        self._empty = False
        with self._explained("written"), self._db:
            self._db.execute("BEGIN")
            for client, data in states.items():
                name = json.dumps(client)
                self._db.execute(
                    "DELETE FROM state WHERE client = ? AND ask < "
                    "(SELECT max(ask) FROM state WHERE client = ? AND ask < ?)",
                    (name, name, since),
                )
                self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (name, ask, data))

    def keep(self, before: int, asks: Iterable[int]) -> None:
        """Go back to what states were when only the asks before this one, and these, had closed."""
        marks = ",".join(str(int(ask)) for ask in asks)
        with self._explained("written"):
            self._db.execute(f"DELETE FROM state WHERE ask >= ? AND ask NOT IN ({marks})", (before,))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        import sqlite3  # here, because loading it would be a tenth of `import umbel`

        try:
            yield
        except sqlite3.DatabaseError as error:
            told = f"the client states in {self._path or 'memory'} cannot be {done}: {error}"
            if isinstance(error, sqlite3.DataError):
                hint = "A state is larger than SQLite takes here: have the clients keep less in ctx.state."
                raise StorageError(told, hint=hint) from error
            if isinstance(error, sqlite3.OperationalError):
                hint = "Nothing learned before is lost: make room or mend the folder, then `umbel resume` the run."
                raise StorageError(told, hint=hint) from error
            hint = "The checkpoints beside it can still be used: `umbel run APP --init <checkpoint>`."
            raise CorruptFile(told, hint=hint) from error
