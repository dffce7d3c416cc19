"""`umbel privacy attack`: what a run's model and single updates give away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from ..runs.past import find
from ..simulation.federation import Simulation
from ..testing.leaks import Victims
from .federations import Wanted
from .run_commands import app_of
from .terminal import json_text, stdout

WHOLE = 0.999
"""A cosine above which an input is given away whole."""
WORDS = {
    "trained": "from an update as it was trained",
    "sent": "from an update as it is sent, to who adds them up",
    "released": "from what is released, where all others are known",
}


def attack(reference: str, folder: Path, round: int | None, app: str | None, *, json: bool) -> None:
    """Print what attacks find. Raises `SettingError` for a run that was no simulation."""
    record = find(reference, folder)
    loaded = app_of(record, app, "privacy attack")
    federation = Wanted.again(record.log.started.app, 0).federation(loaded)
    if not isinstance(federation, Simulation):
        raise SettingError(f"the clients of {record.id} are elsewhere, and only simulated ones can be attacked here")
    victims = Victims(loaded.app, federation, record.log.started.settings["config"])
    model, after = record.model(round)
    members, inputs = victims.membership(model), victims.inversion(record.model(0)[0])
    rows = {
        stage: {"median": float(np.median(found)), "whole": int((found > WHOLE).sum()), "inputs": len(found)}
        for stage, found in inputs.items()
        if len(found)
    }
    if json:
        whole = {"run": record.id, "round": after, "membership": members.plain(), "inversion": rows}
        print(json_text(whole), flush=True)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("run", Text(f"{record.id}, its model after round {after:,}"))
    facts.add_row("members", Text(f"{members.members:,} against {members.others:,} that nobody trained on", "bold"))
    low, high = members.auc_interval
    facts.add_row("", f"area under the ROC curve {members.auc:.3f} ({low:.3f} to {high:.3f}); nothing at all is 0.5")
    low, high = members.tpr_interval
    facts.add_row("", f"found at {members.fpr:.0%} false alarms: {members.tpr:.1%} ({low:.1%} to {high:.1%})")
    for stage, row in rows.items():
        facts.add_row("inputs" if stage == "trained" else "", Text(WORDS[stage], "bold"))
        facts.add_row("", f"{row['whole']:,} of {row['inputs']:,} given away whole; median cosine {row['median']:.3f}")
    facts.add_row("confidence", f"{members.confidence:.0%}")
    stdout().print(Padding(facts, (1, 1), expand=False))
