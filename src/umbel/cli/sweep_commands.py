"""`umbel sweep` and `umbel best`: an app's runs with several settings, and the best of them."""

from __future__ import annotations

import json as jsons
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..bench.space import assigned, plain_value
from ..bench.sweep import sweep as sweep_app
from ..bench.swept import Goal, Sweep, SweepRow, open_sweep
from ..errors import RunFailed, RunInterrupted, SettingError, UmbelError
from ..runs.past import PastRun, find
from .application import note_place
from .drawing import drawn
from .faults import stop_signals
from .federations import Wanted
from .run_commands import command, prepared
from .terminal import number, plain, stderr, stdout

ONCE_MORE = "`umbel runs` says how each ended. One that failed is done again by the same sweep after `umbel rm RUN`."
MOST_LINES = 40
"""So many choices of settings are listed, the best ones."""


def sweep(
    reference: str,
    *,
    wanted: Wanted,
    assignments: Sequence[str],
    init: Path | None,
    plot: Path | None,
    json: bool,
    folder: Path,
    **how: Any,
) -> None:
    """Run an app with several settings, and print what came of them; `how` is as `umbel.sweep` has it."""
    space = assigned(assignments)
    if not space:
        raise SettingError("umbel sweep varies settings", hint="Such as: umbel sweep APP --set lr=0.1,0.03 --seeds 3.")
    if init is not None and not init.is_file():
        raise SettingError(f"there is no file {init} to begin with")
    with stop_signals():
        loaded, _, federation = prepared(reference, wanted, None, ())
        try:
            found = sweep_app(
                loaded.app,
                space,
                on=federation,
                init=init,
                folder=folder,
                name=loaded.title,
                source={**loaded.source(), **wanted.source()},
                tell=lambda line: stderr().print(Text(line), soft_wrap=True),
                **how,
            )
        except RunInterrupted as error:
            error.hint = f"The same command goes on. What is done is kept in {folder}."
            raise
        except UmbelError as error:
            note_place(error, loaded.path.parent)
            raise
    picture = _picture(found, plot, folder)
    if json:
        rows = [_plain_row(row) for row in found.rows]
        print(jsons.dumps({**_whole(found, folder), "rows": rows, "picture": picture and str(picture)}), flush=True)
    else:
        _print(found, folder, picture)
    if found.best is None:
        why = next((group.failed for group in found.groups if group.failed), "no round has a metric")
        said = f"none of the sweep's {len(found)} runs came to a result; the first {why}"
        raise RunFailed(said, hint=ONCE_MORE)


def best(reference: str, folder: Path, *, metric: str | None, goal: Goal | None, plot: Path | None, json: bool) -> None:
    """Print the best run of a sweep, its settings, and what runs it again."""
    found = open_sweep(reference, folder, metric=metric, goal=goal)
    if found.best is None:
        raise SettingError(f"no run of {found.id} has come to a result yet", hint=ONCE_MORE)
    if plot is not None:
        drawn(lambda: found.plot(plot), plot)
    if json:
        print(jsons.dumps(_whole(found, folder)), flush=True)
    else:
        stdout().print(Padding(Group(*_best(found, found.best, folder)), (1, 1), expand=False))


def again(record: PastRun) -> list[str] | None:
    """The command that does a run again; None where its log does not say which app it ran."""
    started = record.log.started
    source, said = started.app, list(started.settings.get("set", ()))
    if "path" not in source:
        return None
    line = ["umbel", "run", f"{source['path']}:{source['name']}" if source.get("name") else str(source["path"])]
    given = {name: source.get(name) for name in ("clients", "devices", "work")}
    for name, value in {**given, "init": started.settings.get("init")}.items():
        line += [] if value is None else [f"--{name}", str(value)]
    for item in said:
        line += ["--set", item]
    if not any(item.startswith("rounds=") for item in said):
        line += ["--rounds", str(started.rounds)]
    return [*line, "--seed", str(started.seed)]


def _picture(found: Sweep, plot: Path | None, folder: Path) -> Path | None:
    """Draw a sweep: where it was asked for, or else beside its runs where that can be."""
    if plot is None and (find_spec("matplotlib") is None or found.best is None):
        return None
    file = plot or folder / f"{found.id}.png"
    drawn(lambda: found.plot(file), file)
    return file


def _whole(found: Sweep, folder: Path) -> dict[str, Any]:
    best = found.best
    told = None
    if best is not None:
        line = again(find(best.run, folder)) if best.run else None
        told = {**_plain_row(best), "value": found.value(best), "command": line and shlex.join(line)}
    return {"sweep": found.id, "metric": found.metric, "goal": found.goal, "best": told}


def _plain_row(row: SweepRow) -> dict[str, Any]:
    settings = {name: plain_value(value) for name, value in row.settings.items()}
    names = ("seed", "run", "state", "rounds", "seconds", "error")
    return {"settings": settings, **{name: getattr(row, name) for name in names}, "metrics": plain(row.metrics)}


def _print(found: Sweep, folder: Path, picture: Path | None) -> None:
    heads, lines = found.table()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold", style=None if head else "red")
    for line in lines[:MOST_LINES]:
        table.add_row(*map(Text, line))
    parts: list[Any] = [table]
    if len(lines) > MOST_LINES:
        parts.append(Text(f" and {len(lines) - MOST_LINES} more: umbel sweep ... --json has all", style="dim"))
    if found.best is not None:
        parts += [Text(), *_best(found, found.best, folder, str(picture or 'pip install "umbel[plot]" to have one'))]
    stdout().print(Padding(Group(*parts), (1, 1), expand=False), soft_wrap=True)


def _best(found: Sweep, row: SweepRow, folder: Path, picture: str | None = None) -> list[Any]:
    group = next(group for group in found.groups if group.settings == row.settings)
    over = f", {number(group.mean)} ± {number(group.spread)} over its seeds" if len(group.values) > 1 else ""
    value = f"{found.metric} {number(found.value(row))}{over}"
    head = Text.assemble(("✓ ", "bold green"), "the best of ", (found.id, "bold"), f" by {found.metric} ({found.goal})")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", Text(f"{row.run}: {value}", style="bold"))
    facts.add_row("settings", Text(row.title))
    line = again(find(row.run, folder)) if row.run else None
    for name, words in {"again": line and shlex.join(line), "curves": command("show", str(row.run), folder)}.items():
        if words:
            facts.add_row(name, Text(words, style="cyan", overflow="fold"))
    if picture is not None:
        facts.add_row("picture", Text(picture))
    return [head, facts]
