"""`umbel privacy explain`: who sees what of an app's rounds."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.contract import first_asks
from ..core.randomness import Key
from ..privacy.explanation import Explanation, explain
from ..privacy.explanation_picture import draw
from ..runs.cohorts import drawn_by
from .application import LoadedApp, load
from .drawing import drawn
from .federations import Wanted
from .terminal import json_text, stdout


def explained(reference: str, clients: int | None, *, plot: Path | None, json: bool) -> None:
    """Print who sees what, and draw it where `plot` names a file."""
    loaded = load(reference)
    found = _explanation(loaded, clients)
    if plot is not None:
        drawn(lambda: draw(found, plot), plot)
    if json:
        print(json_text({**found.plain(), "picture": None if plot is None else str(plot)}), flush=True)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("app", Text(f"{loaded.path.name}, {found.clients:,} clients in the first round"))
    summed = f"securely: {found.neighbours} neighbours each, of whom {found.threshold} have to stay"
    facts.add_row("updates", Text(summed if found.neighbours else "the server sees each of them", "bold"))
    if plot is not None:
        facts.add_row("picture", str(plot))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for head in ("phase", "a client sends", "the server and the run see", "other clients see"):
        table.add_column(head)
    for row in found.phases:
        table.add_row(row.phase, row.sends, row.server, row.others)
    follows = Table.grid(padding=(0, 2))
    for when, then in found.follows:
        follows.add_row(f"If {when}", then)
    stdout().print(Padding(Group(facts, Text(), table, Text(), follows), (1, 1), expand=False))


def _explanation(loaded: LoadedApp, clients: int | None) -> Explanation:
    app = loaded.app
    federation, model = Wanted(clients).federation(loaded), app.initial_model()
    asks = [ask for ask in first_asks(app.strategy.wrapped, model) if ask.kind != "evaluate"]
    cohort = drawn_by(asks[0].clients, federation.clients, Key.from_seed(0)) if asks else ()
    return explain(app.strategy, model, len(cohort))
