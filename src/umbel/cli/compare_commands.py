"""`umbel compare`: in what runs differ, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from ..runs.history import History, plot_together
from ..runs.past import PastRun, find, past_runs
from .drawing import drawn
from .terminal import duration, in_order, json_text, number, plain, stdout

Row = Sequence[Any]
"""A value for each run; None where a run has none."""


def compare(references: Sequence[str], folder: Path, *, plot: Path | None, json: bool) -> None:
    """Print a table of what differs between runs, by default the last two, and draw their curves to a file where one is
    given.
    """
    records = [find(reference, folder) for reference in references] or past_runs(folder)[-2:]
    if len({record.folder for record in records}) < max(2, len(records)):
        raise SettingError("umbel compare takes two runs or more, each once", hint="`umbel runs` lists them.")
    settings, metrics = differing(records), results(records)
    if json:
        whole = {"runs": [record.id for record in records], "settings": settings, "results": metrics}
        print(json_text(whole))
    else:
        _print(records, settings, metrics)
    if plot is not None:
        histories = {record.id: History(record.log.rounds) for record in records}
        drawn(lambda: plot_together(histories, plot), plot)
        if not json:
            stdout().print(Text(f" curves drawn to {plot}"), soft_wrap=True)


def differing(records: Sequence[PastRun]) -> dict[str, Row]:
    """The settings that runs do not share, by name."""
    columns = [_settings(record) for record in records]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name) for column in columns] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def results(records: Sequence[PastRun]) -> dict[str, Row]:
    """What runs came to: how they ended, their time, and the metrics of the rounds whose models are their results."""
    found = [plain(History(record.log.rounds).metrics(record.best_round)) for record in records]
    rows: dict[str, Row] = {
        "state": [record.state for record in records],
        "rounds": [record.log.round for record in records],
        "best_round": [record.best_round for record in records],
        "seconds": [round(record.seconds, 3) for record in records],
    }
    rows |= {name: [metrics.get(name) for metrics in found] for name in in_order({n for each in found for n in each})}
    return {name: row for name, row in rows.items() if any(value is not None for value in row)}


def _settings(record: PastRun) -> dict[str, Any]:
    """Everything that a run was begun with, by names as `--set` has them."""
    started = record.log.started
    config = started.settings.get("config", {})
    said = (item.partition("=") for item in started.settings.get("set", ()))
    return {
        "app": started.app.get("path") or started.app.get("file"),
        "app's code": started.app.get("sha256"),
        "strategy": started.strategy,
        "clients": started.clients,
        "seed": started.seed,
        "rounds": record.rounds_asked,
        **{name: value for name, _, value in said if name.removeprefix("config.") not in config},
        **{f"config.{name}": value for name, value in config.items()},
        "init": started.settings.get("init"),
        "devices": started.federation.get("devices"),
        **{name: version for name, version in started.software.items() if name not in ("plan", "threads")},
    }


def _print(records: Sequence[PastRun], settings: Mapping[str, Row], metrics: Mapping[str, Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("", style="dim", no_wrap=True)
    for record in records:
        table.add_column(record.id, justify="right", overflow="fold")
    for name, row in settings.items():
        table.add_row(name, *(Text("" if value is None else str(value)) for value in row))
    table.add_section()
    for name, row in metrics.items():
        form: Callable[[Any], str] = {"seconds": duration}.get(name, _shown)
        table.add_row("time" if name == "seconds" else name, *(Text("" if v is None else form(v)) for v in row))
    stdout().print(table)


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
