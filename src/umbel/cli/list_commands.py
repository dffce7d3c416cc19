"""`umbel runs`, `umbel show` and `umbel rm`: what runs left behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import CorruptFile, SettingError, StorageError
from ..runs.history import History
from ..runs.past import PastRun, find, past_runs
from .account import size
from .client_tables import show_clients
from .drawing import drawn
from .page import STATES, page
from .terminal import ago, json_text, main_metrics, number, plain, plural, stdout

WIDE = 100
"""From so many columns on the table says where each app is; a run's id begins with its name anyway."""


LONGEST_WHY = 30
"""The columns that the reason why a run came to nothing may take."""


def runs(folder: Path, *, json: bool) -> None:
    """Print the runs of a folder."""
    rows = [_row(record) for record in past_runs(folder)]
    print_runs(rows, json=json, nothing=f"no runs in {folder}: `umbel run APP --clients 100` makes one")


def print_runs(rows: list[dict[str, Any]], *, json: bool, nothing: str) -> None:
    """Print a table of runs, each with `run`, `app`, `rounds`, `asked`, `state`, `metrics`, `best_round`, `began`, and
    `error` where it has one; `nothing` where there are none.
    """
    console = stdout()
    if json:
        print(json_text(rows))
    elif rows:
        console.print(_table(rows, console.width >= WIDE))
    else:
        console.print(Text(nothing, style="dim"), soft_wrap=True)


@dataclass(frozen=True)
class ClientsView:
    """What to show instead of a run's page: its clients, in one `round`; as `json` or not."""

    round: int | None = None
    json: bool = False


def show(reference: str, folder: Path, plot: Path | None, part: ClientsView | None = None) -> None:
    """Print the page of a run, or a part, and draw its curves to a file where one is given."""
    show_record(find(reference, folder), plot, part)


def show_record(record: PastRun, plot: Path | None, part: ClientsView | None = None) -> None:
    """Print the page of a record, or a part, and draw its curves to a file where one is given. Raises `SettingError`
    where there are none to draw.
    """
    if part is not None:
        show_clients(record, part.round, json=part.json)
        return
    console = stdout()
    console.print(page(record, console.width))
    if plot is not None:
        draw = partial(History(record.log.rounds).plot, plot, title=record.id, failed=record.state == "failed")
        drawn(draw, plot, record.id)
        console.print(Text(f" curves drawn to {plot}"), soft_wrap=True)


def remove(references: Sequence[str], folder: Path, *, keep: int | None, older: float | None, dry: bool) -> None:
    """Remove runs, those that are named, or of a folder all but the `keep` last active ones and those that were active
    in the last `older` days; what goes on in another process stays.
    """
    if bool(references) == (keep is not None or older is not None):
        raise SettingError(
            "umbel rm takes runs, or else says which of all stay",
            hint="Such as: umbel rm RUN RUN; umbel rm --keep 20; umbel rm --older-than 30.",
        )
    found = [find(reference, folder) for reference in references]
    if not references:
        kept = past_runs(folder)
        latest = kept[len(kept) - keep :] if keep else []
        before = (time.time() - (older or 0.0) * 86400) * 1e9
        found = [run for run in kept if run not in latest and run.touched <= before]
    console, freed, removed = stdout(), 0, 0
    for run in dict.fromkeys(found):
        taken = sum(path.lstat().st_size for path in run.folder.rglob("*") if path.is_file())
        try:
            if not dry:
                run.remove()
        except StorageError as error:
            if references:
                raise
            console.print(Text(f"{run.id} stays: {error.message}"), soft_wrap=True)
            continue
        freed, removed = freed + taken, removed + 1
        console.print(Text(f"{run.id}  {size(taken)}", style="dim"), soft_wrap=True)
    console.print(f"{plural(removed, 'run')} {'would be ' if dry else ''}removed, {size(freed)}")


def _row(record: PastRun) -> dict[str, Any]:
    started = f"{record.began:%Y-%m-%d %H:%M:%S}"
    try:
        log = record.log
    except CorruptFile:
        nothing: dict[str, Any] = {"app": "", "rounds": 0, "asked": 0, "state": "damaged", "metrics": {}}
        return {"run": record.id, **nothing, "best_round": None, "error": None, "began": started}
    history = History(log.rounds)
    path = log.started.app.get("path")
    return {
        "run": record.id,
        "app": "" if path is None else str(path),
        "rounds": history.round,
        "asked": record.rounds_asked,
        "state": record.state,
        "metrics": plain(history.metrics(record.best_round)),
        "best_round": record.best_round,
        "error": record.error,
        "began": started,
    }


def _table(rows: list[dict[str, Any]], wide: bool) -> Table:
    now = datetime.now()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for title in ("run", "began", "rounds", "state", "metrics", *(["app"] if wide else [])):
        table.add_column(title, justify="right" if title == "rounds" else "left", no_wrap=True)
    for column, name in ((0, "run"), (3, "state")):  # a long reason may be cut, these may not
        table.columns[column].min_width = max(len(row[name]) for row in rows)
    for row in rows:
        metrics = {name: float("nan") if value is None else value for name, value in row["metrics"].items()}
        of = "" if row["best_round"] is None else f" (round {row['best_round']})"
        shown = [f"{name} {number(value)}{of}" for name, value in (main_metrics(metrics).items() if metrics else ())]
        if row.get("error") and not shown:
            shown = [row["error"] if len(row["error"]) <= LONGEST_WHY else f"{row['error'][: LONGEST_WHY - 3]}..."]
        state = Text(row["state"], style=STATES.get(row["state"], "red"))
        where = ["/".join(Path(row["app"]).parts[-2:])] if wide else []
        began = ago((now - datetime.fromisoformat(row["began"])).total_seconds())
        rounds = f"{row['rounds']}/{row['asked']}" if row["asked"] else ""  # it has not begun
        table.add_row(row["run"], began, rounds, state, Text("\n".join(shown)), *where)
    return table
