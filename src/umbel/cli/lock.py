"""A folder that one process alone may use at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SettingError, StorageError
from ..files import locked

LOCK = "lock"


@contextmanager
def alone(folder: Path, who: str, hint: str) -> Iterator[None]:
    """Keep a folder, which is made where it is not there, to one process; the system lets go of it however that ends.

    Raises `SettingError` where another one has it: `who` runs there, and `hint` says what to do.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        if not locked(file):
            raise SettingError(f"{who} runs in {folder} already", hint=hint)
        yield
    finally:
        os.close(file)
