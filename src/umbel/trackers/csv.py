"""A CSV file: a row for each number of each round."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .. import files
from .tracker import RoundPoints, Tracker

COLUMNS = ("round", "name", "client", "value", "at")


class CSV(Tracker):
    """Writes ``FOLDER/RUN.csv`` with the columns round, name, client, value and at (seconds since 1970), by default in
    the folder `umbel-metrics`. A number of all clients has none in `client`. A run that goes on has its file written
    anew; model and picture stay where the run has them.
    """

    _file: IO[str] | None = None

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        path = Path(self.where or "umbel-metrics") / f"{run}.csv"
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", newline="", encoding="utf-8")
        csv.writer(self._file).writerow(COLUMNS)
        return -1

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        assert self._file is not None
        csv.writer(self._file).writerows(rows_of(rounds))
        self._file.flush()

    def end(self, reason: str, error: str | None) -> None:
        if self._file is not None:
            self._file.close()


def rows_of(rounds: Sequence[RoundPoints]) -> Iterator[tuple[int, str, str | None, float, float]]:
    """A row for each number."""
    for each in rounds:
        for name, value, client in each.points:
            yield each.round, name, None if client is None else str(client), value, each.at
