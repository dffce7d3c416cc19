"""A CSV file: a row for each number of each round."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

from .. import files
from .tracker import RoundPoints, Tracker

COLUMNS = ("round", "name", "client", "value", "at")


class CSV(Tracker):
    """Writes ``FOLDER/RUN.csv`` with the columns round, name, client, value and at (seconds since 1970), by default in
    the folder `umbel-metrics`. A number of all clients has none in `client`. A run that goes on has its file written
    anew; model and picture stay where the run has them.
    """

    _file: FileIO | None = None

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        path = Path(self.where or "umbel-metrics") / f"{run}.csv"
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path, "w")
        self._append([COLUMNS])
        return -1

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        self._append(rows_of(rounds))

    def end(self, reason: str, error: str | None) -> None:
        if self._file is not None:
            self._file.close()

    def _append(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write all of the rows, or, where the disk is full, none: they come again."""
        assert self._file is not None
        text = StringIO(newline="")
        csv.writer(text).writerows(rows)
        rest, before = memoryview(text.getvalue().encode(errors="backslashreplace")), self._file.tell()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(before)
            self._file.seek(before)
            raise


def rows_of(rounds: Sequence[RoundPoints]) -> Iterator[tuple[int, str, str | None, float, float]]:
    """A row for each number."""
    for each in rounds:
        for name, value, client in each.points:
            yield each.round, name, None if client is None else str(client), value, each.at
