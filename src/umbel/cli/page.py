"""What `umbel show` prints: a run's facts, rounds, curves and failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..runs.events import AskClosed, RoundCommitted
from ..runs.history import History
from ..runs.past import PastRun
from ..runs.watch import WORDS
from .account import account
from .chart import chart
from .terminal import COLOURS, duration, in_order, number, plural

MOST_ROUNDS = 16
FEWER_ROUNDS = 11
MOST_COLUMNS = 4
MOST_CHARTS = 6
MOST_FAILURES = 8
STATES = {
    "finished": "green",
    "early stop": "green",
    "pruned": "yellow",
    "failed": "red",
    "refused": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
    "unfinished": "yellow",
    "running": "cyan",
    "waiting": "yellow",
}


def page(record: PastRun, width: int) -> RenderableType:
    """The whole page, for a terminal of so many columns."""
    history = History(record.log.rounds)
    parts: list[RenderableType] = [_head(record), Text(), _facts(record)]
    if len(history):
        parts += [Text(), _rounds(history)]
        parts += list(_charts(history, min(width - 2, 100)))
    parts += list(_failures(record))
    return Padding(Group(*parts), (1, 1), expand=False)


def _head(record: PastRun) -> Text:
    done = f"{record.log.round} of {plural(record.rounds_asked, 'round')}"
    done += f" in {duration(record.seconds)}" if record.log.rounds else ""
    state = (record.state, STATES.get(record.state, ""))
    return Text.assemble((record.id, "bold"), "  ", state, f"  {done}")


def _facts(record: PastRun) -> Table:
    started, finished = record.log.started, record.log.finished
    facts = {
        "app": str(started.app.get("path") or started.app.get("file") or "a program"),
        "strategy": f"{started.strategy}, {plural(started.clients, 'client')}, seed {started.seed}",
        "settings": ", ".join(started.settings.get("set", ())),
        "config": ", ".join(f"{name}={_short(value)}" for name, value in started.settings.get("config", {}).items()),
        "software": ", ".join(_software(started.software)),
        **record.facts,
        **account(record),
    }
    if finished is not None and record.state != "unfinished":
        best = "" if record.best_round is None else f", of round {record.best_round}, the best"
        facts["model"] = f"sha256 {finished.model_sha256[:12]}{best}" if finished.model_sha256 else ""
        if record.best_round is not None:
            found = History(record.log.rounds).metrics(record.best_round)
            listed = ", ".join(f"{name} {number(found[name])}" for name in in_order(found))
            facts["metrics"] = f"of round {record.best_round}: {listed}"
        facts["error"] = finished.error or ""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(name, Text(fact))
    return table


def _software(versions: object) -> Iterator[str]:
    assert isinstance(versions, dict)
    for name, version in versions.items():
        if name == "system":
            yield version
        elif name not in ("instructions", "threads", "plan"):
            yield f"{name} {version}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rounds(history: History) -> RenderableType:
    names = in_order(history.names)[:MOST_COLUMNS]
    failures = any(event.dropped for event in history)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    for title in ("round", "clients", *(["missing"] if failures else []), *names, "time"):
        table.add_column(title.replace(".", "\n", 1), justify="right", vertical="bottom")
    shown = _chosen(list(history))
    for event in shown:
        counts = [str(event.clients), *([str(event.dropped or "")] if failures else [])]
        values = [_value(event, name) for name in names]
        table.add_row(str(event.round), *counts, *values, duration(event.seconds), style="red" if event.failed else "")
    if len(shown) == len(history):
        return table
    return Group(table, Text(f"{len(shown)} of {len(history)} rounds", style="dim"))


def _chosen(rounds: Sequence[RoundCommitted]) -> list[RoundCommitted]:
    """Rounds evenly spaced, the first and the last among them."""
    if len(rounds) <= MOST_ROUNDS:
        return list(rounds)
    return [rounds[round(index * (len(rounds) - 1) / (FEWER_ROUNDS - 1))] for index in range(FEWER_ROUNDS)]


def _value(event: RoundCommitted, name: str) -> str:
    part, _, metric = name.partition(".")
    found = getattr(event, part).get(metric)
    return "" if found is None else number(found)


def _charts(history: History, width: int) -> Iterator[RenderableType]:
    metrics = list(dict.fromkeys(name.partition(".")[2] for name in in_order(history.names)))
    for metric in metrics[:MOST_CHARTS]:
        series = {part: history.series(f"{part}.{metric}") for part in COLOURS if f"{part}.{metric}" in history.names}
        if lines := chart(series, COLOURS, width=width):
            yield Group(Text(), Text(metric, style="bold"), *lines)
    if len(metrics) > MOST_CHARTS:
        yield Text(f"\nand {plural(len(metrics) - MOST_CHARTS, 'more metric')}: --plot draws all", style="dim")


def _failures(record: PastRun) -> Iterator[RenderableType]:
    found: dict[str, _Failed] = {}
    counts: Counter[str] = Counter()
    asks = {event.ask: event for event in record.log.events if isinstance(event, AskClosed)}  # the last, if done again
    for event in asks.values():
        counts[event.kind] += event.failures
        for reason, count, clients in event.failed:
            found.setdefault(reason, _Failed(clients[0], event.round)).count += count
    for committed in record.log.rounds:
        if committed.failed:
            yield Text(f"\nround {committed.round} brought nothing: {committed.failed}", style="red")
    if not found:
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for reason, rows in sorted(found.items(), key=lambda item: -item[1].count)[:MOST_FAILURES]:
        first = "first: " if rows.count > 1 else ""
        where = (f"  {first}client {rows.client} in round {rows.round}", "dim")
        table.add_row(f"{rows.count} ×", Text.assemble(reason, where))
    told = [f"{plural(count, 'failure')} in {WORDS.get(kind, kind)}" for kind, count in counts.items() if count]
    yield Group(Text(), Text(", ".join(told), style="bold"), table)
    if len(found) > MOST_FAILURES:
        yield Text(f"and {plural(len(found) - MOST_FAILURES, 'other reason')}", style="dim")


@dataclass
class _Failed:
    """So many tasks failed for one reason, and the first of them."""

    client: object
    round: int
    count: int = 0
