"""`umbel show RUN --clients`: what became of each client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from ..runs.past import PastRun
from ..runs.receipts import ClientQuantiles, ClientRow, Clients
from ..runs.watch import WORDS
from .terminal import duration, json_text, number, plain, stdout

MOST_ROWS = 40
MOST_COLUMNS = 4
STATUSES = {"failed": "red", "late": "yellow", "dropped": "dim"}


def show_clients(record: PastRun, round: int | None, *, json: bool) -> None:
    """Print the clients of a round, by default of the last that there is anything of, or, as JSON, of all rounds."""
    clients = Clients(record.log.events)
    known = clients.rounds
    if round is not None and round not in known:
        listed = f"{known[0]} to {known[-1]}" if known else "none"
        raise SettingError(f"nothing is known of the clients of round {round}", hint=f"Rounds that are: {listed}.")
    rounds = [round] if round is not None else known if json else known[-1:]
    rows = [row for each in rounds for row in clients.of(each)]
    spreads = [spread for spread in clients.spreads if spread.round in rounds]
    if json:
        found = {"run": record.id, "clients": list(map(_plain, rows)), "spreads": list(map(asdict, spreads))}
        print(json_text(found), flush=True)
        return
    _print(stdout(), record, rows, spreads)


def _plain(row: ClientRow) -> dict[str, Any]:
    return {**asdict(row), "metrics": plain(row.metrics)}


def _print(console: Console, record: PastRun, rows: Sequence[ClientRow], spreads: Sequence[ClientQuantiles]) -> None:
    if not rows and not spreads:
        console.print(Text(f"{record.id}: no client has been heard of yet", style="dim"))
        return
    last = (rows or spreads)[0].round
    console.print(Text.assemble((record.id, "bold"), f"  clients in round {last}"))
    if rows:
        console.print(_rows(rows))
    if len(rows) > MOST_ROWS:
        console.print(Text(f"{MOST_ROWS} of {len(rows)} rows: --json prints all", style="dim"))
    if spreads:
        console.print(_spreads(spreads))
    if not (record.rounds_asked == 1 or len(record.log.rounds) < 2):
        console.print(Text("--round N shows another round", style="dim"))


def _rows(rows: Sequence[ClientRow]) -> Table:
    shown = sorted(rows, key=lambda row: row.status != "failed")[:MOST_ROWS]  # what went wrong is not to be left out
    names = sorted({name for row in rows for name in row.metrics})[:MOST_COLUMNS]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for title in ("kind", "client", "status", "weight", *names, "time"):
        left = title in ("kind", "status")
        table.add_column(
            title, justify="left" if left else "right", overflow="fold" if title == "status" else "ellipsis"
        )
    for row in shown:
        status = row.status if row.reason is None else f"{row.status}: {row.reason}"
        weight = "" if row.weight is None else number(row.weight)
        values = [number(row.metrics[name]) if name in row.metrics else "" for name in names]
        spent = "" if row.seconds is None else duration(row.seconds)
        style = STATUSES.get(row.status, "")
        table.add_row(WORDS.get(row.kind, row.kind), str(row.client), Text(status, style=style), weight, *values, spent)
    return table


def _spreads(spreads: Sequence[ClientQuantiles]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for title in ("kind", "of", "clients", "least", "25 %", "median", "75 %", "greatest"):
        table.add_column(title, justify="left" if title in ("kind", "of") else "right", overflow="fold")
    for row in spreads:
        least = f"{number(row.least)} (client {row.low})"
        greatest = f"{number(row.greatest)} (client {row.high})"
        values = map(number, row.quantiles[1:4])
        table.add_row(WORDS.get(row.kind, row.kind), row.name, str(row.count), least, *values, greatest)
    return table
