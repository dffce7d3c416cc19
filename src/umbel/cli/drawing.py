"""Pictures to files, and what is said where one cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CallerError, SettingError, StorageError


def drawn(draw: Callable[[], object], file: Path, run: str | None = None) -> None:
    """Have a picture drawn to a file. Raises `CallerError`, `SettingError` or `StorageError`."""
    try:
        draw()
    except ImportError as error:
        raise CallerError(str(error)) from error
    except SettingError as error:
        raise error.located(run=run) from None
    except ValueError as error:
        raise SettingError(f"{file} cannot be drawn: {error}", hint="Name a .png, .svg or .pdf file.") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
