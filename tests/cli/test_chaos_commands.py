"""`umbel chaos` says what was seen to have happened, and fails where a run's bits differ."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from umbel.cli import chaos_commands
from umbel.errors import RunFailed, SettingError
from umbel.testing.chaos import DrillVerdict

APP = str(Path(__file__).parents[1] / "testing" / "differing.py") + ":same"
ORDER = {"kills": 2, "runs": 2, "nodes": 2, "relays": 0, "clients": 2, "seed": 5, "rounds": None}


@pytest.fixture
def drilled(monkeypatch, tmp_path):
    """`umbel chaos` with runs whose ends are given: True for the same bits."""

    def command(ends, drills="kill,cut", skipped=None, json=False):
        def drill(subjects, order, folder, told):
            verdicts = [
                DrillVerdict(subjects[0].reference, order.seed + n, 9, "a", same=same) for n, same in enumerate(ends)
            ]
            for verdict in verdicts:
                verdict.seen = Counter({("kill", "node"): 1, ("cut", "relay"): 2})
                verdict.tried = Counter(kill=2, cut=2)
                verdict.error = "" if verdict.same else "its model is b instead of a"
                told(verdict)
            return verdicts

        monkeypatch.setattr(chaos_commands, "drill", drill)
        monkeypatch.setattr(chaos_commands, "unavailable", lambda drills, folder: skipped or {})
        chaos_commands.chaos([APP], ORDER, drills, tmp_path / "logs", json=json)

    return command


def test_the_table_counts_what_was_seen(drilled, capsys):
    drilled([True, True])
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["kill", "2", "2", "4"] in rows  # of nodes, of all, tried
    assert ["runs", "with", "the", "same", "bits", "2", "2"] in rows
    assert printed.err.count("kill 1, cut 2: the same bits") == 2


def test_a_run_with_other_bits_fails(drilled, capsys):
    with pytest.raises(RunFailed, match="1 of 2 runs did not end as their simulation did") as caught:
        drilled([True, False])
    assert "logs" in caught.value.hint
    printed = capsys.readouterr()
    assert "b instead of a" in printed.err
    assert "same bits 1 2" in " ".join(printed.out.split())


def test_as_json(drilled, capsys):
    drilled([True, True], json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["same"] == 2
    assert found["seen"] == {"kill": {"node": 2}, "cut": {"relay": 4}}
    assert [(run["seed"], run["same"], run["kill"]) for run in found["runs"]] == [(5, True, 1), (6, True, 1)]


def test_what_cannot_be_had_is_said(drilled, capsys):
    drilled([True], "kill,fill", {"fill": "no file system can be mounted here"}, json=True)
    printed = capsys.readouterr()
    assert "without the drill fill" in printed.err
    assert json.loads(printed.out)["skipped"] == {"fill": "no file system can be mounted here"}


def test_drills_that_are_none(drilled):
    with pytest.raises(SettingError, match="drills are kill, stop"):
        drilled([True], "kill,clock")


def test_a_folder_with_the_logs_of_others_is_left_alone(drilled, tmp_path):
    (tmp_path / "logs" / "run-00").mkdir(parents=True)
    with pytest.raises(SettingError, match="logs of drills already"):
        drilled([True])
