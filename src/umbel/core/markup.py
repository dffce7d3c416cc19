"""Tables and curves as HTML and SVG, which notebooks show. What others wrote is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice

MOST_ROWS = 20
WIDTH, HEIGHT, EDGE = 240, 90, 4
COLOURS = {"train": "#0072B2", "evaluate": "#E69F00", "test": "#009E73"}

Series = Sequence[tuple[int, float]]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], more: int = 0, most: int = MOST_ROWS) -> str:
    """A table of the first rows, and how many more there are: `more` and those that it leaves out."""
    rows = list(rows)
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in islice(rows, most)
    )
    more += max(0, len(rows) - most)
    return f"<table><tr>{cells}</tr>{body}</table>" + (f"<i>and {more:,} more</i>" if more else "")


def curves(panels: Mapping[str, Mapping[str, Series]]) -> str:
    """A small picture for each panel, with a line for each of its series: ``{"loss": {"train": [(1, 0.5), ...]}}``.
    Values that are not finite are left out.
    """
    return "".join(_panel(title, lines) for title, lines in panels.items())


def _panel(title: str, lines: Mapping[str, Series]) -> str:
    finite = {name: [(x, y) for x, y in pairs if math.isfinite(y)] for name, pairs in lines.items()}
    points = [pair for pairs in finite.values() for pair in pairs]
    if not points:
        return ""
    left, low = (min(values) for values in zip(*points, strict=True))
    wide, high = ((max(v) - min(v)) or 1.0 for v in zip(*points, strict=True))
    parts = []
    for name, pairs in finite.items():
        across, up = (WIDTH - 2 * EDGE) / wide, (HEIGHT - 2 * EDGE) / high
        places = " ".join(f"{EDGE + (x - left) * across:.1f},{HEIGHT - EDGE - (y - low) * up:.1f}" for x, y in pairs)
        parts.append(
            f'<polyline points="{places}" fill="none" stroke-width="1.5" stroke-linecap="round" '
            f'stroke="{COLOURS.get(name, "#555")}"><title>{escape(name)}</title></polyline>'
        )
    told = ", ".join(
        f'<span style="color:{COLOURS.get(name, "#555")}">{escape(name)} {pairs[-1][1]:.4g}</span>'
        for name, pairs in finite.items()
        if pairs
    )
    return (
        f'<div style="display:inline-block;margin:4px 12px 4px 0"><b>{escape(title)}</b> {told}<br>'
        f'<svg width="{WIDTH}" height="{HEIGHT}" style="border:1px solid #ccc">{"".join(parts)}</svg></div>'
    )
