"""What can be typed about privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .faults import reported
from .options import RUNS, App, Debug, Folder, Plot, Rounds, Run, TableJson, group, refuse, run_names

Accountant = Annotated[
    str,
    typer.Option(
        "--accountant", metavar="NAME", help="pld (privacy loss distributions) or rdp (Renyi divergences, looser)."
    ),
]

privacy = group("privacy", "Plan noise, say who sees what and what was spent, audit, attack.")


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
def explain(
    app: App,
    clients: Annotated[
        int | None, typer.Option("--clients", metavar="N", min=1, help="Of so many clients; the app's by default.")
    ] = None,
    plot: Plot = None,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Say who sees what of an app's rounds, phase by phase, and what follows if clients vanish or conspire."""
    with reported(debug, json):
        from .explain_commands import explained

        explained(app, clients, plot=plot, json=json)


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


@privacy.command()
def audit(
    app: App,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=0, help="Runs, half of them with one canary; 0 for none.")
    ] = 1000,
    canaries: Annotated[
        int | None,
        typer.Option("--canaries", metavar="N", min=0, help="Canaries of the one run: 1,000 if they fit; 0: none."),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option("--clients", metavar="N", min=1, help="Clients beside them: the app's by default, or 10."),
    ] = None,
    rounds: Rounds = None,
    delta: Annotated[
        float, typer.Option("--delta", metavar="D", help="At what delta epsilon is claimed and proved.")
    ] = 1e-5,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="P", help="How sure what is proved is to be.")
    ] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Decides canaries and coins, and not the noise.")
    ] = 0,
    steady: Annotated[
        bool, typer.Option("--steady", help="Canaries that do not turn round every round: for correlated noise.")
    ] = False,
    accountant: Accountant = "pld",
    plot: Plot = None,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Plant canaries in an app and print the least epsilon that they prove, beside what is claimed; exits with 3 where
    the claim is false (needs umbel\\[dp])."""
    with reported(debug, json):
        from .canary_commands import audit

        settings = {"clients": clients, "rounds": rounds, "delta": delta, "confidence": confidence, "turns": not steady}
        audit(app, runs=runs, canaries=canaries, plot=plot, json=json, seed=seed, accountant=accountant, **settings)


@privacy.command()
def attack(
    run: Run = "last",
    round: Annotated[
        int | None,
        typer.Option("--round", metavar="R", min=0, help="The model after this round; the result by default."),
    ] = None,
    app: Annotated[str | None, typer.Option("--app", metavar="APP", help="The app, if it has moved.")] = None,
    folder: Folder = RUNS,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Attack a simulated run's model and its clients' updates, and say what they give away (needs umbel\\[dp])."""
    with reported(debug, json):
        from .attack_commands import attack

        attack(run, folder, round, app, json=json)
