"""Numbers that a folder keeps and that only go up, so that others notice when it was restored from a copy."""

from __future__ import annotations

from pathlib import Path

from ..errors import CorruptFile, StorageError
from . import keyfile


class Epoch:
    """A number in a file. Raises `StorageError`, and `CorruptFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.number = int(path.read_bytes())
        except FileNotFoundError:
            self.number = 0
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError:
            raise CorruptFile(f"{path} holds no number", hint="Restore it, with the folder that it is in.") from None

    def raised(self) -> int:
        """The next number; it is on the disk."""
        keyfile.replace(self._path, f"{self.number + 1}\n".encode())
        self.number += 1
        return self.number
