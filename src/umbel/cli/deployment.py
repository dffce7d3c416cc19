"""What can be typed about servers, nodes and operators: the commands with their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .faults import reported
from .options import SERVER, At, Commands, Debug, Home, On, TableJson, Token, group, refuse

servers = group("server", "Be a server: nodes and operators connect to it.", alone=True)
nodes = group("nodes", "Invite, list, approve and revoke a server's nodes.")
authority = group("authority", "Let another key take the place of the one by which a server is known.")
operators = group("operators", "Add, list and remove who may use a server.")


def register(program: typer.Typer) -> None:
    """Add these commands to the program."""
    program.add_typer(servers)
    program.command()(node)
    program.add_typer(nodes)
    program.add_typer(operators)
    program.add_typer(authority)
    program.command()(login)
    program.add_typer(audits)
    program.command()(pack)
    program.command()(diff)


Window = Annotated[
    str | None,
    typer.Option("--window", metavar="SIZE", help="How much of what a node sends may be under way; 256KiB."),
]
BlobsPort = Annotated[
    int | None,
    typer.Option("--blobs-port", metavar="N", min=0, max=65535, help="Where large blobs go; 7422, 0 for nowhere."),
]


@servers.callback()
def server(
    context: typer.Context,
    dir: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where it keeps all that it keeps.")] = SERVER,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="ADDR", help="Where nodes and operators connect; 127.0.0.1:7420 by default."),
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="ADDR", help="Where its pages are; 127.0.0.1:7421, 'no' for none.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="What others call this machine, for its certificate. Repeatable."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Without TLS; only on this machine.")] = False,
    force_insecure: Annotated[
        bool, typer.Option("--force-insecure", help="With --insecure: without TLS for other machines, too.")
    ] = False,
    quota: Annotated[
        str | None,
        typer.Option(
            "--quota",
            metavar="SIZE",
            help="How much its blobs may take, such as 50GB; by default most of what is free.",
        ),
    ] = None,
    node_quota: Annotated[
        str | None, typer.Option("--node-quota", metavar="SIZE", help="How much of that may come from one node.")
    ] = None,
    largest_answer: Annotated[
        str | None, typer.Option("--largest-answer", metavar="SIZE", help="How large one answer of a node may be.")
    ] = None,
    log_quota: Annotated[
        str | None, typer.Option("--log-quota", metavar="SIZE", help="How much the log of one run may take.")
    ] = None,
    window: Window = None,
    blobs_port: BlobsPort = None,
    debug: Debug = False,
) -> None:
    """Be a server: nodes and operators connect to it."""
    if context.invoked_subcommand is not None:
        return
    with reported(debug):
        from .server_commands import serve, settings

        sizes = (quota, node_quota, largest_answer, log_quota, window)
        serve(settings(dir, listen, http, name or [], insecure, force_insecure, *sizes, blobs_port=blobs_port))


@servers.command("doctor")
def examine(dir: Home = SERVER, json: TableJson = False, debug: Debug = False) -> None:
    """Say what a run's process can do to the server on this machine; exits with 3 where something critical is open."""
    with reported(debug, json):
        from .doctor import doctor

        well = doctor(dir, json=json)
    if not well:
        raise typer.Exit(3)


Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="AUTHOR|HASH", help="Run what this author signed, or this archive. Repeatable."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="What this node does and what not, as TOML or JSON.")
]
Source = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="KEY=VALUE", help="Where the client's data is: what its code gets. Repeatable."),
]
ClientsFile = Annotated[
    Path | None,
    typer.Option("--clients", metavar="FILE", help="Several clients: TOML or JSON, names to sources."),
]

Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="How much memory a task may take, such as 8GB.")
]
Processors = Annotated[
    int | None, typer.Option("--cpus", metavar="N", min=1, help="How many processors a task may use.")
]
TaskTime = Annotated[
    float | None, typer.Option("--task-time", metavar="SECONDS", min=0.1, help="How long a task may take.")
]
Reads = Annotated[
    list[str] | None,
    typer.Option("--read", metavar="PATH", help="Clients' code may read this, beside sources. Repeatable."),
]
Writes = Annotated[
    list[str] | None, typer.Option("--write", metavar="PATH", help="It may read and write this. Repeatable.")
]


Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="TEXT",
        help="The text of an invitation; @FILE, - for standard input, or $UMBEL_JOIN, which no others can read.",
    ),
]


NodeName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What the node, and its client, is called.")
]
NodeFolder = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="Where its key, its results and its state are kept.")
]
IsRelay = Annotated[bool, typer.Option("--relay", help="Be a server to nodes below, and send partial sums up.")]
Listen = Annotated[
    str | None, typer.Option("--listen", metavar="ADDR", help="With --relay: where the nodes below connect.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Do not join: say whether it could; exits with 3 where it could not.")
]


def node(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="HOST:PORT of the server, or the text of an invitation.")
    ],
    join: Join = None,
    source: Source = None,
    name: NodeName = None,
    slots: Annotated[int, typer.Option("--slots", metavar="N", min=1, help="So many tasks at once.")] = 1,
    clients: ClientsFile = None,
    dir: NodeFolder = None,
    relay: IsRelay = False,
    listen: Listen = None,
    window: Window = None,
    blobs_port: BlobsPort = None,
    allow: Allow = None,
    policy: PolicyFile = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask here before the code of a run is run.")] = False,
    memory: Memory = None,
    cpus: Processors = None,
    task_time: TaskTime = None,
    no_network: Annotated[bool, typer.Option("--no-network", help="Clients' code reaches no network.")] = False,
    read: Reads = None,
    write: Writes = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Without TLS; only on this machine.")] = False,
    check: Check = False,
    json: Annotated[bool, typer.Option("--json", help="With --check: print one line of JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Be a node: hold data, and do a server's tasks on it."""
    with reported(debug, json):
        if not relay:
            refuse({"--listen": listen, "--window": window, "--blobs-port": blobs_port}, "goes with --relay")
        if not check:
            refuse({"--json": json or None}, "goes with --check")
        from .node_commands import NodeOrder, limits, run

        order = NodeOrder(
            server=server,
            join=join,
            sources=tuple(source or ()),
            name=name,
            slots=slots,
            clients=clients,
            folder=dir,
            relay=relay,
            listen=listen,
            window=window,
            blobs_port=blobs_port,
            allow=tuple(allow or ()),
            policy=policy,
            ask=ask,
            insecure=insecure,
            debug=debug,
            limits=limits(memory, cpus, task_time, no_network, read or (), write or ()),
        )
        if not check:
            run(order)
            return
        from .node_check import examine_node

        well = examine_node(order, json=json)
    if not well:
        raise typer.Exit(3)


Clients = Annotated[
    str | None,
    typer.Option("--clients", metavar="NAMES", help="Its clients' names, or patterns: 'ward-*,icu-7'. Any by default."),
]
AtMost = Annotated[int | None, typer.Option("--at-most", metavar="N", min=1, help="So many clients at the most.")]


@nodes.command("invite")
def invite_node(
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The only name that it may take; any by default.")
    ] = None,
    hours: Annotated[
        float, typer.Option("--hours", metavar="H", min=0.01, help="How long the invitation is good.")
    ] = 24.0,
    relay: Annotated[bool, typer.Option("--relay", help="For a relay, which folds what its nodes answer.")] = False,
    clients: Clients = None,
    at_most: AtMost = None,
    approval: Annotated[
        bool, typer.Option("--approval", help="Without a secret: the node waits until it is approved.")
    ] = False,
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Make an invitation, good for one node."""
    with reported(debug, json):
        from .office_commands import invite

        invite(
            on,
            token,
            dir,
            name=name,
            hours=hours,
            relay=relay,
            clients=clients,
            most=at_most,
            approval=approval,
            json=json,
        )


@nodes.command("ls")
def list_nodes(
    on: At = None, token: Token = None, dir: Home = SERVER, json: TableJson = False, debug: Debug = False
) -> None:
    """List the nodes and their clients."""
    with reported(debug, json):
        from .office_commands import list_nodes

        list_nodes(on, token, dir, json=json)


Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's id, a unique part of one, or its name.")]


@nodes.command("approve")
def approve_node(
    node: Node,
    relay: Annotated[bool, typer.Option("--relay", help="As a relay, which folds what its nodes answer.")] = False,
    clients: Clients = None,
    at_most: AtMost = None,
    restored: Annotated[
        bool, typer.Option("--restored", help="Though its folder is older than what was seen of it.")
    ] = False,
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    debug: Debug = False,
) -> None:
    """Let a node in that waits for approval or is held, make one a relay, or say what it may call its clients."""
    with reported(debug):
        from .office_commands import bounds, judge_node

        said = {name: True for name, given in (("relay", relay), ("restored", restored)) if given}
        judge_node(on, token, dir, node, "approve", **said, **bounds(clients, at_most))


@nodes.command("revoke")
def revoke_node(node: Node, on: At = None, token: Token = None, dir: Home = SERVER, debug: Debug = False) -> None:
    """Shut a node out: its connection ends, and its key is not good any more."""
    with reported(debug):
        from .office_commands import judge_node

        judge_node(on, token, dir, node, "revoke")


@nodes.command("release")
def release_clients(
    clients: Annotated[list[str] | None, typer.Argument(metavar="[CLIENT]...", help="Names of clients.")] = None,
    all_of: Annotated[str | None, typer.Option("--all-of", metavar="NODE", help="All names of this node.")] = None,
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    debug: Debug = False,
) -> None:
    """Free names of clients that are bound to a node which is away or was revoked: another one may use them then."""
    with reported(debug):
        from .office_commands import release

        release(on, token, dir, clients or [], all_of)


@authority.command("rotate")
def rotate_authority(on: At = None, token: Token = None, dir: Home = SERVER, debug: Debug = False) -> None:
    """Make a new key, which nodes and operators learn from the old one."""
    with reported(debug):
        from .office_commands import change_authority

        change_authority(on, token, dir, "rotate")


@authority.command("retire")
def retire_authority(
    force: Annotated[bool, typer.Option("--force", help="Though some nodes are away.")] = False,
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    debug: Debug = False,
) -> None:
    """Let the new key take the place of the old one, which is gone then."""
    with reported(debug):
        from .office_commands import change_authority

        change_authority(on, token, dir, "retire", **({"force": True} if force else {}))


Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")]


@operators.command("add")
def add_operator(
    name: Name,
    role: Annotated[
        str,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="read: see everything; run: start, stop and resume runs, too; admin: nodes and operators, too.",
        ),
    ] = "run",
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Let somebody use the server, and print their token."""
    with reported(debug, json):
        from .office_commands import add_operator

        add_operator(on, token, dir, name=name, role=role, json=json)


@operators.command("ls")
def list_operators(
    on: At = None, token: Token = None, dir: Home = SERVER, json: TableJson = False, debug: Debug = False
) -> None:
    """List who may use the server."""
    with reported(debug, json):
        from .office_commands import list_operators

        list_operators(on, token, dir, json=json)


@operators.command("remove")
def remove_operator(name: Name, on: At = None, token: Token = None, dir: Home = SERVER, debug: Debug = False) -> None:
    """Take somebody's access away."""
    with reported(debug):
        from .office_commands import remove_operator

        remove_operator(on, token, dir, name)


def login(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")],
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN",
            help="An operator's token, @FILE or - for standard input; asked for where it is left out.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Keep an operator's token, so that later commands find it."""
    with reported(debug):
        from .office_commands import login

        login(server, token if token is not None else typer.prompt("token", hide_input=True))


audits = typer.Typer(
    cls=Commands,
    name="audit",
    help="Print who did what on a server; see whether that record is whole; export it.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@audits.callback()
def audit(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="The last so many records.")] = 50,
    on: At = None,
    token: Token = None,
    dir: Home = SERVER,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Print who did what on a server."""
    if context.invoked_subcommand is not None:
        return
    with reported(debug, json):
        from .office_commands import audit

        audit(on, token, dir, count=count, json=json)


Kept = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder of a server or a node, on this machine.")]


@audits.command("verify")
def verify_audit(
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="HEAD", help="A head of earlier, which an export or this command has told."),
    ] = None,
    dir: Kept = SERVER,
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """See whether no record of an audit was changed, added, removed or moved."""
    with reported(debug, json):
        from .audit_commands import verify

        verify(dir, against, json=json)


@audits.command("export")
def export_audit(
    on: On = None,
    token: Token = None,
    dir: Kept = SERVER,
    debug: Debug = False,
) -> None:
    """Print all records of an audit as JSON lines, and its head to stderr: of the folder, or of the server --on."""
    with reported(debug):
        from .audit_commands import export

        export(on, token, dir)


def pack(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="A Python file with an umbel.App; FILE:NAME if it has several.")
    ],
    to: Annotated[Path, typer.Option("--to", "-o", metavar="DIR", help="The folder to write to.")] = Path("."),
    json: TableJson = False,
    debug: Debug = False,
) -> None:
    """Make two archives: of the client, which nodes run, and of the app."""
    with reported(debug, json):
        from .archive_commands import pack

        pack(app, to, json=json)


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="An archive.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another.")],
    debug: Debug = False,
) -> None:
    """Show how two archives differ, file by file and line by line."""
    with reported(debug):
        from .archive_commands import diff

        diff(old, new)
