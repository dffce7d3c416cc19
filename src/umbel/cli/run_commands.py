"""`umbel run` and `umbel resume`."""

from __future__ import annotations

import json as jsons
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import AppError, RunInterrupted, SettingError, UmbelError
from ..events import Observer
from ..preflight import preflight
from ..run import RUNS, Result
from ..run import resume as resume_run
from ..run import run as run_app
from ..simulation.federation import WORKERS
from . import settings
from .application import LoadedApp, blame, file_of, load, note_place
from .faults import stop_signals, warn
from .federations import Wanted, start_early
from .forecast import forecast
from .progress import progress
from .records import Record, find, is_over
from .terminal import COLOURS, duration, in_order, number, plain, plural, sparkline, stderr, stdout


def run(
    reference: str,
    *,
    wanted: Wanted,
    rounds: int | None,
    seed: int,
    assignments: Sequence[str],
    init: Path | None,
    json: bool,
    folder: Path,
) -> None:
    """Load an app, run it and print what came out."""
    with stop_signals():
        loaded, changed, federation = _prepared(reference, wanted, rounds, assignments)
        if init is not None and not init.is_file():
            raise SettingError(f"there is no file {init} to begin with")

        def begin(observer: Observer) -> Result:
            return run_app(
                changed.app,
                on=federation,
                rounds=rounds or changed.rounds,
                seed=seed,
                config=changed.config,
                init=init,
                folder=folder,
                name=loaded.title,
                source={**loaded.source(), **wanted.source()},
                settings={"set": list(assignments), "init": None if init is None else str(init.resolve())},
                observers=(observer,),
            )

        result = _watched(begin, loaded, folder)
    _print(result, folder, json)


def plan(
    reference: str, *, wanted: Wanted, rounds: int | None, seed: int, assignments: Sequence[str], json: bool
) -> None:
    """Train one client of an app and print what a run would take."""
    with stop_signals():
        loaded, changed, federation = _prepared(reference, wanted, rounds, assignments)
        with _explained(loaded, Path(RUNS)), stderr().status("training one client"):
            found = preflight(
                changed.app, on=federation, rounds=rounds or changed.rounds, seed=seed, config=changed.config
            )
    if json:
        print(jsons.dumps(asdict(found)), flush=True)
    else:
        stdout().print(Padding(forecast(found, loaded.title), (1, 1), expand=False))


def _prepared(
    reference: str, wanted: Wanted, rounds: int | None, assignments: Sequence[str]
) -> tuple[LoadedApp, settings.Changed, Any]:
    """The app, what was set over it, and its federation."""
    if wanted.workers != 0 and os.environ.get(WORKERS) != "0" and (path := file_of(reference)) is not None:
        start_early(path)
    loaded = load(reference)
    changed = settings.apply(loaded.app, assignments)
    if rounds is not None and changed.rounds not in (None, rounds):
        raise SettingError(f"--rounds {rounds} and --set rounds={changed.rounds} disagree", hint="Keep one of them.")
    return loaded, changed, wanted.federation(loaded)


def resume(
    reference: str, *, rounds: int | None, app: str | None, workers: int | None, json: bool, folder: Path
) -> None:
    """Find a run and its app, go on with it and print what came out."""
    with stop_signals():
        record = find(reference, folder)
        loaded = _app_of(record, app)
        changed = settings.apply(loaded.app, record.log.started.settings.get("set", ()))
        federation = Wanted.again(record.log.started.app, workers).federation(loaded)

        def go_on(observer: Observer) -> Result:
            return resume_run(changed.app, record.folder, on=federation, rounds=rounds, observers=(observer,))

        if is_over(record.log, rounds):
            warn(f"this run is over after {plural(len(record.log.rounds), 'round')}; --rounds N goes on with it")
        result = _watched(go_on, loaded, record.folder.parent)
    _print(result, record.folder.parent, json)


def _app_of(record: Record, app: str | None) -> LoadedApp:
    source = record.log.started.app
    if app is None and "path" not in source:
        raise SettingError(
            f"the log of {record.id} does not say which app it ran: it was not started by `umbel run`",
            hint=f"Name the app's file: umbel resume {record.id} --app app.py",
        )
    named = f":{source['name']}" if source.get("name") else ""
    if app is None and not Path(source["path"]).exists():
        raise AppError(
            f"the app of {record.id} is not at {source['path']} any more",
            hint=f"Say where it is now: umbel resume {record.id} --app FILE",
        )
    loaded = load(app or f"{source['path']}{named}")
    if source.get("sha256") not in (None, loaded.sha256):
        warn(f"{loaded.path.name} has changed since the run began; what follows may not fit what came before")
    return loaded


def _watched(work: Callable[[Observer], Result], loaded: LoadedApp, folder: Path) -> Result:
    """Do the work under a progress display, and say of its errors where they arose and how to go on."""
    with _explained(loaded, folder), progress(stderr()) as observer:
        return work(observer)


@contextmanager
def _explained(loaded: LoadedApp, folder: Path) -> Iterator[None]:
    try:
        yield
    except RunInterrupted as error:
        error.hint = f"Go on with: {_command('resume', error.run or 'last', folder)}"
        raise
    except UmbelError as error:
        note_place(error, loaded.path.parent)
        raise
    except Exception as error:
        place = blame(error, loaded.path.parent)
        if place is None:
            raise
        found = AppError(f"{loaded.path.name} raised {type(error).__name__}: {error}")
        found.add_note(place)
        raise found from error


def _command(verb: str, run: str, folder: Path) -> str:
    elsewhere = [] if folder.resolve() == Path(RUNS).resolve() else ["--folder", str(folder)]
    return shlex.join(["umbel", verb, run, *elsewhere])


def _print(result: Result, folder: Path, json: bool) -> None:
    if json:
        print(jsons.dumps(_summary(result)), flush=True)
        return
    ended = "stopped early" if result.reason == "early stop" else "finished"
    kept = f", the best of them round {result.best_round}" if result.best_round is not None else ""
    head = Text.assemble(
        ("✓ ", "bold green"),
        (result.run, "bold"),
        f" {ended}: {plural(result.rounds, 'round')} in {duration(result.seconds)}{kept}",
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", f"sha256 {result.model_sha256[:12]}")
    facts.add_row("folder", Text(str(result.folder), overflow="fold"))
    facts.add_row("curves", Text(_command("show", result.run, folder), style="cyan", overflow="fold"))
    stdout().print(Padding(Group(head, Text(), _metrics(result), Text(), facts), (1, 1), expand=False))


def _metrics(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name in in_order(result.history.names):
        values = [value for _, value in result.history.series(name)]
        course = Text(sparkline(values) if len(values) > 1 else "", style=COLOURS[name.partition(".")[0]])
        table.add_row(name, Text(number(values[-1]), style="bold"), course)
    return table


def _summary(result: Result) -> dict[str, Any]:
    return {
        "run": result.run,
        "rounds": result.rounds,
        "metrics": plain(result.metrics),
        "seconds": result.seconds,
        "model_sha256": result.model_sha256,
        "folder": str(result.folder),
        "reason": result.reason,
    }
