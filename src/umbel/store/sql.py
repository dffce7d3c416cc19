"""A store on SQLite, by SQLAlchemy Core: one transaction for a batch, on the disk when it returns."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ..errors import CorruptFile, InternalError, StorageError
from .records import MIGRATIONS, TABLES, VERSION, Batch, Change, Queue, Readers, Row, Table

APPLICATION = 0x554D424C
"""Says in a file's header that it is one of ours."""

_KINDS = {"text": sa.Text, "int": sa.Integer, "real": sa.REAL, "bytes": sa.LargeBinary, "json": sa.Text}
_CORRUPT = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
_PRAGMAS = (
    "PRAGMA busy_timeout = 10000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 67108864",
)


class SqlStore(Queue):
    """A `Store` in one file of SQLite, with a write-ahead log beside it; one process at a time writes it.

    `write` may be called from one thread while others read: they see what was written before. `after_commit` is
    called by `write` once a batch is on the disk, before it returns. `tables` and their `version` are the server's
    where nothing else is said; a file of an earlier version is brought to this one by its `migrations`, all of them or
    none. Raises `CorruptFile` for a damaged file and `StorageError` for one that cannot be reached, that has no room,
    or that a later version of the tables wrote.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Iterable[Table] = TABLES,
        version: int = VERSION,
        migrations: Mapping[int, Sequence[str]] = MIGRATIONS,
        after_commit: Callable[[], None] | None = None,
        readers: Readers = MappingProxyType({}),
    ) -> None:
        super().__init__(tables, readers)
        self.path = Path(path)
        self.after_commit = after_commit
        self._writing = threading.Lock()
        self._statements: dict[tuple[Any, ...], Any] = {}
        self._texts: dict[tuple[Any, ...], str] = {}
        self._metadata = sa.MetaData()
        self._tables = {table.name: _defined(table, self._metadata) for table in self.schema.tables.values()}
        with self._reached("opened"):
            _create(self.path)
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(self.path)))
        sa.event.listen(self._engine, "connect", _prepare)
        try:
            with self._reached("opened"):
                self._define(version, migrations)
        except BaseException:
            self._engine.dispose()
            raise

    def rows(self, table: str, /, *, above: int | None = None, limit: int | None = None, **where: Any) -> list[Row]:
        """The rows with these values, sorted by key."""
        values = self.schema.encoded(table, where, whole=False)
        statement = self._statement("rows", table, tuple(values), above is not None, limit is not None)
        bounds = {"above_": above, "limit_": limit}
        values.update({name: bound for name, bound in bounds.items() if bound is not None})
        with self._reached("read"), self._engine.connect() as connection:
            found = [dict(row) for row in connection.execute(statement, values).mappings()]
        return self.schema.decoded(table, found)

    def greatest(self, table: str, /, **where: Any) -> int:
        """The highest last column of the key."""
        values = self.schema.encoded(table, where, whole=False)
        with self._reached("read"), self._engine.connect() as connection:
            return int(connection.scalar(self._statement("greatest", table, tuple(values)), values) or 0)

    def write(self, batch: Batch) -> None:
        """Write a batch in one transaction; it is on the disk when this returns."""
        if not batch:
            return
        with self._writing, self._reached("written"), self._engine.begin() as connection:
            # The statements are compiled once; what SQLAlchemy does for each besides takes longer than SQLite.
            execute = connection.connection.cursor().executemany
            for table, changes in batch.changes.items():
                for (delete, columns), alike in groupby(changes, _shape):
                    text = self._text("delete" if delete else "put", table, columns)
                    execute(text, [change.values for change in alike])
        if self.after_commit is not None:
            self.after_commit()

    def close(self) -> None:
        """Forget what is queued and let go of the file."""
        super().close()
        self._engine.dispose()

    def _define(self, version: int, migrations: Mapping[int, Sequence[str]]) -> None:
        with self._engine.begin() as connection:
            owner = connection.exec_driver_sql("PRAGMA application_id").scalar()
            found: int = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
            steps = range(found, version) if found else range(0)
            if owner not in (0, APPLICATION) or found > version or any(step not in migrations for step in steps):
                what = f"version {found} of the tables, not {version}" if owner == APPLICATION else "another program"
                error = StorageError(
                    f"{self.path} was written by {what}",
                    hint="Use the release of Umbel that wrote it, or another folder.",
                )
                error.retry = False
                raise error
            if not found:
                self._metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION}")
            for step in steps:
                for statement in migrations[step]:
                    connection.exec_driver_sql(statement)
            if found != version:
                connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    def _statement(self, what: str, table: str, columns: tuple[str, ...], *bounds: bool) -> Any:
        name = (what, table, columns, *bounds)
        if name not in self._statements:
            self._statements[name] = self._built(what, table, columns, *bounds)
        return self._statements[name]

    def _text(self, what: str, table: str, columns: tuple[str, ...]) -> str:
        """A statement as SQLite takes it, with values by their names."""
        name = (what, table, columns)
        if name not in self._texts:
            self._texts[name] = str(self._statement(*name).compile(dialect=sqlite.dialect(paramstyle="named")))
        return self._texts[name]

    def _built(self, what: str, name: str, columns: tuple[str, ...], above: bool = False, limit: bool = False) -> Any:
        table, key = self._tables[name], self.schema.table(name).key
        if what == "put":
            insert = sqlite.insert(table).values({column: sa.bindparam(column) for column in columns})
            rest = {column: insert.excluded[column] for column in columns if column not in key}
            return insert.on_conflict_do_update(key, set_=rest) if rest else insert.on_conflict_do_nothing(key)
        where = [_same(table.c[column], column in key) for column in columns]
        last = table.c[key[-1]]
        if what == "delete":
            return sa.delete(table).where(*where)
        if what == "greatest":
            number = last <= 2**63 - 1  # what is none is more, for SQLite
            return sa.select(sa.func.max(last)).where(*where, number)
        query = sa.select(table).where(*where).order_by(*(table.c[column] for column in key))
        query = query.where(last > sa.bindparam("above_")) if above else query
        return query.limit(sa.bindparam("limit_")) if limit else query

    @contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """Turn what the database and the system raise into errors that say which file, and what to do."""
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path} cannot be {done}: {error.strerror}", hint=_REACHABLE) from error
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            found = getattr(error, "orig", error)
            code = getattr(found, "sqlite_errorcode", 0) & 0xFF
            text = f"{self.path} cannot be {done}: {found}"
            if code in _CORRUPT:
                raise CorruptFile(text, hint="Restore the folder from a copy, or start with an empty one.") from error
            if isinstance(found, sqlite3.OperationalError):
                raise StorageError(text, hint=_REACHABLE) from error
            raise InternalError(text) from error


_REACHABLE = "Make room or mend the folder; nothing that was written before is lost."


def _shape(change: Change) -> tuple[bool, tuple[str, ...]]:
    return change.delete, tuple(change.values)


def _same(column: sa.Column[Any], key: bool) -> sa.ColumnElement[bool]:
    value = sa.bindparam(column.name, type_=column.type)
    return column == value if key else column.is_not_distinct_from(value)


def _defined(table: Table, metadata: sa.MetaData) -> sa.Table:
    columns = [
        sa.Column(name, _KINDS[kind](), primary_key=name in table.key, autoincrement=False)
        for name, kind in table.columns.items()
    ]
    indexes = [sa.Index(f"{table.name}_by_{'_'.join(names)}", *names) for names in table.indexes]
    return sa.Table(table.name, metadata, *columns, *indexes)


def _create(path: Path) -> None:
    """Have the file there, for its owner's eyes only; what SQLite puts beside it takes over who may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _prepare(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()
