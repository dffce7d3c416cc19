"""What can be typed: the commands with their arguments and help. What they do is imported when one is called, so that
`umbel --help` answers at once.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .faults import reported

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a bug in Umbel: --debug shows where
  2    a wrong command line
  3    something to change: the app, its strategy, a setting, the data
  4    the run stopped: its clients brought no update
  5    the disk: full, not writable, a damaged file
  130  stopped by Ctrl-C, 143 by SIGTERM: umbel resume goes on
"""


class Commands(TyperGroup):
    """All commands. Their overview is plain text: loading rich to draw it would take longer than all else."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview into `formatter`."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


program = typer.Typer(
    cls=Commands,
    name="umbel",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Framework(StrEnum):
    """What `umbel new` has a template for."""

    pytorch = "pytorch"
    numpy = "numpy"


Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique part of one, 'last', or its folder.")]
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
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, the last of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RUNS = Path("umbel-runs")


def print_version(wanted: bool) -> None:
    """Print the version, where it was asked for, and exit."""
    if wanted:
        from .. import __version__

        typer.echo(f"umbel {__version__}")
        raise typer.Exit


@program.callback()
def umbel(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Train, evaluate and query models on data that never leaves its holder."""


@program.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the folder.")],
    framework: Annotated[Framework, typer.Option("--framework", help="What the model is written in.")] = (
        Framework.pytorch
    ),
    debug: Debug = False,
) -> None:
    """Make a folder with a small app that runs at once."""
    with reported(debug):
        from .new import new

        new(name, framework.value)


@program.command()
def run(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="A Python file with an umbel.App; FILE:NAME if it has several.")
    ],
    clients: Annotated[
        int | None,
        typer.Option("--clients", metavar="N", min=1, help="Simulate N clients; the app's federation by default."),
    ] = None,
    rounds: Rounds = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Same seed, same software, same machine: same model.")
    ] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting: a key of the app's config, 'rounds', or 'strategy.*' such as strategy.cohort=20. "
            "Can be repeated.",
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="FILE", help="Begin with this model: an export or a checkpoint.")
    ] = None,
    workers: Workers = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="FLEET",
            help="Simulate devices in virtual time: phones, boards, workstations, or a CSV file.",
        ),
    ] = None,
    work: Annotated[
        float | None,
        typer.Option("--work", metavar="S", help="Seconds that a task takes on a device of speed 1; 1 by default."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Train one client only, and say what the whole run would take.")
    ] = False,
    json: Json = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Train an app's model in a simulated federation."""
    with reported(debug):
        from .federations import Wanted
        from .run_commands import plan as plan_run
        from .run_commands import run

        wanted = Wanted(clients, workers, devices, work)
        if plan:
            plan_run(app, wanted=wanted, rounds=rounds, seed=seed, assignments=set or [], json=json)
            return
        run(app, wanted=wanted, rounds=rounds, seed=seed, assignments=set or [], init=init, json=json, folder=folder)


@program.command()
def resume(
    run: Run,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", min=1, help="Go on to so many rounds in all; as begun by default."),
    ] = None,
    app: Annotated[
        str | None, typer.Option("--app", metavar="FILE", help="The app's file, where it is not where it was.")
    ] = None,
    workers: Workers = None,
    json: Json = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Go on with a run where it stopped."""
    with reported(debug):
        from .run_commands import resume

        resume(run, rounds=rounds, app=app, workers=workers, json=json, folder=folder)


@program.command()
def runs(
    folder: Folder = RUNS,
    json: Annotated[bool, typer.Option("--json", help="Print the table as one line of JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs, the latest last."""
    with reported(debug):
        from .list_commands import runs

        runs(folder, json=json)


@program.command()
def show(
    run: Run,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves to this PNG (needs umbel[plot]).")
    ] = None,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Show a run: its facts, rounds, curves and failures."""
    with reported(debug):
        from .list_commands import show

        show(run, folder, plot)


@program.command()
def export(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The safetensors file to write.")],
    round: Annotated[
        int | None,
        typer.Option(
            "--round",
            metavar="N",
            min=0,
            help="The model after this round, 0 for the initial one; the result by default.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Write a run's model to a safetensors file."""
    with reported(debug):
        from .list_commands import export

        export(run, file, folder, round=round, force=force)
