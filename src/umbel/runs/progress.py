"""How far a run is, for whoever runs it from Python: a bar in a notebook, one line in a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from importlib import import_module
from typing import Any, TextIO

from ..core.markup import table
from .events import RoundCommitted, RunEvent, RunFinished, RunInterruption, RunResumed, RunStarted, Warned
from .watch import MOST_METRICS, STEPS, Watch, heading, round_line, warning
from .words import duration, in_order, number, plural, sparkline

PAUSE = 0.2
"""Seconds from one drawing to the next, at least."""
MOST_LINES = 100
"""About so many rounds have a line in a log; those that failed have one in any case."""
BAR = 24


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class RunProgress:
    """An observer that shows how far a run is: in a notebook as a bar that is drawn anew; in a terminal as a line that
    is written over; elsewhere, as where a program's output is kept in a file or by CI, as a line a round, of many
    rounds about a hundred.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._watch = Watch(clock=clock)
        self._title = ""
        self._notes: list[str] = []
        self._drawn = -PAUSE
        self._ended = ""
        self._handle: Any = None
        self._notebook = stream is None and in_notebook()
        self._live = self._notebook or self._stream.isatty()

    def __call__(self, event: RunEvent) -> None:
        """Show what an event changes."""
        self._watch.see(event)
        self._title = heading(event) or self._title
        if isinstance(event, RunFinished):
            how = f"failed: {event.error}" if event.error else f"finished ({event.reason})"
            self._ended = f"{how}, {plural(event.rounds, 'round')} in {duration(event.seconds)}"
        elif isinstance(event, RunInterruption):
            self._ended = f"stopped after round {event.round}"
        if self._live:
            self._note(event)
            if self._ended or self._clock() - self._drawn >= PAUSE:
                self._draw()
        else:
            self._print(event)

    def close(self) -> None:
        """Leave the last state where it is."""
        if self._live and self._title:
            self._draw()
            if not self._notebook:
                self._write("\n")

    def _note(self, event: RunEvent) -> None:
        """What stays below the bar, or above the line that is written over."""
        text = warning(event) if isinstance(event, Warned) else ""
        if isinstance(event, RoundCommitted) and (event.failed or self._watch.reason):
            text = round_line(self._watch, event) if event.failed else f"round {event.round}: {self._watch.reason}"
        if not text:
            return
        self._notes.append(text)
        if not self._notebook:
            self._write(f"\r\x1b[K{_printable(text)}\n")

    def _print(self, event: RunEvent) -> None:
        if isinstance(event, RunStarted | RunResumed):
            self._write(f"{_printable(self._title)}\n")
        elif isinstance(event, Warned):
            self._write(f"{_printable(warning(event))}\n")
        elif isinstance(event, RoundCommitted):
            every = -(-max(1, self._watch.rounds) // MOST_LINES)
            if event.round % every == 0 or event.round in (1, self._watch.rounds) or event.failed or self._watch.reason:
                self._write(f"{_printable(round_line(self._watch, event))}\n")
            if self._watch.reason and event.failed is None:
                self._write(f"  {_printable(self._watch.reason)}\n")
        elif self._ended and isinstance(event, RunFinished | RunInterruption):
            self._write(f"{_printable(self._ended)}\n")

    def _draw(self) -> None:
        self._drawn = self._clock()
        if not self._notebook:
            self._write(f"\r\x1b[K{_printable(self._line())}")
            return
        notebook = import_module("IPython.display")
        shown = notebook.HTML(self._html())
        if self._handle is None:
            self._handle = notebook.display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def _line(self) -> str:
        watch = self._watch
        full = round(BAR * watch.committed / max(1, watch.rounds))
        metrics = [f"{name} {number(watch.metrics[name][-1])}" for name in in_order(watch.metrics)[:2]]
        parts = [f"{watch.committed}/{watch.rounds}", "█" * full + "░" * (BAR - full), *metrics, self._left()]
        return "  ".join(part for part in parts if part)

    def _left(self) -> str:
        left = self._watch.seconds_left()
        return self._ended or ("" if left is None else f"{duration(left)} left")

    def _html(self) -> str:
        watch = self._watch
        ended = watch.done + watch.failed
        bars = [("rounds", watch.committed, watch.rounds, self._left())]
        if not self._ended:
            bars.append((STEPS.get(watch.kind, watch.kind) or "starting", ended, watch.asked, ""))
        lines = "".join(
            f'<progress value="{done}" max="{max(1, of)}"></progress> {escape(what)} {done}/{of} {escape(said)}<br>'
            for what, done, of, said in bars
        )
        names = in_order(watch.metrics)[:MOST_METRICS]
        rows = [(name, number(watch.metrics[name][-1]), sparkline(watch.metrics[name])) for name in names]
        metrics = table(("metric", "last", "course"), rows) if rows else ""
        notes = "".join(f"<br>{escape(note)}" for note in self._notes[-MOST_METRICS:])
        return f"<div><b>{escape(self._title)}</b><br>{lines}{metrics}{notes}</div>"

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"  # of a console, or a CI's, that knows neither a bar nor an accent
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _printable(text: str) -> str:
    """A text in which nothing steers a terminal: names, reasons and metrics come from others."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
