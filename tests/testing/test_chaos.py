"""Drills count what has happened, and find a run whose bits are not those of its simulation."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from umbel.cli.application import load
from umbel.testing import chaos
from umbel.testing.chaos import DrillVerdict, Order, Subject, drill, unavailable
from umbel.testing.machines import Machines
from umbel.testing.strikes import DRILLS

APPS = Path(__file__).with_name("differing.py")


def subject(name):
    return Subject(f"{APPS}:{name}", load(f"{APPS}:{name}").app)


def test_kills_are_dealt_to_runs():
    order = Order(kills=10, runs=3)
    assert [order.share(number) for number in range(3)] == [4, 3, 3]
    assert order.wanted(0, "kill") == 4
    assert order.wanted(0, "cut") == 2


def test_a_run_is_long_enough():
    app = subject("same").app
    assert Order(kills=300, runs=12).length(0, app) > 2 * 25
    assert Order(kills=1, runs=1, drills=("kill",), rounds=3).length(0, app) == 3


@pytest.mark.parametrize(
    "wrong", [{"drills": ("kill", "flood")}, {"drills": ("cut",)}, {"kills": 0}, {"nodes": 7}, {"runs": 0}]
)
def test_orders_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"drills are|at least one|clients"):
        Order(**wrong)


def test_what_was_seen_is_counted_by_its_drill():
    verdict = DrillVerdict("app.py", 1, 4, "a")
    verdict.seen = Counter({("kill", "node"): 2, ("kill", "run"): 1, ("cut", "node"): 4})
    assert [verdict.times(name) for name in ("kill", "cut", "stop")] == [3, 4, 0]


def test_a_disk_that_cannot_be_had_is_told(tmp_path, monkeypatch):
    def refused(said, **more):
        raise subprocess.CalledProcessError(32, said)

    monkeypatch.setattr(chaos.subprocess, "run", refused)
    assert "mount" in unavailable(tuple(DRILLS), tmp_path)["fill"]
    assert unavailable(("kill", "stop"), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


@linux
@pytest.mark.slow
def test_three_kills(tmp_path):
    told = []
    order = Order(kills=3, runs=1, nodes=2, relays=1, clients=2)
    (verdict,) = drill([subject("same")], order, tmp_path, told.append)
    assert told == [verdict]
    assert verdict.same, f"{verdict.error}\n{verdict.report}"
    assert all(verdict.times(name) >= order.wanted(0, name) for name in ("kill", "stop", "cut")), verdict.seen
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.slow
def test_other_bits_are_found(tmp_path):
    order = Order(kills=1, runs=1, nodes=1, relays=0, clients=1, drills=("kill",), rounds=4)
    (verdict,) = drill([subject("other")], order, tmp_path)
    assert not verdict.same
    assert "instead of" in verdict.error
    assert verdict.folder is not None
    assert "instead of" in (verdict.folder / "report.txt").read_text()
    assert list((verdict.folder / "printed").iterdir())


@linux
def test_what_does_not_even_start_is_no_run_with_the_same_bits(tmp_path, monkeypatch):
    def refuses(machines, *arguments, **more):
        raise OSError("no more processes")

    monkeypatch.setattr(Machines, "program", refuses)
    order = Order(kills=1, runs=2, nodes=1, relays=0, clients=1, drills=("kill",))
    verdicts = drill([subject("same")], order, tmp_path)
    assert [(verdict.same, verdict.error) for verdict in verdicts] == [(False, "OSError: no more processes")] * 2
