"""Fetching a run's folder from a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConnectionLost, ProtocolError
from ..store.blobs import digest
from ..wire import messages as m
from .operator import Operator

ATTEMPTS = 5
"""So often in a row without a further file a lost connection is made anew."""


def pull(
    office: Operator, run: str, folder: Path, told: Callable[[str, int], object] = lambda name, size: None
) -> tuple[Path, int]:
    """Fetch the files of a run into a folder of its own below `folder`; returns that and how many were fetched.

    Files that are there already and have not changed are not fetched again; a file whose transfer was cut goes on
    where it was. `told` is called with each file's name and size before it is fetched.
    """
    failures, count = 0, 0
    while True:
        try:
            found = office.call("runs.pull", run=run)
            place = folder / _one(found["run"])
            for file in found["files"]:
                path = place.joinpath(*_parts(file["name"]))
                if _is_there(path, file):
                    continue
                told(file["name"], file["size"])
                office.download(m.Blob(sha256=bytes.fromhex(file["sha256"]), size=file["size"]), path)
                failures, count = 0, count + 1
            return place, count
        except ConnectionLost:
            failures += 1
            if failures >= ATTEMPTS:
                raise


def _is_there(path: Path, file: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == file["size"] and digest(path).sha256.hex() == file["sha256"]


def _one(name: str) -> str:
    (part,) = _parts(name) if len(_parts(name)) == 1 else ("",)
    if not part:
        raise ProtocolError(f"the server names a run {name!r:.60}", m.CODE_MALFORMED)
    return part


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a file's name. Raises `ProtocolError` for one that leads elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or any(part in ("/", "..", ".") or "\\" in part or ":" in part for part in parts):
        raise ProtocolError(f"the server names a file {name!r:.60}", m.CODE_MALFORMED)
    return parts
