"""How numbers, times and counts are written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

PARTS = ("test", "evaluate", "train")
"""Whose metrics are shown first."""
BLOCKS = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """A metric in four digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time span such as ``30 ms``, ``0.8 s``, ``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 0.095:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 round``, ``2 rounds``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics' names, those of the test first, those of training last."""
    return sorted(names, key=lambda name: (place_of_part(name), name))


def sparkline(values: Iterable[float], width: int = 24) -> str:
    """The course of a metric as a row of at most `width` blocks, of values evenly spaced, the last among them."""
    shown = [value for value in values if math.isfinite(value)]
    if not shown:
        return ""
    if len(shown) > width:
        shown = [shown[round(index * (len(shown) - 1) / (width - 1))] for index in range(width)]
    if not math.isfinite(8 * (max(shown) - min(shown))):  # what diverges comes near the largest number there is
        shown = [value / 64 for value in shown]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int(8 * (value - low) / span))] for value in shown)


def place_of_part(name: str) -> int:
    """Where a metric's part stands among `PARTS`; others behind them."""
    part = name.partition(".")[0]
    return PARTS.index(part) if part in PARTS else len(PARTS)
