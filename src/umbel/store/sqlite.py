"""A file of SQLite as nodes and runs keep things in one: written ahead, forced onto the disk, and with errors that say
what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, StorageError


class Database:
    """Tables in the file at `path`, or in memory without one: as far as SQLite's cache goes, and beyond that in a file
    that is gone with the process.

    `schema` creates the tables where they are not there. In errors `what` names what is kept, `mend` says what to do
    where the disk is full or cannot be reached, `large` where a value is larger than SQLite takes, and `lost` where the
    file is damaged. Raises `StorageError`, and `CorruptFile` for a damaged file and for one that is something else.

    `write` may be called from any one thread at a time, while another one reads what was written before.
    """

    def __init__(self, path: Path | None, schema: str, *, what: str, mend: str, large: str, lost: str) -> None:
        import sqlite3  # here, because loading it would be a tenth of `import umbel`

        self._named = f"{what} in {path or 'memory'}"
        self._mend, self._large, self._lost = mend, large, lost
        with self._explained("opened"):
            name = path if path is not None else ""
            self._writer = self._reader = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("read"):
                self._writer.execute("PRAGMA journal_mode=WAL")
                self._writer.execute("PRAGMA synchronous=FULL")
                self._writer.executescript(schema)
                if path is not None:
                    self._reader = sqlite3.connect(path, isolation_level=None)
        except BaseException:
            self._writer.close()
            raise

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._explained("read"):
            return self._reader.execute(query, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[Callable[[str, tuple[Any, ...]], Any]]:
        """Execute statements by what this gives: all of them, on the disk when it ends, or none where one fails."""
        with self._explained("written"), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            yield self._writer.execute

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
        self._writer.close()

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except sqlite3.DatabaseError as error:
            told = f"{self._named} cannot be {done}: {error}"
            if isinstance(error, sqlite3.DataError):
                raise StorageError(told, hint=self._large) from error
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(told, hint=self._mend) from error
            raise CorruptFile(told, hint=self._lost) from error
