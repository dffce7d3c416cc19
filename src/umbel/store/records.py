"""Records in tables, written in batches: the protocol of a store, the server's tables, and a store in memory."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ..errors import InternalError

Row = dict[str, Any]
Readers = Mapping[tuple[str, str], Callable[[Any], object]]

_LOG = logging.getLogger("umbel.store")
_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Table:
    """A table: its columns with their kinds (text, int, real, bytes or json), the key's first; `indexes` name columns
    that rows are also looked up by.
    """

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()


def _table(name: str, columns: str, keys: int = 1, *indexes: tuple[str, ...]) -> Table:
    kinds = dict(column.split(":") for column in columns.split())
    return Table(name, kinds, tuple(kinds)[:keys], indexes)


TABLES = (
    _table(
        "nodes",
        "id:text name:text key:bytes status:text clients:json joined_at:real seen_at:real capabilities:json relay:int"
        " bounds:json epoch:int boot:text",
    ),
    _table(
        "tokens",
        "id:text kind:text public:bytes role:text name:text run:text expires_at:real used_at:real bounds:json",
    ),
    _table("claims", "client:text node:text"),
    _table(
        "runs",
        "id:text status:text owner:text name:text created_at:real ended_at:real spec:bytes submission:json exit:json"
        " members:json closed:int summary:json logged:int log:int",
    ),
    _table("asks", "run:text ask:int spec:bytes", 2),
    _table(
        "tasks",
        "run:text task:text ask:int client:text node:text attempt:int message:bytes",
        2,
        ("run", "ask"),
    ),
    _table("answers", "run:text id:text ask:int message:bytes", 2, ("run", "ask")),
    _table("events", "run:text number:int at:real body:text round:int", 2, ("run", "round")),
    _table("audit", "number:int at:real who:text did:text what:json peer:text before:bytes seal:bytes"),
)
"""The tables of a server."""
VERSION = 6
"""Their version; it is written into the file."""
MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    1: ("ALTER TABLE nodes ADD COLUMN relay INTEGER",),
    2: (
        "ALTER TABLE nodes ADD COLUMN bounds TEXT",
        "DROP TABLE tokens",  # of which the hashes were kept: who had them could pass for their holders
        "CREATE TABLE tokens (id TEXT NOT NULL, kind TEXT, public BLOB, role TEXT, name TEXT, run TEXT,"
        " expires_at REAL, used_at REAL, bounds TEXT, PRIMARY KEY (id))",
        "CREATE TABLE claims (client TEXT NOT NULL, node TEXT, PRIMARY KEY (client))",
        "INSERT OR IGNORE INTO claims SELECT each.value, nodes.id FROM nodes, json_each(nodes.clients) AS each"
        " WHERE nodes.status <> 'pending' ORDER BY nodes.status",
        "ALTER TABLE audit ADD COLUMN peer TEXT",
        "ALTER TABLE audit ADD COLUMN before BLOB",
        "ALTER TABLE audit ADD COLUMN seal BLOB",
    ),
    3: ("ALTER TABLE nodes ADD COLUMN epoch INTEGER", "ALTER TABLE nodes ADD COLUMN boot TEXT"),
    4: (
        "ALTER TABLE runs ADD COLUMN summary TEXT",
        "ALTER TABLE runs ADD COLUMN logged INTEGER",
        "ALTER TABLE runs ADD COLUMN log INTEGER",
        "ALTER TABLE events ADD COLUMN round INTEGER",
        "CREATE INDEX events_by_run_round ON events (run, round)",
    ),
    5: ("ALTER TABLE tasks DROP COLUMN answer",),  # an answer says itself which tasks it is to
}
"""What makes tables of the next version out of those of each version before."""


class Change(NamedTuple):
    """One queued change: the columns of a row to lay over what is there, or what the rows to delete have in common."""

    values: Row
    delete: bool


class Batch:
    """Changes that become durable together, in the order in which they were queued within each table."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Change]] = {}

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __len__(self) -> int:
        return sum(map(len, self.changes.values()))

    def add(self, table: str, change: Change) -> None:
        """Queue one more change."""
        self.changes.setdefault(table, []).append(change)


class Store(Protocol):
    """Tables of rows that outlive the process.

    `put` lays a row over the one with its key: columns that it leaves out keep their value, or are None in a new row.
    `delete` removes the rows that have all of these values. Both only queue. `take` hands out what is queued and
    starts anew; `write` makes a batch durable as a whole, or raises `StorageError` and changes nothing, and then may
    be called with the batch again; `commit` does both. Batches are to be written in the order in which they were
    taken. `rows` gives what was written, sorted by key, with these values; `above` leaves only those whose last
    column of the key is greater, `limit` the first so many. `greatest` is the highest last column of the key among
    rows with these values, 0 if there are none. `close` forgets what is queued.

    `put`, `delete` and `take` belong to one thread; `write`, `rows` and `greatest` may be called from any. A table,
    column or value that does not fit is an `InternalError` when it is queued.
    """

    def rows(self, table: str, /, *, above: int | None = None, limit: int | None = None, **where: Any) -> list[Row]: ...
    def greatest(self, table: str, /, **where: Any) -> int: ...
    def put(self, table: str, row: Mapping[str, Any], /) -> None: ...
    def delete(self, table: str, /, **where: Any) -> None: ...
    def take(self) -> Batch: ...
    def write(self, batch: Batch) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError("is not text")
    if not value.isascii():
        value.encode()
    return value


def _int(value: Any) -> Any:
    if not isinstance(value, int) or not _LEAST <= value <= _MOST:
        raise TypeError("is not a whole number of 64 bits")
    return int(value)


def _real(value: Any) -> Any:
    if not isinstance(value, int | float) or math.isnan(value):
        raise TypeError("is not a number")
    return float(value)


def _bytes(value: Any) -> Any:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("is not bytes")
    return bytes(value)


def _json(value: Any) -> Any:
    return json.dumps(value, separators=(",", ":"))


_STORED: Mapping[str, Callable[[Any], Any]] = {
    "text": _text, "int": _int, "real": _real, "bytes": _bytes, "json": _json
}  # fmt: skip


_KEPT: Mapping[str, tuple[type, ...]] = {
    "text": (str,), "int": (int,), "real": (float, int), "bytes": (bytes,), "json": (str,)
}  # fmt: skip


class TableSchema:
    """Tables by name, and how their rows are checked, encoded for keeping and decoded again."""

    def __init__(self, tables: Iterable[Table], readers: Readers = MappingProxyType({})) -> None:
        self._readers = readers
        self.tables = {table.name: table for table in tables}
        self.aside: dict[str, str] = {}
        self._stored = {
            table.name: {column: _STORED[kind] for column, kind in table.columns.items()}
            for table in self.tables.values()
        }
        self._json = {
            table.name: [column for column, kind in table.columns.items() if kind == "json"]
            for table in self.tables.values()
        }

    def table(self, name: str) -> Table:
        """A table by its name."""
        try:
            return self.tables[name]
        except KeyError:
            raise InternalError(f"the store has no table {name!r}") from None

    def encoded(self, table: str, values: Mapping[str, Any], *, whole: bool) -> Row:
        """Values as they are kept; with `whole` they are a row, else what rows are looked up by."""
        key = self.table(table).key
        stored = self._stored[table]
        found: Row = {}
        for column, value in values.items():
            try:
                found[column] = stored[column](value) if value is not None else None
            except KeyError:
                raise InternalError(f"the table {table!r} has no column {column!r}") from None
            except (TypeError, ValueError, OverflowError) as error:
                raise InternalError(f"{value!r:.100} for {table}.{column}: {error}") from error
        if whole:
            if any(found.get(column) is None for column in key):
                raise InternalError(f"a row for {table!r} lacks its key {', '.join(key)}: {dict(values)!r:.200}")
        elif any(column in found for column in self._json[table]):
            raise InternalError(f"rows of {table!r} cannot be looked up by JSON")
        return found

    def decoded(self, table: str, rows: Iterable[Row]) -> list[Row]:
        """Rows as they were put; decodes in place. One that is not as any was put is set aside: it stays where it is,
        is left out, and is told of once.
        """
        found = []
        for row in rows:
            try:
                found.append(self._decoded(table, row))
            except Exception as error:  # json and protobuf raise many kinds
                name = f"{table} {'/'.join(str(row[column]) for column in self.tables[table].key):.200}"
                if name not in self.aside:
                    self.aside[name] = f"{error!r:.200}"
                    _LOG.error("a row of the store cannot be read and is left out: %s: %r", name, error)
        return found

    def _decoded(self, table: str, row: Row) -> Row:
        for column, kind in self.tables[table].columns.items():
            value = row[column]
            if value is not None or column in self.tables[table].key:
                if type(value) not in _KEPT[kind]:
                    raise TypeError(f"{column} is {value!r:.40}, no {kind}")
                if kind == "json":
                    value = row[column] = json.loads(value)
            if (read := self._readers.get((table, column))) is not None:
                read(value)
        return row


class Queue:
    """The queueing half of a store: checks what is put and deleted, and hands it out in batches.

    `readers` raise for a value of a (table, column) that cannot be what it has to be.
    """

    def __init__(self, tables: Iterable[Table] = TABLES, readers: Readers = MappingProxyType({})) -> None:
        self.schema = TableSchema(tables, readers)
        self._queued = Batch()

    def put(self, table: str, row: Mapping[str, Any], /) -> None:
        """Queue a row to be laid over the one with its key."""
        self._queued.add(table, Change(self.schema.encoded(table, row, whole=True), False))

    def delete(self, table: str, /, **where: Any) -> None:
        """Queue the removal of the rows with these values."""
        self._queued.add(table, Change(self.schema.encoded(table, where, whole=False), True))

    @property
    def waiting(self) -> bool:
        """Whether anything is queued."""
        return bool(self._queued)

    def take(self) -> Batch:
        """Hand out what is queued."""
        batch, self._queued = self._queued, Batch()
        return batch

    def write(self, batch: Batch) -> None:
        """Make a batch durable as a whole."""
        raise NotImplementedError

    def commit(self) -> None:
        """Write what is queued."""
        self.write(self.take())

    @property
    def problem(self) -> str:
        """Which rows were set aside, if any were."""
        aside = self.schema.aside
        return f"{len(aside)} rows of the store cannot be read and are left out, such as {min(aside)}" if aside else ""

    def close(self) -> None:
        """Forget what is queued."""
        self._queued = Batch()


class MemoryStore(Queue):
    """A `Store` for tests: what was written outlives a `crash` and `close`, and nothing else does."""

    def __init__(self, tables: Iterable[Table] = TABLES, readers: Readers = MappingProxyType({})) -> None:
        super().__init__(tables, readers)
        self._rows: dict[str, dict[tuple[Any, ...], Row]] = {name: {} for name in self.schema.tables}
        self._lock = threading.Lock()

    def crash(self) -> None:
        """Forget what is queued, as a process does that is killed."""
        self.take()

    def rows(self, table: str, /, *, above: int | None = None, limit: int | None = None, **where: Any) -> list[Row]:
        """The rows with these values, sorted by key."""
        with self._lock:
            keys = sorted(self._keys(table, self.schema.encoded(table, where, whole=False)))
            if above is not None:
                keys = [key for key in keys if key[-1] > above]
            found = [dict(self._rows[table][key]) for key in keys[:limit]]
        return self.schema.decoded(table, found)

    def greatest(self, table: str, /, **where: Any) -> int:
        """The highest last column of the key."""
        with self._lock:
            keys = self._keys(table, self.schema.encoded(table, where, whole=False))
            return max((key[-1] for key in keys), default=0)

    def write(self, batch: Batch) -> None:
        """Make a batch part of what a crash leaves."""
        with self._lock:
            for table, changes in batch.changes.items():
                rows = self._rows[table]
                blank = dict.fromkeys(self.schema.table(table).columns)
                for values, delete in changes:
                    if delete:
                        for key in self._keys(table, values):
                            del rows[key]
                    else:
                        key = tuple(values[column] for column in self.schema.table(table).key)
                        rows[key] = {**rows.get(key, blank), **values}

    def _keys(self, table: str, where: Row) -> list[tuple[Any, ...]]:
        columns = self.schema.table(table).key
        rows = self._rows[table]
        if where.keys() >= set(columns):
            key = tuple(where[column] for column in columns)
            candidates: Iterable[tuple[Any, ...]] = [key] if key in rows else []
        else:
            candidates = rows
        wanted = list(where.items())
        return [key for key in candidates if all(rows[key][column] == value for column, value in wanted)]
