"""What an examination of this machine has found: printed as a table, or as one line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import UmbelError
from .terminal import json_text, stdout


@dataclass(frozen=True)
class Finding:
    """Whether one thing is as it should be, and what is to be said of it. Where it is not, and is `critical`, nobody
    should go on.
    """

    check: str
    good: bool
    note: str
    critical: bool = True

    @classmethod
    def wrong(cls, check: str, error: UmbelError, *, critical: bool = True) -> Finding:
        """An error: what has happened, and what to do."""
        return cls(check, False, f"{error.message}. {error.hint}" if error.hint else error.message, critical)


def print_findings(found: Sequence[Finding], *, json: bool, word: str = "good") -> bool:
    """Print findings, of which those that are good are called by this `word`; whether all that is critical is good."""
    if json:
        print(json_text([{"check": f.check, word: f.good, "critical": f.critical, "note": f.note} for f in found]))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("check", "state", "note"):
            table.add_column(name, overflow="fold")
        for each in found:
            state = word if each.good else "CRITICAL" if each.critical else f"not {word}"
            table.add_row(each.check, Text(state, style="green" if each.good else "red"), Text(each.note))
        stdout().print(table)
    return all(each.good or not each.critical for each in found)
