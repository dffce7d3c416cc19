"""`umbel privacy show FOLDER` and `umbel privacy check FOLDER`: what the clients of a node have spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.markup import table
from ..errors import CorruptFile, SettingError
from ..node.ledger import BUDGET, SPENT, budget_of, entry_of, signed_by
from ..privacy.account import ALL, LedgerEntry, PrivacyAccount, Scope
from ..runs.journal import write_whole
from ..store.records import Row
from ..trust import audit
from ..trust.audit import Head
from ..trust.identity import SigningKey
from .terminal import json_text, stdout

DELTA = 1e-6
"""Where neither a budget nor anybody says one."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What was spent of privacy</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }} code {{ overflow-wrap: anywhere }}
th, td {{ text-align: left; padding: .2em .8em; border-bottom: 1px solid #ddd; vertical-align: top }}
</style></head><body><h1>What was spent of privacy</h1>
{body}
</body></html>
"""


@dataclass(frozen=True)
class NodeLedger:
    """The ledger in a node's folder, once it is known to be whole: its rows, the head, the node's public key, and the
    budget, empty for none.
    """

    rows: Sequence[Row]
    head: Head
    public: bytes
    budget: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, heads: Sequence[Head] = ()) -> NodeLedger:
        """Read and check a ledger. Raises `SettingError` for another folder, and `CorruptFile` where it was changed."""
        if not (folder / "node.db").exists() or not (folder / "node.key").exists():
            raise SettingError(f"{folder} is not the folder of a node", hint="It is umbel-nodes/NAME by default.")
        key, head, rows = audit.read(folder)
        last = audit.verified(key, rows, [head, *heads])
        public = SigningKey.kept(folder / "node.key").public
        mine = [row for row in rows if row["did"] == SPENT]
        if mine and not signed_by(public, mine[-1]):
            raise CorruptFile(
                f"record {mine[-1]['number']} of the ledger in {folder} is not signed by the node whose key is there",
                hint="Another key was put there, or the ledger is another node's.",
            )
        return cls(mine, last, public, budget_of([row for row in rows if row["did"] == BUDGET]))

    @property
    def entries(self) -> Iterator[tuple[LedgerEntry, Row]]:
        """The entries, with their records."""
        return ((entry_of(row)[0], row) for row in self.rows)

    def account(self) -> PrivacyAccount:
        """What they come to."""
        found = PrivacyAccount(self.budget.get("unit", "client"))
        for row in self.rows:
            found.add(*entry_of(row))
        return found


def check(folder: Path, against: str | None, *, json: bool) -> None:
    """Say whether the ledger in a folder is whole, and its head. Raises `CorruptFile` where it is not."""
    found = NodeLedger.read(folder, [Head.parse(against)] if against is not None else [])
    if json:
        print(json_text({"entries": len(found.rows), "head": str(found.head), "node": found.public.hex()}), flush=True)
        return
    count = f"entries: {len(found.rows):,}, signed by the node"
    stdout().print(f"{count}, none changed, added, removed or moved; keep the head elsewhere:")
    stdout().print(f"  {found.head}", style="cyan", soft_wrap=True)


def show(folder: Path, delta: float | None, html: Path | None, *, json: bool) -> None:
    """Print what each client of a node has spent, and write the page for auditors where `html` names a file."""
    found = NodeLedger.read(folder)
    delta = delta if delta is not None else found.budget.get("delta", DELTA)
    account = found.account()
    spent = [_spent(account, client, delta, found.budget) for client in account.clients()]
    if html is not None:
        write_whole(html, _page(found, spent, delta, account.unit).encode())
    if json:
        told = {"node": found.public.hex(), "head": str(found.head), "unit": account.unit, "delta": delta}
        print(json_text({**told, "budget": found.budget or None, "clients": spent, "page": html}), flush=True)
        return
    listed = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for head in _HEAD:
        listed.add_column(head, justify="left" if head in ("client", "of") else "right")
    for row in _rows(spent):
        listed.add_row(*map(Text, row))
    facts = _facts(found, delta, account.unit)
    parts = [Text(f"{name}: {value}") for name, value in facts[:3]]
    parts += [Text(f"page: {html}")] if html is not None else []
    stdout().print(Padding(Group(*parts, Text(), listed), (1, 1), expand=False))


_HEAD = ("client", "of", "answers", "epsilon", "budget", "left")
_BUDGETS = {"all": "epsilon", "app": "per_app", "year": "per_year"}


def _spent(account: PrivacyAccount, client: str, delta: float, budget: dict[str, Any]) -> dict[str, Any]:
    """What a client has spent, in all and of each kind; an infinite epsilon is None."""

    def of(scope: Scope) -> dict[str, Any]:
        epsilon, most = account.epsilon(client, delta, scope), budget.get(_BUDGETS.get(scope[0], ""))
        counts = {"scope": scope[0], "name": scope[1], "releases": account.releases(client, scope)}
        held = {"epsilon": epsilon if math.isfinite(epsilon) else None, "budget": most}
        return {**counts, **held, "left": None if most is None else max(most - epsilon, 0.0)}

    return {"client": client, **of(ALL), "parts": [of(scope) for scope in account.scopes(client) if scope != ALL]}


def _rows(spent: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for client in spent:
        for at, each in enumerate((client, *client["parts"])):
            what = "all runs" if each["scope"] == "all" else f"{each['scope']} {each['name'][:32] or '-'}"
            cells = [_number(each["epsilon"], "nothing holds"), _number(each["budget"]), _number(each["left"])]
            yield (client["client"] if at == 0 else "", what, f"{each['releases']:,}", *cells)


def _number(value: float | None, none: str = "") -> str:
    return none if value is None else f"{value:.4g}"


def _facts(found: NodeLedger, delta: float, unit: str) -> list[tuple[str, str]]:
    budget = ", ".join(f"{name} {value}" for name, value in found.budget.items())
    return [
        ("hides", f"each {unit}; epsilon at delta {delta:g}, against answers of zeros, without what sampling may gain"),
        ("budget", budget or "none"),
        ("entries", f"{len(found.rows):,}, none changed, added, removed or moved"),
        ("head", str(found.head)),
        ("key of the node", found.public.hex()),
        ("signature of the last entry", found.rows[-1]["what"]["signed"] if found.rows else ""),
    ]


def _page(found: NodeLedger, spent: Sequence[dict[str, Any]], delta: float, unit: str) -> str:
    """The page for auditors: by itself, without scripts."""
    facts = [("made", f"{_day(time.time())} (UTC)"), *_facts(found, delta, unit)]
    entries = sorted(found.entries, key=lambda each: (each[0].client, each[0].run))
    runs = [_run([*same]) for _, same in groupby(entries, key=lambda each: (each[0].client, each[0].run))]
    columns = ("client", "run", "app", "server", "entries", "from", "to", "steps", "what hides", "told by the handler")
    lines = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in facts)
    told = (
        "<p>What a transform promises is what the server undertakes to do where the noise is added there; a node sees "
        "what it sends, clipped, and not the noise. Of answers of which nothing holds, the first of each run and year "
        "is entered.</p>"
    )
    body = f"<table>{lines}</table><h2>Clients</h2>{table(_HEAD, [*_rows(spent)], most=len(entries) * 5)}"
    return PAGE.format(body=f"{body}<h2>Runs</h2>{told}{table(columns, runs, most=len(runs))}")


def _run(same: Sequence[tuple[LedgerEntry, Row]]) -> tuple[str, ...]:
    """What one client has told one run."""
    entry, times = same[0][0], [row["at"] for _, row in same]
    hides = {_words(release) for each, _ in same for release in each.releases} or {"nothing"}
    handler = {_words(release) for each, _ in same for release, _ in each.examples}
    dates = (_day(min(times)), _day(max(times)))
    names = (entry.client, entry.run, entry.app, entry.server[:16] or "-", str(len(same)), *dates)
    return (*names, ", ".join(entry.by) or "-", "; ".join(sorted(hides)[:5]), "; ".join(sorted(handler)[:5]))


def _words(release: Any) -> str:
    said = f"{release['mechanism']}, noise {release['noise']:.4g}, bound {release['norm']:.4g}, {release['neighbours']}"
    return f"{said}, one stream" if release.get("stream") else said


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
