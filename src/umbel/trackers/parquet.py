"""A Parquet file, by pyarrow: a row for each number of each round."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from .csv import COLUMNS, rows_of
from .tracker import RoundPoints, Tracker


class Parquet(Tracker):
    """Writes ``FOLDER/RUN.parquet`` with the columns of `CSV` once the run is over or is stopped, by default in the
    folder `umbel-metrics`; the file's metadata has the settings as ``umbel.NAME``.
    """

    needs = "pyarrow"

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        self._path = Path(self.where or "umbel-metrics") / f"{run}.parquet"
        self._settings = {f"umbel.{name}": str(value) for name, value in settings.items()}
        self._rounds: list[RoundPoints] = []
        return -1

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        self._rounds += rounds

    def end(self, reason: str, error: str | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = (pa.int64(), pa.string(), pa.string(), pa.float64(), pa.float64())
        schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
        columns = list(zip(*rows_of(self._rounds), strict=True)) or [()] * len(COLUMNS)
        table = pa.table([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], schema=schema)
        table = table.replace_schema_metadata({**self._settings, "umbel.reason": reason})
        aside = self._path.with_suffix(".new")
        with files.writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, aside)
            os.replace(aside, self._path)
