"""Histograms of columns, by group, between given edges or between the extremes."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.answer import Answer
from ..core.ask import Ask
from ..core.client import Context
from ..errors import SettingError, StrategyError
from . import order
from .analysis import Analysis, Answered, Asking, By, by_group, check_by, check_whole, finite
from .table import HeldTable


def answer(table: HeldTable, config: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """Counts [columns, groups, bins + 2], the first and the last of what is below and above all edges."""
    codes, groups = table.groups(config["by"])
    edges = ctx.inbox["edges"]
    bins = edges.shape[1] - 1
    counts = np.zeros((len(config["columns"]), groups, bins + 2), np.int64)
    for column, name in enumerate(config["columns"]):
        numbers = table.numbers(name)
        places = np.searchsorted(edges[column], numbers, "right")
        places[numbers == edges[column, -1]] = bins  # as numpy has it, the last bin includes its right edge
        kept = ~np.isnan(numbers) & (codes >= 0)
        np.add.at(counts[column], (codes[kept], places[kept]), 1)
    told = table.told(counts)
    return {"counts": told, "withheld": (told < counts).astype(np.int64)}


@dataclass(frozen=True)
class Histogram(Analysis):
    """How many rows have values in each bin, by column and by group (`by`, as in `Statistics`).

    `bins` is a number of equal bins from the smallest to the largest value, which eight asks find first, the edges for
    all columns, or edges by column. Bins include their left edge, the last one its right edge too, as numpy's.
    The result has `edges` [columns, bins + 1], `counts` [columns, groups, bins], `below` and `above` [columns, groups],
    and `withheld` [columns, groups, bins], how many clients had rows there, but fewer than they tell of.

    Leaving the holder: the counts that are at least its minimum, all others as 0. No total is told beside them, from
    which a withheld count could be had.

    With `noise` it needs edges. Each row is a contribution in each column; `error` [columns, groups, bins] has the
    standard deviation of the noise, in place of `withheld`. Of a client with more contributions than count the answer
    is about those that were drawn.
    """

    counted: ClassVar[bool] = True
    columns: Sequence[str]
    bins: Any = 10
    by: By | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bins, int):
            check_whole(self, bins=1)
            if self.noise is not None:
                raise SettingError("with noise Histogram takes edges, for the extremes are somebody's values")
        elif isinstance(self.bins, Mapping) and self.bins.keys() != {*self.columns}:
            raise SettingError(f"Histogram takes edges for {', '.join(self.columns)}, not for {', '.join(self.bins)}")
        else:
            edges = self._given()
            if edges.ndim != 2 or edges.shape[1] < 2 or (np.diff(edges) <= 0).any():
                raise SettingError("Histogram's edges ascend, and are as many for each column, two at least")

    def _given(self) -> Any:
        rows = [self.bins[name] if isinstance(self.bins, Mapping) else self.bins for name in self.columns]
        if len({len(row) if isinstance(row, Sequence | np.ndarray) else 0 for row in rows}) > 1:
            raise SettingError("Histogram's edges are as many for each column")
        return finite(rows, "Histogram's edges")

    def questions(self, asking: Asking) -> Answered:
        by, columns = check_by(self, self.by), list(self.columns)
        if isinstance(self.bins, int):
            wanted = [order.Rank(c, 0, share, trimmed=True) for share in (0.0, 1.0) for c in range(len(columns))]
            low, high, count = yield from order.values(asking, columns, [], wanted)
            if empty := [name for name, n in zip(columns, count, strict=False) if not n]:
                raise StrategyError(f"no client tells of any value of {', '.join(empty)}")
            ends = zip(low[: len(columns)], high[len(columns) :], strict=True)
            edges = np.stack([np.histogram_bin_edges(each, self.bins) for each in ends])
        else:
            edges = self._given()
        config = {"columns": columns, "by": by}
        if self.noise is not None:
            counts, beside = yield from noisy_counts(asking, config, edges)
        else:
            told = yield from asking("histogram", config, edges=edges)
            counts, beside = told["counts"], told["withheld"]
        return {
            "edges": edges,
            "counts": counts[:, :, 1:-1],
            "below": counts[:, :, 0],
            "above": counts[:, :, -1],
            "withheld" if self.noise is None else "error": beside[:, :, 1:-1],
        }

    def read(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """``{column: (counts, edges)}``, as `numpy.histogram` gives them; by group ``{column: ({group: counts},
        edges)}``.
        """
        rows = zip(self.columns, model["counts"], model["edges"], strict=True)
        return {name: (by_group(self.by, counts), edges) for name, counts, edges in rows}

    def table(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """A row for each bin, with its edges, by column and group."""
        told = {"count": model["counts"]} | ({"error": model["error"]} if "error" in model else {})

        def rows(column: int, group: int) -> list[dict[str, Any]]:
            ends = model["edges"][column].tolist()
            cells = zip(*(each[column, group].tolist() for each in told.values()), strict=True)
            return [
                {"from": low, "to": high, **dict(zip(told, cell, strict=True))}
                for low, high, cell in zip(ends, ends[1:], cells, strict=False)
            ]

        groups = range(model["counts"].shape[1])
        return {name: by_group(self.by, [rows(c, g) for g in groups]) for c, name in enumerate(self.columns)}


def noisy_counts(asking: Asking, config: Mapping[str, Any], edges: Any) -> Generator[Ask, Answer, tuple[Any, Any]]:
    """Counts [columns, groups, bins + 2] with noise, and the standard deviation of that."""
    groups = math.prod(len(labels) for _, labels in config["by"])
    shape = (len(config["columns"]), groups, edges.shape[1] + 1)
    told = yield from asking.noisy("histogram", config, shape, edges=edges)
    return told["counts"], np.broadcast_to(told["counts:error"], shape)
