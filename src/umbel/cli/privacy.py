"""What can be typed about privacy."""

from __future__ import annotations

from typing import Annotated

import typer

from .faults import reported
from .options import Debug, Plot, TableJson, group

privacy = group("privacy", "Plan how much noise a run needs for what may be spent.")


def register(program: typer.Typer) -> None:
    """Add these commands to the program."""
    program.add_typer(privacy)


@privacy.callback()
def _privacy() -> None:
    pass  # so that one command is not the group itself


@privacy.command()
def plan(
    epsilon: Annotated[float, typer.Option("--epsilon", metavar="E", help="What may be spent in all.")],
    delta: Annotated[
        float, typer.Option("--delta", metavar="D", help="With what probability more; well below 1 / population.")
    ],
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="How many noised answers.")],
    population: Annotated[int, typer.Option("--population", metavar="N", min=1, help="How many clients there are.")],
    cohort: Annotated[int, typer.Option("--cohort", metavar="N", min=1, help="How many the mean round has.")],
    accountant: Annotated[
        str,
        typer.Option(
            "--accountant", metavar="NAME", help="pld (privacy loss distributions) or rdp (Renyi divergences, looser)."
        ),
    ] = "pld",
    plot: Plot = None,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Say how much noise a budget needs, what else it could buy, and on what that rests (needs umbel\\[dp])."""
    with reported(debug, json):
        from .privacy_commands import plan

        plan((epsilon, delta, rounds, population, cohort, accountant), plot=plot, json=json)
