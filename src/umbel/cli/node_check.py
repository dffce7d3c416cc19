"""`umbel node --check`: whether a node could join, found out without joining, and what to do where it could not."""

from __future__ import annotations

import asyncio
import json as jsons
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import PeerError, SettingError, UmbelError
from ..node.limits import named
from ..transport.connection import Connection
from ..transport.handshake import introduce
from ..trust import credentials
from ..trust.archive import check_requirements
from ..trust.authority import JoinText
from ..trust.identity import SigningKey
from ..trust.policy import Approvals
from ..trust.proofs import NodeProof
from ..trust.servers import KnownServer
from ..wire import messages as m
from ..wire.addresses import canonical, host_and_port
from ..work.confinement import lacking
from .account import size
from .findings import Finding, print_findings
from .node_commands import APPROVED, KEY, SUCCESSORS, NodeOrder, clients_of, line_said, policy_of
from .options import SERVER as OWN_SERVER
from .terminal import plural

SECONDS = 10.0
LEAST_FREE, LITTLE_FREE = 100 << 20, 2 << 30
LARGEST_SKEW = 60.0
_PATH = re.compile(r"(file:(//)?(?=/))?(/|~|\.\.?/)", re.IGNORECASE)


def examine_node(order: NodeOrder, *, json: bool) -> bool:
    """Print what there is to say of a node that would be started so; whether it could join."""
    return print_findings([*_server(order), *_own(order), *_machine(order.place)], json=json)


def _server(order: NodeOrder) -> Iterator[Finding]:
    """Whether the server is there, is the one that is meant, and would let the node in."""
    address = canonical(order.server)
    host, port = host_and_port(address)
    try:
        socket.create_connection((host, port), SECONDS).close()
    except OSError as error:
        what = "takes too long: a firewall may be between" if isinstance(error, TimeoutError) else str(error)
        note = f"no connection to {address}: {what}. The node needs TCP to that port, outwards, and no proxy's TLS."
        yield Finding("address", False, note)
        return
    yield Finding("address", True, f"{address} is reached")
    try:
        join, own = _line(order, address)
    except UmbelError as error:
        yield Finding.wrong("token", error)
        return
    try:
        welcome = asyncio.run(_greeted(order, address, join))
    except TimeoutError:
        yield Finding("certificate", False, f"{address} says nothing for {SECONDS:g} s: no Umbel server listens there")
    except PeerError as error:
        waits = error.code == m.CODE_NOT_APPROVED and own is None
        if error.code == m.CODE_UNSPECIFIED:  # it came to no handshake
            yield Finding.wrong("certificate", error)
            return
        yield Finding("certificate", True, "it is the server that the line names")
        if own is not None and error.code == m.CODE_NOT_APPROVED:
            yield Finding("token", True, own)
        else:
            yield Finding.wrong("token", error, critical=not waits)
    else:
        told = "it is the server that the line names" if join.authority else "there is none: nothing is encrypted"
        yield Finding("certificate", bool(join.authority), told, critical=False)
        yield Finding("token", True, welcome.name)
        yield _clock(welcome.time - time.time() if welcome.time else None)


def _line(order: NodeOrder, address: str) -> tuple[JoinText, str | None]:
    """The line by which the server is known, and what is to be said where the node would invite itself."""
    if (said := line_said(order)) is not None:
        return said, None
    try:
        own = credentials.find(address, None, OWN_SERVER).join
    except SettingError:
        raise SettingError(
            f"nothing says by what {address} is to be known",
            hint="Add --join with the text that `umbel nodes invite` printed, or @FILE for a file that has it.",
        ) from None
    return JoinText(own.authority), "the server's folder is here: the node would invite itself"


async def _greeted(order: NodeOrder, address: str, join: JoinText) -> m.Welcome:
    """What the server answers to who asks whether it would be let in. Raises `PeerError`, and `TimeoutError`."""
    from ..transport import grpc

    path = order.place / KEY
    key = SigningKey.kept(path) if path.exists() else SigningKey.new()
    roots = KnownServer(join.authority, None, order.place / SUCCESSORS).roots()
    hello = m.Hello(role=m.ROLE_CHECK, name=order.called, key=key.public, token=join.token.id if join.token else "")
    async with asyncio.timeout(SECONDS):
        connection = Connection(await grpc.connect(address, roots))
        try:
            return await introduce(connection, NodeProof(key, join.token), hello)
        finally:
            await connection.close()


def _clock(ahead: float | None) -> Finding:
    """Whether this machine's clock, which judges signatures that end, goes as the server's: that is so far `ahead`."""
    if ahead is None:
        return Finding("clock", True, "the server does not say what time it is")
    note = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the server's"
    good = abs(ahead) <= LARGEST_SKEW
    return Finding("clock", good, note if good else f"{note}: set one of them (NTP)", critical=False)


def _own(order: NodeOrder) -> Iterator[Finding]:
    """Whether the owner's settings can be used, and what the sources name can be read."""
    if order.relay:
        return
    try:
        policy = policy_of(order, Approvals(order.place / APPROVED))
        told = "asks" if policy.ask else f"allows {', '.join(policy.allow)}" if policy.allow else "allows nobody's code"
        yield Finding("policy", policy.ask or bool(policy.allow), told, critical=False)
        clients = clients_of(order)
    except UmbelError as error:
        yield Finding.wrong("settings", error)
        return
    for client, source in clients.items():
        wrong = [*_unreadable(source)]
        note = "; ".join(wrong) or f"{plural(len(list(named(source))), 'path')} in it, which can be read"
        yield Finding(f"source of {client}", not wrong, note)


def _unreadable(source: Any) -> Iterator[str]:
    """Why what a source names as a path cannot be read."""
    if isinstance(source, dict | list):
        for each in source.values() if isinstance(source, dict) else source:
            yield from _unreadable(each)
    elif isinstance(source, str):
        there = list(named(source))
        if not there and _PATH.match(source):
            yield f"{source} is not there"
        for path in there:
            if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
                yield f"{path} may not be read by this user"


def _machine(place: Path) -> Iterator[Finding]:
    """What this machine has, and what runs that are hosted here need of it."""
    yield Finding("python", True, f"Python {platform.python_version()}, Umbel {__version__}")
    there = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("disk", False, f"{there} cannot be written: --dir names another folder for the node")
    else:
        more = "" if free >= LITTLE_FREE else ": models and results on their way need room"
        yield Finding("disk", free >= LITTLE_FREE, f"{size(free)} free in {there}{more}", critical=free < LEAST_FREE)
    for what, _ in lacking():
        yield Finding("isolation", False, what, critical=False)
    for manifest in sorted(place.glob("runs/*/archive/manifest.json")):
        try:
            lacks = check_requirements(jsons.loads(manifest.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            lacks = [f"its manifest cannot be read: {error}"]
        yield Finding(
            f"run {manifest.parents[1].name}", not lacks, "; ".join(lacks) or "all that it needs is installed"
        )
