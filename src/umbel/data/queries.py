"""Data that is a query: what a database says, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Columns = dict[str, npt.NDArray[Any]]


def query(statement: str, database: Any, /, **parameters: Any) -> Columns:
    """The columns that a statement of SQL selects, by name: numbers (NaN for NULL where they may be missing), or
    objects (None).

    `database` is a URL of SQLAlchemy (``"postgresql://..."``, ``"sqlite:///file.db"``), its engine or a connection, or
    DuckDB: a connection, the path of a ``.duckdb`` file, read without writing, or ``":duckdb:"`` for queries over files
    (``select * from 'visits/*.parquet'``). `parameters` are what the statement names: ``:hospital``, in DuckDB
    ``$hospital``. Raises `DataError`, without the values of parameters.
    """
    try:
        if type(database).__module__.split(".")[0] in ("duckdb", "_duckdb"):
            return _duckdb(database.cursor(), statement, parameters)
        if isinstance(database, str | Path) and (
            database == ":duckdb:" or Path(database).suffix in (".duckdb", ".ddb")
        ):
            return _opened_duckdb(database, statement, parameters)
        return _sqlalchemy(database, statement, parameters)
    except ModuleNotFoundError as error:
        raise DataError(f"a query needs {error.name}", hint='Install it: pip install "umbel[sql]"') from error
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        # What databases say has the statement below it, and with it perhaps somebody's data.
        said = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
        raise DataError(f"the query failed: {said[0]}") from None


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
        values = values.astype(np.float64 if number else object)
        values[missing] = np.nan if number else None
    return values


def _sqlalchemy(database: Any, statement: str, parameters: Mapping[str, Any]) -> Columns:
    import sqlalchemy

    if hasattr(database, "execute"):
        rows = database.execute(sqlalchemy.text(statement), dict(parameters))
        return _columns(list(rows.keys()), rows.fetchall())
    own = isinstance(database, str)
    engine = sqlalchemy.create_engine(database) if own else database
    try:
        with engine.connect() as connection:
            return _sqlalchemy(connection, statement, parameters)
    finally:
        if own:
            engine.dispose()


def _columns(names: list[str], rows: Any) -> Columns:
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
