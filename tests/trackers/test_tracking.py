from __future__ import annotations

import csv
import logging
import os
import posixpath
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import umbel
from umbel.errors import SettingError
from umbel.runs.events import Warned
from umbel.runs.journal import read_log
from umbel.trackers.csv import CSV
from umbel.trackers.mlflow import _named
from umbel.trackers.tracker import PLACES, Point, RoundPoints, Tracker, tracker_of
from umbel.trackers.tracking import Tracking

from .test_reading import app


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(path: Path) -> list[tuple[str, ...]]:
    """All but the time, which is taken in two places."""
    return [(row["round"], row["name"], row["client"], row["value"]) for row in rows(path)]


class Failing(Tracker):
    """Fails where it is told to; it travels by value."""

    def begin(self, run: str, settings: Mapping[str, Any]) -> int:
        if self.where == "exit":
            print("no more room", file=sys.stderr, flush=True)
            os._exit(3)
        if self.where == "begin":
            raise ConnectionError("nobody there")
        return -1

    def write(self, rounds: Sequence[RoundPoints]) -> None:
        raise ValueError("not these")


def test_live_and_after_the_fact_the_records_are_the_same(tmp_path: Path) -> None:
    from umbel.cli.track_commands import track

    live = umbel.track(f"csv:{tmp_path / 'live'}")
    result = umbel.run(app(), on=umbel.Simulation(clients=5), rounds=3, folder=tmp_path, observers=[live])
    track(result.run, f"csv:{tmp_path / 'after'}", tmp_path, follow=False)
    found = numbers(tmp_path / "live" / f"{result.run}.csv")
    assert rows(tmp_path / "live" / f"{result.run}.csv") == rows(tmp_path / "after" / f"{result.run}.csv")
    assert {row[0] for row in found} == {"1", "2", "3"}
    assert float(next(row[3] for row in found if row[:3] == ("2", "train.loss", ""))) == result.history[1].train["loss"]


@pytest.mark.slow
def test_a_run_that_goes_on_is_told_whole_and_no_number_twice(tmp_path: Path) -> None:
    where = f"csv:{tmp_path / 'csv'}"
    first = umbel.run(app(), on=umbel.Simulation(clients=5), rounds=2, folder=tmp_path, observers=[umbel.track(where)])
    assert first.folder is not None
    before = numbers(tmp_path / "csv" / f"{first.run}.csv")
    umbel.resume(app(), first.folder, on=umbel.Simulation(clients=5), rounds=4, observers=[umbel.track(where)])
    found = numbers(tmp_path / "csv" / f"{first.run}.csv")
    assert found[: len(before)] == before
    assert len(set(found)) == len(found)
    assert {row[0] for row in found} == {"1", "2", "3", "4"}


@pytest.mark.slow
def test_a_run_without_a_folder_is_tracked_too(tmp_path: Path) -> None:
    done = umbel.run(
        app(), on=umbel.Simulation(clients=5), rounds=1, folder=None, observers=[umbel.track(f"csv:{tmp_path}")]
    )
    assert rows(tmp_path / f"{done.run}.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"),
    [("begin", "nobody there"), ("write", "ValueError: not these"), ("exit", "code 3: no more room")],
)
def test_a_tracker_that_fails_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        observers = [Tracking(Failing(where))]
        done = umbel.run(app(), on=umbel.Simulation(clients=5), rounds=2, folder=tmp_path, observers=observers)
    assert done.rounds == 2
    told = [record.message for record in caplog.records if "Failing" in record.message]
    assert len(told) == 1
    assert said in told[0]


@pytest.mark.slow
def test_what_fails_while_the_run_goes_on_is_in_its_log(tmp_path: Path) -> None:
    tracking = Tracking(Failing("write"))

    def wait(event: umbel.events.RoundCommitted, model: umbel.Arrays) -> None:
        while event.round == 1 and not tracking._said and tracking._process and tracking._process.poll() is None:
            os.sched_yield()

    done = umbel.run(
        app(), on=umbel.Simulation(clients=5), rounds=3, folder=tmp_path, observers=[tracking], on_round=wait
    )
    assert done.folder is not None
    warned = [event.text for event in read_log(done.folder).events if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "the observer Failing raised TrackingFailed: ValueError: not these" in warned[0]


@pytest.mark.slow
def test_the_end_of_the_runs_process_ends_the_record(tmp_path: Path) -> None:
    """Whose run is killed has what was told until then."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import umbel
from tests.trackers.test_reading import app
tracking = umbel.track("csv:{tmp_path / "csv"}")
def die(event, model):
    if event.round == 2:
        print(tracking._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
umbel.run(app(), on=umbel.Simulation(clients=5), rounds=4, folder={str(tmp_path)!r}, observers=[tracking], on_round=die)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tracker = int(done.stdout)
    while Path(f"/proc/{tracker}").exists() and "Z" not in Path(f"/proc/{tracker}/stat").read_text().split()[2]:
        os.sched_yield()
    (path,) = (tmp_path / "csv").iterdir()
    assert {row["round"] for row in rows(path)} <= {"1", "2"}


def test_trackers_are_named() -> None:
    for name in PLACES:
        if find_spec({"parquet": "pyarrow"}.get(name, name)) is None:
            continue
        made = tracker_of(f"{name}:place")
        assert (made.where, tracker_of(name).where, tracker_of(made)) == ("place", None, made)
    for wrong in ("csvs", "", "csv:", ":x"):
        with pytest.raises(SettingError, match="names no tracker"):
            tracker_of(wrong)


def test_a_tracker_whose_package_is_missing_says_what_to_install() -> None:
    class Nowhere(Tracker):
        needs = "a_package_that_is_not_there"

    with pytest.raises(SettingError, match="needs the package"):
        Nowhere()


def test_a_tracker_that_cannot_travel_is_told_of_at_once_and_nothing_waits_for_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Open(Failing):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    monkeypatch.setattr(subprocess, "Popen", None)  # no process is begun, which would wait for what it is to do
    federation = umbel.Simulation(clients=5, workers=0)
    umbel.run(app(), on=federation, rounds=1, folder=None, observers=[Tracking(Open())])
    assert ["cannot pickle" in record.message for record in caplog.records] == [True]


def test_what_a_full_disk_did_not_take_is_in_the_file_once_when_there_is_room(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tracker = CSV(str(tmp_path))
    tracker.begin("a", {})
    told = [RoundPoints(r, 0.0, [Point("train.loss", 1 / 3)] * 20) for r in range(1, 5)]
    tracker.write(told[:1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tracker.write(told[1:3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    tracker.write(told[1:3])
    tracker.write(told[3:])
    tracker.end("rounds", None)
    assert [row["round"] for row in rows(tmp_path / "a.csv")] == [r for r in "1234" for _ in range(20)]


def test_names_are_written_as_mlflow_takes_them_and_none_is_another() -> None:
    odd = ["a<50", "a>50", "a//b", "tail/", "/top", "../up", "a/../b", "...", "", "x y", "é", "a\nb", "l" * 400]
    odd.append(odd[-1] + "l")
    assert [name for name, _ in _named([("train/loss", 1.0), ("clients/3/train/loss.q05", 1.0)])] == [
        "train/loss", "clients/3/train/loss.q05"
    ]  # fmt: skip
    names = [name for name, _ in _named((name, 1.0) for name in odd)]
    assert len(set(names)) == len(odd)
    for name in names:
        assert re.fullmatch(r"[\w\-./: ]{1,250}", name)
        assert posixpath.normpath(name) == name
        assert not name.startswith((".", "/"))


def test_a_tracking_that_never_began_closes_in_silence() -> None:
    tracking = umbel.track("csv")
    tracking.close()
