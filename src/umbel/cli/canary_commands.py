"""`umbel privacy audit`: what canaries prove of an app, beside what is claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.app import App
from ..errors import SettingError
from ..privacy.audit import PrivacyAudit
from ..privacy.audit_picture import draw_audits
from ..testing.canaries import audit_many_runs, audit_one_run
from .application import load
from .drawing import drawn
from .terminal import json_text, stderr, stdout

REFUTED = 3


def audit(reference: str, *, runs: int, canaries: int | None, plot: Path | None, json: bool, **settings: Any) -> None:
    """Load an app, audit it and print what was found. Exits with 3 where its claim is refuted."""
    if not runs and canaries == 0:
        raise SettingError("an audit of no canaries and no runs finds nothing")
    if runs and runs < 4:
        raise SettingError(f"{runs} runs prove nothing", hint="Take hundreds, or --runs 0 for none.")
    found = _audits(load(reference).app, runs, canaries, settings)
    if plot is not None:
        drawn(lambda: draw_audits(found, plot), plot)
    if json:
        picture = None if plot is None else str(plot)
        print(json_text({"audits": [each.plain() for each in found], "picture": picture}), flush=True)
    else:
        stdout().print(Padding(_table(found, plot), (1, 1), expand=False))
    if any(each.refuted for each in found):
        raise typer.Exit(REFUTED)


def _audits(app: App, runs: int, canaries: int | None, settings: dict[str, Any]) -> list[PrivacyAudit]:
    found, done = [], iter(range(1, runs + 1))
    if runs and canaries != 0:  # two chances to be wrong
        settings = {**settings, "confidence": (1 + settings["confidence"]) / 2}
    with stderr().status("one run with canaries") as status:

        def on_run() -> None:
            status.update(f"run {next(done):,} of {runs:,}, with a canary and without")

        if canaries != 0:
            found.append(audit_one_run(app, canaries=canaries, **settings))
        if runs:
            found.append(audit_many_runs(app, runs=runs, on_run=on_run, **settings))
    return found


def _table(audits: list[PrivacyAudit], plot: Path | None) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    for found in audits:
        sure = f"with {100 * found.confidence:.4g} % confidence"
        what = (
            f"with {found.canaries:,} canaries, each there by a coin" if found.kind == "one run"
            else f"{found.runs:,} runs, half of them with a canary"
        )  # fmt: skip
        facts.add_row(found.kind, Text(what, "bold"))
        facts.add_row("claimed", f"epsilon {found.claim:.4g} at delta {found.delta:g}")
        facts.add_row("proved", f"epsilon {found.epsilon:.4g} at least, {sure}, whatever the mechanism is")
        if found.gaussian is not None:
            facts.add_row("", f"epsilon {found.gaussian:.4g} at least if its noise is Gaussian, as is claimed")
        for delta, epsilon, claim in found.profile:
            if epsilon > claim:
                facts.add_row("", Text(f"epsilon {epsilon:.4g} at delta {delta:g}, where {claim:.4g} is claimed"))
        facts.add_row("power", f"where the claim is just true, such audits find {found.ideal:.4g} (median)")
        facts.add_row("seed", f"{found.seed}, of canaries and their coins; noise is drawn as in any run")
        verdict = ("the claim is FALSE", "bold red") if found.refuted else ("nothing against the claim", "")
        facts.add_row("found", Text(*verdict))
        facts.add_row()
    if plot is not None:
        facts.add_row("picture", str(plot))
    return facts
