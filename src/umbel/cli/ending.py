"""What is printed when a run is over, wherever it ran."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..runs.history import History
from .answers import ShownAnswer
from .terminal import COLOURS, duration, in_order, json_text, number, plain, plural, sparkline, stdout


@dataclass(frozen=True)
class Ending:
    """How a run ended. `place` says where it is kept, as ``{"folder": "umbel-runs/..."}``; `commands` what to type
    next, by what that is good for. `answer` is that of an analysis, which is printed in place of metrics.
    """

    run: str
    reason: str
    history: History
    seconds: float
    model_sha256: str
    best_round: int | None
    place: Mapping[str, str]
    commands: Mapping[str, list[str]]
    answer: ShownAnswer | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """It as JSON says it."""
        return {
            "run": self.run,
            "rounds": self.history.round,
            "metrics": plain(self.history.metrics(self.best_round)),
            "best_round": self.best_round,
            "seconds": self.seconds,
            "model_sha256": self.model_sha256,
            **self.place,
            "reason": self.reason,
            **({} if self.answer is None else {"answer": self.answer.found}),
        }

    def print(self, as_json: bool) -> None:
        """Print it on stdout, for people or as one line of JSON."""
        if as_json:
            print(json_text(self.summary), flush=True)
            return
        ended = {"early stop": "stopped early", "stopped": "was stopped"}.get(self.reason, "finished")
        kept = f", the best of them round {self.best_round}" if self.best_round is not None else ""
        head = Text.assemble(
            ("✓ ", "bold green"),
            (self.run, "bold"),
            f" {ended}: {plural(self.history.round, 'round')} in {duration(self.seconds)}{kept}",
        )
        facts = Table.grid(padding=(0, 2))
        if self.model_sha256:
            facts.add_row("model", f"sha256 {self.model_sha256[:12]}")
        for name, value in self.place.items():
            facts.add_row(name, Text(value, overflow="fold"))
        for name, command in self.commands.items():
            facts.add_row(name, Text(shlex.join(command), style="cyan", overflow="fold"))
        found = self._metrics() if self.answer is None else [self.answer.table()]
        stdout().print(Padding(Group(head, Text(), *found, Text(), facts), (1, 1), expand=False))

    def _metrics(self) -> Iterator[RenderableType]:
        """The metrics of the model that the run ends with, each with its course over all rounds."""
        if self.best_round is not None:
            yield Text(f"metrics of round {self.best_round}", style="dim")
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        metrics = self.history.metrics(self.best_round)
        for name in in_order(metrics):
            values = [value for _, value in self.history.series(name)]
            course = Text(sparkline(values) if len(values) > 1 else "", style=COLOURS[name.partition(".")[0]])
            table.add_row(name, Text(number(metrics[name]), style="bold"), course)
        yield table
