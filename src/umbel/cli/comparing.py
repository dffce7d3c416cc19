"""What can be typed to compare runs, to have many of them, and to be rid of them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .faults import reported
from .options import (
    RUNS,
    App,
    Clients,
    Debug,
    Devices,
    Folder,
    Init,
    Json,
    Plot,
    Rounds,
    TableJson,
    Work,
    Workers,
)


def register(program: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (compare, sweep, best, rm):
        program.command()(command)


def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN RUN...]", help="Ids of runs, or parts; by default the last two.")
    ] = None,
    plot: Plot = None,
    json: TableJson = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Show in what runs differ, and what they came to."""
    with reported(debug, json):
        from .compare_commands import compare

        compare(runs or [], folder, plot=plot, json=json)


Metric = Annotated[
    str | None,
    typer.Option("--metric", metavar="NAME", help="What is best, such as evaluate.accuracy; an accuracy by default."),
]
Least = Annotated[
    bool | None, typer.Option("--min/--max", help="Whether less of it is better; by default that of a loss or error.")
]


def _goal(least: bool | None) -> Literal["min", "max"] | None:
    return None if least is None else "min" if least else "max"


def sweep(
    app: App,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUES",
            help="Values of a setting, such as lr=0.1,0.03, or a range to draw from, such as lr=0.001..0.1. "
            "Can be repeated: all combinations are run.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Run each with so many seeds.")] = 1,
    random: Annotated[
        int | None, typer.Option("--random", metavar="N", min=1, help="Draw N combinations at random.")
    ] = None,
    optuna: Annotated[
        int | None,
        typer.Option("--optuna", metavar="N", min=1, help="Have Optuna propose N, and stop what is worse than others."),
    ] = None,
    sampler: Annotated[
        str, typer.Option("--sampler", metavar="NAME", help="With --optuna: the sampler that proposes them.")
    ] = "TPESampler",
    metric: Metric = None,
    min: Least = None,
    clients: Clients = None,
    rounds: Rounds = None,
    init: Init = None,
    workers: Workers = None,
    devices: Devices = None,
    work: Work = None,
    plot: Plot = None,
    json: Json = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Run an app with several settings and seeds, and compare what came of them; the same command again goes on."""
    with reported(debug, json):
        from .federations import Wanted
        from .sweep_commands import sweep

        sweep(
            app,
            wanted=Wanted(clients, workers, devices, work),
            assignments=set or [],
            seeds=seeds,
            random=random,
            optuna=optuna,
            sampler=sampler,
            metric=metric,
            goal=_goal(min),
            rounds=rounds,
            init=init,
            plot=plot,
            json=json,
            folder=folder,
        )


def best(
    sweep: Annotated[
        str, typer.Argument(metavar="[SWEEP]", help="A sweep's id, or a part of it; by default the last.")
    ] = "last",
    metric: Metric = None,
    min: Least = None,
    plot: Plot = None,
    json: TableJson = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Show the best run of a sweep, and the command that runs it again."""
    with reported(debug, json):
        from .sweep_commands import best

        best(sweep, folder, metric=metric, goal=_goal(min), plot=plot, json=json)


def rm(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Ids of runs, or parts of them.")] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=0, help="Remove all but the N last active ones.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Remove those that were not active for so long."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Remove runs, with their models, for good."""
    with reported(debug):
        from .list_commands import remove

        remove(runs or [], folder, keep=keep, older=older_than, dry=dry_run)
