"""Files with secrets: readable by their owner alone, and whole or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import StorageError


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """What is in the file; `make` is called for it where there is none yet. Of several processes that make the same
    file at once one wins, and all return what that one wrote. Raises `StorageError`.
    """
    try:
        with suppress(FileNotFoundError):
            return path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = _aside(path, make())
        try:
            with suppress(FileExistsError):
                os.link(aside, path)
        finally:
            aside.unlink()
        _settle(path.parent)
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from error


def replace(path: Path, data: bytes) -> None:
    """Put other contents into the file, at once. Raises `StorageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.replace(_aside(path, data), path)
        _settle(path.parent)
    except OSError as error:
        raise _unusable(path, error) from error


def _aside(path: Path, data: bytes) -> Path:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _settle(folder: Path) -> None:
    if os.name == "posix":  # the name, too, has to reach the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"the key file {path} cannot be read or written: {error.strerror}")
