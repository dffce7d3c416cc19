"""Pictures of rows: bars on a logarithmic scale, as SVG that is read on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median

from .figures import Row, shown, spread

WIDTH, LEFT, STEP, TOP = 720, 300, 30, 34
COLOURS = {"Umbel": "#2f81f7", "limit": "#3fb950", "peer": "#d29922"}
STYLE = """<style>text{font:11px system-ui,sans-serif;fill:#57606a}.name{font-weight:600;fill:#24292f}
.grid{stroke:#8b949e;stroke-opacity:.3}.bar{stroke:#cf222e;stroke-width:2}.reach{stroke:#57606a}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.name{fill:#e6edf3}.bar{stroke:#ff7b72}.reach{stroke:#9198a1}}</style>"""


def picture(title: str, rows: Sequence[Row]) -> str:
    """Umbel, its limit and its peer in each row, over what the bar allows Umbel: what is left of the line holds."""
    drawn = [(row, of_bar(row)) for row in rows if row.bar and not row.at_least and row.values]
    if not drawn:
        return ""
    every = [value for _, sides in drawn for value, _ in sides.values()]
    low, high = math.floor(math.log10(0.7 * min(0.5, *every))), math.ceil(math.log10(max(2.0, *every)))
    height = TOP + STEP * len(drawn) + 20

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        f"<title>{escape(title)}</title>{STYLE}",
    ]
    for place, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{LEFT + 90 * place}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 90 * place + 15}" y="17">{name}</text>')
    for power in range(low, high + 1):
        at = x(10.0**power)
        kind = "bar" if power == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{height - 18}"/>')
        text = "bar" if power == 0 else shown(10.0**power, "x")
        parts.append(f'<text x="{at:.1f}" y="{height - 5}" text-anchor="middle">{text}</text>')
    for line, (row, sides) in enumerate(drawn):
        y = TOP + STEP * line
        parts.append(f'<text class="name" x="0" y="{y + 11}">{escape(row.name)}</text>')
        parts.append(f'<text x="0" y="{y + 23}">{escape(" ".join(row.cells[1:4]))}</text>')
        for place, (name, (value, reach)) in enumerate(sides.items()):
            begin, end, middle = x(10.0**low), x(value), y + 8 * place
            parts.append(
                f'<rect x="{begin:.1f}" y="{middle}" width="{max(1.0, end - begin):.1f}" height="6" '
                f'fill="{COLOURS[name]}"/>'
            )
            if reach and value > reach:
                ends = f'x1="{x(value - reach):.1f}" x2="{x(value + reach):.1f}"'
                parts.append(f'<line class="reach" {ends} y1="{middle + 3}" y2="{middle + 3}"/>')
    return "\n".join([*parts, "</svg>", ""])


def of_bar(row: Row) -> dict[str, tuple[float, float]]:
    """The medians of the sides, and half of how far they reach, each over what the bar allows Umbel in these turns."""
    assert row.bar is not None
    ours = [value for value in row.ours if value is not None]
    allowed = median(ours) / median(row.values) * row.bar if row.judged in ("over", "peer") else row.bar
    sides = {"Umbel": row.ours, "limit": row.limit, "peer": row.peer}
    known = {name: [v / allowed for v in values if v is not None] for name, values in sides.items()}
    return {
        name: (median(values), (spread(values) or 0.0) / 2)
        for name, values in known.items()
        if values and median(values) > 0
    }
