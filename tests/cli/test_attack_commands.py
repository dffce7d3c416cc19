from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]

ATTACK = """

@client.query("attack")
def attack(model, data, ctx):
    goal = np.full(2, float(data["index"]))
    return umbel.Update({"members": -abs(model["w"] - goal), "others": -abs(model["w"] - 50), "inputs": goal[None]})
"""


@pytest.mark.slow
def test_what_a_run_gives_away_is_said(umbel: Command, folder: Path) -> None:
    pytest.importorskip("scipy")
    app = folder / "app.py"
    app.write_text(app.read_text().replace("\n\napp = ", f"{ATTACK}\n\napp = "))
    assert umbel("run", "app.py", "--clients", 4, "--workers", 0).code == 0
    done = umbel("privacy", "attack")
    assert done.code == 0
    said = " ".join(done.out.split())
    assert "8 against 8 that nobody trained on area under the ROC curve 1.000" in said
    found = umbel("privacy", "attack", "--round", 0, "--json").summary
    assert (found["round"], found["membership"]["members"], found["inversion"].keys()) == (
        0, 8, {"trained", "sent", "released"},
    )  # fmt: skip


def test_a_run_whose_app_does_not_say_what_to_attack_is_told_how_to(umbel: Command) -> None:
    umbel("run", "app.py", "--clients", 4, "--workers", 0)
    done = umbel("privacy", "attack")
    assert done.code == 3
    assert '@client.query("attack")' in done.said
