from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from umbel.runs.journal import Journal

Command = Callable[..., Any]


@pytest.fixture
def trained(umbel: Command) -> dict[str, Any]:
    """The summary of a run of six rounds."""
    summary = umbel("run", "app.py", "--clients", 4, "--rounds", 6, "--json").summary
    assert isinstance(summary, dict)
    return summary


def test_runs_are_listed(umbel: Command, trained: dict[str, Any], written: Callable[..., Path]) -> None:
    written(Path("umbel-runs"), id="old-20260101-000000-aa", rounds=2)
    damaged = written(Path("umbel-runs"), id="odd-20260101-000000-bb")
    (damaged / "events.jsonl").write_text("nonsense\nand more\n")
    lines = {line.split()[0]: line.split() for line in umbel("runs").out.splitlines() if line.strip()}
    assert lines[trained["run"]][2:6] == [
        "6/6",
        "finished",
        "test.distance",
        f"{trained['metrics']['test.distance']:.4g}",
    ]
    assert lines["old-20260101-000000-aa"][4:6] == ["2/3", "unfinished"]
    assert lines["odd-20260101-000000-bb"][-1] == "damaged"
    found = {row["run"]: row for row in json.loads(umbel("runs", "--json").out)}
    assert found[trained["run"]]["metrics"] == trained["metrics"]
    assert found[trained["run"]]["app"] == str(Path("app.py").resolve())
    assert found["old-20260101-000000-aa"]["began"] == "2026-01-01 00:00:00"


def test_the_table_says_where_apps_are_where_there_is_room(
    umbel: Command, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "/app.py" in umbel("runs").out
    monkeypatch.setenv("COLUMNS", "80")
    text = umbel("runs").out
    assert "/app.py" not in text
    assert trained["run"] in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_no_runs_are_no_error(umbel: Command) -> None:
    done = umbel("runs", "--folder", "nowhere")
    assert done.code == 0
    assert "no runs in nowhere" in done.out
    assert json.loads(umbel("runs", "--folder", "nowhere", "--json").out) == []


def test_a_run_is_shown(umbel: Command, trained: dict[str, Any]) -> None:
    done = umbel("show", "last")
    assert done.code == 0
    assert trained["run"] in done.out
    assert trained["model_sha256"][:12] in done.out
    assert "┤" in done.out
    assert umbel("show", Path("umbel-runs") / trained["run"]).code == 0


def test_curves_are_drawn_to_a_file(umbel: Command, trained: dict[str, Any], folder: Path) -> None:
    pytest.importorskip("matplotlib")
    done = umbel("show", "last", "--plot", "curves.png")
    assert done.code == 0
    assert "curves drawn to curves.png" in done.out
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert umbel("show", "last", "--plot", "curves.xyz").code == 3
    assert umbel("show", "last", "--plot", "nowhere/curves.png").code == 5


def test_drawing_says_what_it_needs(umbel: Command, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "umbel.core.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = umbel("show", "last", "--plot", "curves.png")
    assert done.code == 3
    assert "umbel[plot]" in done.said


def test_what_is_not_there_is_not_shown(umbel: Command) -> None:
    done = umbel("show", "nothing")
    assert done.code == 3
    assert "there are no runs in umbel-runs" in done.said


def test_a_damaged_log_is_a_fault_of_the_disk(umbel: Command, trained: dict[str, Any]) -> None:
    log = Path("umbel-runs", trained["run"], "events.jsonl")
    log.write_bytes(log.read_bytes().replace(b"FedAvg", b"FedAbg", 1))
    done = umbel("show", "last")
    assert done.code == 5
    assert "line 1 of" in done.said


def test_of_a_run_without_rounds_there_is_nothing_to_draw(
    umbel: Command, folder: Path, written: Callable[..., Path]
) -> None:
    pytest.importorskip("matplotlib")
    written(Path("umbel-runs"), id="none-20260101-000000-aa", rounds=0)
    done = umbel("show", "none", "--plot", "curves.png")
    assert done.code == 3
    assert "drawn" not in done.out
    assert "there is nothing to draw: no round has a metric (run none-20260101-000000-aa)" in done.said
    assert "0 of 3 rounds" in done.out
    assert not Path("curves.png").exists()


def test_a_run_that_could_not_begin_is_listed_with_why(umbel: Command, trained: dict[str, Any]) -> None:
    assert umbel("run", "app.py", "--clients", 4, "--workers", 0, "--set", "strategy.cohort=9").code == 3
    rows = json.loads(umbel("runs", "--json").out)
    assert [(row["state"], row["rounds"]) for row in rows] == [("finished", 6), ("refused", 0)]
    assert "9 clients" in rows[1]["error"]
    (line,) = [line for line in umbel("runs").out.splitlines() if "refused" in line]
    assert rows[1]["error"][:15] in line
    assert rows[1]["run"] in line
    assert trained["run"] in umbel("show", "last").out
    page = umbel("show", rows[1]["run"]).out
    assert "refused  0 of 3 rounds" in page
    assert rows[1]["error"] in " ".join(page.split())


def test_runs_are_removed_by_name(umbel: Command, trained: dict[str, Any], written: Callable[..., Path]) -> None:
    other = written(Path("umbel-runs"), id="old-20260101-000000-aa")
    said = umbel("rm", trained["run"], "--dry-run").out
    assert f"{trained['run']}  " in said
    assert "1 run would be removed" in said
    assert len(json.loads(umbel("runs", "--json").out)) == 2
    assert "1 run removed" in umbel("rm", trained["run"]).out
    assert [path.name for path in Path("umbel-runs").iterdir()] == [other.name]
    done = umbel("rm", trained["run"])
    assert (done.code, "there is no run" in done.said) == (3, True)
    other.rename(other.with_name(f".{other.name}.gone"))  # as one whose removal was cut off
    assert json.loads(umbel("runs", "--json").out) == []


def test_of_all_runs_the_last_or_the_young_stay(umbel: Command, written: Callable[..., Path]) -> None:
    now = time.time_ns()
    for days in range(5):
        path = written(Path("umbel-runs"), id=f"a-20260101-00000{days}-aa")
        os.utime(path / "events.jsonl", ns=(0, now - days * 86_400 * 10**9))

    def left() -> list[str]:
        return [row["run"][-4] for row in json.loads(umbel("runs", "--json").out)]

    assert left() == ["4", "3", "2", "1", "0"]
    assert "1 run removed" in umbel("rm", "--older-than", "3.5").out
    assert left() == ["3", "2", "1", "0"]
    assert "0 runs removed" in umbel("rm", "--older-than", "0.5", "--keep", "4").out
    assert "1 run removed" in umbel("rm", "--older-than", "2.5", "--keep", "2").out
    assert "1 run removed" in umbel("rm", "--keep", "2").out
    assert left() == ["1", "0"]
    assert "2 runs removed" in umbel("rm", "--keep", "0").out
    for wrong in ([], ["last", "--keep", "2"]):
        assert umbel("rm", *wrong).code == 3


def test_a_run_that_goes_on_is_not_removed(umbel: Command, written: Callable[..., Path]) -> None:
    path = written(Path("umbel-runs"), id="a-20260101-000000-aa")
    with closing(Journal(path)):
        done = umbel("rm", path.name)
        assert (done.code, "going on in another process" in done.said) == (5, True)
        assert "0 runs removed" in umbel("rm", "--keep", "0").out
    assert path.exists()
