"""What `umbel run --plan` prints: what a run will take."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..runs.preflight import Preflight
from .account import processes, size
from .terminal import duration, plural


def forecast(found: Preflight, title: str) -> RenderableType:
    """The page of a preflight."""
    where = processes(found.workers) if found.workers else "this process alone"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("time", Text.assemble((f"about {duration(found.seconds)}", "bold"), f" in {where}"))
    if found.memory:
        facts.add_row("memory", f"up to {size(found.memory)} in all, and what clients' data takes that is kept")
    facts.add_row("bytes", f"{size(found.bytes_down)} down and {size(found.bytes_up)} up, on real machines")
    parts = Table.grid(padding=(0, 2))
    for name in ("", "rounds", "clients", "work", "data", "down", "up"):
        parts.add_column(name, justify="left" if not name else "right", header_style="dim")
    parts.show_header = True
    for part in found.parts:
        times = (duration(part.seconds), duration(part.data_seconds))
        sizes = (size(part.bytes_down), size(part.bytes_up))
        parts.add_row(part.kind, str(part.rounds), str(part.clients), *times, *sizes)
    if found.test_seconds >= 0.001:
        parts.add_row("test", "", "", duration(found.test_seconds))
    head = Text.assemble((title, "bold"), f"  {plural(found.rounds, 'round')}, by what client {found.client} took")
    return Group(head, Text(), facts, Text(), Text("a client's task", style="dim"), parts)
