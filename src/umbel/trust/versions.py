"""The greatest version of each author's app that was let in: no older code comes back under its signature."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from ..errors import CorruptFile, StorageError
from . import keyfile


class Versions:
    """Versions by author and app; kept in a file, or in memory alone. Raises `StorageError`, and `CorruptFile`."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()
        try:
            found = {} if path is None else json.loads(path.read_text("utf-8"))
            if not isinstance(found, dict) or any(type(version) is not int for version in found.values()):
                raise ValueError("it holds no versions")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CorruptFile(f"{path} is damaged: {error}", hint="Remove it: older code may come back then.") from None
        self._known = found

    def greatest(self, author: bytes, app: str) -> int:
        """The greatest version that was let in; 0 where none was."""
        return self._known.get(_name(author, app), 0)

    def accept(self, author: bytes, app: str, version: int) -> None:
        """Remember that a version was let in."""
        with self._lock:
            if version > self.greatest(author, app):
                known = {**self._known, _name(author, app): version}
                if self._path is not None:
                    keyfile.replace(self._path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
                self._known = known


def _name(author: bytes, app: str) -> str:
    return f"{author.hex()} {app}"
