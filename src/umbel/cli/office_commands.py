"""`umbel nodes`, `umbel operators`, `umbel audit` and `umbel login`: a server's office."""

from __future__ import annotations

import json as jsons
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from ..office.operator import Operator
from ..trust import credentials
from ..trust.authority import JoinText
from ..wire.names import shown
from ..wire.roles import OPERATORS
from .terminal import ago, duration, plural, stdout

STATES = {"connected": "green", "offline": "red", "pending": "yellow", "restored": "bold red", "revoked": "dim"}
MOST_CLIENTS = 4


def office(on: str | None, token: str | None, folder: Path) -> Operator:
    """A connection to a server's office; to be closed."""
    return Operator.connect(credentials.find(on, token, folder))


def invite(
    on: str | None,
    token: str | None,
    folder: Path,
    *,
    name: str | None,
    hours: float,
    relay: bool,
    clients: str | None,
    most: int | None,
    approval: bool,
    json: bool,
) -> None:
    """Make an invitation and print what its node types; with `approval` one that needs no secret, for any node."""
    if approval:
        if name is not None or relay or clients is not None or most is not None:
            raise SettingError(
                "--name, --relay, --clients and --at-most go with an invitation for one node, not with --approval",
                hint="Say them to `umbel nodes approve`.",
            )
        known = credentials.find(on, token, folder)
        found: dict[str, Any] = {"line": f"umbel node {known.address} --join {JoinText(known.join.authority).text}"}
        good = "good for any node, which then waits until it is approved"
    else:
        with office(on, token, folder) as server:
            more = {**({"relay": True} if relay else {}), **bounds(clients, most)}
            found = server.call("nodes.invite", name=name, hours=hours, **more)
        what = "relay" if relay else "node"
        good = f"good for {f'{what} {name}' if name else f'one {what}'}, for {duration(3600 * hours)}"
    if json:
        print(jsons.dumps(found))
        return
    console = stdout()
    console.print(Text(f"{good}; on the machine that has the data:"))
    console.print(Text(f"  {found['line']}", style="cyan"), soft_wrap=True)


def list_nodes(on: str | None, token: str | None, folder: Path, *, json: bool) -> None:
    """Print the nodes."""
    with office(on, token, folder) as server:
        rows = server.call("nodes.list")["nodes"]
    if json:
        print(jsons.dumps(rows))
        return
    lines = [
        (
            row["id"][:8],
            f"{row['name']} (relay)" if row.get("relay") else row["name"],
            Text(state := _state(row), style=STATES.get(state, "")),
            _clients(row["clients"], row["count"], row["refused"]),
            "" if row["connected"] else _seen(row["seen_at"]),
        )
        for row in rows
    ]
    _print_table(("node", "name", "state", "clients", "seen"), lines, "no nodes: `umbel nodes invite` lets one in")
    for row in rows:
        if row.get("problem"):
            stdout().print(Text(f" {row['name']} says: {shown(row['problem'])}", style="yellow"), soft_wrap=True)


def judge_node(on: str | None, token: str | None, folder: Path, node: str, verdict: str, **more: Any) -> None:
    """Approve or revoke a node; `more` is what the server has to know besides."""
    with office(on, token, folder) as server:
        found = server.call(f"nodes.{verdict}", node=node, **more)
    words = {
        "approve": "is approved, as a relay" if more.get("relay") else "is approved",
        "revoke": "is revoked: its key is not good any more",
    }
    stdout().print(Text(f"node {found['name']} ({found['node'][:8]}) {words[verdict]}"))


def bounds(clients: str | None, most: int | None) -> dict[str, Any]:
    """What a request says of the names that a node may use: `clients` are names and patterns with commas between."""
    names = [name.strip() for name in (clients or "").split(",") if name.strip()]
    if clients is not None and not names:
        raise SettingError("--clients names no clients", hint="Write, say: --clients 'ward-*,icu-7'")
    return {**({"clients": names} if names else {}), **({} if most is None else {"most": most})}


def release(on: str | None, token: str | None, folder: Path, clients: Sequence[str], node: str | None) -> None:
    """Free client names, or all of a node."""
    if bool(clients) == (node is not None):
        raise SettingError("name the clients that are to be free, or a node by --all-of NODE")
    with office(on, token, folder) as server:
        found = server.call("nodes.release", **({"node": node} if node is not None else {"clients": list(clients)}))
    stdout().print(Text(f"{plural(found['count'], 'client name')} released"))
    for client, home in found["hosts"].items():
        stdout().print(Text(f"  {shown(client)} is hosted by {home[:8]} now"))


def change_authority(on: str | None, token: str | None, folder: Path, step: str, **more: Any) -> None:
    """Make a successor of the server's authority, or let it take its place."""
    with office(on, token, folder) as server:
        found = server.call(f"authority.{step}", **more)
    console = stdout()
    if step == "rotate":
        console.print(Text(f"nodes and operators that connect from now on trust {found['authority'][:16]}, too"))
        console.print(Text("  once all have: umbel authority retire", style="cyan"))
        return
    console.print(Text(f"{found['authority'][:16]} has taken the place of the authority before it"))
    if found["away"]:
        console.print(Text(f"these may have to join anew: {', '.join(found['away'])}"), soft_wrap=True)


def add_operator(on: str | None, token: str | None, folder: Path, *, name: str, role: str, json: bool) -> None:
    """Add an operator and print what they type."""
    if role not in OPERATORS:
        raise SettingError(f"there is no role {role!r}", hint=f"Roles: {', '.join(OPERATORS)}.")
    with office(on, token, folder) as server:
        found = server.call("operators.add", name=name, role=role)
    if json:
        print(jsons.dumps(found))
        return
    console = stdout()
    console.print(Text(f"{name} may {role}; give them this, by a way that nobody else reads. It is not shown again."))
    console.print(Text(f"  {found['line']}", style="cyan"), soft_wrap=True)
    console.print(Text(f"They type `umbel login {server.address}`, which asks for it."))


def list_operators(on: str | None, token: str | None, folder: Path, *, json: bool) -> None:
    """Print who may use the server."""
    with office(on, token, folder) as server:
        rows = server.call("operators.list")["operators"]
    if json:
        print(jsons.dumps(rows))
        return
    lines = [(row["name"], row["role"], _when(row.get("used_at")) or "never") for row in rows]
    _print_table(("operator", "role", "seen"), lines, "no operators")


def remove_operator(on: str | None, token: str | None, folder: Path, name: str) -> None:
    """Take an operator's token away."""
    with office(on, token, folder) as server:
        server.call("operators.remove", name=name)
    stdout().print(Text(f"{name} is let in no more"))


def login(address: str, token: str) -> None:
    """See whether a token is good, and keep it."""
    found = credentials.find(address, token)
    with Operator.connect(found) as server:
        status = server.call("server.status")
    path = credentials.keep(found)
    stdout().print(Text(f"{found.address} knows you as {status['you']['name']}, who may {status['you']['role']}"))
    stdout().print(Text(f"kept in {path}", style="dim"), soft_wrap=True)


def audit(on: str | None, token: str | None, folder: Path, *, count: int, json: bool) -> None:
    """Print the last so many records of who did what."""
    with office(on, token, folder) as server:
        rows = server.call("audit.list", count=count)["records"]
    if json:
        print(jsons.dumps(rows))
        return
    facts = [{**(row["what"] or {}), "from": row.get("peer")} for row in rows]
    lines = [
        (_date(row["at"]), row["who"][:13], row["did"], _facts(what)) for row, what in zip(rows, facts, strict=True)
    ]
    _print_table(("when", "who", "did", "what"), lines, "nothing has been done yet")


def _print_table(titles: Sequence[str], lines: Iterable[Sequence[Any]], nothing: str) -> None:
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, no_wrap=title != titles[-1], overflow="fold")
    for line in lines:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in line))
    console.print(table if table.row_count else Text(nothing, style="dim"))


def _state(row: Mapping[str, Any]) -> str:
    """One that may connect, and is not connected, is offline."""
    return "connected" if row["connected"] else "offline" if row["status"] == "approved" else str(row["status"])


def _clients(names: Sequence[str], count: int, refused: Mapping[str, str]) -> str:
    """What a node hosts, `count` clients of which these are the first, and what it names in vain, with the reason."""
    listed = [*names[:MOST_CLIENTS], *(f"{client} ({why})" for client, why in refused.items())]
    left = count + len(refused) - len(listed[:MOST_CLIENTS])
    return ", ".join(listed[:MOST_CLIENTS]) + (f" and {plural(left, 'other')}" if left else "")


def _seen(at: float | None) -> str:
    """When a node was last there; to the second, where that was in the last minute."""
    if not at:
        return "never"
    seconds = max(0.0, time.time() - at)
    return ago(seconds) if seconds >= 60 else f"{seconds:.0f} s ago"


def _when(at: float | None) -> str:
    return "" if not at else ago(max(0.0, time.time() - at))


def _facts(what: Mapping[str, Any] | None) -> str:
    told = {name: value for name, value in (what or {}).items() if value not in (None, "", [], {})}
    return ", ".join(f"{name} {_date(value) if name == 'until' else value}" for name, value in told.items())


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
