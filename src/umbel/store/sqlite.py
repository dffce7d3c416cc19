"""A file of SQLite as nodes and runs keep things in one: written ahead, forced onto the disk, and with errors that say
what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

    The file has the `version` of its tables in it (`PRAGMA user_version`; the first releases wrote none). One of an
    earlier version is brought to this one by the statements in `migrations`, all of them or none; one of a later is a
    `StorageError`.

    `write` may be called from any one thread at a time, while another one reads what was written before.
    """

    def __init__(
        self,
        path: Path | None,
        schema: str,
        *,
        what: str,
        mend: str,
        large: str,
        lost: str,
        version: int = 1,
        migrations: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
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
                self._define(schema, version, migrations or {})
                if path is not None:
                    self._reader = sqlite3.connect(path, isolation_level=None)
        except BaseException:
            self._writer.close()
            raise

    def _define(self, schema: str, version: int, migrations: Mapping[int, Sequence[str]]) -> None:
        (found,) = self._writer.execute("PRAGMA user_version").fetchone()
        if found == version:
            return
        if not found and self._writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            found = 1  # the first version said nothing
        steps = range(found, version) if found else range(0)
        if found > version or any(step not in migrations for step in steps):
            raise StorageError(
                f"{self._named} was written by version {found} of the tables, not {version}",
                hint="Use the release of Umbel that wrote it, or another folder.",
            )
        statements = [each for step in steps for each in migrations[step]]
        self._writer.executescript(
            ";\n".join(("BEGIN IMMEDIATE", *statements, schema, f"PRAGMA user_version = {version}", "COMMIT"))
        )

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
