"""What was found out about a machine, as a table or as JSON: what `umbel doctor` and `umbel server doctor` print."""

from __future__ import annotations

import json as jsons
from collections.abc import Callable, Iterable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import stdout

Row = Mapping[str, object]
"""A finding: what was checked (`check`), what there is to say of it (`note`), and whatever else JSON is to have."""


def print_findings(rows: Iterable[Row], state: Callable[[Row], tuple[str, str]], *, json: bool) -> None:
    """Print all rows as one line of JSON, or as a table with the word and the colour that `state` has for each."""
    if json:
        print(jsons.dumps(list(map(dict, rows))))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "state", "note"):
        table.add_column(name, overflow="fold")
    for row in rows:
        word, colour = state(row)
        note = Text(str(row["note"]))
        if advice := row.get("advice"):
            note.append(f"\n{advice}", "cyan")
        table.add_row(str(row["check"]), Text(word, style=colour), note)
    stdout().print(table)
