"""`umbel audit verify` and `umbel audit export`: whether a record of who did what is whole, and all of it."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..trust import audit
from ..trust.audit import Head
from .office_commands import office
from .terminal import plural, stdout

PAGE = 1000


def verify(folder: Path, against: str | None, *, json: bool) -> None:
    """Say whether the audit in a folder is whole, and its head. Raises `CorruptFile` where it is not."""
    given = [Head.parse(against)] if against is not None else []
    key, head, rows = audit.read(folder)
    last = audit.verified(key, rows, [head, *given])
    if json:
        print(jsons.dumps({"records": len(rows), "head": str(last)}))
        return
    stdout().print(f"{plural(len(rows), 'record')}, none changed, added, removed or moved; keep its head elsewhere:")
    stdout().print(f"  {last}", style="cyan", soft_wrap=True)


def export(on: str | None, token: str | None, folder: Path) -> None:
    """Print all records of the audit of a server, or of the one in a folder, a line each."""
    head = Head()
    for row in map(audit.shown, audit.read(folder)[2]) if on is None else _asked(on, token, folder):
        print(jsons.dumps(row, sort_keys=True))
        head = Head(row["number"], bytes.fromhex(row["seal"]))
    print(f"head {head}", file=sys.stderr)


def _asked(on: str, token: str | None, folder: Path) -> Iterator[Mapping[str, Any]]:
    after = 0
    with office(on, token, folder) as server:
        while rows := server.call("audit.list", after=after, count=PAGE)["records"]:
            yield from rows
            after = rows[-1]["number"]
