"""The folder in which data sets are kept, and arrays in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..files import user_folder


def data_folder() -> Path:
    """The folder `UMBEL_DATA`, or else umbel in the user's cache folder."""
    chosen = os.environ.get("UMBEL_DATA")
    return Path(chosen) if chosen else user_folder("XDG_CACHE_HOME", ".cache")


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays that are kept in a file, or None when they are not there or not whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except Exception:  # a torn file can raise nearly anything; where the data came from still has them
        return None


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays for the next time; a folder that cannot be written only costs the time to read them again."""
    _write(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def mapped(path: Path, read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The array that is kept in a file, mapped from it, so that processes share it; what `read` gives when none is
    there, which is kept if it can be.
    """
    try:
        return _map(path)
    except (OSError, ValueError):  # none, or not whole
        array = read()
    return _map(path) if _write(path, lambda file: np.save(file, array)) else array


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def _write(path: Path, save: Callable[[BinaryIO], object]) -> bool:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            save(file)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
