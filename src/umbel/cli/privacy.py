"""What can be typed about privacy."""

from __future__ import annotations

from typing import Annotated

import typer

from .faults import reported
from .options import RUNS, Debug, Folder, Plot, Run, TableJson, group

Accountant = Annotated[
    str,
    typer.Option(
        "--accountant", metavar="NAME", help="pld (privacy loss distributions) or rdp (Renyi divergences, looser)."
    ),
]

privacy = group("privacy", "Plan how much noise a run needs, and show what one has spent.")


def register(program: typer.Typer) -> None:
    """Add these commands to the program."""
    program.add_typer(privacy)


@privacy.command()
def plan(
    epsilon: Annotated[float, typer.Option("--epsilon", metavar="E", help="What may be spent in all.")],
    delta: Annotated[
        float, typer.Option("--delta", metavar="D", help="With what probability more; well below 1 / population.")
    ],
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="How many noised answers.")],
    population: Annotated[int, typer.Option("--population", metavar="N", min=1, help="How many clients there are.")],
    cohort: Annotated[int, typer.Option("--cohort", metavar="N", min=1, help="How many the mean round has.")],
    separation: Annotated[
        int | None,
        typer.Option("--separation", metavar="N", min=1, help="Also plan DP-FTRL, with clients that wait N rounds."),
    ] = None,
    accountant: Accountant = "pld",
    plot: Plot = None,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Say how much noise a budget needs, what else it could buy, and on what that rests (needs umbel\\[dp])."""
    with reported(debug, json):
        from .privacy_commands import plan

        plan((epsilon, delta, rounds, population, cohort, accountant), separation, plot=plot, json=json)


@privacy.command()
def show(
    run: Run = "last",
    delta: Annotated[
        float | None,
        typer.Option("--delta", metavar="D", help="With what probability more; a tenth of 1 / clients by default."),
    ] = None,
    accountant: Accountant = "pld",
    folder: Folder = RUNS,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run's answers have spent together, and what that counts on (needs umbel\\[dp])."""
    with reported(debug, json):
        from .spent import show

        show(run, folder, delta, accountant, json=json)
