"""The terminal: where to print, and how metrics are chosen and written there."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..runs.words import duration as duration
from ..runs.words import in_order as in_order
from ..runs.words import number as number
from ..runs.words import place_of_part
from ..runs.words import plural as plural
from ..runs.words import sparkline as sparkline
from ..wire.names import shown
from .repeats import Repeats

COLOURS = {"test": "green", "evaluate": "yellow", "train": "cyan"}
PIPE_WIDTH = 120


def stdout() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console of progress, warnings and errors."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    # No markup: what stands in brackets was written by somebody, and is shown as it is.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return _Console(file=stream, highlight=False, emoji=False, markup=False, width=width)


class _Console(Console):
    """Shows what is not printable as escapes: names, reasons and metrics come from others, and must not steer this
    terminal.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(shown, text.split("\n"))), style)


class _Lines(logging.Formatter):
    """A line for each note; what it has besides is set in, so that nothing in it looks like a note of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(map(shown, super().format(record).split("\n")))


def log_to_stderr(debug: bool = False) -> None:
    """Have what a server or a node notes printed on stderr, a line each; with `debug` also what finds faults."""
    logging.getLogger("umbel").setLevel(logging.DEBUG if debug else logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repeats())
    handler.setFormatter(_Lines("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def ago(seconds: float) -> str:
    """How long ago something was: ``now``, ``5 min ago``, ``3 h ago``, ``12 days ago``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{seconds / size:.0f} {unit} ago"
    return "now"


def main_metrics(metrics: Mapping[str, float], most: int = 2) -> dict[str, float]:
    """The metrics that stand for a run where there is little room: those of the test, or else of the evaluation, or
    else of training.
    """
    names = in_order(metrics)
    chosen = [name for name in names if place_of_part(name) == place_of_part(names[0])]
    return {name: metrics[name] for name in chosen[:most]}


def plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: what is not finite is None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def json_text(value: Any) -> str:
    """A value as one line of JSON: numbers that are not finite are null, and what JSON does not know is a text."""
    return json.dumps(jsonable(value), allow_nan=False, default=str)


def jsonable(value: Any) -> Any:
    """A tree as JSON knows them: arrays and tuples are lists, and a key that is a tuple is a text."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {", ".join(map(str, k)) if isinstance(k, tuple) else str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
