from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import deployment, simulation
from benchmarks.deployed import Deployment
from benchmarks.measure import Row, alternate, child, table

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    "logistic regression 784x10",
    "fold of 100 updates of 25 M float32",
    "the same fold: peak memory",
    "first round of 15,000,000 clients",
    "the same round: peak memory",
    "import umbel: modules beyond numpy",
    "import umbel: CPU time over import numpy",
    "umbel --help",
]


@pytest.mark.slow
def test_a_quick_run_prints_every_row_with_its_bar() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "overhead", "folding", "millions", "startup"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for row in ROWS:
        (line,) = [line for line in lines if line.startswith(row)]
        assert any(verdict in line for verdict in ("holds", "MISSED", "not measured"))
    assert "smoke test" in lines[-1]


@pytest.mark.slow
def test_the_parts_of_simulations_that_are_measured_work() -> None:
    assert len(set(simulation.call(simulation.same_bits, 1))) == 1
    said = simulation.call(simulation.noop, 1_000, 10, 2, "phones")
    assert len(said["seconds"]) == 2
    assert said["bytes"] > 0
    assert simulation.call(simulation.fedbuff, 3)["virtual"] > 0
    sides = simulation.call(simulation.train_beside_loop, "linear", 2, 1)
    assert {name: len(values) for name, values in sides.items()} == {
        "umbel": 1, "loop": 1, "umbel wall": 1, "loop wall": 1
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at as Linux shows them")
@pytest.mark.parametrize(("part", "rows"), [("two-nodes", 1), ("results", 1), ("idle", 2)])
def test_deployments_are_measured(part: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMBEL_TOKEN", raising=False)
    found = deployment.rows(quick=True, only=[part])
    assert len(found) == rows
    assert all(row.holds is not None for row in found)


def test_a_deployment_leaves_no_process_and_no_folder() -> None:
    with Deployment() as deployed:
        assert deployed.serve() > 0
        place, server = deployed.folder, deployed.server
    assert not place.exists()
    assert not server.running


def test_results_are_written_from_a_full_run_only() -> None:
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit):
        main(["--write", "--quick"])


def test_the_table_is_aligned_and_in_markdown() -> None:
    rows = [Row("a", "1", "<= 2", True, "b"), Row("longer", "30", "<= 2", False), Row("c", "-", "<= 1", None)]
    first, beside, second, third = table(rows).splitlines()[2:]
    assert [line.index("<=") for line in (first, second, third)] == [18, 18, 18]
    assert beside.strip() == "b"
    assert "holds" in first
    assert "MISSED" in second
    assert "not measured" in third
    assert all(line.startswith("| ") and line.count("|") == 6 for line in table(rows, markdown=True).splitlines())


def test_sides_alternate_after_a_first_run_each() -> None:
    ran: list[str] = []
    seconds = alternate(lambda: ran.append("a"), lambda: ran.append("b"), times=2)
    assert ran == ["a", "b", "a", "b", "b", "a"]
    assert [len(times) for times in seconds] == [2, 2]


def test_a_child_says_what_it_printed_or_why_it_failed() -> None:
    assert child("import json; print(json.dumps([1, 2]))").said == [1, 2]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        child("1 / 0")
