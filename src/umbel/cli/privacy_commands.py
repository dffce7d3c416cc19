"""`umbel privacy plan`: how much noise a budget needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..privacy.plan import PrivacyPlan, around, calibrated, correlated, tradeoff
from ..privacy.plan_picture import draw
from .drawing import drawn
from .terminal import json_text, stdout

COHORTS = (0.25, 0.5, 1, 2, 4)
ROUNDS = (0.5, 1, 2, 5)


def plan(
    budget: tuple[float, float, int, int, int, str], separation: int | None = None, *, plot: Path | None, json: bool
) -> None:
    """Print the least noise for a budget, and draw it where `plot` names a file."""
    found = calibrated(*budget)
    waiting = None if separation is None else correlated(found, separation)
    others = tradeoff(found, around(found.cohort, COHORTS, found.population))
    rounds = around(found.rounds, ROUNDS)
    epsilons = [[found.with_same_noise(other.cohort, n) for n in rounds] for other in others]
    if plot is not None:
        drawn(lambda: draw(found, plot), plot)
    if json:
        rows = [{**_row(other), "epsilons": row} for other, row in zip(others, epsilons, strict=True)]
        picture = None if plot is None else str(plot)
        told = {"plan": found.plain(), "dp_ftrl": waiting, "rounds": rounds, "cohorts": rows, "picture": picture}
        print(json_text(told), flush=True)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("noise", Text(f"{found.noise:g} times the clip bound, on the sum (the noise multiplier)", "bold"))
    facts.add_row("on the mean", f"{found.mean_noise:.3g} times the clip bound in each element")
    facts.add_row("", "in norm that times the square root of how many elements there are")
    facts.add_row("spent", f"epsilon {found.spent:.4f} at delta {found.delta:g} after {found.rounds:,} rounds")
    facts.add_row("accountant", found.accountant)
    if waiting is not None:
        bands, model, sampled = waiting["bands"], waiting["model_noise"], waiting["sampled"]
        facts.add_row("dp_ftrl", Text(f"noise {waiting['noise']:g}, separation {separation}, bands {bands}", "bold"))
        facts.add_row("", f"leaves {model:.3g} times the clip bound in the model; by the above it is {sampled:.3g}")
        facts.add_row("", "needs clients that wait, and no dice; hides what one sends, not that it is there")
    if plot is not None:
        facts.add_row("picture", str(plot))
    assumed = Table.grid(padding=(0, 1))
    for sentence in found.assumed:
        assumed.add_row("-", sentence)
    parts: list[Any] = [facts, Text(), *_table(found, others, rounds, epsilons), Text(), "It holds if:", assumed]
    stdout().print(Padding(Group(*parts), (1, 1), expand=False))


def _row(plan: PrivacyPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("cohort", "rate", "noise", "mean_noise")}


def _table(found: PrivacyPlan, others: list[PrivacyPlan], rounds: list[int], epsilons: list[list[float]]) -> list[Any]:
    """What this noise spends with other cohorts and rounds, and what noise the budget needs with other cohorts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("cohort", justify="right")
    for n in rounds:
        table.add_column(f"{n:,} rounds", justify="right")
    for head in (f"noise for {found.epsilon:g}", "on the mean"):
        table.add_column(head, justify="right")
    for other, row in zip(others, epsilons, strict=True):
        mine = other.cohort == found.cohort
        cells = [
            Text(f"{epsilon:.3g}", "bold" if mine and n == found.rounds else "")
            for epsilon, n in zip(row, rounds, strict=True)
        ]
        table.add_row(f"{other.cohort:,}", *cells, f"{other.noise:g}", f"{other.mean_noise:.3g}")
    return [Text(f"Epsilon with the same noise, and the noise for epsilon {found.epsilon:g}:"), table]
