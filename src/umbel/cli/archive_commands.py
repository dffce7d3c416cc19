"""`umbel pack` and `umbel diff`: the archives of an app, and how two archives differ."""

from __future__ import annotations

import hashlib
import json as jsons
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..errors import StorageError
from ..runs.journal import write_whole
from ..trust import archive
from ..trust.packing import pack as pack_app
from .account import size
from .application import load
from .terminal import plural, stdout

STYLES = {"+": "green", "-": "red", "@": "cyan"}


def pack(reference: str, to: Path, *, json: bool) -> None:
    """Write the archives of an app, and print their hashes."""
    loaded = load(reference)
    packed = pack_app(loaded.app, loaded.path, loaded.name)
    to.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind, data in (("client", packed.client), ("app", packed.app)):
        path = to / f"{loaded.title}-{kind}.zip"
        write_whole(path, data)
        files = archive.read(data).files
        found[kind] = {
            "file": str(path),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "files": sorted(files),
        }
    if json:
        print(jsons.dumps(found))
        return
    table = Table.grid(padding=(0, 2))
    for kind, facts in found.items():
        table.add_row(kind, Text(str(facts["file"]), style="bold"), str(facts["sha256"]))
        names = [str(name) for name in facts["files"]]  # type: ignore[attr-defined]
        table.add_row("", Text(f"{plural(len(names), 'file')}, {size(facts['bytes'])}"), ", ".join(names))  # type: ignore[arg-type]
    console = stdout()
    console.print(table)
    console.print(Text("data holders see, approve and run the client's; the app's goes to the server", style="dim"))


def diff(old: Path, new: Path) -> None:
    """Print how two archives differ."""
    text = archive.difference(*(archive.read(_bytes(path)) for path in (old, new)))
    console = stdout()
    if not text:
        console.print(Text("no difference", style="dim"))
    for line in text.splitlines():
        console.print(Text(line, style=STYLES.get(line[:1], "" if line[:1] == " " else "bold")), soft_wrap=True)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
