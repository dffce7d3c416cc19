"""The picture of a secure sum: who shares secrets with whom, and what goes where, phase by phase."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from .explanation import Explanation
from .neighbours import graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 40
"""So many clients are drawn at most, with as many neighbours as these can have."""
SEEN, HIDDEN, OWN = "#ee6677", "#228833", "#4477aa"


def draw(found: Explanation, path: str | Path | None = None) -> Figure:
    """Draw the clients around the server, and the phases of a round as a table. Needs matplotlib."""
    try:
        from ..core.figure import Picture
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "umbel[plot]"') from error
    figure = Picture(figsize=(10.5, 4.4), layout="constrained")
    ring, table = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _ring(ring, found)
    _table(table, found)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _ring(axes: Axes, found: Explanation) -> None:
    shown = min(found.clients, MOST)
    places = [(math.cos(2 * math.pi * at / shown), math.sin(2 * math.pi * at / shown)) for at in range(shown)]
    if found.neighbours:
        degree = min(found.neighbours, shown - 1)
        degree -= degree % 2 and degree < shown - 1
        for at, peers in enumerate(graph(shown, degree, bytes(32))):
            for peer in peers:
                if peer > at:
                    (x, y), (u, v) = places[at], places[peer]
                    axes.plot([x, u], [y, v], color=OWN, linewidth=0.5, alpha=0.35, zorder=1)
    for x, y in places:
        axes.plot([0.16 * x, 0.93 * x], [0.16 * y, 0.93 * y], color="0.7", linewidth=0.6, zorder=0)
    axes.plot(*zip(*places, strict=True), "o", color=OWN, markersize=7, zorder=2)
    axes.plot([0], [0], "s", color=HIDDEN if found.neighbours else SEEN, markersize=17, zorder=3)
    axes.text(0, -0.24, "server", ha="center", fontsize=9, zorder=3)
    more = f" (of {found.clients:,})" if shown < found.clients else ""
    words = f"{found.neighbours} neighbours each, {found.threshold} have to stay" if found.neighbours else "no secrets"
    axes.set_title(f"{shown} clients{more}: {words}", fontsize=10)
    axes.set_aspect("equal")
    axes.axis("off")


def _table(axes: Axes, found: Explanation) -> None:
    axes.axis("off")
    axes.set_title(
        "What the server sees of each client" if not found.neighbours else "What the server sees", fontsize=10
    )
    rows = [(each.phase.removeprefix("phase:"), each.sends, each.server) for each in found.phases]
    at = 0.93
    for phase, sends, server in rows:
        axes.text(0.0, at, phase, fontsize=10, weight="bold")
        axes.text(0.17, at, f"client sends {sends}", fontsize=9)
        colour = HIDDEN if found.neighbours else SEEN
        axes.text(0.17, at - 0.06, f"server sees {server}", fontsize=9, color=colour)
        at -= 0.145
    at -= 0.02
    for when, then in found.follows:
        axes.text(0.0, at, f"{when}: {then}", fontsize=8, color="0.25")
        at -= 0.06
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
