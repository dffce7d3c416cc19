"""The figures that were kept, and the pages and pictures that are made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from .chart import picture
from .figures import ROOT, Row, machine, markdown

FIGURES = ROOT / "benchmarks" / "results.json"
RESULTS = ROOT / "benchmarks" / "results.md"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "pictures"
SECTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "simulation": (
        "Simulations",
        ("overhead", "noop", "cnn", "fedbuff", "millions", "imports", "command", "start", "fold", "robust", "trackers"),
    ),
    "rounds": (
        "Rounds of a deployment",
        ("round-2", "round-10", "round-50", "thousand", "machines", "slow-disk", "results", "idle", "hostile", "ready"),
    ),
    "data": ("Splitting data", ("partition",)),
    "privacy": ("Privacy", ("private", "ledger", "secure")),
    "models": ("Large models", ("two-nodes", "gigabyte", "changed", "stream")),
}
PREFACE = """# Benchmarks

What Umbel costs, beside what the same costs at the least and beside what others take. `make bench` measures all of it
on your machine (`make bench-peers` makes the environments of flwr and pfl first, and measures them as well);
`python -m benchmarks NAME` measures a part; with `--write` this page is made anew. A file with all that was measured is
[benchmarks/results.json](../benchmarks/results.json).

- **Limit**: what physics, or a plain loop without any checks, takes for the same on the same machine.
- **Peer**: flwr 1.41 or pfl 0.6, each by its own programs with their defaults.
- Limit, peer and Umbel take turns, every second time in reverse order; figures are medians of the turns, and the half
  of them that lies in the middle reaches as far as stands behind `±`. Where something is judged as a ratio, the ratios
  are those within the turns.
- **Verdict**: a row says `noisy` where the turns reach further than what lies between their median and the bar, and
  `FAILED` where Umbel did not come to its end. In a picture what is left of the red line, which is the bar, holds it.
- Names are measured apart from each other, on days when the same machine may be half as quick: a row is to be read
  beside its own limit, not beside other rows.
- TLS is on and everything is durable, as in any deployment of Umbel; flwr runs without either.
"""


def keep(name: str, rows: Sequence[Row]) -> None:
    """Keep what was measured, in place of what was measured of this before."""
    found = _kept()
    found[name] = {"day": date.today().isoformat(), "machine": machine(), "rows": [asdict(row) for row in rows]}
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")


def write() -> None:
    """Make the pages and the pictures of what was kept."""
    kept = _kept()
    parts, tables = [PREFACE], ["# Results", "Made by `python -m benchmarks --write`."]
    for name, (title, names) in SECTIONS.items():
        found = {part: [Row(**row) for row in kept[part]["rows"]] for part in names if part in kept}
        rows = [row for part in found.values() for row in part]
        if not rows:
            continue
        parts.append(f"## {title}")
        if drawn := picture(title, rows):
            path = PICTURES / f"benchmarks-{name}.svg"
            path.write_text(drawn)
            parts.append(f"![{title}: Umbel, its limit and its peers over the bar]({path.parent.name}/{path.name})")
        parts.append(markdown(rows))
        for part, measured in found.items():
            tables += [f"## {part}", f"{kept[part]['day']}, on: {kept[part]['machine']}.", markdown(measured)]
    machines = sorted({part["machine"] for part in kept.values()})
    parts.append(f"Measured on: {'; '.join(machines)}.")
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    RESULTS.write_text("\n\n".join(tables) + "\n")


def _kept() -> dict[str, Any]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
