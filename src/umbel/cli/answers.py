"""The answer of an analysis, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.app import App
from ..core.arrays import Arrays
from ..core.strategy import Question
from .terminal import jsonable, number, plural

MOST_ROWS = 60
Row = tuple[tuple[str, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class ShownAnswer:
    """An answer as mappings, lists and numbers; see `Question.table`."""

    found: Any

    @classmethod
    def of(cls, app: App, model: Arrays) -> ShownAnswer | None:
        """The answer that an app's run has come to; None where its strategy is no `Question`."""
        return cls(app.strategy.table(model)) if isinstance(app.strategy, Question) else None

    def table(self) -> RenderableType:
        """A row for each innermost mapping: by what it is found under, and what is in it."""
        found = list(rows(jsonable(self.found)))
        names = list(dict.fromkeys(name for _, cells in found for name in cells))
        depth = max((len(keys) for keys, _ in found), default=0)
        table = Table(*[""] * depth, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
        for name in names:
            table.add_column(str(name), justify="right", no_wrap=True)
        for keys, cells in islice(found, MOST_ROWS):
            table.add_row(*map(Text, (*keys, *[""] * (depth - len(keys)), *(_cell(cells.get(name)) for name in names))))
        more = len(found) - MOST_ROWS
        return Group(table, Text(f"and {plural(more, 'more row')}: --json prints all", "dim")) if more > 0 else table


def rows(found: Any, keys: tuple[str, ...] = ()) -> Iterator[Row]:
    """The innermost mappings of an answer, each with the keys, or places from 1, that lead to it."""
    if isinstance(found, dict) and not any(isinstance(each, dict | list) for each in found.values()):
        yield keys, found
    elif isinstance(found, dict | list):
        for key, each in found.items() if isinstance(found, dict) else enumerate(found, 1):
            yield from rows(each, (*keys, str(key)))
    else:
        yield keys, {"": found}


def _cell(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)
