"""Live progress: what a run's events say so far, as bars in a terminal and as one line a round elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..runs.events import Observer, RoundCommitted, RunEvent, Waiting, Warned
from ..runs.watch import MOST_METRICS, STEPS, Watch, failures, heading, round_line, warning
from .terminal import COLOURS, duration, in_order, number, sparkline


@contextmanager
def progress(console: Console, debug: bool = False) -> Iterator[Observer]:
    """An observer that shows a run on `console`: bars that go away at the end in a terminal, and lines elsewhere. With
    `debug` also the tracebacks of what clients raised.
    """
    watch = Watch(debug=debug)
    if not console.is_terminal:
        yield lambda event: _print_line(console, watch, event)
        return
    title = Text()
    view = Live(
        get_renderable=lambda: _picture(watch, title),
        console=console,
        refresh_per_second=8,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with view:
        yield lambda event: _update(view, watch, title, event)


def _print_line(console: Console, watch: Watch, event: RunEvent) -> None:
    watch.see(event)
    if trace := watch.trace(event):
        console.out(trace)
    if (text := heading(event)) and not (isinstance(event, Waiting) and watch.knows(event)):
        console.out(text)
    if isinstance(event, Warned):
        console.out(warning(event))
    if isinstance(event, RoundCommitted):
        console.out(round_line(watch, event))
        if watch.reason and event.failed is None:
            console.out(f"  {watch.reason}")


def _update(view: Live, watch: Watch, title: Text, event: RunEvent) -> None:
    watch.see(event)
    if trace := watch.trace(event):
        view.console.print(Text(trace), soft_wrap=True)
    if text := heading(event):
        title.plain = text
    if isinstance(event, Warned):
        view.console.print(Text(warning(event), style="yellow"))
    if isinstance(event, RoundCommitted):
        if event.failed is not None:
            view.console.print(Text(round_line(watch, event), style="red"))
        elif watch.reason:
            view.console.print(Text(f"round {event.round}: {watch.reason}", style="yellow"))


def _picture(watch: Watch, title: Text) -> RenderableType:
    bars = Table.grid(padding=(0, 2))
    for _ in range(4):
        bars.add_column(no_wrap=True)
    bars.add_row(*_rounds_row(watch))
    bars.add_row(*_clients_row(watch))
    parts: list[RenderableType] = [title, Text(), bars]
    if watch.metrics:
        parts += [Text(), _metrics_table(watch)]
    return Padding(Group(*parts), (1, 1), expand=False)


def _rounds_row(watch: Watch) -> tuple[Any, ...]:
    left = watch.seconds_left()
    bar = ProgressBar(total=max(1, watch.rounds), completed=watch.committed, width=32)
    time_left = "" if left is None else f"{duration(left)} left"
    return Text("rounds"), bar, Text(f"{watch.committed}/{watch.rounds}"), Text(time_left, style="dim")


def _clients_row(watch: Watch) -> tuple[Any, ...]:
    ended = watch.done + watch.failed
    bar = ProgressBar(total=max(1, watch.asked), completed=ended, width=32, finished_style="bar.complete")
    counts = Text(f"{ended}/{watch.asked}")
    told = {**watch.failures, watch.kind: watch.failures[watch.kind] or watch.failed}
    failed = Text("  ".join(failures(told)), style="yellow") if any(told.values()) else ""
    return Text(STEPS.get(watch.kind, watch.kind) or "starting"), bar, counts, failed


def _metrics_table(watch: Watch) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for name in in_order(watch.metrics)[:MOST_METRICS]:
        values = watch.metrics[name]
        colour = COLOURS[name.partition(".")[0]]
        table.add_row(name, Text(number(values[-1]), style="bold"), Text(sparkline(values), style=colour))
    return table
