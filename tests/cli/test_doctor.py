"""What `umbel server doctor` finds."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from umbel.cli import doctor
from umbel.cli.program import program
from umbel.work import confinement
from umbel.work.confinement import SCOPES, landlock_abi

whole = pytest.mark.skipif(landlock_abi() < SCOPES, reason="this kernel has no Landlock of version 6")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "server"
    (place / "authority").mkdir(parents=True)
    (place / "runs").mkdir()
    for name in ("operator.json", "server.db", "authority/authority.key"):
        (place / name).write_text("a secret")
    return place


def asked(*arguments):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(program, ["server", "doctor", *arguments])
    return found.exit_code, found.stdout


@whole
@pytest.mark.parametrize("there", [True, False])
def test_where_all_is_isolated_it_is_content(folder, tmp_path, there):
    code, told = asked("--json", "--dir", str(folder if there else tmp_path / "nowhere"))
    rows = [row for row in json.loads(told) if row["check"] != "user"]
    assert code == 0
    assert len(rows) == (7 if there else 3)
    assert all(row["isolated"] for row in rows)
    assert not (tmp_path / "nowhere").exists()


@whole
def test_it_prints_a_table(folder):
    code, told = asked("--dir", str(folder))
    assert code == 0
    assert "reading authority/authority.key" in told
    assert "CRITICAL" not in told


@pytest.mark.skipif(not confinement.LINUX, reason="needs /proc")
def test_what_a_run_could_read_is_critical(folder, monkeypatch):
    class Open(confinement.Confinement):
        def command(self, module, *arguments):
            python, *rest = super().command(module, *arguments)
            order = json.loads(rest[3])
            return (python, *rest[:3], json.dumps({**order, "hidden": [], "write": [str(folder)]}), *rest[4:])

    monkeypatch.setattr(doctor, "Confinement", Open)
    code, told = asked("--json", "--dir", str(folder))
    found = {row["check"] for row in json.loads(told) if row["critical"] and not row["isolated"]}
    assert code == 3
    assert {"reading operator.json", "writing to the server's folder"} <= found


def test_what_the_system_lacks_is_told_and_critical_where_it_is(folder, monkeypatch):
    monkeypatch.setattr(doctor, "_tried", lambda folder: [])
    monkeypatch.setattr(doctor, "lacking", lambda: [("files are open", True), ("signals are", False)])
    code, told = asked("--json", "--dir", str(folder))
    notes = [row["note"] for row in json.loads(told) if row["check"] == "system"]
    assert (code, notes) == (3, ["files are open", "signals are"])
    monkeypatch.setattr(doctor, "lacking", lambda: [("signals are", False)])
    assert asked("--dir", str(folder))[0] == 0


def test_root_is_told_that_there_is_something_better(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert [row.critical for row in doctor._told() if row.check == "user"] == [False]
