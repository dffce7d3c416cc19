"""Errors as the shell sees them: one panel on stderr, a documented exit code, and, with `--json`, an object on stdout
that says the same.

::

    {"error": {"kind": "SettingError", "message": "there is no setting 'lrr'", "hint": "Did you mean lr? ...",
               "notes": [], "run": null, "round": null, "client": null, "exit_code": 3}}
"""

from __future__ import annotations

import json as jsons
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

import typer

from .. import errors
from ..errors import UmbelError

TITLES: tuple[tuple[type[UmbelError], str], ...] = (
    (errors.AppError, "The app"),
    (errors.StrategyError, "The strategy"),
    (errors.SettingError, "A setting"),
    (errors.JournalMissing, "No such run"),
    (errors.SamplingError, "The cohort"),
    (errors.DataError, "The data"),
    (errors.CallerError, "Something is missing"),
    (errors.RunInterrupted, "Interrupted"),
    (errors.RunFailed, "The run failed"),
    (errors.RunError, "The run stopped"),
    (errors.ClientError, "A client"),
    (errors.CorruptFile, "A damaged file"),
    (errors.StorageError, "The disk"),
    (errors.Refused, "The server says no"),
    (errors.PeerError, "The server"),
)
UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a wrong command line, wherever this release of it keeps that."""
BUG = "This is a bug in Umbel: please report it with what --debug shows and the command that you typed."
PANEL_WIDTH = 88
INTERRUPTED = 128 + signal.SIGINT


def exit_code(error: BaseException) -> int:
    """The exit code of an error; see `OVERVIEW`."""
    if isinstance(error, errors.RunInterrupted):
        return exit_code(error.__context__) if isinstance(error.__context__, KeyboardInterrupt) else INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if error.args else signal.SIGINT
        return 128 + int(number)
    if isinstance(error, errors.CallerError):
        return 3
    if isinstance(error, errors.RunError | errors.ClientError):
        return 4
    if isinstance(error, errors.PeerError):
        return 7 if isinstance(error, errors.Refused) else 6
    return 5 if isinstance(error, errors.StorageError) else 1


@contextmanager
def reported(debug: bool = False, json: bool = False, exits: Callable[[int], NoReturn] | None = None) -> Iterator[None]:
    """Turn what is raised inside into a panel and an exit; `debug` prints the traceback before it, `json` the error as
    an object on stdout after it.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            if trace := getattr(error, "trace", ""):
                print(f"In a worker process:\n{trace}", file=sys.stderr)
            traceback.print_exception(error)
        show(error)
        if json:
            print_json(error)
        if exits is not None:
            exits(exit_code(error))
        raise typer.Exit(exit_code(error)) from None


def show(error: BaseException) -> None:
    """Print the panel of an error."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from .terminal import stderr

    title, message, hint = describe(error)
    parts = [Text(message)]
    if notes := getattr(error, "__notes__", ()):
        parts += [Text(), *(Text(f"  {note}", style="dim") for note in notes)]
    if hint:
        parts += [Text(), Text(hint, style="cyan")]
    stopped = isinstance(error, KeyboardInterrupt | errors.RunInterrupted)
    style = "yellow" if stopped else "red"
    console = stderr()
    width = min(console.width, PANEL_WIDTH)
    console.print(
        Panel(Group(*parts), title=title, title_align="left", border_style=style, padding=(0, 1), width=width)
    )


def print_json(error: BaseException) -> None:
    """Print an error as one line of JSON on stdout."""
    usage = isinstance(error, UsageError)
    message, hint = (error.format_message(), None) if usage else describe(error)[1:]  # type: ignore[attr-defined]
    found = {
        "kind": type(error).__name__,
        "message": error.message if isinstance(error, UmbelError) else message,
        "hint": hint,
        "notes": list(getattr(error, "__notes__", ())),
        **{name: getattr(error, name, None) for name in ("run", "round", "client")},
        "exit_code": 2 if usage else exit_code(error),
    }
    print(jsons.dumps({"error": found}), flush=True)


def describe(error: BaseException) -> tuple[str, str, str | None]:
    """Title, message and hint of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", "stopped before anything was begun", None
    if isinstance(error, UmbelError):
        title = next((name for kind, name in TITLES if isinstance(error, kind)), "Internal error")
        message = f"{error.message} ({error.where})" if error.where else error.message
        return title, message, error.hint or (BUG if title == "Internal error" else None)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return "Internal error", f"{type(error).__name__}: {error}{place}", BUG


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt, with the signal's number, on SIGINT and SIGTERM.

    Launchers pass a Ctrl-C on that the terminal has sent as well, so what follows within a second is the same one.
    """
    last: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if not last or now - last[0] > 1.0:
            last[:] = [now]
            raise KeyboardInterrupt(number)

    kept: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    from rich.text import Text

    from .terminal import stderr

    stderr().print(Text(f"warning: {message}", style="yellow"))
