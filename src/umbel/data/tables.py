"""One way to look at data of many forms: columns to split by, and the rows of a client in the form that the data had.

Nothing is copied but the rows that are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Columns = dict[Any, Array]
Change = Callable[[Columns, Ints], Mapping[Any, Any]]
"""Takes the columns of some rows and which rows they are, and gives the columns that are other than they were."""


class DataTable:
    """Data of some form: its number of items, its columns by name, and its rows.

    `names` are the columns' names, or their positions; `label` is the one that has the labels where nobody says which,
    None where that is unknown. `table[name]` is a column as a NumPy array, `table[None]` that of the labels.
    """

    names: tuple[Any, ...] = ()
    label: Any = None

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, name: Any) -> Array:
        wanted = self.label if name is None else name
        if wanted is None or wanted not in self.names:
            what = "no column is named" if name is None else f"there is no column {name!r}"
            has = f"It has {', '.join(map(str, self.names[:30]))}." if self.names else "This form of data has none."
            raise DataError(f"{what} to split the data by", hint=f"Such as label=... or column=... {has}")
        kept: dict[Any, Array] = self.__dict__.setdefault("_columns", {})
        if wanted not in kept:
            kept[wanted] = self._column(wanted)
        return kept[wanted]

    def classes(self, label: Any = None) -> Array:
        """The different labels, in ascending order."""
        kept: dict[Any, Array] = self.__dict__.setdefault("_classes", {})
        if label not in kept:
            kept[label] = np.unique(self[label])
        return kept[label]

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        """These items in the form that the data has, changed where that is asked for."""
        raise NotImplementedError

    def across(self, names: Sequence[Any]) -> DataTable:
        """The same items with these columns alone."""
        raise DataError("data of this form have no columns to divide among parties")

    @property
    def features(self) -> tuple[Any, ...]:
        """The columns that parties may divide among them."""
        return self.names

    def _column(self, name: Any) -> Array:
        raise NotImplementedError


class NumberTable(DataTable):
    """Items of which only the number is known."""

    def __len__(self) -> int:
        return int(self.data)

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        return items


class ArrayTable(DataTable):
    """An array, a tuple of arrays of one length, or a mapping of names to them; of NumPy, SciPy's sparse matrices, or
    tensors of PyTorch.

    A tuple ends with the labels, a mapping has them by the name `label`, `labels` or `y`; a single array of one
    dimension is the labels.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        if isinstance(data, Mapping):
            self._parts = {name: _arrayed(part) for name, part in data.items()}
            self.label = next((name for name in ("label", "labels", "y") if name in data), None)
        else:
            several = data if isinstance(data, tuple) else (data,)
            self._parts = dict(enumerate(map(_arrayed, several)))
            self.label = len(several) - 1 if len(several) > 1 or np.ndim(self._parts[0]) == 1 else None
        self.names = tuple(self._parts)
        lengths = {name: part.shape[0] for name, part in self._parts.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"arrays of one data set have one length, not {lengths}")

    def __len__(self) -> int:
        return int(next(iter(self._parts.values())).shape[0])

    @property
    def features(self) -> tuple[Any, ...]:
        if isinstance(self.data, Mapping):
            return self.names
        return tuple(range(self._parts[0].shape[1])) if self._parts[0].ndim == 2 else ()

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        found = {name: _taken(part, items) for name, part in self._parts.items()}
        if change is not None:
            found |= {name: _like(found[name], new) for name, new in change(_numpy(found), items).items()}
        if isinstance(self.data, Mapping):
            return found
        return tuple(found.values()) if isinstance(self.data, tuple) else found[0]

    def across(self, names: Sequence[Any]) -> DataTable:
        if isinstance(self.data, Mapping):
            return ArrayTable({name: self._parts[name] for name in names})
        columns = [name for name in names if name != "label"]
        whole = columns == list(range(columns[0], columns[0] + len(columns))) if columns else False
        x = self._parts[0][:, columns[0] : columns[-1] + 1] if whole else self._parts[0][:, columns]
        beside = list(self._parts.values())[1:] if "label" in names else []
        return ArrayTable((x, *beside) if beside else x)

    def _column(self, name: Any) -> Array:
        return np.asarray(self._parts[name])


class FrameTable(DataTable):
    """A data frame of pandas or polars."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.names = tuple(data.columns)

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        pandas = hasattr(self.data, "iloc")
        found = self.data.iloc[items] if pandas else self.data[items]
        if change is None:
            return found
        new = change({name: found[name].to_numpy() for name in self.names}, items)
        if pandas:
            found = found.copy(deep=False)
            for name, values in new.items():  # whose names need not be text
                found[name] = values
            return found
        import polars

        return found.with_columns(*(polars.Series(name, np.asarray(values)) for name, values in new.items()))

    def across(self, names: Sequence[Any]) -> DataTable:
        return FrameTable(self.data[list(names)])

    def _column(self, name: Any) -> Array:
        return np.asarray(self.data[name].to_numpy())


class DatasetTable(DataTable):
    """A data set that gives one item at a time: of PyTorch, of Hugging Face, or any with a length and items by number.

    Items are tuples, mappings, or single things. Labels are the data set's `targets` or `labels` where it has them, a
    column of Hugging Face by its name, and else a part of each item, which takes as long as reading them all.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self._hub = hasattr(data, "select") and hasattr(data, "column_names")
        known = next((name for name in ("targets", "labels") if getattr(data, name, None) is not None), None)
        first = data[0] if len(data) else None
        if self._hub:
            self.names = tuple(data.column_names)
        elif isinstance(first, Mapping):
            self.names = tuple(first)
        elif isinstance(first, tuple | list):
            self.names = tuple(range(len(first)))
        self._known = known
        if isinstance(first, Mapping):
            self.label = next((name for name in ("label", "labels", "y") if name in self.names), None)
        elif self.names:
            self.label = self.names[-1]
        if known is not None and self.label is None:
            self.label, self.names = known, (*self.names, known)

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        if self._hub and change is None:
            return self.data.select(items)
        return Chosen(self.data, items, change)

    def _column(self, name: Any) -> Array:
        if self._hub:
            return np.asarray(self.data.with_format("numpy")[name][:])
        if self._known is not None and name == self.label:
            return np.asarray(getattr(self.data, self._known))
        return np.asarray([self.data[item][name] for item in range(len(self.data))])


class Chosen(Sequence[Any]):
    """Some items of a data set, read one by one as they are asked for; a `torch.utils.data.DataLoader` takes it."""

    def __init__(self, data: Any, items: Ints, change: Change | None = None) -> None:
        self.data, self.items, self._change = data, items, change

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return Chosen(self.data, self.items[number], self._change)
        index = int(self.items[number])
        item = self.data[index]
        if self._change is None:
            return item
        pairs = item if isinstance(item, Mapping) else dict(enumerate(item if isinstance(item, tuple) else (item,)))
        new = self._change({name: np.asarray(part)[None] for name, part in pairs.items()}, np.array([index]))
        parts = {**pairs, **{name: _like(pairs[name], np.asarray(values)[0]) for name, values in new.items()}}
        return parts if isinstance(item, Mapping) else tuple(parts.values()) if isinstance(item, tuple) else parts[0]


class ParquetTable(DataTable):
    """A Parquet file: whole columns to split by, and rows out of the row groups that have them.

    A client gets its rows as a dict of arrays. Read by pyarrow where it is installed, else by polars.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(Path(data))
        self._file, self._polars = _parquet(self.data)
        if self._polars is None:
            self.names = tuple(self._file.schema_arrow.names)
            groups = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
            self._ends = np.cumsum([0, *groups])
        else:
            self.names = tuple(self._file.collect_schema().names())
            self._ends = np.array([0, self._file.select(self._polars.len()).collect().item()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, items: Ints, change: Change | None = None) -> Any:
        pieces = []
        for group, start in enumerate(self._ends[:-1]):
            mine = items[np.searchsorted(items, start) : np.searchsorted(items, self._ends[group + 1])] - start
            if mine.size:
                pieces.append(self._group(group, mine))
        pieces = pieces or [self._group(0, items)]
        found = {name: np.concatenate([piece[name] for piece in pieces]) for name in self.names}
        return found if change is None else {**found, **change(found, items)}

    def _group(self, group: int, items: Ints) -> Columns:
        if self._polars is None:
            rows = self._file.read_row_group(group).take(items)
            return {name: rows[name].to_numpy() for name in self.names}
        found = self._file.with_row_index("\0").filter(self._polars.col("\0").is_in(items.tolist())).collect()
        return {name: found[name].to_numpy() for name in self.names}

    def _column(self, name: Any) -> Array:
        if self._polars is None:
            return np.asarray(self._file.read([name])[name].to_numpy())
        return np.asarray(self._file.select(name).collect()[name].to_numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetTable, (self.data,)


def as_table(data: Any) -> DataTable:
    """The table that data of any of these forms is; a `DataError` says which forms there are."""
    if isinstance(data, DataTable):
        return data
    if isinstance(data, int | np.integer) and not isinstance(data, bool):
        return NumberTable(int(data))
    if isinstance(data, str | os.PathLike):
        return _from_path(Path(data))
    package = type(data).__module__.split(".")[0]
    if package in ("pandas", "polars"):
        return FrameTable(data) if hasattr(data, "columns") else ArrayTable(data.to_numpy())
    if isinstance(data, np.ndarray | Mapping) or hasattr(data, "numpy") or hasattr(data, "tocsr"):
        return ArrayTable(data)
    if isinstance(data, tuple) and len(data) > 1 and all(np.ndim(part) > 0 for part in data):
        return ArrayTable(data)
    if isinstance(getattr(data, "tensors", None), tuple):  # a torch.utils.data.TensorDataset
        return ArrayTable(data.tensors)
    if isinstance(data, list | tuple) and not (data and isinstance(data[0], tuple | Mapping)):
        return ArrayTable(np.asarray(data))
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return DatasetTable(data)
    raise DataError(
        f"a {type(data).__name__} cannot be split",
        hint="Data are arrays, a tuple or mapping of them, a frame of pandas or polars, a data set with a length and "
        "items by number, or the path of a .csv or .parquet file or of a folder that has a folder of images a class.",
    )


def _from_path(path: Path) -> DataTable:
    from .images import Images
    from .sheets import read_csv

    if path.is_dir():
        return DatasetTable(Images(path))
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if path.suffix.lower() in (".parquet", ".pq"):
        return ParquetTable(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return ArrayTable(read_csv(path))
    raise DataError(f"{path} is no .csv, .tsv or .parquet file, nor a folder of images")


def _parquet(path: Path) -> tuple[Any, Any]:
    """The opened file of pyarrow and None, or the lazy frame of polars and polars."""
    try:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path), None
    except ImportError:
        pass
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        import polars
    except ImportError as error:
        raise DataError(
            "reading Parquet needs pyarrow or polars", hint="Install one of them: pip install pyarrow"
        ) from error
    return polars.scan_parquet(path), polars


def _arrayed(part: Any) -> Any:
    if hasattr(part, "tocsr"):
        return part.tocsr()
    return part if hasattr(part, "shape") and hasattr(part, "__getitem__") else np.asarray(part)


def _taken(part: Any, items: Ints) -> Any:
    if isinstance(part, np.ndarray) or hasattr(part, "tocsr"):
        return part[items]
    import torch

    return part[torch.from_numpy(items.copy())]


def _numpy(columns: Mapping[Any, Any]) -> Columns:
    return {name: np.asarray(part) for name, part in columns.items()}


def _like(old: Any, new: Any) -> Any:
    """A changed array as what it was before: a tensor of PyTorch, a plain number, or an array."""
    if hasattr(old, "numpy") and not isinstance(old, np.ndarray | np.generic):
        import torch

        return torch.from_numpy(np.array(new, order="C"))
    return new.item() if isinstance(old, int | float) and np.ndim(new) == 0 else new
