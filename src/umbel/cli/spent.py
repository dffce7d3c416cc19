"""`umbel privacy show`: what a run has spent."""

from __future__ import annotations

from pathlib import Path

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.ask import PHASE
from ..errors import SettingError
from ..privacy.accounting import against_zeros, spent
from ..privacy.release import NoisyRelease
from ..runs.events import AskClosed
from ..runs.past import find
from .terminal import json_text, stdout


def show(reference: str, folder: Path, delta: float | None, accountant: str, *, json: bool) -> None:
    """Print what the answers of a run have cost together. Raises `SettingError` for a run that hides nobody."""
    record = find(reference, folder)
    closed = [e for e in record.log.events if isinstance(e, AskClosed) and e.reason is None]
    closed = [event for event in closed if not event.kind.startswith(PHASE)]  # in which nothing is told of data
    clients = record.log.started.clients
    releases = [NoisyRelease.of(each) for event in closed for each in event.releases]
    bare = sum(not event.releases for event in closed)
    if bare:
        kinds = ", ".join(sorted({event.kind for event in closed if not event.releases}))
        raise SettingError(
            f"{record.id} hides nobody: {bare:,} of its {len(closed):,} answers ({kinds}) were told as they are",
            hint="See docs/privacy.md for noise on the sum of updates; what was told cannot be taken back.",
        )
    alike = len({release.neighbours for release in releases}) < 2
    counted = releases if alike else against_zeros(releases)
    found = spent(counted, 0.1 / max(clients, 2) if delta is None else delta, accountant)
    if json:
        print(json_text({"run": record.id, "spent": found.plain()}), flush=True)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("run", Text(f"{record.id}: {found.releases:,} noised answers over {record.log.round:,} rounds"))
    facts.add_row("spent", Text(f"epsilon {found.epsilon:.4g} at delta {found.delta:.3g}", "bold"))
    if releases:
        facts.add_row("hides", f"one {found.unit}: neighbours {found.neighbours}")
    pure = [1 / release.noise for release in releases if release.mechanism == "pure" and release.noise]
    if pure:
        facts.add_row("each", _range(pure, "epsilon by itself"))
    if noisy := [release for release in releases if release.mechanism != "pure"]:
        correlated = any(release.stream is not None for release in noisy)
        what = "times how far one can move all answers" if correlated else "times the clip bound"
        facts.add_row("noise", _range([release.noise for release in noisy], what))
        facts.add_row("clip bound", _range([release.norm for release in noisy], ""))
    for name, lines in (("sampling", found.sampling), ("but", found.why)):
        for line in lines:
            facts.add_row(name, Text(line))
    facts.add_row("accountant", found.accountant)
    stdout().print(Padding(facts, (1, 1), expand=False))


def _range(values: list[float], what: str) -> str:
    low, high = min(values), max(values)
    return f"{low:g} {what}".strip() if low == high else f"{low:.3g} to {high:.3g} {what}".strip()
