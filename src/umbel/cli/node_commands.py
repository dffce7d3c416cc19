"""`umbel node`: what the command line says of a node, and being one until somebody stops it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sys
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..errors import SettingError
from ..files import alone
from ..node.gate import PolicyGate
from ..node.limits import Limits
from ..node.service import NodeSettings, run_node
from ..office.operator import Operator
from ..runs.journal import write_whole
from ..transport.stream import Stream
from ..trust import credentials
from ..trust.authority import JoinText
from ..trust.identity import SigningKey
from ..trust.policy import Approvals, Policy
from ..trust.servers import KnownServer
from ..trust.versions import Versions
from ..wire.addresses import canonical, host_and_port, is_loopback
from .faults import warn
from .options import SERVER as OWN_SERVER
from .owner import Owner
from .server_commands import warn_of_gaps
from .terminal import log_to_stderr, plural, stderr

if TYPE_CHECKING:
    from ..server.relay import RelaySettings

FOLDER = Path("umbel-nodes")
SERVER = "server.json"
KEY = "node.key"
APPROVED = "approved"
VERSIONS = "versions.json"
SEEN = "server.seen"
SUCCESSORS = "successors.json"
BELOW = "below"
"""Where a relay keeps what it keeps as a server."""


@dataclass(frozen=True)
class NodeOrder:
    """What the command line says of a node."""

    server: str
    join: str | None = None
    sources: tuple[str, ...] = ()
    name: str | None = None
    slots: int = 1
    clients: Path | None = None
    folder: Path | None = None
    relay: bool = False
    listen: str | None = None
    window: str | None = None
    blobs_port: int | None = None
    allow: tuple[str, ...] = ()
    policy: Path | None = None
    ask: bool = False
    insecure: bool = False
    debug: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def called(self) -> str:
        """The node's name; by default this machine's."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-.")[:64] or "node"

    @property
    def place(self) -> Path:
        """The node's folder."""
        return self.folder or FOLDER / self.called


def run(order: NodeOrder) -> None:
    """Be a node until somebody stops it. Raises `SettingError` for what cannot be."""
    os.umask(0o077)  # what is kept here is about the owner's data, and nobody else's to read
    with alone(order.place, "a node", "Call this one otherwise: --name NAME."):
        if order.relay:
            _relay(order)
            return
        settings = node_settings(order)
        if not (order.allow or order.policy or _asks(order)):
            warn("nobody's code is allowed here yet: add --allow any, --allow with an author's key, or --ask")
        warn_of_gaps()
        log_to_stderr(order.debug)
        hosted = f"{plural(len(settings.clients), 'client')}: {', '.join(settings.clients)}"
        stderr().print(Text(f"node {settings.name} for {canonical(order.server)}, {hosted}"))
        asyncio.run(_until_stopped(settings))


async def _until_stopped(settings: NodeSettings) -> None:
    gc.freeze()  # what imports have made stays: the collector need not go through it again and again
    await run_node(settings, _stopping())


def _stopping() -> asyncio.Event:
    """What is set once somebody wants this process to end."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


def _relay(order: NodeOrder) -> None:
    """Be a relay until somebody stops it."""
    from ..server.relay import run_relay
    from .server_commands import announce

    async def until_stopped() -> None:
        await run_relay(settings, _stopping(), announce, invites=sys.stdout.isatty())

    settings = relay_settings(order)
    log_to_stderr(order.debug)
    stderr().print(Text(f"relay {settings.name} for {canonical(order.server)}"))
    asyncio.run(until_stopped())


def relay_settings(order: NodeOrder) -> RelaySettings:
    """A relay as the command line says. Raises `SettingError`."""
    from ..server.relay import RelaySettings
    from ..server.settings import ServerSettings, byte_count

    hosting: dict[str, object] = {
        "--source": order.sources,
        "--clients": order.clients,
        "--allow": order.allow,
        "--policy": order.policy,
    }
    bounds = order.limits
    hosting |= {"--memory": bounds.memory, "--cpus": bounds.cpus, "--task-time": bounds.task_time}
    hosting |= {"--no-network": not bounds.network, "--read": bounds.read, "--write": bounds.write}
    if given := [name for name, value in hosting.items() if value]:
        raise SettingError(f"{given[0]} is for a node that hosts clients: a relay runs nobody's code")
    address, join = canonical(order.server), server_line(order)
    server = KnownServer(join.authority, order.place / SEEN, order.place / SUCCESSORS)
    below = ServerSettings(order.place / BELOW, http="", insecure=order.insecure, blobs_port=order.blobs_port)
    if order.window is not None:
        below = replace(below, window=byte_count(order.window))
    return RelaySettings(
        connect=_connecting(address, server.roots),
        key=SigningKey.kept(order.place / KEY),
        below=below if order.listen is None else replace(below, listen=order.listen),
        name=order.called,
        token=join.token,
        server=server,
    )


def _connecting(address: str, roots: Callable[[], bytes | None]) -> Callable[[], Awaitable[Stream]]:
    async def connect() -> Stream:
        from ..transport import grpc

        return await grpc.connect(address, roots())

    return connect


def node_settings(order: NodeOrder) -> NodeSettings:
    """A node as the command line says. Raises `SettingError`."""
    place = order.place
    join = server_line(order)
    approvals = Approvals(place / APPROVED)
    policy = policy_of(order, approvals)
    if policy.ask and not (order.ask or sys.stdin.isatty()):
        warn("the policy says ask, but nobody is at a terminal here: code that is not allowed yet is refused")
        policy = replace(policy, ask=False)
    server = KnownServer(join.authority, place / SEEN, place / SUCCESSORS)
    return NodeSettings(
        folder=place,
        connect=_connecting(canonical(order.server), server.roots),
        key=SigningKey.kept(place / KEY),
        clients=clients_of(order),
        gate=PolicyGate(policy, Versions(place / VERSIONS), server.federations),
        name=order.called,
        token=join.token,
        slots=order.slots,
        ask_owner=Owner(approvals, place).ask if policy.ask else None,
        server=server,
        budget=policy.budget,
        limits=order.limits,
    )


def server_line(order: NodeOrder) -> JoinText:
    """How the server is known, and the token to join by; what the node's folder has kept where nothing is said. Where
    the server's own folder is at hand, the node invites itself: whoever has that folder may let nodes in.

    Raises `SettingError` where there is nothing, and for plaintext to another machine that nobody insists on.
    """
    address, path, kept = canonical(order.server), order.place / SERVER, _kept(order)
    join = line_said(order) or _own_invitation(address, order.relay)
    if not join.authority and not order.insecure and not is_loopback(host_and_port(address)[0]):
        raise SettingError(
            f"{address} would be spoken to without TLS: everyone between could read and change what passes",
            hint="--insecure insists.",
        )
    found = {**kept, address: JoinText(join.authority).text}
    if found != kept:
        write_whole(path, (json.dumps(found, indent=2) + "\n").encode())
    return join


def line_said(order: NodeOrder) -> JoinText | None:
    """What the command line, the environment or the node's folder says; None where none of them does. Raises
    `SettingError`.
    """
    kept = _kept(order).get(canonical(order.server))
    if (told := order.join or os.environ.get(credentials.JOIN)) is not None:
        return JoinText.parse(credentials.given(told))
    if order.insecure:
        return JoinText(b"")
    return None if kept is None else JoinText.parse(kept)


def _kept(order: NodeOrder) -> dict[str, str]:
    """The lines by which servers are known, by address, as the node's folder has them."""
    try:
        found = json.loads((order.place / SERVER).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _own_invitation(address: str, relay: bool) -> JoinText:
    """An invitation by the server's own folder, where that is here."""
    try:
        if not (OWN_SERVER / credentials.OPERATOR).exists():
            raise SettingError(f"{OWN_SERVER} is no server's folder")
        found = credentials.find(address, None, OWN_SERVER)
    except SettingError:
        raise SettingError(
            f"nothing says by what {address} is to be known",
            hint="Add --join with the text that `umbel nodes invite` printed, or @FILE for a file that has it.",
        ) from None
    with Operator.connect(found) as server:
        invited = server.call("nodes.invite", **({"relay": True} if relay else {}))
        return JoinText.parse(str(invited["line"]).split()[-1])


def limits(
    memory: str | None,
    cpus: int | None,
    task_time: float | None,
    no_network: bool,
    read: Sequence[str],
    write: Sequence[str],
) -> Limits:
    """What the command line says of the bounds of clients' code. Raises `SettingError`."""
    from ..server.settings import byte_count

    for path in (*read, *write):
        if not os.path.exists(path):
            raise SettingError(f"{path}, which clients' code may reach, is not there")
    return Limits(
        network=not no_network,
        memory=None if memory is None else byte_count(memory),
        cpus=cpus,
        task_time=task_time,
        read=[os.path.abspath(path) for path in read],
        write=[os.path.abspath(path) for path in write],
    )


def clients_of(order: NodeOrder) -> dict[str, Any]:
    """The clients that a node hosts, with their sources. Raises `SettingError`."""
    if order.clients is None:
        return {order.called: source_of(order.sources)}
    if order.sources:
        raise SettingError("--source says where one client's data is, --clients names several: keep one of them")
    try:
        text = order.clients.read_text("utf-8")
        found = tomllib.loads(text) if order.clients.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise SettingError(f"{order.clients} cannot be read: {error}", hint="Write TOML (.toml) or JSON.") from error
    if not isinstance(found, Mapping) or not found:
        raise SettingError(f"{order.clients} names no clients", hint='Write, say: [ward-3]\npath = "/data/ward-3"')
    return dict(found)


def source_of(assignments: Sequence[str]) -> dict[str, Any]:
    """A source from assignments such as ``path=/data``; values are JSON where they can be, or else text."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise SettingError(f"--source {assignment} is not KEY=VALUE", hint="Write it as --source path=/data.")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def policy_of(order: NodeOrder, approvals: Approvals) -> Policy:
    """What the node lets run: what its file says, and what the command line allows besides. Raises `SettingError`."""
    policy = Policy(approvals=approvals) if order.policy is None else Policy.load(order.policy, approvals)
    rules = [rule for text in order.allow for rule in _rules(text)]
    return replace(policy, allow=(*policy.allow, *rules), ask=policy.ask or _asks(order))


def _rules(text: str) -> list[str]:
    """One that is neither called a key nor a hash may be either."""
    return [f"author:{text}", f"archive:{text}"] if re.fullmatch("[0-9a-f]{64}", text) else [text]


def _asks(order: NodeOrder) -> bool:
    """Whether somebody is asked: where that was said, or where nothing was and somebody is there."""
    return order.ask or (not order.allow and order.policy is None and sys.stdin.isatty())
