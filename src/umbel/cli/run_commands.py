"""`umbel run` and `umbel resume`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.padding import Padding

from ..core.app import App
from ..errors import AppError, RunFailed, RunInterrupted, SettingError, UmbelError
from ..runs import settings
from ..runs.events import Observer
from ..runs.past import PastRun, find, is_over
from ..runs.preflight import preflight
from ..runs.run import RUNS, Result
from ..runs.run import resume as resume_run
from ..runs.run import run as run_app
from ..simulation.federation import WORKERS
from ..trackers.tracking import Tracking
from .answers import ShownAnswer
from .application import LoadedApp, blame, file_of, load, note_place
from .ending import Ending
from .faults import stop_signals, warn
from .federations import Wanted, start_early
from .forecast import forecast
from .progress import progress
from .terminal import json_text, plural, stderr, stdout


def run(
    reference: str,
    *,
    wanted: Wanted,
    rounds: int | None,
    seed: int,
    assignments: Sequence[str],
    init: Path | None,
    track: Sequence[str],
    json: bool,
    folder: Path,
    debug: bool = False,
) -> None:
    """Load an app, run it and print what came out."""
    with stop_signals():
        trackings = [Tracking(named) for named in dict.fromkeys(track)]
        loaded, changed, federation = prepared(reference, wanted, rounds, assignments)
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
                settings={
                    "set": list(assignments),
                    "init": None if init is None else str(init.resolve()),
                    **_remembered(track),
                },
                observers=(observer, *trackings),
            )

        result = _watched(begin, loaded, folder, debug)
    _ending(result, folder, changed.app).print(json)


def plan(
    reference: str, *, wanted: Wanted, rounds: int | None, seed: int, assignments: Sequence[str], json: bool
) -> None:
    """Train one client of an app and print what a run would take."""
    with stop_signals():
        loaded, changed, federation = prepared(reference, wanted, rounds, assignments)
        with _explained(loaded, Path(RUNS)), stderr().status("training one client"):
            found = preflight(
                changed.app, on=federation, rounds=rounds or changed.rounds, seed=seed, config=changed.config
            )
    if json:
        print(json_text(asdict(found)), flush=True)
    else:
        stdout().print(Padding(forecast(found, loaded.title), (1, 1), expand=False))


def prepared(
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
    reference: str,
    *,
    rounds: int | None,
    app: str | None,
    workers: int | None,
    track: Sequence[str],
    json: bool,
    folder: Path,
    debug: bool = False,
) -> None:
    """Find a run and its app, go on with it and print what came out."""
    with stop_signals():
        record = find(reference, folder)
        loaded = app_of(record, app, "resume")
        changed = settings.apply(loaded.app, record.log.started.settings.get("set", ()))
        federation = Wanted.again(record.log.started.app, workers).federation(loaded)
        trackings = _again(record.log.started.settings.get("track", ()), track)

        def go_on(observer: Observer) -> Result:
            where = {"on": federation, "source": loaded.source()}
            return resume_run(changed.app, record.folder, **where, rounds=rounds, observers=(observer, *trackings))

        if is_over(record.log, rounds):
            warn(f"this run is over after {plural(record.log.round, 'round')}; --rounds N goes on with it")
        result = _watched(go_on, loaded, record.folder.parent, debug)
    _ending(result, record.folder.parent, changed.app).print(json)


def _remembered(track: Sequence[str]) -> dict[str, Any]:
    """What the log says of trackers, so that a run that goes on has them again; not where a place has a password."""
    kept = [named for named in dict.fromkeys(track) if "@" not in named]
    return {"track": kept} if kept else {}


def _again(known: Sequence[str], track: Sequence[str]) -> list[Tracking]:
    """The trackers that a run had and those that are named now. One that it had, and that is not here any more, does
    not keep it from going on.
    """
    trackings = [Tracking(named) for named in dict.fromkeys(track)]
    for named in known:
        try:
            trackings += [Tracking(named)] if named not in track else []
        except SettingError as error:
            warn(f"the run goes on without its tracker {named}: {error.message}")
    return trackings


def app_of(record: PastRun, app: str | None, to: str) -> LoadedApp:
    """The app of a run, as its log says, or from where else, for the command `to`. Raises `AppError` and
    `SettingError`.
    """
    source = record.log.started.app
    if app is None and "path" not in source:
        raise SettingError(
            f"the log of {record.id} does not say which app it ran: it was not started by `umbel run`",
            hint=f"Name the app's file: umbel {to} {record.id} --app app.py",
        )
    named = f":{source['name']}" if source.get("name") else ""
    if app is None and not Path(source["path"]).exists():
        raise AppError(
            f"the app of {record.id} is not at {source['path']} any more",
            hint=f"Say where it is now: umbel {to} {record.id} --app FILE",
        )
    loaded = load(app or f"{source['path']}{named}")
    if source.get("sha256") not in (None, loaded.sha256):
        warn(f"{loaded.path.name} has changed since the run began; what follows may not fit what came before")
    return loaded


def _watched(work: Callable[[Observer], Result], loaded: LoadedApp, folder: Path, debug: bool) -> Result:
    """Do the work under a progress display, and say of its errors where they arose and how to go on."""
    with _explained(loaded, folder), progress(stderr(), debug) as observer:
        return work(observer)


@contextmanager
def _explained(loaded: LoadedApp, folder: Path) -> Iterator[None]:
    try:
        yield
    except RunInterrupted as error:
        error.hint = f"Go on with: {command('resume', error.run or 'last', folder)}"
        raise
    except RunFailed as error:
        again, seen = (command(verb, error.run or "last", folder) for verb in ("resume", "show"))
        error.hint = f"Mend what made the clients fail, then go on with: {again}\nWhat there is of the run: {seen}"
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


def command(verb: str, run: str, folder: Path) -> str:
    """A command about a run, as it is typed."""
    elsewhere = [] if folder.resolve() == Path(RUNS).resolve() else ["--folder", str(folder)]
    return shlex.join(["umbel", verb, run, *elsewhere])


def _ending(result: Result, folder: Path, app: App) -> Ending:
    return Ending(
        run=result.run,
        reason=result.reason,
        history=result.history,
        seconds=result.seconds,
        model_sha256=result.model_sha256,
        best_round=result.best_round,
        place={"folder": str(result.folder)},
        commands={"curves": shlex.split(command("show", result.run, folder))},
        answer=ShownAnswer.of(app, result.model),
    )
