"""What an examination of this machine has found: printed as a table, or as one line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import UmbelError
from .terminal import json_text, stdout

GOOD, BETTER, CRITICAL = "good", "could be better", "CRITICAL"
COLOURS = {GOOD: "green", BETTER: "yellow", CRITICAL: "red"}


@dataclass(frozen=True)
class Finding:
    """Whether one thing is as it should be, what is to be said of it, and what to do. Where it is not, and is
    `critical`, nobody should go on.
    """

    check: str
    good: bool
    note: str
    critical: bool = True
    advice: str = ""

    @property
    def state(self) -> str:
        """How it is, in a word."""
        return GOOD if self.good else CRITICAL if self.critical else BETTER

    @classmethod
    def wrong(cls, check: str, error: UmbelError, *, critical: bool = True) -> Finding:
        """An error: what has happened, and what to do."""
        return cls(check, False, error.message, critical, error.hint or "")


def print_findings(found: Sequence[Finding], *, json: bool, word: str | None = None) -> bool:
    """Print findings, of which those that are good may be called by a `word`; whether all that is critical is good."""
    if json:
        names = ("check", "critical", "note", "advice")
        print(json_text([{**{n: getattr(f, n) for n in names}, word or "good": f.good} for f in found]))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("check", "state", "note"):
            table.add_column(name, overflow="fold")
        for each in found:
            state = {GOOD: word, BETTER: f"not {word}"}.get(each.state, CRITICAL) if word else each.state
            note = Text(each.note)
            if each.advice:
                note.append(f"\n{each.advice}", "cyan")
            table.add_row(each.check, Text(state or "", style=COLOURS[each.state]), note)
        stdout().print(table)
    return all(each.good or not each.critical for each in found)
