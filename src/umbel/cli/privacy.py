"""What can be typed about privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .faults import reported
from .options import RUNS, Debug, Folder, Plot, TableJson, group, refuse, run_names

Accountant = Annotated[
    str,
    typer.Option(
        "--accountant", metavar="NAME", help="pld (privacy loss distributions) or rdp (Renyi divergences, looser)."
    ),
]

privacy = group("privacy", "Plan how much noise a run needs, and show what was spent.")


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
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            autocompletion=run_names,
            help="A run's id, a unique part of one, 'last', or a node's folder.",
        ),
    ] = "last",
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            metavar="D",
            help="With what probability more; a tenth of 1 / clients by default, of a node what its budget says.",
        ),
    ] = None,
    accountant: Accountant = "pld",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Of a node: write a page for auditors, too.")
    ] = None,
    folder: Folder = RUNS,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run's answers, or each client of a node, have spent (needs umbel\\[dp])."""
    with reported(debug, json):
        if (Path(run) / "node.db").exists():
            from .ledger import show as show_node

            show_node(Path(run), delta, html, json=json)
        else:
            from .spent import show

            refuse({"--html": html}, "is for a node's folder")
            show(run, folder, delta, accountant, json=json)


@privacy.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A node's folder.")],
    against: Annotated[
        str | None, typer.Option("--against", metavar="HEAD", help="A head of earlier, which this command has told.")
    ] = None,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """See whether nothing was changed in a node's ledger: its chain, and the node's signature."""
    with reported(debug, json):
        from .ledger import check

        check(folder, against, json=json)
