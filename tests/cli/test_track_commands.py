from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.runs.past import find
from umbel.trackers.csv import CSV

Command = Callable[..., Any]


def numbers(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [(row["round"], row["name"], row["client"], row["value"]) for row in csv.DictReader(file)]


def test_a_run_is_tracked_while_it_goes_on_and_when_it_is_resumed(umbel: Command) -> None:
    """A resumed run has its trackers again, without being told."""
    done = umbel("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 2, "--track", "csv:live", "--json")
    assert done.code == 0
    run = done.summary["run"]
    path = Path("live") / f"{run}.csv"
    before = numbers(path)
    assert {row[0] for row in before} == {"1", "2"}
    assert umbel("resume", run, "--rounds", 4, "--workers", 0).code == 0
    found = numbers(path)
    assert found[: len(before)] == before
    assert {row[0] for row in found} == {"1", "2", "3", "4"}
    assert f"{run} is told to csv:after" in umbel("track", run, "csv:after").out
    assert numbers(Path("after") / f"{run}.csv") == found
    assert umbel("track", run, "csv:followed", "--follow").code == 0
    assert numbers(Path("followed") / f"{run}.csv") == found
    log = find(run, Path("umbel-runs")).log
    assert ("4", "test.distance", "", repr(log.rounds[-1].test["distance"])) in found


@pytest.mark.slow
def test_a_place_with_a_password_is_not_remembered(umbel: Command) -> None:
    Path("a@b").mkdir()
    run = umbel("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 1, "--track", "csv:a@b", "--json").summary[
        "run"
    ]
    assert list(Path("a@b").iterdir())
    assert "track" not in find(run, Path("umbel-runs")).log.started.settings


def test_a_run_goes_on_without_a_tracker_that_is_not_here_any_more(
    umbel: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 1)
    run = umbel(*line, *("--track", "csv:twice") * 2, "--json").summary["run"]
    assert find(run, Path("umbel-runs")).log.started.settings["track"] == ["csv:twice"]
    monkeypatch.setattr(CSV, "needs", "a_package_that_is_not_there")
    done = umbel("resume", run, "--rounds", 2, "--workers", 0)
    assert done.code == 0
    assert "goes on without its tracker csv:twice: tracking with CSV needs the package" in done.said
    assert umbel("resume", run, "--rounds", 3, "--workers", 0, "--track", "csv:twice").code == 3


@pytest.mark.parametrize(
    "line",
    [
        ("run", "app.py", "--clients", 4, "--track", "csvs"),
        ("resume", "last", "--track", "csv:"),
        ("track", "last", "nothing"),
        ("run", "app.py", "--on", "h:1", "--detach", "--track", "csv"),
    ],
)
def test_a_tracker_that_there_is_not_is_refused_before_anything_begins(umbel: Command, line: tuple[Any, ...]) -> None:
    umbel("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 1)
    before = len(list(Path("umbel-runs").iterdir()))
    done = umbel(*line)
    assert done.code == 3
    assert "names no tracker" in done.said or "--track follows the run" in done.said
    assert len(list(Path("umbel-runs").iterdir())) == before


def test_what_a_tracker_cannot_do_is_said(umbel: Command) -> None:
    umbel("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 1)
    Path("taken").write_text("")
    done = umbel("track", "last", "csv:taken")
    assert (done.code, "taken" in done.said) == (5, True)
    followed = umbel("run", "app.py", "--clients", 4, "--workers", 0, "--rounds", 1, "--track", "csv:taken", "--json")
    assert followed.code == 0
    assert json.loads(followed.out.splitlines()[-1])["rounds"] == 1
