"""Data that is a query: what a database says, as columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Columns = dict[str, npt.NDArray[Any]]
BATCH = 10_000
OF_A_VALUE = re.compile("onver|nvalid input")
"""What databases say where a value, which they quote, is not of the kind that was wanted."""
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def query(statement: str, database: Any, /, **parameters: Any) -> Columns:
    """The columns that a statement of SQL selects, by name: numbers (NaN for NULL where they may be missing), or
    objects (None).

    `database` is a URL of SQLAlchemy (``"postgresql://..."``, ``"sqlite:///file.db"``), its engine or a connection, or
    DuckDB: a connection, the path of a ``.duckdb`` file, read without writing, or ``":duckdb:"`` for queries over files
    (``select * from 'visits/*.parquet'``). `parameters` are what the statement names: ``:hospital``, in DuckDB
    ``$hospital``. Raises `DataError`, without the values of parameters and what else stands in quotes.
    """
    parameters = {name: value.item() if isinstance(value, np.generic) else value for name, value in parameters.items()}
    try:
        if type(database).__module__.split(".")[0] in ("duckdb", "_duckdb"):
            return _duckdb(database.cursor(), statement, parameters)
        named = isinstance(database, str | Path) and "://" not in str(database)
        if named and (database == ":duckdb:" or Path(database).suffix in (".duckdb", ".ddb")):
            return _opened_duckdb(database, statement, parameters)
        return _sqlalchemy(database, statement, parameters)
    except ModuleNotFoundError as error:
        package = '"umbel[sql]"' if error.name in ("duckdb", "sqlalchemy") else error.name
        raise DataError(f"a query needs {error.name}", hint=f"Install it: pip install {package}") from error
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        # What databases say has the statement below it, and with it perhaps somebody's data; or a value in quotes.
        said = (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
        for value in sorted({str(value) for value in parameters.values()}, key=len, reverse=True):
            said = said.replace(value, "...") if value else said
        if OF_A_VALUE.search(said):
            said = QUOTED.sub("'...'", said)
        raise DataError(f"the query failed: {said}") from None


def _opened_duckdb(path: str | Path, statement: str, parameters: Mapping[str, Any]) -> Columns:
    import duckdb

    if path == ":duckdb:":
        opened = duckdb.connect()
    elif not Path(path).exists():
        raise DataError(f"there is no file {path}")
    else:
        opened = duckdb.connect(str(path), read_only=True)
    with opened:
        return _duckdb(opened, statement, parameters)


def _duckdb(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Columns:
    found = connection.execute(statement, dict(parameters) or None).fetchnumpy()
    return {name: _plain(column) for name, column in found.items()}


def _plain(column: Any) -> npt.NDArray[Any]:
    missing = np.ma.getmaskarray(column)
    values = np.array(np.ma.getdata(column))
    if missing.any():
        number = values.dtype.kind in "biuf"
        date = values.dtype.kind in "mM"
        values = values if date else values.astype(np.float64 if number else object)
        values[missing] = np.datetime64("NaT") if date else np.nan if number else None
    return values


def _sqlalchemy(database: Any, statement: str, parameters: Mapping[str, Any]) -> Columns:
    import sqlalchemy

    if isinstance(database, sqlalchemy.Connection):
        rows = database.execute(sqlalchemy.text(statement), dict(parameters))
        names = list(rows.keys())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"the statement selects two columns {twice[0]!r}", hint="Name them: select a.x as ax.")
        batches = [_columns(names, batch) for batch in rows.partitions(BATCH)] or [_columns(names, [])]
        return {name: _joined([batch[name] for batch in batches]) for name in names}
    own = isinstance(database, str | sqlalchemy.URL)
    if not own and not isinstance(database, sqlalchemy.Engine):
        raise DataError(
            f"a {type(database).__name__} is no database",
            hint="Give a URL (sqlite:///file.db), an engine or connection of SQLAlchemy, or DuckDB's.",
        )
    engine = sqlalchemy.create_engine(database) if own else database
    try:
        with engine.connect() as connection:
            return _sqlalchemy(connection.execution_options(stream_results=True), statement, parameters)
    finally:
        if own:
            engine.dispose()


def _columns(names: list[str], rows: Sequence[Any]) -> Columns:
    found = {}
    for place, name in enumerate(names):
        values = [row[place] for row in rows]
        known = [value for value in values if value is not None]
        if known and all(isinstance(value, int | float | Decimal) for value in known):
            exact = len(known) == len(values) and all(isinstance(value, int) for value in known)
            found[name] = np.array(values) if exact else np.array(values, np.float64)  # of None NaN
        else:
            found[name] = np.array(values, object)
    return found


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One column of those of all batches; a batch of nothing but NULL is of the kind of the others."""
    empty = [part.dtype.kind == "O" and all(value is None for value in part) for part in parts]
    if any(part.dtype.kind != "O" for part in parts) and all(
        none or part.dtype.kind != "O" for none, part in zip(empty, parts, strict=True)
    ):
        parts = [part.astype(np.float64) if none else part for none, part in zip(empty, parts, strict=True)]
    return np.concatenate(parts)
