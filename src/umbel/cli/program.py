"""What can be typed: the commands with their arguments and help. What they do is imported when one is called, so that
`umbel --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import comparing, deployment, privacy
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
    On,
    Plot,
    RemoteRun,
    Rounds,
    Run,
    TableJson,
    Token,
    Work,
    Workers,
    group,
    refuse,
    strategy_names,
)
from .starters import frameworks, tasks

program = group("umbel", "Train, evaluate and query models on data that never leaves its holder.", completion=True)


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
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the folder; on a terminal asked for.")
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(
            "--framework", metavar="NAME", autocompletion=frameworks, help="What the model is written in, as pytorch."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", autocompletion=tasks, help="Of which data: tabular, images, analytics."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            autocompletion=strategy_names,
            help="Learn by this one; umbel strategies lists them.",
        ),
    ] = None,
    notebook: Annotated[bool, typer.Option("--notebook", help="Make a notebook, too, that runs the app.")] = False,
    debug: Debug = False,
) -> None:
    """Make a folder with a small app that runs at once."""
    known = (("--framework", framework, frameworks), ("--task", task, tasks))
    for option, value, there in known:
        if value is not None and value not in there():
            raise typer.BadParameter(f"{value!r} is none of {', '.join(there())}.", context, param_hint=option)
    asked = sys.stdin.isatty() and (framework, task, strategy) == (None, None, None)
    if name is None and not asked:
        raise typer.BadParameter("what is the folder to be called?", context, param_hint="NAME")
    with reported(debug):
        from .new import ask, new

        if asked:
            name, framework, task, strategy = ask(name)
        new(name or "", framework, task, strategy, notebook)


Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same software, same machine: same model.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: a key of the app's config, 'rounds', or 'strategy.*' such as strategy.cohort=20. "
        "Can be repeated.",
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Train one client only, and say what the whole run would take.")]
RunOn = Annotated[
    str | None,
    typer.Option("--on", metavar="HOST:PORT", help="Run it on this server's nodes, instead of a simulation."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CLIENT", help="With --on: this client belongs to the run; all by default."),
]
WaitFor = Annotated[
    int | None,
    typer.Option("--wait-for", metavar="N", min=1, help="With --on: begin once N clients are ready, and not before."),
]
Wait = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", min=0.1, help="With --on: fail where they are not there by then."),
]
Expires = Annotated[
    float | None,
    typer.Option("--expires", metavar="DAYS", min=0, help="With --on: your signature is good for so long."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Tell a tracker: aim, csv, mlflow, parquet, tensorboard or wandb, with a place behind a colon if wanted, "
        "such as mlflow:http://host:5000. Can be repeated.",
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="With --on: do not follow the run.")]


@program.command()
def run(
    app: App,
    clients: Clients = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    set: Settings = None,
    init: Init = None,
    workers: Workers = None,
    devices: Devices = None,
    work: Work = None,
    plan: Plan = False,
    on: RunOn = None,
    only: Only = None,
    wait_for: WaitFor = None,
    wait: Wait = None,
    expires: Expires = None,
    detach: Detach = False,
    track: Track = None,
    token: Token = None,
    json: Json = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Train an app's model in a simulated federation, or on a server's nodes."""
    with reported(debug, json):
        if on is not None:
            simulated = {"--clients": clients, "--init": init, "--workers": workers, "--devices": devices}
            refuse({**simulated, "--work": work, "--plan": plan or None}, "goes with a simulation, not with --on")
            if only:
                refuse({"--wait-for": wait_for}, "says how many of any, --only names them: keep one of them")
            from .remote_commands import run_on

            members = {"only": only or [], "wait_for": wait_for, "wait": wait}
            more = {"expires": expires, "detach": detach, "track": track or []}
            how: dict[str, Any] = {**members, **more, "assignments": set or []}
            run_on(app, on, token, rounds=rounds, seed=seed, json=json, **how)
            return
        remote = {"--only": only, "--wait-for": wait_for, "--wait": wait, "--expires": expires, "--token": token}
        refuse({**remote, "--detach": detach or None}, "goes with --on")
        from .federations import Wanted
        from .run_commands import plan as plan_run
        from .run_commands import run

        wanted = Wanted(clients, workers, devices, work)
        if plan:
            plan_run(app, wanted=wanted, rounds=rounds, seed=seed, assignments=set or [], json=json)
            return
        run(
            app,
            wanted=wanted,
            rounds=rounds,
            seed=seed,
            assignments=set or [],
            init=init,
            track=track or [],
            json=json,
            folder=folder,
            debug=debug,
        )


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
    on: On = None,
    token: Token = None,
    detach: Detach = False,
    track: Track = None,
    json: Json = False,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Go on with a run where it stopped."""
    with reported(debug, json):
        if on is not None:
            refuse({"--app": app, "--workers": workers}, "goes with a run on this machine, not with --on")
            from .remote_commands import resume_on

            resume_on(run, on, token, rounds=rounds, detach=detach, track=track or [], json=json)
            return
        refuse({"--detach": detach or None, "--token": token}, "goes with --on")
        from .run_commands import resume

        resume(run, rounds=rounds, app=app, workers=workers, track=track or [], json=json, folder=folder, debug=debug)


@program.command()
def runs(
    on: On = None, token: Token = None, folder: Folder = RUNS, json: TableJson = False, debug: Debug = False
) -> None:
    """List the runs, the latest last."""
    with reported(debug, json):
        if on is not None:
            from .remote_commands import runs_on

            runs_on(on, token, json=json)
            return
        from .list_commands import runs

        runs(folder, json=json)


@program.command()
def show(
    run: Run,
    plot: Plot = None,
    clients: Annotated[bool, typer.Option("--clients", help="Show what became of each client.")] = False,
    round: Annotated[
        int | None, typer.Option("--round", metavar="N", min=1, help="With --clients: in this round, not the last.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="With --clients: print all rounds as one line of JSON.")] = False,
    on: On = None,
    token: Token = None,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Show a run: its facts, rounds, curves and failures, or its clients."""
    with reported(debug, json):
        from .list_commands import ClientsView, show

        if clients:
            refuse({"--plot": plot}, "draws curves, and --clients shows none")
        else:
            refuse({"--round": round, "--json": json or None}, "goes with --clients")
        part = ClientsView(round, json) if clients else None
        if on is not None:
            from .remote_commands import show_on

            show_on(run, on, token, plot, part)
            return
        show(run, folder, plot, part)


@program.command()
def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    on: On = None,
    token: Token = None,
    folder: Folder = RUNS,
    json: Annotated[bool, typer.Option("--json", help="Print the events themselves, one line of JSON each.")] = False,
    debug: Debug = False,
) -> None:
    """Print what has happened in a run."""
    with reported(debug, json):
        if on is not None:
            from .remote_commands import logs_on

            logs_on(run, on, token, follow=follow, json=json)
            return
        from .log_commands import logs

        logs(run, folder, follow=follow, json=json)


@program.command()
def track(
    run: Run,
    tracker: Annotated[
        str,
        typer.Argument(
            metavar="TRACKER", help="aim, csv, mlflow, parquet, tensorboard or wandb, or mlflow:URI, csv:DIR, ..."
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    on: On = None,
    token: Token = None,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Tell a tracker of a run that was, or goes on."""
    with reported(debug):
        from .track_commands import track, track_on

        if on is not None:
            track_on(run, tracker, on, token, follow=follow)
            return
        track(run, tracker, folder, follow=follow)


@program.command()
def export(
    run: Run,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The file to write: .safetensors or .npz; in the format of the framework that the app's model is of: "
            ".pt, .keras, .joblib, .ubj, .onnx; of transformers a folder, which has no ending.",
        ),
    ],
    app: Annotated[
        str | None,
        typer.Option("--app", metavar="APP", help="The app whose model it is; by default the one that the run names."),
    ] = None,
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
    """Write a run's model to a file, in a framework's own format, too."""
    with reported(debug):
        from .export_commands import export

        export(run, file, folder, app=app, round=round, force=force)


comparing.register(program)


def catalogue(name: str, help: str) -> None:
    """Make the command that lists a catalogue."""

    def command(
        one: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show all about this one.")] = None,
        json: TableJson = False,
        debug: Debug = False,
    ) -> None:
        with reported(debug, json):
            from .catalogue_commands import listed

            listed(name, one, json=json)

    program.command(name, help=help)(command)


catalogue("strategies", "List the strategies: how a federation learns.")
catalogue("folds", "List the folds: how updates become one answer.")
catalogue("transforms", "List the transforms: steps on updates at both ends.")
catalogue("samplers", "List the samplers: who is asked.")
catalogue("partitioners", "List the partitioners: how data is split over clients.")


@program.command()
def stop(
    run: RemoteRun,
    on: Annotated[str, typer.Option("--on", metavar="HOST:PORT", help="The server.")],
    token: Token = None,
    debug: Debug = False,
) -> None:
    """Stop a run on a server; what it has learned is kept."""
    with reported(debug):
        from .remote_commands import stop_on

        stop_on(run, on, token)


@program.command()
def pull(
    run: RemoteRun,
    on: Annotated[str, typer.Option("--on", metavar="HOST:PORT", help="The server.")],
    token: Token = None,
    folder: Folder = RUNS,
    debug: Debug = False,
) -> None:
    """Fetch a run's folder from a server: log, summary and models."""
    with reported(debug):
        from .remote_commands import pull_from

        pull_from(run, on, token, folder)


@program.command()
def chaos(
    apps: Annotated[
        list[str], typer.Argument(metavar="APP...", help="Python files with an umbel.App, or FILE:NAME; by turns.")
    ],
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, help="How many processes to kill, in all.")] = 30,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="In how many runs.")] = 3,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Nodes in each deployment.")] = 4,
    relays: Annotated[
        int, typer.Option("--relays", metavar="N", min=0, help="Relays, with half of the nodes below them.")
    ] = 1,
    clients: Annotated[int, typer.Option("--clients", metavar="N", min=1, help="Clients, dealt to the nodes.")] = 6,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Of each run; by default as many as it takes.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed: same schedule of what happens.")] = 1,
    drills: Annotated[
        str, typer.Option("--drills", metavar="LIST", help="Of kill, stop, cut, throttle, rollback and fill.")
    ] = "kill,stop,cut,throttle",
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where the logs of runs are that go wrong.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Drill a deployment on this machine: kill, stop and cut off all that an app's run needs, and compare the bits."""
    with reported(debug, json):
        from .chaos_commands import chaos

        order = {"kills": kills, "runs": runs, "nodes": nodes, "relays": relays, "clients": clients, "seed": seed}
        chaos(apps, {**order, "rounds": rounds}, drills, folder, json=json)


@program.command()
def doctor(json: TableJson = False, folder: Folder = RUNS, debug: Debug = False) -> None:
    """Check this machine, and say what to do; exits with 3 where something is wrong."""
    with reported(debug, json):
        from .environment import environment

        well = environment(folder, json=json)
    if not well:
        raise typer.Exit(3)


deployment.register(program)
privacy.register(program)
