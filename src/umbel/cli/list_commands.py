"""`umbel runs`, `umbel show` and `umbel export`: what runs left behind."""

from __future__ import annotations

import hashlib
import json as jsons
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..core.arrays import Arrays
from ..errors import CallerError, CorruptFile, SettingError, StorageError
from ..runs.history import History
from ..runs.journal import load_checked, write_whole
from .client_tables import show_clients
from .page import STATES, page
from .records import RunRecord, find, records
from .terminal import ago, main_metrics, number, plain, plural, stdout

WIDE = 100
"""From so many columns on the table says where each app is; a run's id begins with its name anyway."""


LONGEST_WHY = 30
"""The columns that the reason why a run came to nothing may take."""


def runs(folder: Path, *, json: bool) -> None:
    """Print the runs of a folder."""
    rows = [_row(record) for record in records(folder)]
    print_runs(rows, json=json, nothing=f"no runs in {folder}: `umbel run APP --clients 100` makes one")


def print_runs(rows: list[dict[str, Any]], *, json: bool, nothing: str) -> None:
    """Print a table of runs, each with `run`, `app`, `rounds`, `asked`, `state`, `metrics`, `best_round`, `began`, and
    `error` where it has one; `nothing` where there are none.
    """
    console = stdout()
    if json:
        print(jsons.dumps(rows))
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


def show_record(record: RunRecord, plot: Path | None, part: ClientsView | None = None) -> None:
    """Print the page of a record, or a part, and draw its curves to a file where one is given. Raises `SettingError`
    where there are none to draw.
    """
    if part is not None:
        show_clients(record, part.round, json=part.json)
        return
    console = stdout()
    console.print(page(record, console.width))
    if plot is not None:
        _plot(record, plot)
        console.print(Text(f" curves drawn to {plot}"), soft_wrap=True)


def export(reference: str, file: Path, folder: Path, *, round: int | None, force: bool) -> None:
    """Write a run's model to a file and print how to load it."""
    record = find(reference, folder)
    if file.is_dir():
        raise SettingError(f"{file} is a folder", hint=f"Name a file, such as {file / 'model.safetensors'}.")
    if file.exists() and not force:
        raise SettingError(f"{file} exists", hint="--force overwrites it.")
    model, of = _model(record, round)
    data = model.to_bytes()
    try:
        write_whole(file, data)
    except StorageError as error:
        error.hint = "Choose a file in a folder that exists and can be written."
        raise
    size = f"{plural(len(model), 'array')}, {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:12]}"
    console = stdout()
    console.print(Text(f"the model of {record.id} {of} is in {file} ({size})"), soft_wrap=True)
    console.print(Text("\nload it with either of"))
    for line in _loaders(model, file):
        console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
    console.print(Text("begin with it:"))
    console.print(Text(f"  umbel run APP --init {shlex.quote(str(file))}", style="cyan"), soft_wrap=True)


def _loaders(model: Arrays, file: Path) -> Iterator[str]:
    """Lines of Python that load a model from a file."""
    yield f"import umbel; model = umbel.load_model({str(file)!r})"
    # numpy itself has no 16-bit brain floats; PyTorch has all that a model can hold.
    kind = "torch" if any(array.dtype.name == "bfloat16" for array in model.values()) else "numpy"
    packages = f"safetensors{' torch' if kind == 'torch' else ''}"
    yield f"import safetensors.{kind} as st; model = st.load_file({str(file)!r})  # pip install {packages}"


def _row(record: RunRecord) -> dict[str, Any]:
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
        "rounds": len(history),
        "asked": record.rounds_asked,
        "state": record.state,
        "metrics": plain(history.metrics(record.best_round)),
        "best_round": record.best_round,
        "error": None if record.state == "unfinished" or log.finished is None else log.finished.error,
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


def _plot(record: RunRecord, file: Path) -> None:
    try:
        History(record.log.rounds).plot(file, title=record.id, failed=record.state == "failed")
    except ImportError as error:
        raise CallerError(str(error)) from error
    except SettingError as error:
        raise error.located(run=record.id) from None
    except ValueError as error:
        raise SettingError(f"{file} cannot be drawn: {error}", hint="Name a .png, .svg or .pdf file.") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error


def _model(record: RunRecord, round: int | None) -> tuple[Arrays, str]:
    """The model after a round, or the result, and which it is in words."""
    rounds = record.log.rounds
    if round == 0 or (round is None and not rounds):
        started = record.log.started
        if started.model_file is None:
            raise CorruptFile(f"{record.folder} has no initial model")
        tree = load_checked(record.folder, {"file": started.model_file, "sha256": started.model_sha256})
        return tree["state"]["model"], "before round 1"
    if round is None:
        chosen = record.result
    else:
        kept = [event for event in rounds if event.checkpoint and (record.folder / event.checkpoint["file"]).exists()]
        chosen = next((event for event in kept if event.round == round), None)
        if chosen is None:
            listed = ", ".join(str(event.round) for event in kept) or "none"
            raise SettingError(f"the model of round {round} is not kept", hint=f"Rounds whose models are: 0, {listed}.")
    assert chosen is not None
    assert chosen.checkpoint is not None
    model = load_checked(record.folder, chosen.checkpoint)["state"].model
    assert isinstance(model, Arrays)
    return model, f"after round {chosen.round}"
