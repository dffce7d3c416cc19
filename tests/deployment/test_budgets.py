"""The hospitals of examples/private-hospitals as nodes: each keeps its own budget, whatever the run goes on with."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from umbel.data import HEART_COLUMNS

pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "private-hospitals"
PATIENTS = {"cleveland": 3, "switzerland": 2}
SMALLER = 0.9
"""Enough for two rounds, which cost 0.80, and not for three, which cost 1.01."""


@pytest.fixture(scope="module")
def hospitals(machines):
    """A node for each, of which the second has a smaller budget."""
    machines.start_server()
    for name, count in PATIENTS.items():
        table, clients = machines.folder / f"{name}.csv", machines.folder / f"{name}.toml"
        rows = np.random.default_rng(1).integers(1, 5, (count, 14)).tolist()
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([HEART_COLUMNS, *rows])
        made = machines.program(str(EXAMPLE / "nodes.py"), str(table))
        assert made.wait() == 0, made.output
        clients.write_text(made.output)
        policy = (EXAMPLE / "policy.toml").read_text()
        if name == "switzerland":
            assert policy.count("epsilon = 3.0\n") == 1
            policy = policy.replace("epsilon = 3.0\n", f"epsilon = {SMALLER}\n")
        rules = clients.with_suffix(".policy.toml")
        rules.write_text(policy)
        join = machines.invitation()
        machines.start_node(name, "--clients", str(clients), "--policy", str(rules), join=join).wait_for("connected to")
    return machines


def test_a_hospital_whose_budget_is_spent_answers_no_more_and_the_others_go_on(hospitals):
    typed = ("--on", hospitals.address, "--wait-for", "5", "--rounds", "4")
    run = hospitals.command("run", str(EXAMPLE / "nodes.py"), *typed, UMBEL_TOKEN=hospitals.token)
    assert run.wait() == 0, run.output
    assert [f"{asked} clients  {failed} failed" in run.output for asked, failed in ((5, 0), (3, 2))] == [True, True]
    logs = hospitals.command("show", "last", "--clients", "--on", hospitals.address, UMBEL_TOKEN=hospitals.token)
    assert logs.wait() == 0, logs.output
    assert f"may spend epsilon {SMALLER} at delta 0.0001 in all" in logs.output
    hospitals.stop()
    for name, rounds, left in (("cleveland", 4, 3 - 1.19), ("switzerland", 2, SMALLER - 0.80)):
        shown = hospitals.command("privacy", "show", f"node-{name}", "--json")
        assert shown.wait() == 0, shown.output
        rows = json.loads(shown.lines[-1])["clients"]
        assert [row["client"] for row in rows] == [f"{name}-{n}" for n in range(PATIENTS[name])]
        assert [row["releases"] for row in rows] == [rounds] * PATIENTS[name]
        assert [row["left"] for row in rows] == pytest.approx([left] * PATIENTS[name], abs=0.01)
        with closing(sqlite3.connect(hospitals.folder / f"node-{name}" / "node.db")) as database:
            refused = database.execute("SELECT count(*) FROM audit WHERE did = 'task.refused'").fetchone()[0]
        assert refused == (4 - rounds) * PATIENTS[name], "before they trained"
