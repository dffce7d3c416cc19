"""What several commands share: their overview, and the options that they have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import SettingError
from .faults import UsageError, print_json
from .overview import OVERVIEW

RUNS = Path("umbel-runs")
SERVER = Path("umbel-server")


class Commands(TyperGroup):
    """All commands. What lists them is plain text: loading rich to draw it would take longer than all else. A wrong
    command line, too, is said as JSON where that was asked for.
    """

    def invoke(self, ctx: Any) -> Any:
        """Do the command that the context names."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.parent is None and "--json" in sys.argv and isinstance(error, UsageError):
                print_json(error)
            raise

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line; one that is empty is answered with the overview, which rich would not be given."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:  # as it is while a shell completes
            typer.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview into `formatter`."""
        self.rich_markup_mode = None
        formatter.write(OVERVIEW) if ctx.parent is None else super().format_help(ctx, formatter)


def group(name: str, help: str, *, alone: bool = False, completion: bool = False) -> typer.Typer:
    """A command with commands of its own; one that does something `alone` is that of its callback. With `completion` it
    can have the shell complete what is typed.
    """
    return typer.Typer(
        cls=Commands,
        name=name,
        help=help,
        no_args_is_help=not alone,
        invoke_without_command=alone,
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_names(incomplete: str) -> list[str]:
    """Runs that could be meant, for the shell to complete."""
    names = [path.parent.name for path in RUNS.glob("*/events.jsonl")]
    return sorted(name for name in ("last", *names) if name.startswith(incomplete))


def strategy_names(incomplete: str) -> list[str]:
    """Strategies that could be meant, for the shell to complete."""
    from ..strategies import __all__ as names

    return [name for name in names if name.lower().startswith(incomplete.lower())]


Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", autocompletion=run_names, help="A run's id, a unique part of one, 'last', or its folder."
    ),
]
RemoteRun = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique part of one, or 'last'.")]
Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where runs are kept.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that train, one a core by default; 0 for none but this one."
    ),
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", metavar="N", min=1, help="How many rounds; the app's by default.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result, or the error, as one line of JSON, the last of stdout.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the picture to this file, such as a.png (needs umbel\\[plot])."),
]
TableJson = Annotated[bool, typer.Option("--json", help="Print the table, or the error, as one line of JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, of clients' code too.")]
On = Annotated[str | None, typer.Option("--on", metavar="HOST:PORT", help="A server: instead of this machine.")]
At = Annotated[
    str | None, typer.Option("--on", metavar="HOST:PORT", help="The server; by default that of --dir, on this machine.")
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TEXT",
        help="An operator's token, a file with one, or - for standard input; by default $UMBEL_TOKEN, or what"
        " `umbel login` has kept.",
    ),
]
Home = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The server's folder, on this machine.")]


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raise `SettingError` where one of these options was given, which does not go with the others."""
    for name, value in options.items():
        if value is not None:
            raise SettingError(f"{name} {why}")


App = Annotated[
    str, typer.Argument(metavar="APP", help="A Python file with an umbel.App; FILE:NAME if it has several.")
]
Clients = Annotated[
    int | None,
    typer.Option("--clients", metavar="N", min=1, help="Simulate N clients; the app's federation by default."),
]
Init = Annotated[
    Path | None, typer.Option("--init", metavar="FILE", help="Begin with this model: an export or a checkpoint.")
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="FLEET",
        help="Simulate devices in virtual time: phones, boards, workstations, or a CSV file.",
    ),
]
Work = Annotated[
    float | None,
    typer.Option("--work", metavar="S", help="Seconds that a task takes on a device of speed 1; 1 by default."),
]
