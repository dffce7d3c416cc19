"""A holder's table as analyses see it: columns of numbers or labels, groups of rows, and what is too few to be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ClientId, HandlerFailed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeldTable:
    """Columns by name: a dictionary of arrays, a structured array, or a frame of pandas or polars.

    `client` is whose it is; `minimum` is how many rows the holder wants behind whatever it tells; `allowed` are the
    columns that it lets be asked about (None: all). Raises `HandlerFailed`, naming client and column.
    """

    data: Any
    client: ClientId
    minimum: int = 1
    allowed: frozenset[str] | None = None

    @cached_property
    def names(self) -> list[str]:
        """The columns that may be asked about, as the table orders them."""
        dtype = getattr(self.data, "dtype", None)
        found = getattr(self.data, "columns", None) if dtype is None else dtype.names
        if found is None and isinstance(self.data, Mapping):
            found = self.data.keys()
        if found is None:
            kind = type(self.data).__name__
            raise self._error(f"its data is of type {kind}, not a table", "Load a dictionary of columns, or a frame.")
        return [str(name) for name in found if self.allowed is None or name in self.allowed]

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column as it is, one value a row."""
        if name not in self.names:
            raise self._error(f"its table has no column {name!r}", f"It has {', '.join(self.names) or 'none'}.")
        values = self.data[name]
        values = np.ma.filled(values.astype(float), np.nan) if isinstance(values, np.ma.MaskedArray) else values
        array = np.asarray(values)
        rows = len(self.data[self.names[0]])
        if array.shape != (rows,):
            raise self._error(f"column {name!r} has shape {list(array.shape)}, not one value for each of {rows} rows")
        return array

    def numbers(self, name: str) -> Floats:
        """A column as float64, NaN where a value is missing (None, NaN, NA)."""
        array = self.column(name)
        if array.dtype.kind == "O":
            missing = _missing(array)
            if all(isinstance(value, bool | int | float | np.number | np.bool_) for value in array[~missing]):
                array = np.where(missing, np.nan, array).astype(np.float64)
        if array.dtype.kind not in "biuf":
            raise self._error(
                f"column {name!r} is not numeric ({array.dtype.name})", "Let the data handler convert it."
            )
        numbers = array.astype(np.float64) + 0.0  # of two zeros, one
        if (np.abs(numbers) >= 2.0**200).any():
            raise self._error(f"column {name!r} has values that are infinite, or beyond 2**200")
        return numbers

    def labels(self, name: str) -> npt.NDArray[Any]:
        """A column as texts, None where a value is missing; whole numbers have no decimals."""
        array = self.column(name)
        if array.dtype.kind in "biuf":
            unlike, places = np.unique(array, return_inverse=True)
            return np.array([None if value != value else label(value) for value in unlike.tolist()], object)[places]
        missing = _missing(array.astype(object))
        return np.array([None if gone else label(v) for v, gone in zip(array.tolist(), missing, strict=True)], object)

    def groups(self, by: Sequence[tuple[str, Sequence[str]]]) -> tuple[Ints, int]:
        """The group of each row, -1 for none, and how many groups there are: all combinations of the labels of these
        columns, the last varying fastest; one group of all rows where there are no columns.
        """
        codes, count = np.zeros(len(self), np.int64), 1
        for name, values in by:
            places = {value: place for place, value in enumerate(values)}
            found = np.array([places.get(value, -1) for value in self.labels(name)], np.int64)
            codes = np.where((codes < 0) | (found < 0), -1, codes * len(values) + found)
            count *= len(values)
        return codes, count

    def complete(self, columns: Iterable[str]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The rows that miss nothing in these columns, [rows, columns], and which they are; none where they are fewer
        than the minimum.
        """
        matrix = np.stack([self.numbers(name) for name in columns], 1)
        whole = ~np.isnan(matrix).any(1)
        whole &= self.told(np.array([whole.sum()])) > 0
        return matrix[whole], whole

    def told(self, counts: Ints) -> Ints:
        """The counts without those that are too small to be told, which are 0."""
        return np.where(counts < self.minimum, 0, counts).astype(np.int64)

    def __len__(self) -> int:
        return len(self.data[self.names[0]]) if self.names else 0

    def _error(self, message: str, hint: str | None = None) -> HandlerFailed:
        return HandlerFailed(message, client=self.client, hint=hint)


def label(value: Any) -> str:
    """The text that stands for a value: 1, 1.0 and True are one label."""
    if isinstance(value, bool | int | float | np.number | np.bool_) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _missing(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    # NaN is not itself, and pandas' NA is neither itself nor another.
    return np.array([v is None or type(v).__name__ in ("NAType", "NaTType") or v != v for v in array.tolist()], bool)
